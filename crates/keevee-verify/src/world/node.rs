//! A node: a disk and a clock, and as long as it lives a process with the production replicas in it.
//!
//! The process does what the server's executor does: whatever comes in touches some of its replicas, and in the end
//! ([`World::settle`]) those that were touched go as far as they can. What the world makes of that is in
//! `observed.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::ShardMap;
use keevee_mutants::{Mutant, is_active};
use keevee_replica::storage::{LogRecord, LogStore, MemorySource};
use keevee_replica::{
    Bounds, Effects, Neighbours, Refusal, ReplicaMessage, Reply, Scrub, ScrubProgress, Shard,
};

use super::clock::Clock;
use super::disk::{Disk, SharedState, Submitted};
use super::ingress::{Ingress, Owner};
use super::peers::PeerMessage;
use super::watched::{Message, Watched};
use super::{Event, World};
use crate::coverage::Counter;
use crate::oracles::{Acknowledged, REPLICA};
use crate::plan::{MILLISECOND, Unsynced};

/// How often late requests are looked for and flushed marks noted, as the server does.
pub(super) const HOUSEKEEPING: u64 = 100 * MILLISECOND;
/// What of a state is read for a scrub each time, in bytes.
const SCRUB_PAGE_BYTES: usize = 500;

pub(crate) struct Node {
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    /// The map that its folder holds, by which it routes. Perhaps an old one.
    pub(crate) map: Rc<ShardMap>,
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
    /// No write of a configuration is finished.
    pub(crate) crashes_in_change: Option<Unsynced>,
    /// No write that makes a file is finished.
    pub(crate) crashes_in_new_file: Option<Unsynced>,
    /// True once its disk was found damaged: it is not started any more.
    pub(crate) is_lost: bool,
    /// Who has its place, then.
    pub(crate) replaced_by: Option<u64>,
    /// Submissions that the sync under way covers; what comes meanwhile waits for the next one.
    syncing: usize,
}

/// A production replica.
pub(crate) type Replica = Shard<Watched, SharedState>;

pub(crate) struct Process {
    pub(crate) shards: BTreeMap<ShardId, Replica>,
    pub(crate) boot: u64,
    pub(crate) neighbours: Neighbours,
    pub(crate) is_clock_off: bool,
    /// Those that were given something since they last went as far as they could.
    touched: Vec<ShardId>,
    /// Who leads each shard: as its replica here said when the world last looked, or as others have told.
    pub(crate) leaders: BTreeMap<ShardId, u64>,
    pub(crate) tickets: BTreeMap<u64, Owner>,
    pub(crate) ingress: BTreeMap<u64, Ingress>,
    /// Views of states that are read, one after the other.
    scrubs: VecDeque<(ShardId, Scrub<MemorySource>)>,
    /// Numbers tickets, ingress keys and forwards.
    pub(crate) count: u64,
}

impl Node {
    pub(crate) fn new(clock: Clock, disk: Disk, map: Rc<ShardMap>, sync_max: u64) -> Node {
        Node {
            clock,
            disk,
            map,
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
            crashes_in_change: None,
            crashes_in_new_file: None,
            is_lost: false,
            replaced_by: None,
            syncing: 0,
        }
    }

    /// True if it runs and owes nobody anything.
    pub(crate) fn is_idle(&self) -> bool {
        let is_idle = |process: &Process| {
            process.owed() == 0 && !process.shards.values().any(|replica| replica.is_busy())
        };
        self.process.as_ref().is_some_and(is_idle)
    }
}

impl Process {
    /// How many of its replicas are quiesced.
    fn resting(&self) -> u64 {
        self.shards.values().filter(|replica| replica.is_quiesced()).count() as u64
    }

    /// Answers that it owes.
    pub(crate) fn owed(&self) -> usize {
        self.tickets.len() + self.ingress.len()
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Notes who leads a shard. True if somebody else did so far.
    pub(crate) fn learn_leader(&mut self, shard: ShardId, leader: Option<u64>) -> bool {
        let known = match leader {
            Some(leader) => self.leaders.insert(shard, leader),
            None => self.leaders.remove(&shard),
        };
        known != leader
    }

    /// The replica of a shard, to be given something.
    pub(crate) fn touch(&mut self, shard: ShardId) -> Option<&mut Replica> {
        let replica = self.shards.get_mut(&shard)?;
        if !self.touched.contains(&shard) {
            self.touched.push(shard);
        }
        Some(replica)
    }

    /// All replicas, to be given something.
    pub(crate) fn touch_all(&mut self) -> impl Iterator<Item = &mut Replica> {
        self.touched.clear();
        self.touched.extend(self.shards.keys().rev());
        self.shards.values_mut()
    }
}

impl World {
    /// Starts a node's process on what its disk holds.
    pub(crate) fn start(&mut self, id: u64) {
        let (seed, boot) = (self.random.next(), self.random.next());
        if self.nodes[&id].process.is_some() || self.nodes[&id].is_lost {
            return;
        }
        self.changed();
        self.trace.at(self.now, id, || "START".to_owned());
        if !self.open_disk(id) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.life += 1;
        let life = node.life;
        let hosted: Vec<ShardId> = self.groups.on(id).map(|group| group.id).collect();
        let mut shards = BTreeMap::new();
        for shard in hosted {
            match self.open(id, shard, seed, boot) {
                Ok(replica) => shards.insert(shard, replica),
                Err(error) => return self.break_rule(REPLICA, format!("node {id} can't start: {error}")),
            };
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.disk.forget_reads();
        let touched = shards.keys().rev().copied().collect();
        let (leaders, tickets, ingress) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let scrubs = VecDeque::new();
        // An answer to an earlier life must not pass for one to this.
        let count = life << 32;
        let settings = &self.plan.settings;
        let tick = settings.tick;
        let neighbours = Neighbours::new(
            Duration::from_micros(settings.heartbeat),
            Duration::from_micros(settings.timeout_min * 2 / 3),
        );
        let is_clock_off = false;
        let process = Process {
            shards,
            boot,
            neighbours,
            is_clock_off,
            touched,
            leaders,
            tickets,
            ingress,
            scrubs,
            count,
        };
        node.process = Some(process);
        let phase = self.random.below(tick);
        self.after(phase, Event::Tick { node: id, life });
        self.after(HOUSEKEEPING, Event::KeepHouse { node: id, life });
        let flush = self.random.below(self.plan.settings.flush_every);
        self.after(flush, Event::Flush { node: id, life });
        self.settle(id);
    }

    /// The replica of a shard, as the disk has it.
    fn open(&mut self, id: u64, shard: ShardId, seed: u64, boot: u64) -> Result<Replica, String> {
        let node = &self.nodes[&id];
        let now = node.clock.read(self.now);
        let (log, state) = (node.disk.log(shard), node.disk.state(shard));
        let entered = log.incarnation().and_then(|incarnation| state.enter(incarnation));
        entered.map_err(|error| error.to_string())?;
        let applied = state.applied();
        let group = &self.groups[shard];
        let kept = group.oracles.disks.restored(id, applied, &log);
        let found = group.oracles.acknowledged.found(id, &state.held(), &self.history, &group.placed);
        self.hold_one(kept);
        self.hold(Acknowledged::NAME, found);
        let founders = &self.groups[shard].founders;
        // Who joined later is told who there is.
        let known = if founders.contains(&id) { founders.clone() } else { BTreeSet::new() };
        // Each shard draws times of its own.
        let seed = seed.wrapping_add(u64::from(shard.0 - ShardId::FIRST_DATA.0) << 32);
        let engine = Watched::open(&self.plan, &known, id, seed, log, applied, now.monotonic);
        let engine = engine.map_err(|error| error.to_string())?;
        let settings = &self.plan.settings;
        let bounds = Bounds {
            unsynced_entries_max: settings.unsynced_entries_max,
            log_bytes_max: settings.log_bytes_max,
            snapshot_chunk_bytes: settings.snapshot_chunk_bytes,
            ..Bounds::default()
        };
        let replica = Shard::new(shard, NodeId(id), boot, engine, state, bounds);
        let replica = replica.map_err(|failure| failure.to_string())?;
        if replica.status().engine.chosen > applied {
            self.coverage.note(Counter::Replays);
        }
        Ok(replica)
    }

    /// A node's process dies.
    pub(crate) fn crash(&mut self, id: u64, unsynced: Unsynced, resets: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(process) = node.process.take() else { return };
        node.life += 1;
        let in_flight = std::mem::take(&mut node.syncing);
        node.crashes_in_write = None;
        node.crashes_in_new_file = None;
        (node.sync_fails, node.sync_is_late) = (false, false);
        let damage = node.disk.crash(unsynced, in_flight, &mut self.random);
        self.coverage.note(Counter::Crashes);
        if !damage.lost.iter().all(|(_, records)| records.is_empty()) {
            self.coverage.note(Counter::LostWrites);
        }
        if damage.torn {
            self.coverage.note(Counter::TornWrites);
        }
        if damage.is_file_gone {
            self.coverage.note(Counter::NamesLost);
        }
        let (found, lost) = (damage.found.len(), damage.lost.len());
        self.trace.at(self.now, id, || format!("CRASH: {lost} writes lost, {found} found"));
        damage.found.iter().for_each(|(shard, records)| self.note_synced(id, *shard, records));
        let raises_promise =
            |(shard, records): &Submitted| self.groups[*shard].oracles.disks.raises_promise(id, records);
        if damage.lost.iter().any(raises_promise) {
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
        let missed = process.neighbours.missed(now.monotonic);
        let groups = &self.groups;
        let mut failed = None;
        for replica in process.touch_all().filter(|replica| groups[replica.id()].hosts.contains(&id)) {
            missed.iter().for_each(|node| replica.missed(now.monotonic, *node));
            failed = replica.tick(now.monotonic).err().map(|failure| (replica.id(), failure)).or(failed);
        }
        if let Some((shard, failure)) = failed {
            return self.end_by(id, shard, &failure);
        }
        // Without shards that quiesce nobody asks who is alive, and without keys that expire nobody asks for clocks.
        let asks = self.plan.shards.idle.is_some() || self.plan.expiry;
        if asks && process.neighbours.is_beat_due(now.monotonic) {
            let alive = PeerMessage::Alive { boot: process.boot, wall_micros: now.wall_micros };
            let others = self.ids().into_iter().filter(|other| *other != id);
            others.for_each(|other| self.send(id, other, alive.clone()));
        }
        self.after(span, Event::Tick { node: id, life });
        self.settle(id);
    }

    pub(crate) fn keep_house(&mut self, id: u64, life: u64) {
        let ids = self.ids();
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.life == life) else { return };
        let Some(process) = &mut node.process else { return };
        let wall = node.clock.read(self.now);
        let now = wall.monotonic;
        let is_clock_off = process.is_clock_off;
        let idle = self.plan.shards.idle.map(Duration::from_micros);
        let rested = process.resting();
        let alive: Vec<NodeId> =
            ids.into_iter().map(NodeId).filter(|node| process.neighbours.is_alive(*node)).collect();
        for replica in process.touch_all() {
            if is_clock_off {
                replica.mind_clock(wall, true);
            }
            replica.look_after_expiries(wall).expect("a simulated state is always readable");
            replica.expire(now);
            replica.note_flushed(now).expect("a simulated state is always readable");
            if let Some(idle) = idle
                && replica.others().all(|other| alive.contains(&other))
            {
                replica.quiesce_if_idle(now, idle);
            }
        }
        let is_fetching = process.shards.values().any(|replica| replica.is_fetching_snapshot());
        let mut needing = process.shards.values_mut().filter(|replica| replica.needs_snapshot(now));
        if !is_fetching && let Some(replica) = needing.next() {
            replica.fetch_snapshot(now).expect("a simulated state is always readable");
            self.coverage.note(Counter::Fetches);
        }
        self.after(HOUSEKEEPING, Event::KeepHouse { node: id, life });
        if !self.read_scrub(id) {
            return;
        }
        self.tell_wanted(id);
        self.settle(id);
        let rests = self.nodes[&id].process.as_ref().map_or(0, Process::resting);
        self.coverage.add(Counter::Quiesced, rests.saturating_sub(rested));
    }

    /// Reads on in the view of a state that is to be compared. False if the node does nothing any more.
    fn read_scrub(&mut self, id: u64) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else { return false };
        let now = node.clock.read(self.now);
        let Some(process) = &mut node.process else { return false };
        let Process { shards, scrubs, .. } = process;
        let is_of_use = |(shard, scrub): &(ShardId, Scrub<MemorySource>)| {
            shards.get(shard).is_some_and(|replica| replica.is_scrubbing(scrub.index()))
        };
        scrubs.retain(is_of_use);
        let Some((shard, scrub)) = scrubs.front_mut() else { return true };
        let (shard, index) = (*shard, scrub.index());
        let read = scrub.read(SCRUB_PAGE_BYTES).expect("a simulated state is always readable");
        let ScrubProgress::Done(content) = read else { return true };
        scrubs.pop_front();
        let Some(replica) = process.touch(shard) else { return true };
        if let Err(failure) = replica.scrubbed(now, index, Ok(content)) {
            self.end_by(id, shard, &failure);
            return false;
        }
        let compared = replica.status().scrub.map_or(0, |scrub| scrub.agree.len());
        self.coverage.add(Counter::StatesCompared, u64::from(compared > 1));
        self.trace.at(self.now, id, || {
            format!("the state of shard {shard} at {index} is compared with {compared}")
        });
        true
    }

    pub(crate) fn flush(&mut self, id: u64, life: u64) {
        let Some(node) = self.nodes.get(&id).filter(|node| node.life == life) else { return };
        for group in self.groups.on(id) {
            node.disk.state(group.id).flush_some(&mut self.random);
        }
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
        let is_full = node.disk.is_full();
        let fails = node.sync_fails || is_full;
        if fails {
            let counter = if is_full { Counter::FullDisks } else { Counter::FailedSyncs };
            self.coverage.note(counter);
            let mutant = if is_full { Mutant::FullDiskAcknowledged } else { Mutant::FailedSyncRetried };
            if !is_active(mutant) {
                self.trace.at(self.now, id, || format!("SYNC FAILED: {}", counter.name()));
                // What a failed sync left on the disk nobody knows; the node stops, as the server does.
                return self.crash(id, Unsynced::Some, false);
            }
            node.sync_fails = false;
        }
        let count = std::mem::take(&mut node.syncing);
        let next = || if fails { node.disk.sync_nothing() } else { node.disk.sync_next() };
        let submissions: Vec<_> = (0..count).filter_map(|_| next()).collect();
        if node.disk.take_misdirected() {
            self.coverage.note(Counter::Misdirected);
            self.trace.at(self.now, id, || "WRITTEN ELSEWHERE".to_owned());
        }
        self.trace.at(self.now, id, || format!("synced {count}"));
        for (shard, _, records) in submissions.iter().filter(|_| !fails) {
            self.note_synced(id, *shard, records);
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let now = node.clock.read(self.now).monotonic;
        let Some(process) = &mut node.process else { return };
        for (shard, token, _) in submissions {
            if let Some(replica) = process.touch(shard) {
                replica.persisted(now, token);
            }
        }
        self.settle(id);
    }

    fn note_synced(&mut self, id: u64, shard: ShardId, records: &[LogRecord]) {
        let kept = self.groups[shard].oracles.disks.synced(id, records);
        self.hold_one(kept);
        if self.afflictions.await_change() && self.groups[shard].oracles.disks.change_members(records) {
            self.cut_in_change(shard);
        }
        for record in records {
            match record {
                LogRecord::DropBelow(_) => self.coverage.note(Counter::Truncations),
                LogRecord::DropFrom(_) => self.coverage.note(Counter::ConflictsDropped),
                LogRecord::Incarnation(_) => self.coverage.note(Counter::TakenOver),
                LogRecord::Entry { .. } | LogRecord::HardState(_) => {}
            }
        }
    }

    /// Looks at a node's clock, before anything is stamped by it.
    fn check_clock(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(process) = node.process.as_mut().filter(|_| self.plan.expiry) else { return };
        let now = node.clock.read(self.now);
        let is_off = process.neighbours.is_clock_off(now);
        if is_off != process.is_clock_off {
            process.is_clock_off = is_off;
            process.touch_all().for_each(|replica| replica.mind_clock(now, is_off));
            self.coverage.add(Counter::ClocksOff, u64::from(is_off));
            self.trace.at(self.now, id, || format!("CLOCK {}", if is_off { "OFF" } else { "GOOD" }));
        }
    }

    /// Lets the replicas of a process that were touched go as far as they can, and carries out what they want.
    pub(crate) fn settle(&mut self, id: u64) {
        self.check_clock(id);
        let next = |world: &mut World| world.nodes.get_mut(&id)?.process.as_mut()?.touched.pop();
        while let Some(shard) = next(self) {
            let Some(effects) = self.advance(id, shard) else { return };
            self.carry_out(id, shard, effects);
            self.observe_leader(id, shard);
        }
        self.start_sync(id);
    }

    /// What a replica wants; `None` if the node does nothing any more.
    fn advance(&mut self, id: u64, shard: ShardId) -> Option<Effects<Message>> {
        let node = self.nodes.get_mut(&id)?;
        let now = node.clock.read(self.now);
        let process = node.process.as_mut()?;
        let replica = process.shards.get_mut(&shard)?;
        let advanced = replica.advance(now);
        process.scrubs.extend(replica.take_scrub().map(|scrub| (shard, scrub)));
        let is_dead = node.disk.is_dead();
        self.observe_log(id, shard);
        self.observe_state(id, shard);
        if is_dead {
            // In the middle of applying: nobody hears of it, and nothing is on its way to the disk.
            self.coverage.note(Counter::CrashesInApply);
            self.crash(id, Unsynced::Lost, false);
            return None;
        }
        match advanced {
            Ok(effects) => Some(effects),
            Err(failure) => {
                self.end_by(id, shard, &failure);
                None
            }
        }
    }

    fn carry_out(&mut self, id: u64, shard: ShardId, effects: Effects<Message>) {
        let Effects { mut send, replies, has_more, is_replaced } = effects;
        // Hashes last: how often they are told shall not change what becomes of the engines' messages.
        send.sort_by_key(|(_, message)| matches!(message, ReplicaMessage::ChainHash(_)));
        for (to, message) in send {
            self.send(id, to.0, PeerMessage::Replica(shard, Box::new(message)));
        }
        for reply in replies {
            self.reply(id, reply);
        }
        if is_replaced {
            self.replace(id, shard);
        }
        if has_more && let Some(node) = self.nodes.get(&id) {
            // In between a node takes in whatever comes.
            let life = node.life;
            self.after(0, Event::GoesOn { node: id, life, shard });
        }
    }

    /// A replica has taken over a snapshot: it is opened anew.
    fn replace(&mut self, id: u64, shard: ShardId) {
        self.trace.at(self.now, id, || format!("GOES ON FROM A SNAPSHOT of shard {shard}"));
        let (seed, boot) = (self.random.next(), self.random.next());
        let Some(process) = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut()) else { return };
        drop(process.shards.remove(&shard));
        self.insert_replica(id, shard, seed, boot);
    }

    /// Opens a replica in a process that runs.
    pub(super) fn insert_replica(&mut self, id: u64, shard: ShardId, seed: u64, boot: u64) {
        if self.nodes[&id].disk.is_unreadable() {
            return self.end_by(id, shard, &"its log can't be read");
        }
        match self.open(id, shard, seed, boot) {
            Ok(replica) => {
                let process = self.nodes.get_mut(&id).and_then(|node| node.process.as_mut());
                let process = process.expect("it runs still");
                process.shards.insert(shard, replica);
                process.touch(shard);
            }
            Err(error) => self.break_rule(REPLICA, format!("node {id} can't go on: {error}")),
        }
    }

    /// A replica goes on after its answers, if its process still runs.
    pub(crate) fn go_on(&mut self, id: u64, life: u64, shard: ShardId) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.life == life) else { return };
        if node.process.as_mut().is_some_and(|process| process.touch(shard).is_some()) {
            self.settle(id);
        }
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
        let waiting = node.disk.waiting();
        if node.syncing > 0 || waiting == 0 {
            return;
        }
        node.syncing = waiting;
        let weighs = |shard, records: &_| self.groups[shard].oracles.disks.weighs(id, records);
        let weighs = node.disk.any_waiting(weighs);
        let changes = |shard, records: &_| self.groups[shard].oracles.disks.change_members(records);
        let crash = if weighs { node.crashes_in_write.take() } else { None };
        let crash = crash.or(node.crashes_in_change.filter(|_| node.disk.any_waiting(changes)));
        let crash = crash.or(node.crashes_in_new_file.filter(|_| node.disk.would_make_file()));
        let life = node.life;
        let span = self.random.between(node.sync_min, node.sync_max);
        self.after(span, Event::Synced { node: id, life });
        if let Some(unsynced) = crash {
            let span = self.random.below(span);
            self.after(span, Event::CrashInWrite { node: id, life, unsynced });
        }
    }
}
