//! Which faults come when: drawn from the seed, so that a run can be repeated. What is left to chance is how the
//! processes and the machine take them.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// How long there is between faults, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..1500;
/// How long a fault lasts, in milliseconds.
const HOLDS_MS: std::ops::Range<u64> = 500..3500;
/// How probable it is that a fault which may have company has it.
const COMPANY: f64 = 0.4;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// kill -9 of one node, which is started again
    Kill,
    /// kill -9 of all nodes at once
    KillAll,
    /// A node stops for a while and does not know it
    Pause,
    /// One node hears no other, and none hears it
    Isolate,
    /// Two nodes reach each other, and no other one
    Split,
    /// What a node says does not arrive; it hears the others
    OneWay,
    /// Two nodes don't reach each other; both reach the rest
    Partial,
    /// What goes to and from a node takes its time
    SlowLink,
    /// A node is asked to end, hands over what it leads, and is started again
    HandOver,
    /// All nodes are restarted, one after another
    RollingRestart,
    /// All replicas move off a node, and back onto it
    Members,
    /// A node is lost with its disk, and another one comes with another number
    Replace,
    /// All nodes lose their power: kill -9, and what was not synced is gone
    PowerLoss,
    /// Every fsync of a node fails
    FailSync,
    /// Every fsync of a node takes long
    StallSync,
    /// A node's disk has little room left
    LowDisk,
    /// A node's disk has no room left
    FullDisk,
    /// A node's clock jumps, ahead or back, and later back again
    ClockJump,
    /// A bit of a node's log is wrong: the others do without it until it is right, and it joins anew
    FlipLog,
    /// A bit flips in each file of a node's applied state, which it gives up and has from the others
    FlipData,
    /// A bit of the state that a node has from the others flips on its way to the disk: it is to be had once more
    FlipSnapshot,
}

impl Kind {
    /// True of faults of disks and clocks, which not every system can have.
    pub(crate) fn needs_shim(self) -> bool {
        matches!(
            self,
            Kind::PowerLoss
                | Kind::FailSync
                | Kind::StallSync
                | Kind::LowDisk
                | Kind::FullDisk
                | Kind::ClockJump
                | Kind::FlipLog
                | Kind::FlipSnapshot
        )
    }

    /// True if it shows only on a node that has replicas, or leads one, and so strikes leaders. A disk that stalls strikes followers
    /// too, which must hold up nobody.
    pub(crate) fn strikes_leaders(self) -> bool {
        let is_of_disk = self.needs_shim() && self != Kind::StallSync;
        is_of_disk || matches!(self, Kind::FlipData | Kind::Replace | Kind::HandOver)
    }

    /// True if all replicas leave a node for it.
    pub(crate) fn moves_replicas(self) -> bool {
        matches!(self, Kind::Members | Kind::FlipLog | Kind::Replace)
    }

    /// True if nothing is waited for between its beginning and its end.
    fn is_at_once(self) -> bool {
        let of_process = matches!(self, Kind::KillAll | Kind::RollingRestart);
        self.moves_replicas() || of_process || matches!(self, Kind::FlipData | Kind::FlipSnapshot)
    }

    /// True if another one may hold at the same time: not of what befalls all nodes or has every node's help to end.
    fn may_overlap(self) -> bool {
        !self.is_at_once() && self != Kind::PowerLoss
    }

    /// True if a count tells whether it really happened: of what it held back, or of what a disk or a clock did wrong.
    pub(crate) fn is_counted(self) -> bool {
        let tells = matches!(self, Kind::FlipLog | Kind::FlipSnapshot);
        self.is_of_network() || self.needs_shim() && !tells
    }

    fn is_of_network(self) -> bool {
        matches!(self, Kind::Isolate | Kind::Split | Kind::OneWay | Kind::Partial | Kind::SlowLink)
    }

    fn is_of_process(self) -> bool {
        matches!(self, Kind::Kill | Kind::Pause | Kind::HandOver)
    }

    /// True if both may hold at the same time. The network is whole again when one fault of it ends.
    fn goes_with(self, other: Kind) -> bool {
        let of_network = self.is_of_network() && other.is_of_network();
        self.may_overlap() && other.may_overlap() && !of_network
    }

    /// True if both may befall one node: what ends, stops or starts its process is one thing at a time, and so is what its disk
    /// suffers.
    fn goes_with_on_one_node(self, other: Kind) -> bool {
        let may_end = |kind: Kind| kind.is_of_process() || matches!(kind, Kind::FailSync | Kind::FullDisk);
        let both_may_end = may_end(self) && may_end(other);
        self.goes_with(other) && !both_may_end && !(self.needs_shim() && other.needs_shim())
    }

    /// As on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name())
    }
}

/// Whom a fault is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Who leads a data shard then.
    Leader,
    /// A node, from 0.
    Node(usize),
}

/// A fault to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) kind: Kind,
    pub(crate) target: Target,
    /// The other end, of a fault that has two: so many nodes after the target, from 1.
    pub(crate) other: usize,
    /// How long it lasts; nothing if it ends by itself.
    pub(crate) holds: Duration,
    /// Chooses a bit, of a fault that flips one.
    pub(crate) seed: u64,
}

/// A second fault that begins while a first one holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Second {
    pub(crate) fault: Planned,
    /// How long after the first one it begins.
    pub(crate) after: Duration,
    /// True if it must be another node's.
    pub(crate) is_elsewhere: bool,
}

/// What comes next: a fault, sometimes two at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blow {
    /// How long nothing happens before.
    pub(crate) pause: Duration,
    pub(crate) first: Planned,
    pub(crate) second: Option<Second>,
}

impl fmt::Display for Blow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.second {
            None => write!(formatter, "{}", self.first.kind),
            Some(second) => write!(formatter, "{} with {}", self.first.kind, second.fault.kind),
        }
    }
}

/// Faults without end: each kind once, in an order that is drawn, and again.
pub(crate) struct Schedule {
    random: StdRng,
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    nodes: usize,
}

impl Schedule {
    /// Of these kinds, which are not none, over so many nodes.
    pub(crate) fn new(seed: u64, kinds: &BTreeSet<Kind>, nodes: usize) -> Schedule {
        let random = StdRng::seed_from_u64(seed);
        Schedule { random, kinds: kinds.iter().copied().collect(), deck: Vec::new(), nodes }
    }
}

impl Schedule {
    fn planned(&mut self, kind: Kind) -> Planned {
        let random = &mut self.random;
        let target = if random.random_bool(0.6) {
            Target::Leader
        } else {
            Target::Node(random.random_range(0..self.nodes))
        };
        let other = random.random_range(1..self.nodes.max(2));
        // How long those last that do.
        let holds = self.millis(HOLDS_MS);
        let holds = if kind.is_at_once() { Duration::ZERO } else { holds };
        Planned { kind, target, other, holds, seed: self.random.random() }
    }

    /// One of those that are left of the round, and that may hold at the same time as this one.
    fn second(&mut self, first: &Planned) -> Option<Second> {
        let place = self.deck.iter().rposition(|kind| kind.goes_with(first.kind))?;
        let kind = self.deck.remove(place);
        let fault = self.planned(kind);
        let after = first.holds.mul_f64(self.random.random_range(0.0..0.9));
        Some(Second { fault, after, is_elsewhere: !kind.goes_with_on_one_node(first.kind) })
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }
}

impl Iterator for Schedule {
    type Item = Blow;

    fn next(&mut self) -> Option<Blow> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.random);
        }
        let kind = self.deck.pop()?;
        let pause = self.millis(PAUSE_MS);
        let first = self.planned(kind);
        let has_company = self.random.random_bool(COMPANY);
        let second = if has_company { self.second(&first) } else { None };
        Some(Blow { pause, first, second })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BTreeSet<Kind> {
        Kind::value_variants().iter().copied().collect()
    }

    fn kinds(blow: &Blow) -> impl Iterator<Item = Kind> {
        [Some(blow.first.kind), blow.second.as_ref().map(|second| second.fault.kind)].into_iter().flatten()
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_every_kind_comes_once_a_round() {
        let of = |seed| Schedule::new(seed, &all(), 3).take(100).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let drawn: Vec<Kind> = of(7).iter().flat_map(kinds).collect();
        for round in drawn.chunks_exact(all().len()) {
            assert_eq!(round.iter().copied().collect::<BTreeSet<_>>(), all());
        }
        assert!(of(7).iter().all(|blow| (1..3).contains(&blow.first.other)));
    }

    #[test]
    fn some_faults_come_while_others_hold() {
        let blows: Vec<Blow> = Schedule::new(3, &all(), 3).take(1000).collect();
        let pairs: Vec<(&Planned, &Second)> =
            blows.iter().filter_map(|blow| Some((&blow.first, blow.second.as_ref()?))).collect();
        assert!((100..500).contains(&pairs.len()), "{}", pairs.len());
        for (first, Second { fault, after, .. }) in &pairs {
            assert!(*after < first.holds, "the first one holds still");
            assert!(first.kind.goes_with(fault.kind), "{} and {}", first.kind, fault.kind);
        }
        assert!(pairs.iter().any(|(_, second)| second.is_elsewhere));
        assert!(pairs.iter().any(|(_, second)| !second.is_elsewhere));
        let of_one =
            Schedule::new(3, &BTreeSet::from([Kind::Kill]), 3).take(100).all(|blow| blow.second.is_none());
        assert!(of_one, "there is no other kind");
    }

    #[test]
    fn which_faults_go_together() {
        let on_one = |one: Kind, other: Kind| {
            assert_eq!(one.goes_with_on_one_node(other), other.goes_with_on_one_node(one), "{one}, {other}");
            one.goes_with_on_one_node(other)
        };
        for one in all() {
            assert!(all().iter().all(|other| !on_one(one, *other) || one.goes_with(*other)));
        }
        let alone = [
            Kind::KillAll,
            Kind::RollingRestart,
            Kind::Members,
            Kind::Replace,
            Kind::PowerLoss,
            Kind::FlipLog,
            Kind::FlipData,
            Kind::FlipSnapshot,
        ];
        for alone in alone {
            assert!(all().iter().all(|kind| !kind.goes_with(alone)), "{alone}");
        }
        assert!(Kind::Kill.goes_with(Kind::Pause) && !on_one(Kind::Kill, Kind::Pause));
        assert!(on_one(Kind::Isolate, Kind::Kill) && on_one(Kind::StallSync, Kind::OneWay));
        assert!(!on_one(Kind::StallSync, Kind::FailSync), "a disk is healed of all it has");
        assert!(!on_one(Kind::Pause, Kind::FailSync), "what is paused can't end");
        assert!(!Kind::Isolate.goes_with(Kind::SlowLink), "the network is healed as a whole");
    }
}
