//! How a run ends: what is demanded once all faults are healed, and the judgement of those oracles that need to see all of it.
//!
//! It leaves out the healing (`faults.rs`), and progress in general, which is watched all the time (`oracles/liveness.rs`).

use std::cmp::Reverse;

use keevee_core::ids::ShardId;

use super::groups::Group;
use super::node::{HOUSEKEEPING, Replica};
use super::{Event, World};
use crate::coverage::Counter;
use crate::history::Request;
use crate::oracles::{Acknowledged, Atomic, Chains, Held, Honesty, Linearizable, Liveness};
use crate::plan::{FETCHING, Unsynced};

/// So many entries nobody else has, where disks are quick enough: more than a new leader begins with.
const LONELY_WRITES: usize = 6;

impl World {
    /// Demands what must hold in the end, and judges.
    pub(super) fn end(&mut self) {
        self.demand_service();
        self.demand_convergence();
        self.demand_return();
        self.demand_quiet();
        self.judge_the_end();
    }

    /// After healing: a write and a read in each shard through each node succeed.
    fn demand_service(&mut self) {
        self.stop_clients();
        for shard in self.groups.ids() {
            let serving = self.nodes.iter().filter(|(_, node)| !node.is_lost).map(|(id, _)| *id);
            serving.collect::<Vec<_>>().into_iter().for_each(|node| self.visit(shard, node));
        }
        let patience = self.patience();
        let served = self.run_until(self.now + patience, |world| world.visitors_are_served());
        if !served && self.violation.is_none() {
            let what = self.describe_visitors();
            self.break_rule(Liveness::NAME, what);
        }
    }

    /// After that: every replica applies all that is chosen, and nothing waits any more.
    fn demand_convergence(&mut self) {
        let patience = self.patience();
        let converged = self.run_until(self.now + patience, |world| {
            world.nodes.values().all(|node| node.is_lost || node.is_idle())
                && world.groups.iter().all(|group| world.lag(group) == 0)
        });
        self.demand(converged, "replicas lag, or owe answers, long after healing");
    }

    /// Then, where logs keep nothing: a leader that was alone with its last writes comes back after the others have gone on and
    /// dropped all, and catches up though nobody writes any more. The new leader's log is empty then (openraft#1828), and what the
    /// one that comes back holds beyond is of no worth (hashicorp/raft#697).
    fn demand_return(&mut self) {
        let all_work = self.nodes.keys().all(|id| self.works(*id));
        if self.plan.settings.log_bytes_max > 0 || self.violation.is_some() || !all_work {
            return;
        }
        self.stop_looks();
        let shard = self.groups.ids().next().expect("there is a shard");
        let Some(away) = self.leading(shard).map(|leader| leader.node) else { return };
        let mut others = self.groups[shard].members.clone();
        if others.len() < 3 || !others.remove(&away) {
            return;
        }
        others.iter().for_each(|other| self.crash(*other, Unsynced::Kept, true));
        for _ in 0..LONELY_WRITES {
            self.write_at(shard, away, u64::MAX);
            self.run_until(self.now + 2 * self.plan.settings.sync_max, |_| false);
        }
        self.crash(away, Unsynced::Kept, true);
        others.iter().for_each(|other| self.start(*other));
        let patience = 2 * self.plan.settling() + self.plan.settings.flush_every + HOUSEKEEPING;
        let is_dropped = (0..3).any(|_| {
            let is_dropped = self.run_until(self.now + patience, |world| world.has_dropped_all(shard, away));
            // Each flush so far took as much of what there was as was drawn.
            others.iter().for_each(|other| self.nodes[other].disk.state(shard).flush_all());
            is_dropped
        });
        self.demand(is_dropped, "the leader's log is not dropped, though it is to keep nothing");
        self.start(away);
        // The nodes' other shards as well, one snapshot at a time.
        let patience = self.patience() + FETCHING * self.groups.ids().count() as u64;
        let is_back = self
            .run_until(self.now + patience, |world| world.groups.iter().all(|group| world.lag(group) == 0));
        self.demand(is_back, "a member lacks what logs have dropped, and is not helped while nobody writes");
        self.coverage.note(Counter::Returns);
    }

    /// True once the leader's log has nothing, and so nothing of what a node that is away lacks.
    fn has_dropped_all(&self, shard: ShardId, away: u64) -> bool {
        let leader = self.leading(shard).and_then(|leader| self.nodes[&leader.node].process.as_ref());
        leader.is_some_and(|process| {
            let log = process.shards[&shard].status().engine;
            log.first == log.last + 1 && log.first > self.nodes[&away].disk.state(shard).applied() + 1
        })
    }

    /// From here on only what was begun goes on: the oracle of progress would have something written.
    fn stop_looks(&mut self) {
        self.queue.retain(|Reverse(queued)| !matches!(queued.event, Event::Look));
    }

    /// Breaks the rule of progress if something demanded has not come.
    fn demand(&mut self, has_come: bool, what: &str) {
        if !has_come && self.violation.is_none() {
            let what = format!("{what}: {}", self.describe_nodes());
            self.break_rule(Liveness::NAME, what);
        }
    }

    /// At last, where idle shards are quiesced: every replica comes to rest once nobody asks anything.
    fn demand_quiet(&mut self) {
        let Some(idle) = self.plan.shards.idle else { return };
        self.stop_looks();
        let rests = |world: &World, shard: ShardId| {
            let mut processes =
                world.nodes.iter().filter_map(|(id, node)| Some((id, node.process.as_ref()?)));
            let hosts = &world.groups[shard].hosts;
            processes.all(|(id, process)| {
                !hosts.contains(id) || process.shards.get(&shard).is_none_or(Replica::is_quiesced)
            })
        };
        let patience = self.patience() + 4 * (idle + HOUSEKEEPING);
        let all_rest =
            self.run_until(self.now + patience, |world| world.groups.ids().all(|shard| rests(world, shard)));
        let awake: Vec<ShardId> = self.groups.ids().filter(|shard| !rests(self, *shard)).collect();
        self.demand(all_rest, &format!("shards {awake:?} do not rest, though idle for long"));
    }

    /// How long replicas that lag may take: with the smallest windows each entry has to go there and back before
    /// the next one is sent.
    pub(super) fn patience(&self) -> u64 {
        let settings = &self.plan.settings;
        let lag = self.groups.iter().map(|group| self.lag(group)).max().unwrap_or(0);
        self.plan.settling() + lag * 2 * (settings.latency_max + settings.sync_max)
    }

    /// How far a shard's slowest replica is behind.
    pub(super) fn lag(&self, group: &Group) -> u64 {
        group.oracles.agreement.last() - self.applied_by_all(group)
    }

    fn applied_by_all(&self, group: &Group) -> u64 {
        let applied = |id: &u64| self.nodes[id].disk.state(group.id).applied();
        group.members.iter().map(applied).min().unwrap_or(0)
    }

    fn judge_the_end(&mut self) {
        if self.violation.is_some() {
            return;
        }
        self.groups.ids().for_each(|shard| self.judge_the_end_of(shard));
        let honest = Honesty::at_the_end(&self.history);
        self.hold(Honesty::NAME, honest);
        let atomic = Atomic::check(&self.history);
        self.hold(Atomic::NAME, atomic);
        self.count_unknown();
        match Linearizable::check(&self.history) {
            Ok(checked) => self.checked = checked,
            Err(what) => self.break_rule(Linearizable::NAME, what),
        }
        for group in self.groups.iter() {
            let applied = group.members.iter().map(|id| self.nodes[id].disk.state(group.id).applied());
            applied.for_each(|applied| self.trace.fold(applied));
        }
        self.trace.fold(self.events);
    }

    fn judge_the_end_of(&mut self, shard: ShardId) {
        let group = &self.groups[shard];
        let held = group.members.iter().map(|id| (*id, self.nodes[id].disk.state(shard).held()));
        let states: Vec<_> = held.collect();
        let found = |(id, held): &(u64, Held)| {
            group.oracles.acknowledged.found(*id, held, &self.history, &group.placed)
        };
        let found = states.iter().try_for_each(found);
        let states: Vec<_> = states.into_iter().map(|(id, held)| (id, held.values)).collect();
        let same = Chains::compare(&states);
        let is_here = |request: &&Request| {
            request.command.keys().next().is_some_and(|key| self.groups.map.owner(key) == shard)
        };
        let applied = self.applied_by_all(group);
        let survive = Acknowledged::at_the_end(self.history.iter().filter(is_here), applied);
        self.hold(Acknowledged::NAME, found);
        self.hold(Chains::NAME, same);
        self.hold(Acknowledged::NAME, survive);
    }
}
