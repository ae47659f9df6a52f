//! A node: a disk and a clock, and as long as it lives a process with the production replica in it.

use std::collections::BTreeMap;

use keevee_core::codec;
use keevee_core::ids::{NodeId, ShardId};
use keevee_replica::storage::LogRecord;
use keevee_replica::{Bounds, Effects, Refusal, Reply, Shard};

use super::clock::Clock;
use super::disk::{Disk, SharedState};
use super::ingress::{Ingress, Owner};
use super::peers::PeerMessage;
use super::watched::Watched;
use super::{Event, World};
use crate::coverage::Counter;
use crate::oracles::{Acknowledged, Agreement, Chains, Once, REPLICA, Versions};
use crate::plan::{MILLISECOND, Unsynced};

/// How often late requests are looked for and flushed marks noted, as the server does.
const HOUSEKEEPING: u64 = 100 * MILLISECOND;
/// How far behind a replica is whose coming up is called a catch-up.
const BEHIND: u64 = 20;

pub(crate) struct Node {
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    pub(crate) process: Option<Process>,
    /// Counts starts and deaths, so that events of an earlier life are dropped.
    pub(crate) life: u64,
    /// While there are any, it stands still.
    pub(crate) pauses: u32,
    /// What came meanwhile.
    pub(crate) held: Vec<Event>,
    /// While there are any, syncs do not come back.
    pub(crate) stalls: u32,
    /// One would have.
    pub(crate) sync_is_late: bool,
    pub(crate) sync_min: u64,
    pub(crate) sync_max: u64,
    /// The next sync fails.
    pub(crate) sync_fails: bool,
    /// The next write of a higher promise or an entry is never finished.
    pub(crate) crashes_in_write: Option<Unsynced>,
    /// Submissions that the sync under way covers; what comes meanwhile waits for the next one.
    syncing: usize,
}

pub(crate) struct Process {
    pub(crate) shard: Shard<Watched, SharedState>,
    /// Who led when the world last looked.
    pub(crate) leader: Option<u64>,
    pub(crate) tickets: BTreeMap<u64, Owner>,
    pub(crate) ingress: BTreeMap<u64, Ingress>,
    /// Numbers tickets, ingress keys and forwards.
    pub(crate) count: u64,
}

impl Node {
    pub(crate) fn new(clock: Clock, sync_max: u64) -> Node {
        Node {
            clock,
            disk: Disk::new(),
            process: None,
            life: 0,
            pauses: 0,
            held: Vec::new(),
            stalls: 0,
            sync_is_late: false,
            sync_min: sync_max / 10,
            sync_max,
            sync_fails: false,
            crashes_in_write: None,
            syncing: 0,
        }
    }

    /// True if it runs, has applied everything up to an index, and owes nobody anything.
    pub(crate) fn is_idle_at(&self, index: u64) -> bool {
        let idle = |process: &Process| process.owed() == 0 && !process.shard.is_busy();
        self.disk.state.applied() == index && self.process.as_ref().is_some_and(idle)
    }
}

impl Process {
    /// Answers that it owes.
    pub(crate) fn owed(&self) -> usize {
        self.tickets.len() + self.ingress.len()
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }
}

impl World {
    /// Starts a node's process on what its disk holds.
    pub(crate) fn start(&mut self, id: u64) {
        let (seed, boot) = (self.random.next(), self.random.next());
        if self.nodes[&id].process.is_some() {
            return;
        }
        self.changed();
        self.trace.at(self.now, id, || "START".to_owned());
        let members = 1..=self.plan.nodes;
        let settings = &self.plan.settings;
        let bounds = Bounds { unsynced_entries_max: settings.unsynced_entries_max, ..Bounds::default() };
        let tick = settings.tick;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.life += 1;
        let (life, now) = (node.life, node.clock.read(self.now));
        let (log, state) = (node.disk.log.clone(), node.disk.state.clone());
        let applied = state.applied();
        let kept = self.oracles.disks.restored(id, applied, &log);
        self.hold_one(kept);
        let found = self.oracles.acknowledged.found(id, &state.held(), &self.history, &self.placed);
        self.hold(Acknowledged::NAME, found);
        let opened = Watched::open(&self.plan, id, seed, log.clone(), applied, now.monotonic);
        let shard = opened.map_err(|error| error.to_string()).and_then(|engine| {
            let members = members.map(NodeId).collect();
            let shard = Shard::new(ShardId::FIRST_DATA, NodeId(id), members, boot, engine, state, bounds);
            shard.map_err(|failure| failure.to_string())
        });
        let shard = match shard {
            Ok(shard) => shard,
            Err(error) => return self.break_rule(REPLICA, format!("node {id} can't start: {error}")),
        };
        log.take_reads();
        if shard.status().engine.chosen > applied {
            self.coverage.note(Counter::Replays);
        }
        let (tickets, ingress) = (BTreeMap::new(), BTreeMap::new());
        // An answer to an earlier life must not pass for one to this.
        let process = Process { shard, leader: None, tickets, ingress, count: life << 32 };
        self.nodes.entry(id).and_modify(|node| node.process = Some(process));
        let phase = self.random.below(tick);
        self.after(phase, Event::Tick { node: id, life });
        self.after(HOUSEKEEPING, Event::KeepHouse { node: id, life });
        let flush = self.random.below(self.plan.settings.flush_every);
        self.after(flush, Event::Flush { node: id, life });
        self.settle(id);
    }

    /// A node's process dies.
    pub(crate) fn crash(&mut self, id: u64, unsynced: Unsynced, resets: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(process) = node.process.take() else { return };
        node.life += 1;
        let in_flight = std::mem::take(&mut node.syncing);
        node.crashes_in_write = None;
        (node.sync_fails, node.sync_is_late) = (false, false);
        let damage = node.disk.crash(unsynced, in_flight, &mut self.random);
        self.coverage.note(Counter::Crashes);
        if !damage.lost.iter().all(Vec::is_empty) {
            self.coverage.note(Counter::LostWrites);
        }
        if damage.torn {
            self.coverage.note(Counter::TornWrites);
        }
        let (found, lost) = (damage.found.len(), damage.lost.len());
        self.trace.at(self.now, id, || format!("CRASH: {lost} writes lost, {found} found"));
        damage.found.iter().for_each(|submission| self.note_synced(id, submission));
        if damage.lost.iter().any(|submission| self.oracles.disks.raises_promise(id, submission)) {
            self.coverage.note(Counter::LostPromises);
        }
        self.changed();
        let others: Vec<u64> = self.nodes.keys().copied().filter(|other| *other != id).collect();
        if resets {
            self.coverage.note(Counter::Resets);
            others.into_iter().for_each(|other| self.send(id, other, PeerMessage::Reset));
        }
        self.hang_up(id, process);
    }

    pub(crate) fn tick(&mut self, id: u64, life: u64) {
        let tick = self.plan.settings.tick;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.life == life) else { return };
        let Some(process) = &mut node.process else { return };
        let now = node.clock.read(self.now);
        let span = node.clock.true_span(tick);
        process.shard.tick(now.monotonic);
        self.after(span, Event::Tick { node: id, life });
        self.settle(id);
    }

    pub(crate) fn keep_house(&mut self, id: u64, life: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.life == life) else { return };
        let Some(process) = &mut node.process else { return };
        let now = node.clock.read(self.now).monotonic;
        process.shard.expire(now);
        process.shard.note_flushed(now).expect("a simulated state is always readable");
        self.after(HOUSEKEEPING, Event::KeepHouse { node: id, life });
        self.settle(id);
    }

    pub(crate) fn flush(&mut self, id: u64, life: u64) {
        let Some(node) = self.nodes.get(&id).filter(|node| node.life == life) else { return };
        node.disk.state.flush_some(&mut self.random);
        let every = self.plan.settings.flush_every;
        let span = self.random.between(every / 2, 2 * every);
        self.after(span, Event::Flush { node: id, life });
    }

    /// The sync under way is done.
    pub(crate) fn synced(&mut self, id: u64, life: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.life == life) else { return };
        if node.stalls > 0 {
            node.sync_is_late = true;
            return;
        }
        if node.sync_fails {
            self.coverage.note(Counter::FailedSyncs);
            self.trace.at(self.now, id, || "SYNC FAILED".to_owned());
            // What a failed sync left on the disk nobody knows; the node stops, as the server does.
            return self.crash(id, Unsynced::Some, false);
        }
        let count = std::mem::take(&mut node.syncing);
        let log = node.disk.log.clone();
        let submissions: Vec<_> = (0..count).filter_map(|_| log.sync_next()).collect();
        self.trace.at(self.now, id, || format!("synced {count}"));
        for (_, submission) in &submissions {
            self.note_synced(id, submission);
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(process) = &mut node.process else { return };
        for (token, _) in submissions {
            process.shard.persisted(now, token);
        }
        self.settle(id);
    }

    fn note_synced(&mut self, id: u64, submission: &[LogRecord]) {
        let kept = self.oracles.disks.synced(id, submission);
        self.hold_one(kept);
        for record in submission {
            match record {
                LogRecord::DropBelow(_) => self.coverage.note(Counter::Truncations),
                LogRecord::DropFrom(_) => self.coverage.note(Counter::ConflictsDropped),
                LogRecord::Entry { .. } | LogRecord::HardState(_) => {}
            }
        }
    }

    /// Lets a process go as far as it can after an input, and carries out what it wants.
    pub(crate) fn settle(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(process) = &mut node.process else { return };
        let now = node.clock.read(self.now);
        let advanced = process.shard.advance(now);
        let is_dead = node.disk.state.is_dead();
        self.observe_log(id);
        self.observe_state(id);
        if is_dead {
            // In the middle of applying: nobody hears of it, and nothing is on its way to the disk.
            self.coverage.note(Counter::CrashesInApply);
            return self.crash(id, Unsynced::Lost, false);
        }
        let effects = match advanced {
            Ok(effects) => effects,
            Err(failure) => return self.break_rule(REPLICA, format!("node {id}: {failure}")),
        };
        let Effects { send, replies } = effects;
        for (to, message) in send {
            self.send(id, to.0, PeerMessage::Replica(Box::new(message)));
        }
        for reply in replies {
            self.reply(id, reply);
        }
        self.start_sync(id);
        self.observe_leader(id);
    }

    fn reply(&mut self, id: u64, Reply { ticket, result }: Reply) {
        if let Err(Refusal::Unavailable(why)) = &result
            && why.contains("took over")
        {
            self.coverage.note(Counter::Superseded);
        }
        let Some(process) = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()) else { return };
        if let Some(owner) = process.tickets.remove(&ticket) {
            self.answer_owner(id, owner, result);
        }
    }

    /// One sync at a time, which covers what waits when it begins, as the log writer does it.
    fn start_sync(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let waiting = node.disk.log.waiting();
        if node.syncing > 0 || waiting == 0 {
            return;
        }
        node.syncing = waiting;
        let log = node.disk.log.clone();
        let weighs = log.any_waiting(|records| self.oracles.disks.weighs(id, records));
        let crash = if weighs { node.crashes_in_write.take() } else { None };
        let life = node.life;
        let span = self.random.between(node.sync_min, node.sync_max);
        self.after(span, Event::Synced { node: id, life });
        if let Some(unsynced) = crash {
            let span = self.random.below(span);
            self.after(span, Event::CrashInWrite { node: id, life, unsynced });
        }
    }

    /// What the engine handed out as chosen, and what it sent to its disk.
    fn observe_log(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(process) = &mut node.process else { return };
        let chosen = std::mem::take(&mut process.shard.engine().chosen);
        let leads = process.leader == Some(id);
        let submitted = node.disk.log.take_submitted();
        self.coverage.add(Counter::DiskReads, node.disk.log.take_reads());
        if !leads {
            self.count_adoptions(id, &submitted);
        }
        if chosen.first().is_some_and(|(index, _)| index + BEHIND <= self.oracles.agreement.last()) {
            self.coverage.note(Counter::CatchUps);
        }
        for (index, payload) in chosen {
            // Agreement first: what another replica handed out is known, whatever disks hold.
            let agreed = self.oracles.agreement.chosen(id, index, &payload);
            let is_first = agreed == Ok(true);
            self.hold(Agreement::NAME, agreed.map(|_| ()));
            let held = self.oracles.disks.taken_for_chosen(id, index, &payload);
            self.hold_one(held);
            if is_first {
                self.place_requests(index, payload);
            }
        }
    }

    /// Notes which requests an entry holds, the first time that it is taken for chosen.
    fn place_requests(&mut self, index: u64, payload: Option<bytes::Bytes>) {
        let Some(payload) = payload else { return };
        let entry = match codec::decode_entry(payload) {
            Ok(entry) => entry,
            Err(error) => return self.break_rule(REPLICA, format!("entry {index} does not decode: {error}")),
        };
        if entry.commands.len() > 1 {
            self.coverage.note(Counter::Batches);
        }
        self.oracles.once.entry(index, &entry.commands);
        let mut placed = Vec::new();
        for command in &entry.commands {
            let Some(number) = self.history.find(command) else { continue };
            let request = self.history.get_mut(number);
            request.places.push(index);
            placed.push(number);
            if command.request_id.is_none() {
                let once = Once::placed(number, &self.history.get(number).places);
                self.hold(Once::NAME, once);
            }
        }
        self.placed.insert(index, placed);
    }

    /// What was applied.
    fn observe_state(&mut self, id: u64) {
        let written = self.nodes[&id].disk.state.take_written();
        for write in written {
            let index = write.index;
            self.trace.fold(write.chain as u64 ^ (write.chain >> 64) as u64);
            let same = self.oracles.chains.applied(id, index, write.chain);
            self.hold(Chains::NAME, same);
            let distinct = self.oracles.versions.applied(id, &write);
            self.hold(Versions::NAME, distinct);
            self.oracles.acknowledged.applied(&write);
            let once = self.oracles.once.applied(id, index, write.versions);
            self.hold(Once::NAME, once);
            for request in &write.executed {
                let once = self.oracles.once.executed(*request, index);
                self.hold(Once::NAME, once);
            }
            let now = self.now;
            let mut executed = write.executed;
            for number in self.placed.get(&index).into_iter().flatten() {
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

    fn observe_leader(&mut self, id: u64) {
        let Some(process) = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()) else { return };
        let leader = process.shard.leader().map(|leader| leader.0);
        if leader == process.leader {
            return;
        }
        process.leader = leader;
        if leader == Some(id) {
            self.coverage.note(Counter::Elections);
            self.trace.at(self.now, id, || "LEADS".to_owned());
        }
        self.leader_changed(id);
    }
}
