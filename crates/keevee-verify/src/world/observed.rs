//! What the world sees of a replica after each of its steps, and hands to the oracles of its shard: what it takes for
//! chosen, what it writes to its disk and its state, whom it takes for the leader.

use std::rc::Rc;

use keevee_core::codec;
use keevee_core::command::Command;
use keevee_core::ids::ShardId;

use super::World;
use crate::coverage::Counter;
use crate::oracles::{Agreement, Chains, Early, Once, REPLICA, Versions};

/// How far behind a replica is whose coming up is called a catch-up.
const BEHIND: u64 = 20;

impl World {
    /// What the engine handed out as chosen, and what it sent to its disk.
    pub(crate) fn observe_log(&mut self, id: u64, shard: ShardId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(process) = &mut node.process else { return };
        let Some(replica) = process.shards.get_mut(&shard) else { return };
        let chosen = std::mem::take(&mut replica.engine().chosen);
        let leads = process.leaders.get(&shard) == Some(&id);
        let (submitted, reads) = node.disk.take_submitted(shard);
        self.coverage.add(Counter::DiskReads, reads);
        if !leads {
            self.count_adoptions(id, shard, &submitted);
        }
        let last = self.groups[shard].oracles.agreement.last();
        if chosen.first().is_some_and(|(index, _)| index + BEHIND <= last) {
            self.coverage.note(Counter::CatchUps);
        }
        for (index, payload) in chosen {
            // Agreement first: what another replica handed out is known, whatever disks hold.
            let oracles = &mut self.groups[shard].oracles;
            let agreed = oracles.agreement.chosen(id, index, &payload);
            let is_first = agreed == Ok(true);
            let held = oracles.disks.taken_for_chosen(id, index, &payload);
            self.hold(Agreement::NAME, agreed.map(|_| ()));
            self.hold_one(held);
            if is_first {
                self.place_requests(shard, index, payload);
            }
        }
    }

    /// Notes which requests of the shard an entry holds, the first time that it is taken for chosen.
    fn place_requests(&mut self, shard: ShardId, index: u64, payload: Option<bytes::Bytes>) {
        let Some(payload) = payload else { return };
        let entry = match codec::decode_entry(payload) {
            Ok(entry) => entry,
            Err(error) => return self.break_rule(REPLICA, format!("entry {index} does not decode: {error}")),
        };
        if entry.commands.len() > 1 {
            self.coverage.note(Counter::Batches);
        }
        let map = Rc::clone(&self.groups.map);
        let owns = |command: &Command| command.keys().all(|key| map.owner(key) == shard);
        let latest = self.note_clocks();
        let oracles = &mut self.groups[shard].oracles;
        oracles.once.entry(index, &entry.commands, owns);
        let in_time = oracles.early.entry(index, &entry, latest);
        self.hold(Early::NAME, in_time);
        let mut placed = Vec::new();
        // What came by an old map the shard turns away.
        for command in entry.commands.iter().filter(|command| owns(command)) {
            let Some(number) = self.history.find(command) else { continue };
            let request = self.history.get_mut(number);
            request.places.push(index);
            placed.push(number);
            if command.request_id.is_none() {
                let once = Once::placed(number, &self.history.get(number).places);
                self.hold(Once::NAME, once);
            }
        }
        self.groups[shard].placed.insert(index, placed);
    }

    /// What was applied.
    pub(crate) fn observe_state(&mut self, id: u64, shard: ShardId) {
        let written = self.nodes[&id].disk.state(shard).take_written();
        for write in written {
            let index = write.index;
            self.trace.fold(write.chain as u64 ^ (write.chain >> 64) as u64);
            let oracles = &mut self.groups[shard].oracles;
            let same = oracles.chains.applied(id, index, write.chain);
            let distinct = oracles.versions.applied(id, &write);
            oracles.acknowledged.applied(&write);
            let removed = oracles.early.applied(&write, self.now);
            let mut once = vec![oracles.once.applied(id, index, write.versions)];
            once.extend(write.executed.iter().map(|request| oracles.once.executed(*request, index)));
            match removed {
                Ok(removed) => self.coverage.add(Counter::ExpiredRemoved, removed),
                Err(what) => self.break_rule(Early::NAME, what),
            }
            self.hold(Chains::NAME, same);
            self.hold(Versions::NAME, distinct);
            once.into_iter().for_each(|once| self.hold(Once::NAME, once));
            let now = self.now;
            let mut executed = write.executed;
            for number in self.groups[shard].placed.get(&index).into_iter().flatten() {
                let request = self.history.get_mut(*number);
                // Of two requests under one id the first is the one that was executed.
                let takes_effect = match request.command.request_id {
                    Some(id) => {
                        let place = executed.iter().position(|executed| *executed == id);
                        place.map(|place| executed.swap_remove(place)).is_some()
                    }
                    None => true,
                };
                if takes_effect {
                    request.effect.get_or_insert((index, now));
                }
            }
        }
    }

    pub(crate) fn observe_leader(&mut self, id: u64, shard: ShardId) {
        let Some(process) = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()) else { return };
        let is_parked = !self.groups[shard].hosts.contains(&id);
        let Some(replica) = process.shards.get(&shard).filter(|_| !is_parked) else { return };
        let leader = replica.leader().map(|leader| leader.0);
        if !process.learn_leader(shard, leader) {
            return;
        }
        if leader == Some(id) {
            self.coverage.note(Counter::Elections);
            let mark = self.mark(shard);
            self.trace.at(self.now, id, || format!("{mark}LEADS"));
        }
        self.leader_changed(id, shard);
    }
}
