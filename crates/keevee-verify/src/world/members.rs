//! Members that change: a fault asks for others, replicas bring it about, and when it is done all maps say so.
//!
//! As in production, what is on a node's disk stays there when it takes part no longer.

use std::collections::BTreeSet;

use keevee_core::ids::{NodeId, ShardId};
use keevee_replica::Members;

use super::groups::with_members;
use super::{Liveness, World};
use crate::coverage::Counter;

/// Fewer would be none if one more goes.
const MEMBERS_MIN: usize = 2;

impl World {
    /// One member of a shard shall go, if there are enough, and another node come, if there is one. One change at a time.
    pub(crate) fn change_members(&mut self, shard: ShardId, leaves: u64, joins: bool) {
        if self.is_changing_members(shard) {
            return;
        }
        let mut members = self.groups[shard].members.clone();
        let newcomer = (1..=self.plan.nodes).find(|id| joins && !members.contains(id));
        if members.len() > MEMBERS_MIN || newcomer.is_some() {
            members.remove(&leaves);
        }
        members.extend(newcomer);
        if members == self.groups[shard].members {
            return;
        }
        self.trace.note(self.now, || format!("the members of shard {shard} shall be {members:?}"));
        let group = &mut self.groups[shard];
        group.hosts.extend(&members);
        group.members = members;
        group.is_changing = true;
        if let Some(newcomer) = newcomer {
            self.host(newcomer, shard);
        }
    }

    /// A node gets a replica, on what its disk may hold of earlier.
    fn host(&mut self, id: u64, shard: ShardId) {
        let owned = self.groups[shard].owned.clone();
        let (seed, boot) = (self.random.next(), self.random.next());
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.disk.add(shard, owned);
        let runs = node.process.as_ref().is_some_and(|process| !process.shards.contains_key(&shard));
        if runs {
            self.insert_replica(id, shard, seed, boot);
        }
    }

    /// Tells the replicas of a node that lead which members there shall be, as a node does that has looked at the map.
    pub(crate) fn tell_wanted(&mut self, id: u64) {
        let changing: Vec<ShardId> =
            self.groups.ids().filter(|shard| self.is_changing_members(*shard)).collect();
        for shard in changing {
            let wanted: BTreeSet<NodeId> = self.groups[shard].members.iter().copied().map(NodeId).collect();
            let Some(node) = self.nodes.get_mut(&id) else { return };
            let now = node.clock.read(self.now).monotonic;
            let Some(process) = &mut node.process else { return };
            if let Some(replica) = process.touch(shard) {
                let ballot = replica.status().engine.ballot;
                replica.want_voters(now, &ballot, wanted);
            }
        }
    }

    /// True until those take part that shall, and maps say so.
    pub(crate) fn is_changing_members(&self, shard: ShardId) -> bool {
        self.groups[shard].is_changing
    }

    /// The leader says that a change is done: all maps say so. Whose replica takes part no longer has it parked until the process
    /// ends.
    pub(crate) fn end_change_of_members(&mut self, shard: ShardId, leader: Option<u64>) {
        let Some(leader) = leader.filter(|_| self.is_changing_members(shard)) else { return };
        let wanted = Members::of_voters(self.groups[shard].members.iter().copied().map(NodeId));
        let process = self.nodes[&leader].process.as_ref();
        let status =
            process.and_then(|process| process.shards.get(&shard)).map(|replica| replica.status().engine);
        if !status.is_some_and(|status| status.members == wanted && status.are_members_known) {
            return;
        }
        self.coverage.note(Counter::MembersChanged);
        self.trace.note(self.now, || format!("the members of shard {shard} are as they shall be"));
        let members = self.groups[shard].members.clone();
        self.groups.set_members(shard, members.clone());
        self.changed();
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            with_members(&mut node.map, shard, &members);
            if let Some(process) = node.process.as_mut().filter(|_| !members.contains(&id)) {
                // From now on others tell.
                process.learn_leader(shard, None);
            }
        }
    }

    /// After healing: every change comes to its end.
    pub(crate) fn demand_members(&mut self) {
        let is_changing = |world: &World| world.groups.ids().any(|shard| world.is_changing_members(shard));
        if !is_changing(self) {
            return;
        }
        // Each step waits for the one before, and may wait for a leader; a newcomer may have to fetch all there is.
        let patience = 4 * self.plan.settling() + self.patience();
        let is_done = self.run_until(self.now + patience, |world| !is_changing(world));
        if !is_done && self.violation.is_none() {
            let what = format!("members do not become what they shall be: {}", self.describe_nodes());
            self.break_rule(Liveness::NAME, what);
        }
    }
}
