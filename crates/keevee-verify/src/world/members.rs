//! Members that change: a fault asks for others, replicas bring it about, and when it is done all maps say so.
//!
//! As in production, what is on a node's disk stays there when it takes part no longer.

use std::collections::BTreeSet;

use keevee_core::ids::{NodeId, ShardId};
use keevee_replica::Members;

use super::damage::REPLACING;
use super::groups::with_members;
use super::{Event, Liveness, World};
use crate::coverage::Counter;

/// Fewer would be none if one more goes.
const MEMBERS_MIN: usize = 2;

/// Which change is asked for.
pub(crate) struct Change {
    /// The first one that shall go.
    pub(crate) leaves: u64,
    pub(crate) joins: bool,
    pub(crate) count: u64,
    pub(crate) lingers: u64,
}

impl World {
    /// Members of a shard shall go, if there are enough, and other nodes come, if there are any. One change at a time.
    pub(crate) fn change_members(&mut self, shard: ShardId, change: Change) {
        // Nobody takes a node away while another one is lost.
        if self.is_changing_members(shard) || self.is_short_of_a_node() {
            return;
        }
        let Change { leaves, joins, count, lingers } = change;
        let nodes = self.plan.nodes;
        let before = &self.groups[shard].members;
        let serving = self.nodes.iter().filter(|(_, node)| !node.is_lost).map(|(id, _)| *id);
        let others = serving.filter(|id| joins && !before.contains(id));
        let newcomers: Vec<u64> = others.take(count as usize).collect();
        let mut members = before.clone();
        for leaver in (0..count).map(|place| (leaves + place - 1) % nodes + 1) {
            if members.len() + newcomers.len() > MEMBERS_MIN {
                members.remove(&leaver);
            }
        }
        members.extend(&newcomers);
        if members == *before {
            return;
        }
        self.want_members(shard, members, lingers);
    }

    /// A change of members begins: who gets a replica opens one.
    pub(crate) fn want_members(&mut self, shard: ShardId, members: BTreeSet<u64>, lingers: u64) {
        self.trace.note(self.now, || format!("the members of shard {shard} shall be {members:?}"));
        let group = &mut self.groups[shard];
        let newcomers: Vec<u64> = members.difference(&group.members).copied().collect();
        group.hosts.extend(&members);
        group.members = members;
        group.is_changing = true;
        group.lingers = lingers;
        newcomers.into_iter().for_each(|newcomer| self.host(newcomer, shard));
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

    /// The leader says that a change is done: all maps say so. Whose replica takes part no longer has it parked, at once or after
    /// some time.
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
        }
        match self.groups[shard].lingers {
            lingers if lingers > 0 && !self.healed => self.after(lingers, Event::Park { shard }),
            _ => self.park(shard),
        }
    }

    /// Those who take part no longer hear of it: their replicas are parked until their processes end.
    pub(crate) fn park(&mut self, shard: ShardId) {
        let group = &mut self.groups[shard];
        // Of the next change all who take part hold a replica.
        let stays = |id: &u64| group.is_changing || group.members.contains(id);
        let (staying, parked): (BTreeSet<u64>, BTreeSet<u64>) = group.hosts.iter().partition(|id| stays(id));
        group.hosts = staying;
        for id in parked {
            if let Some(process) = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()) {
                // From now on others tell.
                process.learn_leader(shard, None);
            }
        }
    }

    /// After healing: every change comes to its end.
    pub(crate) fn demand_members(&mut self) {
        let is_changing = |world: &World| {
            world.is_short_of_a_node() || world.groups.ids().any(|shard| world.is_changing_members(shard))
        };
        if !is_changing(self) {
            return;
        }
        // Each step waits for the one before, and may wait for a leader; a newcomer may have to fetch all there is.
        let patience = REPLACING + 4 * self.plan.settling() + self.patience();
        let is_done = self.run_until(self.now + patience, |world| !is_changing(world));
        if !is_done && self.violation.is_none() {
            let what = format!("members do not become what they shall be: {}", self.describe_nodes());
            self.break_rule(Liveness::NAME, what);
        }
    }
}
