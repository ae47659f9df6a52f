//! Faults, as a plan lists them: how each begins, and how it ends.

use std::collections::{BTreeMap, BTreeSet};

use keevee_core::ids::ShardId;

use super::members::Change;
use super::{Event, PeerMessage, World};
use crate::coverage::Counter;
use crate::oracles::Leader;
use crate::plan::{DiskDamage, EngineKind, Fault, FaultKind, Shape, Target, Unsynced};

/// The faults in force, each with the node that it struck.
#[derive(Default)]
pub(crate) struct Afflictions(BTreeMap<usize, Affliction>);

struct Affliction {
    kind: FaultKind,
    node: u64,
    cut: BTreeSet<(u64, u64)>,
    /// Of [`FaultKind::CutInChange`]: how many writes of a configuration are to come until it begins.
    writes_left: u64,
    /// What was sent on the cut links, if it is to come in the end.
    held: Vec<(u64, u64, PeerMessage)>,
}

impl Afflictions {
    /// What is sent on a cut link until its end, if the fault that cut it holds messages back.
    pub(crate) fn held(&mut self, from: u64, to: u64) -> Option<&mut Vec<(u64, u64, PeerMessage)>> {
        let holds = |affliction: &&mut Affliction| {
            matches!(affliction.kind, FaultKind::Partition { holds: true, .. })
                && affliction.cut.contains(&(from, to))
        };
        self.0.values_mut().find(holds).map(|affliction| &mut affliction.held)
    }

    /// Of each fault in force: what is counted if the group makes progress in spite of it.
    pub(crate) fn calms(&self) -> Vec<Counter> {
        let calms = |affliction: &Affliction| match affliction.kind {
            FaultKind::Partition { shape, .. } => vec![
                Counter::CalmsJudged,
                match shape {
                    Shape::Isolate(_) | Shape::Split(_) => Counter::SplitCalms,
                    Shape::Mute(_) | Shape::Deaf(_) | Shape::OneWaySplit(_) | Shape::HalfLink(..) => {
                        Counter::OneWayCalms
                    }
                    Shape::Hub(_) => Counter::HubCalms,
                    Shape::Constrained(_) => Counter::ConstrainedCalms,
                    Shape::Chain => Counter::ChainCalms,
                    Shape::Link(..) => Counter::LinkCalms,
                },
            ],
            FaultKind::SlowElection { .. } => vec![Counter::CalmsJudged, Counter::SlowCalms],
            _ => vec![Counter::CalmsJudged],
        };
        self.0.values().flat_map(calms).collect()
    }

    /// True if a cut is to begin when a configuration reaches a disk.
    pub(crate) fn await_change(&self) -> bool {
        self.0.values().any(|affliction| affliction.writes_left > 0)
    }

    /// False while messages are lost or late, a disk is slow, or a process is about to die: then nothing is
    /// demanded. Messages that come twice are no excuse.
    pub(crate) fn are_quiet(&self) -> bool {
        !self.0.values().any(|affliction| {
            matches!(
                affliction.kind,
                FaultKind::Loss { .. }
                    | FaultKind::Delay { .. }
                    | FaultKind::SlowDisk { .. }
                    | FaultKind::CrashInWrite { .. }
                    | FaultKind::CrashInApply { .. }
                    | FaultKind::CrashInChange { .. }
                    | FaultKind::CrashInNewFile { .. }
                    | FaultKind::FailSync { .. }
                    | FaultKind::FullDisk { .. }
                    | FaultKind::FailReads { .. }
                    | FaultKind::DamageDisk { damage: DiskDamage::Misdirected, .. }
            )
        })
    }

    /// How many times longer than usual a group may take to settle.
    pub(crate) fn patience(&self, engine: EngineKind) -> u64 {
        let is_slow = |affliction: &Affliction| matches!(affliction.kind, FaultKind::SlowElection { .. });
        if self.0.values().any(is_slow) { engine.slow_patience() } else { 1 }
    }
}

impl World {
    /// The faults changed: what the groups owe is counted from now on.
    pub(crate) fn changed(&mut self) {
        let now = self.now;
        self.groups.iter_mut().for_each(|group| group.oracles.liveness.changed(now));
    }

    pub(crate) fn begin_fault(&mut self, place: usize) {
        if self.healed {
            return;
        }
        let Fault { number, lasts, kind, .. } = self.plan.faults[place].clone();
        // The one whose leader is meant.
        let shard = ShardId(1 + (number as u32 - 1) % self.plan.shards.count);
        let node = target_of(&kind).map_or(0, |target| self.resolve(shard, target));
        self.trace.note(self.now, || format!("fault {number} begins: {kind:?}, node {node}"));
        self.changed();
        let (mut cut, mut writes_left) = (BTreeSet::new(), 0);
        match &kind {
            FaultKind::Crash { unsynced, resets, .. } => self.crash(node, *unsynced, *resets),
            FaultKind::CrashAll { unsynced } => {
                if self.nodes.values().any(|node| node.process.is_some()) {
                    self.coverage.note(Counter::CrashesOfAll);
                }
                for id in self.ids() {
                    self.crash(id, *unsynced, false);
                }
            }
            FaultKind::CrashInWrite { unsynced, .. } => {
                self.node_mut(node).crashes_in_write = Some(*unsynced)
            }
            FaultKind::CrashInChange { unsynced, .. } => {
                self.node_mut(node).crashes_in_change = Some(*unsynced)
            }
            FaultKind::CrashInNewFile { unsynced, .. } => {
                let struck = self.node_mut(node);
                struck.disk.set_slow_to_write_out(true);
                struck.crashes_in_new_file = Some(*unsynced);
            }
            FaultKind::CrashInApply { .. } => self.node_mut(node).disk.set_dying(true),
            FaultKind::DamageDisk { damage, .. } => self.damage_disk(node, *damage),
            FaultKind::FailReads { dies, .. } => {
                self.node_mut(node).disk.set_unreadable(true);
                if *dies {
                    self.crash(node, Unsynced::Some, false);
                    self.start(node);
                }
            }
            FaultKind::FullDisk { .. } => self.node_mut(node).disk.set_full(true),
            FaultKind::FailSync { .. } => self.node_mut(node).sync_fails = true,
            FaultKind::Pause { .. } => {
                self.node_mut(node).pauses += 1;
                self.note_if_up(node, Counter::Pauses);
            }
            FaultKind::Stall { .. } => {
                self.node_mut(node).stalls += 1;
                self.note_if_up(node, Counter::Stalls);
            }
            FaultKind::ClockJump { offset, .. } => {
                self.note_clocks();
                self.node_mut(node).clock.jump_to(*offset);
                self.coverage.note(Counter::ClockJumps);
            }
            FaultKind::Reset { .. } => self.reset(node),
            FaultKind::Transfer => self.transfer(shard),
            FaultKind::Scrub => self.scrub(shard),
            FaultKind::ChangeMembers { joins, count, lingers, .. } => {
                let (joins, count, lingers) = (*joins, *count, *lingers);
                self.change_members(shard, Change { leaves: node, joins, count, lingers });
            }
            FaultKind::CutInChange { writes, .. } => writes_left = *writes,
            FaultKind::Partition { shape, .. } => {
                cut = self.begin_partition(place, shard, *shape);
                self.note_cut(*shape, &cut);
            }
            FaultKind::SlowElection { .. } => {
                let leader = self.leader_or(shard, 1);
                self.note_if_up(leader, Counter::SlowElections);
                self.crash(leader, Unsynced::Lost, false);
                self.start(leader);
            }
            FaultKind::SlowDisk { .. } => self.note_if_up(node, Counter::SlowDisks),
            FaultKind::Loss { .. } => self.coverage.note(Counter::Losses),
            FaultKind::Delay { .. } => self.coverage.note(Counter::Delays),
            FaultKind::Duplicates { .. } => {}
        }
        self.afflictions.0.insert(place, Affliction { kind, node, cut, writes_left, held: Vec::new() });
        self.apply_afflictions();
        self.after(lasts, Event::FaultEnds { fault: place });
    }

    pub(crate) fn end_fault(&mut self, place: usize) {
        let Some(Affliction { kind, node, held, .. }) = self.afflictions.0.remove(&place) else {
            return;
        };
        let number = self.plan.faults[place].number;
        self.trace.note(self.now, || format!("fault {number} ends"));
        self.changed();
        self.apply_afflictions();
        held.into_iter().for_each(|(from, to, message)| self.send(from, to, message));
        match kind {
            FaultKind::Crash { .. } => self.start(node),
            FaultKind::CrashInWrite { .. } | FaultKind::CrashInApply { .. } | FaultKind::FailSync { .. } => {
                let struck = self.node_mut(node);
                (struck.crashes_in_write, struck.sync_fails) = (None, false);
                struck.disk.set_dying(false);
                self.start(node);
            }
            FaultKind::CrashInChange { .. } => {
                self.node_mut(node).crashes_in_change = None;
                self.start(node);
            }
            FaultKind::CrashInNewFile { .. } => {
                let struck = self.node_mut(node);
                struck.disk.set_slow_to_write_out(false);
                struck.crashes_in_new_file = None;
                self.start(node);
            }
            FaultKind::DamageDisk { damage, .. } => self.end_damage(node, damage),
            FaultKind::FailReads { .. } => {
                self.node_mut(node).disk.set_unreadable(false);
                self.start(node);
            }
            FaultKind::FullDisk { .. } => {
                self.node_mut(node).disk.set_full(false);
                self.start(node);
            }
            FaultKind::CrashAll { .. } => self.ids().into_iter().for_each(|id| self.start(id)),
            FaultKind::Pause { .. } => self.wake(node),
            FaultKind::Stall { .. } => {
                let struck = self.node_mut(node);
                struck.stalls -= 1;
                if struck.stalls == 0 && std::mem::take(&mut struck.sync_is_late) {
                    let life = struck.life;
                    self.after(0, Event::Synced { node, life });
                }
            }
            _ => {}
        }
    }

    /// Everything ends, whatever was still to last.
    pub(crate) fn heal(&mut self) {
        self.trace.note(self.now, || "everything heals".to_owned());
        self.healed = true;
        let in_force: Vec<usize> = self.afflictions.0.keys().copied().collect();
        in_force.into_iter().for_each(|place| self.end_fault(place));
        self.ids().into_iter().for_each(|id| self.start(id));
        let shards: Vec<ShardId> = self.groups.ids().collect();
        shards.into_iter().for_each(|shard| self.park(shard));
        self.changed();
    }

    /// The process goes on, with all that came meanwhile.
    fn wake(&mut self, id: u64) {
        let node = self.node_mut(id);
        node.pauses -= 1;
        if node.pauses == 0 {
            let held = std::mem::take(&mut node.held);
            held.into_iter().for_each(|event| self.after(0, event));
        }
    }

    /// Brings network and disks in line with the faults in force.
    fn apply_afflictions(&mut self) {
        self.network.heal();
        let usual = self.plan.settings.sync_max;
        self.nodes.values_mut().for_each(|node| (node.sync_min, node.sync_max) = (usual / 10, usual));
        for affliction in self.afflictions.0.values() {
            match affliction.kind {
                FaultKind::Loss { percent } => self.network.loss_percent = percent,
                FaultKind::Duplicates { percent } => self.network.duplicate_percent = percent,
                FaultKind::Delay { percent, latency_max } => {
                    (self.network.delay_percent, self.network.delay_max) = (percent, latency_max);
                }
                FaultKind::SlowElection { sync } => {
                    self.nodes.values_mut().for_each(|node| (node.sync_min, node.sync_max) = (sync, sync));
                }
                FaultKind::SlowDisk { sync_max, .. } => {
                    if let Some(node) = self.nodes.get_mut(&affliction.node) {
                        node.sync_max = sync_max;
                    }
                }
                FaultKind::Partition { .. } | FaultKind::CutInChange { .. } => {
                    self.network.cut.extend(&affliction.cut);
                }
                _ => {}
            }
        }
    }

    pub(super) fn node_mut(&mut self, id: u64) -> &mut super::Node {
        self.nodes.get_mut(&id).expect("faults strike nodes of the plan")
    }

    fn resolve(&mut self, shard: ShardId, target: Target) -> u64 {
        let nodes = self.plan.nodes;
        let node = match target {
            Target::Node(node) => node,
            Target::Leader => self.leader_or(shard, 1),
            Target::Follower(places) => (self.leader_or(shard, 1) + places - 1) % nodes + 1,
        };
        self.stand_in(node)
    }

    fn leader_or(&self, shard: ShardId, other: u64) -> u64 {
        self.leading(shard).map_or(other, |leader| leader.node)
    }

    /// A fault that finds nobody there is none.
    fn note_if_up(&mut self, id: u64, counter: Counter) {
        if self.nodes[&id].process.is_some() {
            self.coverage.note(counter);
        }
    }

    fn note_cut(&mut self, shape: Shape, cut: &BTreeSet<(u64, u64)>) {
        let counter = match shape {
            _ if cut.is_empty() => return,
            Shape::Isolate(_) | Shape::Split(_) => Counter::Partitions,
            Shape::Mute(_) | Shape::Deaf(_) | Shape::OneWaySplit(_) | Shape::HalfLink(..) => {
                Counter::OneWayPartitions
            }
            Shape::Hub(_) | Shape::Constrained(_) | Shape::Chain | Shape::Link(..) => {
                Counter::PartialPartitions
            }
        };
        self.coverage.note(counter);
    }

    fn reset(&mut self, id: u64) {
        self.note_if_up(id, Counter::Resets);
        for other in self.ids().into_iter().filter(|other| *other != id) {
            self.send(id, other, PeerMessage::Reset);
            self.send(other, id, PeerMessage::Reset);
        }
    }

    /// Whoever leads has the replicas look at their states.
    fn scrub(&mut self, shard: ShardId) {
        let Some(Leader { node: leader, .. }) = self.leading(shard) else { return };
        let now = self.nodes[&leader].clock.read(self.now).monotonic;
        let process = self.node_mut(leader).process.as_mut();
        let Some(replica) = process.and_then(|process| process.touch(shard)) else { return };
        replica.scrub(now);
        self.settle(leader);
    }

    fn transfer(&mut self, shard: ShardId) {
        let Some(Leader { node: leader, .. }) = self.leading(shard) else { return };
        let now = self.nodes[&leader].clock.read(self.now).monotonic;
        let process = self.node_mut(leader).process.as_mut();
        let Some(replica) = process.and_then(|process| process.touch(shard)) else { return };
        replica.transfer_leadership(now, None);
        self.settle(leader);
    }

    fn begin_partition(&mut self, place: usize, shard: ShardId, shape: Shape) -> BTreeSet<(u64, u64)> {
        let leader = self.leader_or(shard, 1);
        if let Shape::Constrained(hub) = shape {
            let hub = self.resolve(shard, hub);
            // First the hub misses some entries, but not the time to notice.
            let span = self.plan.settings.timeout_min / 2;
            self.after(span, Event::FaultTurns { fault: place, hub, leader });
            return self.links(|from, to| from == hub || to == hub);
        }
        let node = |world: &mut World, target| world.resolve(shard, target);
        match shape {
            Shape::Isolate(target) => {
                let alone = node(self, target);
                self.links(|from, to| from == alone || to == alone)
            }
            Shape::Split(sides) => self.links(|from, to| (sides >> from ^ sides >> to) & 1 == 1),
            Shape::Mute(target) => {
                let mute = node(self, target);
                self.links(|from, _| from == mute)
            }
            Shape::Deaf(target) => {
                let deaf = node(self, target);
                self.links(|_, to| to == deaf)
            }
            Shape::OneWaySplit(sides) => {
                self.links(|from, to| sides >> from & 1 == 1 && sides >> to & 1 == 0)
            }
            Shape::Hub(target) => {
                let hub = node(self, target);
                self.links(|from, to| from != hub && to != hub)
            }
            Shape::Chain => self.links(|from, to| from.abs_diff(to) > 1),
            Shape::Link(target, places) | Shape::HalfLink(target, places) => {
                let one = node(self, target);
                let other = (one + places - 1) % self.plan.nodes + 1;
                let half = matches!(shape, Shape::HalfLink(..));
                self.links(|from, to| (from, to) == (one, other) || !half && (from, to) == (other, one))
            }
            Shape::Constrained(_) => unreachable!("returned above"),
        }
    }

    /// The second part of [`Shape::Constrained`]: the leader is gone, and only the hub reaches the others.
    pub(crate) fn turn_fault(&mut self, place: usize, hub: u64, leader: u64) {
        let cut = self.links(|from, to| from == leader || to == leader || (from != hub && to != hub));
        let Some(affliction) = self.afflictions.0.get_mut(&place) else { return };
        affliction.cut = cut;
        self.changed();
        self.apply_afflictions();
    }

    /// A configuration has reached a disk.
    pub(crate) fn cut_in_change(&mut self, shard: ShardId) {
        let mut begin = None;
        for (place, affliction) in &mut self.afflictions.0 {
            if let FaultKind::CutInChange { shape, .. } = affliction.kind
                && affliction.writes_left > 0
            {
                affliction.writes_left -= 1;
                begin = begin.or((affliction.writes_left == 0).then_some((*place, shape)));
            }
        }
        let Some((place, shape)) = begin else { return };
        let cut = self.begin_partition(place, shard, shape);
        self.note_cut(shape, &cut);
        self.coverage.note(Counter::CutsInChanges);
        let Some(affliction) = self.afflictions.0.get_mut(&place) else { return };
        self.trace.note(self.now, || format!("the network is cut: {shape:?}"));
        affliction.cut = cut;
        self.changed();
        self.apply_afflictions();
    }

    fn links(&self, lost: impl Fn(u64, u64) -> bool) -> BTreeSet<(u64, u64)> {
        let nodes = self.nodes.keys();
        let links = nodes.clone().flat_map(|from| nodes.clone().map(move |to| (*from, *to)));
        links.filter(|(from, to)| from != to && lost(*from, *to)).collect()
    }

    /// A process dies in the middle of a write.
    pub(crate) fn crash_in_write(&mut self, id: u64, life: u64, unsynced: Unsynced) {
        if self.nodes[&id].life == life && !self.healed {
            self.coverage.note(Counter::CrashesInWrite);
            self.crash(id, unsynced, false);
            if self.nodes[&id].crashes_in_change.is_some() {
                self.coverage.note(Counter::CrashesInChanges);
                self.after(self.plan.settings.tick, Event::Restart { node: id });
            }
        }
    }
}

fn target_of(kind: &FaultKind) -> Option<Target> {
    match kind {
        FaultKind::Crash { node, .. }
        | FaultKind::CrashInWrite { node, .. }
        | FaultKind::CrashInApply { node }
        | FaultKind::CrashInChange { node, .. }
        | FaultKind::CrashInNewFile { node, .. }
        | FaultKind::DamageDisk { node, .. }
        | FaultKind::FailReads { node, .. }
        | FaultKind::FullDisk { node }
        | FaultKind::Pause { node }
        | FaultKind::Stall { node }
        | FaultKind::FailSync { node }
        | FaultKind::SlowDisk { node, .. }
        | FaultKind::ClockJump { node, .. }
        | FaultKind::ChangeMembers { node, .. }
        | FaultKind::Reset { node } => Some(*node),
        _ => None,
    }
}
