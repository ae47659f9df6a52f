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
        )
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
    /// How long nothing happens before.
    pub(crate) pause: Duration,
    /// How long it lasts, if it lasts.
    pub(crate) holds: Duration,
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

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.random);
        }
        let kind = self.deck.pop()?;
        let random = &mut self.random;
        let target = if random.random_bool(0.6) {
            Target::Leader
        } else {
            Target::Node(random.random_range(0..self.nodes))
        };
        let other = random.random_range(1..self.nodes.max(2));
        let mut millis = |range: std::ops::Range<u64>| Duration::from_millis(random.random_range(range));
        Some(Planned { kind, target, other, pause: millis(300..1500), holds: millis(500..3500) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_every_kind_comes_once_a_round() {
        let kinds: BTreeSet<Kind> = Kind::value_variants().iter().copied().collect();
        let of = |seed| Schedule::new(seed, &kinds, 3).take(3 * kinds.len()).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        for round in of(7).chunks(kinds.len()) {
            assert_eq!(round.iter().map(|planned| planned.kind).collect::<BTreeSet<_>>(), kinds);
            assert!(round.iter().all(|planned| (1..3).contains(&planned.other)));
        }
    }
}
