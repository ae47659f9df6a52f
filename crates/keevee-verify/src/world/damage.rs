//! Disks that are damaged, or can't be read: a node that finds that at its start does not start. What can't be read now is read
//! later. What is damaged never votes again: another node, with an empty disk and a number of its own, gets its place in each
//! shard, as `keevee node replace` does it.
//!
//! Only what a minority has is damaged: one node at a time, no other one until shards do without it, and none that a
//! change of members counts on.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;

use keevee_core::ids::{NodeId, ShardId};
use keevee_mutants::{Mutant, is_active};
use keevee_replica::storage::StorageError;

use super::clock::Clock;
use super::disk::Disk;
use super::journal::Journal;
use super::node::Node;
use super::{Event, World};
use crate::coverage::Counter;
use crate::oracles::REPLICA;
use crate::plan::{DiskDamage, SECOND, Unsynced};
use crate::random::Random;

/// How long it takes at most until somebody replaces a node, in microseconds.
pub(super) const REPLACING: u64 = 4 * SECOND;
/// The streams of disks, one for each node.
const DISKS: u64 = 1_000;

/// Who has a node's place now: itself, unless it was replaced.
pub(super) fn stand_in(nodes: &BTreeMap<u64, Node>, mut id: u64) -> u64 {
    while let Some(other) = nodes[&id].replaced_by {
        id = other;
    }
    id
}

impl World {
    /// A node with an empty disk.
    pub(super) fn add_node(&mut self, id: u64, clock: Clock) {
        let is_behind = self.plan.shards.behind.contains(&id);
        let map = Rc::clone(if is_behind { &self.groups.earlier_map } else { &self.groups.map });
        let disk = self.empty_disk(id);
        self.nodes.insert(id, Node::new(clock, disk, map, self.plan.settings.sync_max));
    }

    fn empty_disk(&self, id: u64) -> Disk {
        let has_journal = self.plan.has_disk_faults();
        let journal = has_journal.then(|| Journal::new(Random::new(self.plan.seed, DISKS + id)));
        Disk::new(self.groups.on(id).map(|group| (group.id, group.owned.clone())), journal)
    }

    pub(super) fn stand_in(&self, id: u64) -> u64 {
        stand_in(&self.nodes, id)
    }

    /// True while a disk is damaged, or may be, and the node is a member still.
    pub(super) fn is_short_of_a_node(&self) -> bool {
        self.damaged.is_some_and(|id| self.groups.iter().any(|group| group.members.contains(&id)))
    }

    /// True if every shard of a node can do without it, and goes on doing so.
    fn may_lose(&self, id: u64) -> bool {
        let mut groups = self.groups.iter().filter(|group| group.members.contains(&id)).peekable();
        let spares = |nodes: &[u64]| 2 * nodes.iter().filter(|node| **node != id).count() > nodes.len();
        let is_free = !self.is_short_of_a_node() && !self.nodes[&id].is_lost && groups.peek().is_some();
        is_free
            && !self.groups.iter().any(|group| group.is_changing)
            && groups.all(|group| {
                let members: Vec<u64> = group.members.iter().copied().collect();
                spares(&members) && group.oracles.disks.members().is_quorum(|NodeId(node)| node != id)
            })
    }

    /// A disk goes bad: at once, while its process is down, or with the next write.
    pub(super) fn damage_disk(&mut self, id: u64, damage: DiskDamage) {
        if !self.may_lose(id) {
            return;
        }
        if damage != DiskDamage::Misdirected {
            self.crash(id, Unsynced::Some, false);
        }
        let Some(node) = self.nodes.get(&id) else { return };
        if !node.disk.damage(damage, &mut self.random) {
            return;
        }
        self.damaged = Some(id);
        if damage != DiskDamage::Misdirected {
            self.coverage.note(Counter::FlippedBits);
        }
    }

    /// Whatever happened to the disk meanwhile, it is read now.
    pub(super) fn end_damage(&mut self, id: u64, damage: DiskDamage) {
        if damage == DiskDamage::Misdirected && self.damaged == Some(id) {
            self.nodes[&id].disk.stop_misdirecting();
            self.crash(id, Unsynced::Some, false);
        }
        self.start(id);
    }

    /// At a start: reads the disk. False if the node can't start.
    pub(super) fn open_disk(&mut self, id: u64) -> bool {
        let was_damaged = self.damaged == Some(id);
        match self.nodes[&id].disk.open() {
            Ok(()) => {
                // Nothing was, or nothing of it is left.
                if was_damaged {
                    self.nodes[&id].disk.stop_misdirecting();
                    self.damaged = None;
                }
                true
            }
            Err(StorageError::Corrupt { .. }) if was_damaged && is_active(Mutant::DamagedFolderFormatted) => {
                let disk = self.empty_disk(id);
                self.node_mut(id).disk = disk;
                true
            }
            Err(error @ StorageError::Corrupt { .. }) if was_damaged => {
                self.trace.at(self.now, id, || format!("LOST: {error}"));
                self.coverage.note(Counter::DamageFound);
                self.node_mut(id).is_lost = true;
                let span = self.random.between(SECOND / 4, REPLACING);
                self.after(span, Event::ReplaceNode { lost: id });
                false
            }
            Err(StorageError::Io { .. }) => {
                self.trace.at(self.now, id, || "CAN'T USE ITS DISK".to_owned());
                self.coverage.note(Counter::StartsRefused);
                false
            }
            Err(error) => {
                self.break_rule(
                    REPLICA,
                    format!("node {id} can't start, and its disk was not damaged: {error}"),
                );
                false
            }
        }
    }

    /// Somebody gives the places of a node that is lost to a new one.
    pub(super) fn replace_node(&mut self, lost: u64) {
        let id = 1 + self.nodes.keys().next_back().expect("there are nodes");
        self.trace.note(self.now, || format!("node {lost} is lost; node {id} gets its place"));
        self.coverage.note(Counter::Replaced);
        self.groups.add_node(id);
        self.add_node(id, Clock::new(1_000, 0));
        self.node_mut(lost).replaced_by = Some(id);
        self.start(id);
        let shards: Vec<ShardId> = self.groups.ids().collect();
        for shard in shards {
            let mut members = self.groups[shard].members.clone();
            if members.remove(&lost) {
                members.insert(id);
                self.want_members(shard, members, 0);
            }
        }
    }

    /// A replica can't go on, and neither does its node. If its disk can be read, that is no fault of the disk.
    pub(super) fn end_by(&mut self, id: u64, shard: ShardId, failure: &dyn Display) {
        if !self.nodes[&id].disk.is_unreadable() {
            return self.break_rule(REPLICA, format!("node {id}, shard {shard}: {failure}"));
        }
        self.trace.at(self.now, id, || format!("CAN'T READ: {failure}"));
        self.coverage.note(Counter::FailedReads);
        self.crash(id, Unsynced::Some, false);
    }
}
