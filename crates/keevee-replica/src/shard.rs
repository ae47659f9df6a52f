//! A shard's replica: commands in, answers out.
//!
//! Waiting commands are cut into an entry as soon as few enough entries are on their way to this node's disk, and those
//! just answered have had their turn: what arrives during a sync shares the next one, and no timer holds a command back.
//! Everything is bounded: past the bounds a command is refused at once, when that is still known to be true.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use keevee_core::apply::{self, Applied, Entry, ProposalId, ShardMeta, WriteSet};
use keevee_core::codec;
use keevee_core::command::Command;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::requests::RequestMemory;
use keevee_core::stamp::HybridClock;
use keevee_mutants::{self as mutants, Mutant};

use crate::engine::{Engine, EngineStatus};
use crate::hashes::{ChainHash, Hashes};
use crate::members::Members;
use crate::request::{Bounds, Now, Refusal, Reply, Request, Room};
use crate::storage::{StateStore, StorageError};

mod cut;
mod expiry;
mod members;
mod quiescence;
mod scrub;
mod snapshots;

use self::cut::Cuts;
pub use self::cut::{Cut, CutRefusal, CutReply, CutRequest};
use self::expiry::Expiries;
use self::members::Membership;
use self::quiescence::Quiescence;
use self::scrub::Scrubs;
pub use self::scrub::{Content, Difference, Scrub, ScrubMessage, ScrubProgress, ScrubStatus};
use self::snapshots::Snapshots;
use crate::snapshot::SnapshotMessage;

const TOO_LATE: Refusal = Refusal::Unavailable("its time was up before this node got to it");
const NO_ROOM: &str = "the disks of its nodes are nearly full: make room, or remove what is not needed";

/// What the replicas of a shard say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaMessage<M> {
    /// Of the engine.
    Engine(M),
    /// What the sender has applied, to be compared.
    ChainHash(ChainHash),
    /// The leader is quiesced from here on: all that it knows is chosen, and every member has it.
    Quiesce {
        /// The last index.
        index: u64,
    },
    /// The sender is not quiesced: the leader shall not be either.
    Wake,
    /// The sender has reads that would show what is due by its clock: the leader shall let shard time come so far if it
    /// is due by its own clock.
    AdvanceTime {
        /// Microseconds since the Unix epoch.
        to: u64,
    },
    /// It is not due by the leader's clock.
    TimeNotCome {
        /// As the leader was asked.
        to: u64,
    },
    /// About a snapshot of the state.
    Snapshot(SnapshotMessage),
    /// About a comparison of states.
    Scrub(ScrubMessage),
}

/// What a shard wants done.
#[derive(Debug)]
pub struct Effects<M> {
    /// Messages to other replicas, in order.
    pub send: Vec<(NodeId, ReplicaMessage<M>)>,
    /// Answers.
    pub replies: Vec<Reply>,
    /// True if the replica is to be advanced once more after the answers were delivered.
    pub has_more: bool,
    /// True if the replica has taken over a snapshot: it is to be dropped, and opened anew on what its storage holds
    /// now.
    pub is_replaced: bool,
}

impl<M> Default for Effects<M> {
    fn default() -> Effects<M> {
        Effects { send: Vec::new(), replies: Vec::new(), has_more: false, is_replaced: false }
    }
}

/// Why a replica must stop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Its log or its state can't be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A chosen entry says something that this program does not know.
    #[error("entry {index} can't be understood: {cause}; start a newer keevee on this folder")]
    UnknownEntry {
        /// The entry.
        index: u64,
        /// What is wrong with it.
        cause: String,
    },
    /// It applied something else than a majority.
    #[error(
        "this replica's state differs from that of a majority at index {index}: it is wrong and must not \
         answer; the others go on without it; keep its folder for study"
    )]
    Diverged {
        /// Where the difference showed.
        index: u64,
    },
}

/// A status: the engine's, and how far this replica has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The engine's part.
    pub engine: EngineStatus,
    /// Everything up to here is applied.
    pub applied: u64,
    /// The chain hash there.
    pub chain: u128,
    /// Commands waiting to be proposed.
    pub waiting: usize,
    /// True while its engine's clock stands still, since nobody asks anything.
    pub is_quiesced: bool,
    /// True while its state is lost, and another replica's is not in force yet: it answers nothing.
    pub is_rebuilding: bool,
    /// What came of the last scrub; `None` if there was none since the replica was opened.
    pub scrub: Option<ScrubStatus>,
}

/// A command that waits to be proposed.
struct Waiting {
    request: Request,
    /// The command, as it will be in its entry.
    encoded: Bytes,
}

/// An entry proposed here, until it is known what became of it.
struct Proposed {
    payload: Bytes,
    entry: Entry,
    /// Of each command in turn; `None` once it was answered.
    waiters: Vec<Option<Waiter>>,
}

/// Reads that are served once the engine says so of their barrier.
struct Barrier {
    number: u64,
    /// When it began.
    leader: Option<NodeId>,
    reads: Vec<Request>,
}

struct Waiter {
    ticket: u64,
    deadline: Duration,
}

/// One shard's replica: batching, the engine, the applied state, the answers.
///
/// Invariants: every request is answered exactly once, unless the replica fails; `meta` is that of the
/// last write set written to `state`.
pub struct Shard<E: Engine, S: StateStore> {
    id: ShardId,
    engine: E,
    state: S,
    meta: ShardMeta,
    memory: RequestMemory,
    clock: HybridClock,
    bounds: Bounds,
    next_proposal: ProposalId,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    proposed: BTreeMap<u64, Proposed>,
    proposed_bytes: usize,
    /// Reads that came since the last barrier began: they share the next.
    new_reads: Vec<Request>,
    barrier: Option<Barrier>,
    reads_waiting: usize,
    read_count: u64,
    hashes: Hashes,
    /// Those in force.
    members: Members,
    membership: Membership,
    quiescence: Quiescence,
    expiries: Expiries,
    /// True while this node's clock is not to be trusted.
    is_clock_off: bool,
    room: Room,
    /// The flushed index that the engine was told.
    told_flushed: u64,
    snapshots: Snapshots<S>,
    cuts: Cuts<S::Source>,
    scrubs: Scrubs<S::Source>,
    effects: Effects<E::Message>,
}

impl<E: Engine, S: StateStore> Shard<E, S> {
    /// A shard over an opened engine and state. `boot` differs at each start of the node.
    pub fn new(
        id: ShardId,
        node: NodeId,
        boot: u64,
        engine: E,
        state: S,
        bounds: Bounds,
    ) -> Result<Shard<E, S>, Failure> {
        let meta = state.meta()?;
        let mut memory = RequestMemory::default();
        let corrupt = |cause: String| StorageError::Corrupt { what: "a remembered request", cause };
        memory.load(state.requests()?).map_err(|error| corrupt(error.to_string()))?;
        let mut clock = HybridClock::new();
        clock.observe(meta.time);
        let expiries = Expiries::open(&state)?;
        let EngineStatus { first, members, .. } = engine.status();
        let snapshots = Snapshots::new(boot, first, meta.applied, engine.log_bytes()?);
        Ok(Shard {
            id,
            engine,
            state,
            meta,
            memory,
            clock,
            bounds,
            next_proposal: ProposalId { node: node.0, boot, sequence: 1 },
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            proposed: BTreeMap::new(),
            proposed_bytes: 0,
            new_reads: Vec::new(),
            barrier: None,
            reads_waiting: 0,
            read_count: 0,
            hashes: Hashes::new(node, members.all()),
            members,
            membership: Membership::default(),
            quiescence: Quiescence::default(),
            expiries,
            is_clock_off: false,
            room: Room::Enough,
            told_flushed: 0,
            snapshots,
            cuts: Cuts::default(),
            scrubs: Scrubs::default(),
            effects: Effects::default(),
        })
    }

    /// This shard.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The engine, to be looked at.
    pub fn engine(&mut self) -> &mut E {
        &mut self.engine
    }

    /// The applied state.
    pub fn state(&mut self) -> &mut S {
        &mut self.state
    }

    /// The leader that this replica knows, perhaps itself.
    pub fn leader(&self) -> Option<NodeId> {
        self.engine.leader()
    }

    /// What this replica is now.
    pub fn status(&self) -> ShardStatus {
        ShardStatus {
            engine: self.engine.status(),
            applied: self.meta.applied,
            chain: self.meta.chain,
            waiting: self.waiting.len(),
            is_quiesced: self.is_quiesced(),
            is_rebuilding: self.is_rebuilding(),
            scrub: self.scrub_status(),
        }
    }

    /// The other members.
    pub fn others(&self) -> impl Iterator<Item = NodeId> {
        self.hashes.others()
    }

    /// Takes commands in. Call [`Shard::advance`] afterwards.
    pub fn submit(&mut self, now: Now, requests: impl IntoIterator<Item = Request>) -> Result<(), Failure> {
        for request in requests {
            if self.snapshots.is_deaf() {
                self.refuse(request.ticket, Refusal::NotLeader(None));
                continue;
            }
            if request.deadline <= now.monotonic {
                self.refuse(request.ticket, TOO_LATE);
                continue;
            }
            let is_read = request.command.is_read_only();
            if is_read && request.stale {
                self.serve_read(request, None)?;
                continue;
            }
            self.wake(now.monotonic);
            if !is_read {
                self.enqueue_if_room(request);
            } else if self.reads_waiting + self.expiries.held() >= self.bounds.waiting_commands_max {
                self.refuse(request.ticket, Refusal::Unavailable("too many reads are waiting"));
            } else {
                self.reads_waiting += 1;
                self.new_reads.push(request);
            }
        }
        Ok(())
    }

    /// One barrier at a time: reads that come while there is one share the next.
    fn has_reads_to_start(&self) -> bool {
        self.barrier.is_none() && !self.new_reads.is_empty()
    }

    /// Starts a barrier and entries for what waits. True if there was something.
    fn begin(&mut self, now: Now) -> bool {
        let starts_reads = self.start_reads(now.monotonic);
        self.propose(now) || starts_reads
    }

    /// True if there may be something to begin.
    fn may_begin(&self) -> bool {
        self.has_reads_to_start() || self.may_propose()
    }

    /// True if there may be an entry to propose.
    fn may_propose(&self) -> bool {
        !self.waiting.is_empty()
            || self.expiries.has_work()
            || self.cuts.is_waiting()
            || self.scrubs.is_asked()
    }

    /// Starts a barrier for the reads that wait, if none is under way. True if it did.
    fn start_reads(&mut self, now: Duration) -> bool {
        let leader = self.engine.leader();
        // A leader may have named an index that is lost with it. Any later barrier serves its reads as well.
        if let Some(Barrier { number, reads, .. }) = self.barrier.take_if(|barrier| barrier.leader != leader)
        {
            self.engine.cancel_read(self.time(now), number);
            self.new_reads.splice(0..0, reads);
        }
        let starts = self.has_reads_to_start();
        if starts {
            self.read_count += 1;
            let (number, reads) = (self.read_count, mem::take(&mut self.new_reads));
            self.barrier = Some(Barrier { number, leader, reads });
            self.engine.read_barrier(self.time(now), number);
        }
        starts
    }

    /// A message arrived from another replica: false if no correct one can have sent it, and nothing was done with it.
    /// Call [`Shard::advance`] afterwards.
    pub fn receive(
        &mut self,
        now: Duration,
        from: NodeId,
        message: ReplicaMessage<E::Message>,
    ) -> Result<bool, Failure> {
        if self.snapshots.is_deaf() {
            // One that has lost its state takes in what it asked for.
            if let ReplicaMessage::Snapshot(message) = message
                && !self.snapshots.is_adopting()
            {
                self.receive_snapshot(now, from, message)?;
            }
            return Ok(true);
        }
        match message {
            ReplicaMessage::Engine(message) => {
                // Of what was sent before the shard was quiesced. Heartbeats keep in step with quiescing: if their answers
                // woke the leader, they might do so for ever.
                let is_late = self.quiescence.leader() == Some(self.own()) && E::is_acknowledgement(&message);
                if self.is_quiesced() && !is_late {
                    self.wake(now);
                }
                return Ok(self.engine.message(self.time(now), from, message));
            }
            ReplicaMessage::ChainHash(hash) => self.compare_hash(from, hash)?,
            ReplicaMessage::Quiesce { index } => self.quiesce_with(now, from, index),
            ReplicaMessage::Wake => self.wake(now),
            ReplicaMessage::AdvanceTime { to } => {
                self.wake(now);
                self.expiries.ask(from, to);
            }
            ReplicaMessage::TimeNotCome { to } => self.serve_not_due(to)?,
            ReplicaMessage::Snapshot(message) => self.receive_snapshot(now, from, message)?,
            ReplicaMessage::Scrub(message) => self.receive_scrub(from, message)?,
        }
        Ok(true)
    }

    /// Time passed. A quiesced replica need not be told.
    pub fn tick(&mut self, now: Duration) -> Result<(), Failure> {
        if self.snapshots.is_deaf() {
            return self.tick_snapshots(now);
        }
        if !self.is_quiesced() {
            self.engine.tick(self.time(now));
            self.steer_members(now);
            self.tick_snapshots(now)?;
        }
        Ok(())
    }

    /// The log says that a token's records, and all earlier ones, are on disk.
    pub fn persisted(&mut self, now: Duration, token: u64) {
        self.snapshots.persisted(token);
        if !self.snapshots.is_deaf() {
            self.engine.persisted(self.time(now), token);
        }
    }

    /// The connection to a node was reset, or another process runs under its name.
    pub fn disconnected(&mut self, now: Duration, node: NodeId) {
        if self.snapshots.is_deaf() {
            return;
        }
        self.missed(now, node);
        self.engine.disconnected(self.time(now), node);
    }

    /// Hands leadership to a member, or to the one that is furthest along, if this replica leads.
    pub fn transfer_leadership(&mut self, now: Duration, to: Option<NodeId>) {
        if self.snapshots.is_deaf() {
            return;
        }
        self.wake(now);
        self.engine.transfer_leadership(self.time(now), to);
    }

    /// Notes whether the disks have room, which counts while this replica leads. Call it when that changes.
    pub fn mind_room(&mut self, room: Room) {
        self.room = room;
    }

    /// Tells the engine what survives a crash without the log. Call it now and then.
    pub fn note_flushed(&mut self, now: Duration) -> Result<(), Failure> {
        if self.snapshots.is_deaf() {
            return Ok(());
        }
        self.look_after_sent(now);
        // Most shards have nothing new: a look at each of their states would cost a node with many of them a lot.
        let has_new = self.told_flushed < self.meta.applied;
        let flushed = if has_new { self.state.flushed()? } else { self.told_flushed };
        if flushed > self.told_flushed {
            self.wake(now);
        }
        if !self.is_quiesced() {
            self.told_flushed = flushed;
            self.engine.flushed(self.time(now), flushed);
            self.bound_log(now);
        }
        Ok(())
    }

    /// Notes another replica's chain hash.
    fn compare_hash(&mut self, from: NodeId, hash: ChainHash) -> Result<(), Failure> {
        self.hashes.note(from, hash).map_or(Ok(()), |index| Err(Failure::Diverged { index }))
    }

    /// Goes as far as it can: applies, answers, proposes. What is to be done outside.
    ///
    /// Who is answered asks again, and shall share the next entry and the next round of reads, which cost each node the
    /// more the smaller they are. So where there are answers, these begin only with the next call:
    /// [`Effects::has_more`] asks for it.
    pub fn advance(&mut self, now: Now) -> Result<Effects<E::Message>, Failure> {
        // What was answered on its way in does not count: it could go on for ever, and nothing would begin.
        let answered_before = self.effects.replies.len();
        loop {
            if self.snapshots.is_deaf() {
                self.effects.is_replaced = self.snapshots.is_adopted();
                return Ok(mem::take(&mut self.effects));
            }
            let events = self.engine.take_events();
            events.needs_snapshot.into_iter().for_each(|by| self.snapshots.offered(by, self.meta.applied));
            let sent = events.send.into_iter().map(|(to, message)| (to, ReplicaMessage::Engine(message)));
            self.effects.send.extend(sent);
            if let Some(error) = events.failed {
                return Err(error.into());
            }
            events.members.into_iter().for_each(|members| self.take_members(members));
            let is_quiet = events.chosen.is_empty() && events.reads_ready.is_empty();
            if !events.chosen.is_empty() {
                for (index, payload) in events.chosen {
                    self.apply(index, payload)?;
                }
                self.engine.applied(self.time(now.monotonic), self.meta.applied);
                self.serve_held()?;
            }
            let as_of = (!self.is_clock_off).then_some(now.wall_micros);
            let is_ready = |barrier: &mut Barrier| events.reads_ready.contains(&barrier.number);
            for request in self.barrier.take_if(is_ready).into_iter().flat_map(|barrier| barrier.reads) {
                self.reads_waiting -= 1;
                self.serve_read(request, as_of)?;
            }
            self.take_asked(now.wall_micros)?;
            let has_answered = self.effects.replies.len() > answered_before;
            let has_begun = !has_answered && self.begin(now);
            if is_quiet && !has_begun {
                self.effects.has_more = has_answered && self.may_begin();
                self.quiesce_if_due(now.monotonic);
                return Ok(mem::take(&mut self.effects));
            }
        }
    }

    /// Answers what has waited too long. Call it a few times per second.
    pub fn expire(&mut self, now: Duration) {
        let late = |deadline: Duration| deadline <= now;
        let mut expired = Vec::new();
        for Waiting { request, encoded } in &self.waiting {
            if late(request.deadline) {
                expired.push((request.ticket, Refusal::Unavailable("it was not proposed in time")));
                self.waiting_bytes -= encoded.len();
            }
        }
        self.waiting.retain(|waiting| !late(waiting.request.deadline));
        let asked = self.barrier.iter_mut().map(|barrier| &mut barrier.reads);
        for requests in asked.chain([&mut self.new_reads]) {
            let waiting = requests.iter().filter(|request| late(request.deadline));
            let refusal = Refusal::Unavailable("no quorum confirmed the read in time");
            expired.extend(waiting.map(|request| (request.ticket, refusal)));
            let before = requests.len();
            requests.retain(|request| !late(request.deadline));
            self.reads_waiting -= before - requests.len();
        }
        if let Some(Barrier { number, .. }) = self.barrier.take_if(|barrier| barrier.reads.is_empty()) {
            self.engine.cancel_read(self.time(now), number);
        }
        let mut unknown = Refusal::OutcomeUnknown("it was proposed, and not known to be chosen in time");
        if mutants::is_active(Mutant::UnknownToldRefused) {
            unknown = Refusal::Unavailable("it was not chosen in time");
        }
        for waiter in self.proposed.values_mut().flat_map(|proposed| &mut proposed.waiters) {
            if waiter.as_ref().is_some_and(|waiter| late(waiter.deadline)) {
                expired.extend(waiter.take().map(|waiter| (waiter.ticket, unknown)));
            }
        }
        expired.into_iter().for_each(|(ticket, refusal)| self.refuse(ticket, refusal));
        self.look_after_held(|request| late(request.deadline));
        self.cuts.expire(now);
    }

    /// True while an answer is owed.
    pub fn is_busy(&self) -> bool {
        let owed = |proposed: &Proposed| proposed.waiters.iter().any(Option::is_some);
        !self.waiting.is_empty()
            || self.reads_waiting > 0
            || self.expiries.held() > 0
            || self.cuts.is_busy()
            || self.proposed.values().any(owed)
    }

    /// The engine's time.
    fn time(&self, now: Duration) -> Duration {
        self.quiescence.time(now)
    }

    fn own(&self) -> NodeId {
        NodeId(self.next_proposal.node)
    }

    fn enqueue_if_room(&mut self, request: Request) {
        let refusal = match self.room {
            Room::Enough => None,
            Room::Elsewhere => Some(Refusal::NotLeader(None)),
            Room::Short => Some(Refusal::Unavailable(NO_ROOM)),
        };
        match refusal {
            Some(refusal) if self.engine.leader() == Some(self.own()) && request.command.takes_room() => {
                self.refuse(request.ticket, refusal);
            }
            _ => self.enqueue(request),
        }
    }

    fn enqueue(&mut self, request: Request) {
        let encoded = codec::encode_command(&request.command);
        if self.waiting.len() >= self.bounds.waiting_commands_max
            || self.waiting_bytes + encoded.len() > self.bounds.waiting_bytes_max
        {
            self.refuse(request.ticket, Refusal::Unavailable("too many commands are waiting"));
            return;
        }
        self.waiting_bytes += encoded.len();
        self.waiting.push_back(Waiting { request, encoded });
    }

    fn refuse(&mut self, ticket: u64, refusal: Refusal) {
        self.effects.replies.push(Reply { ticket, result: Err(refusal) });
    }

    /// Cuts waiting commands into entries, as many as may be on their way; and entries that are due without any. True if
    /// there was one.
    fn propose(&mut self, now: Now) -> bool {
        self.drop_late(now.monotonic);
        if self.engine.is_changing_members() || !self.may_propose() {
            return false;
        }
        let leader = self.engine.leader();
        if leader != Some(self.own()) || self.is_clock_off {
            self.turn_away(leader.filter(|leader| *leader != self.own()));
            return false;
        }
        let mut has_proposed = false;
        while (self.is_cut_due(now.wall_micros)
            || !self.waiting.is_empty()
            || self.is_entry_due(now.wall_micros)
            || self.scrubs.is_asked())
            && self.engine.unsynced() < self.bounds.unsynced_entries_max
            && self.proposed.len() < self.bounds.unchosen_entries_max
            && self.proposed_bytes < self.bounds.unchosen_bytes_max
        {
            let cut = self.take_due_cut(now.wall_micros);
            let (entry, payload, waiters) = match cut {
                Some(cut) => self.cut_entry(cut),
                None => self.cut(now.wall_micros),
            };
            let Some(index) = self.engine.propose(self.time(now.monotonic), payload.clone()) else {
                // Leadership is being handed over.
                self.cuts.refuse(cut, Refusal::NotLeader(None));
                waiters.iter().for_each(|waiter| self.refuse(waiter.ticket, Refusal::NotLeader(None)));
                self.turn_away(None);
                // The engine may have got on all the same.
                return true;
            };
            has_proposed = true;
            self.next_proposal.sequence += 1;
            let waiters = waiters.into_iter().map(Some).collect();
            self.proposed_bytes += payload.len();
            if let Some(earlier) = self.proposed.insert(index, Proposed { payload, entry, waiters }) {
                self.displace(earlier);
            }
            self.cuts.proposed(index, cut);
            self.begin_scrub(index);
        }
        has_proposed
    }

    /// Under overload what waits longest is answered to nobody: work for it would make those behind it late as well.
    fn drop_late(&mut self, now: Duration) {
        while let Some(late) = self.waiting.pop_front_if(|waiting| waiting.request.deadline <= now) {
            self.waiting_bytes -= late.encoded.len();
            self.refuse(late.request.ticket, TOO_LATE);
        }
    }

    fn turn_away(&mut self, leader: Option<NodeId>) {
        self.expiries.forget_wishes();
        self.waiting_bytes = 0;
        for Waiting { request, .. } in mem::take(&mut self.waiting) {
            self.refuse(request.ticket, Refusal::NotLeader(leader));
        }
        self.cuts.turn_away(Refusal::NotLeader(leader));
        self.scrubs.turn_away();
    }

    /// The next entry, also as it is written, and who waits for it.
    fn cut(&mut self, wall_micros: u64) -> (Entry, Bytes, Vec<Waiter>) {
        let (mut bytes, mut bytes_made) = (0, 0);
        let (mut commands, mut all_encoded, mut waiters) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(Waiting { request, encoded }) = self.waiting.front() {
            // Zeros that a write into a value makes do not travel, and are there when it is applied.
            let made = request.command.bytes_made();
            let bytes_after = bytes + encoded.len() + bytes_made + made;
            if !commands.is_empty() && bytes_after > self.bounds.entry_bytes_max {
                break;
            }
            // A delete of a range does more than its size tells: no other shares its entry.
            if request.command.has_range() && commands.iter().any(Command::has_range) {
                break;
            }
            let Some(Waiting { request, encoded }) = self.waiting.pop_front() else { break };
            bytes += encoded.len();
            bytes_made += made;
            waiters.push(Waiter { ticket: request.ticket, deadline: request.deadline });
            commands.push(request.command);
            all_encoded.push(encoded);
        }
        self.waiting_bytes -= bytes;
        if let Some(removal) = self.expiries.take_removal() {
            all_encoded.push(codec::encode_command(&removal));
            commands.push(removal);
        }
        let (stamp, proposal) = (self.clock.tick(wall_micros), self.next_proposal);
        let payload = codec::join_entry(stamp, proposal, &all_encoded);
        (Entry { stamp, proposal, commands }, payload, waiters)
    }

    fn apply(&mut self, index: u64, payload: Option<Bytes>) -> Result<(), Failure> {
        let payload_bytes = payload.as_ref().map_or(0, Bytes::len);
        self.snapshots.applied(index, payload_bytes, self.bounds.log_bytes_max);
        let proposed = self.proposed.remove(&index);
        self.proposed_bytes -= proposed.as_ref().map_or(0, |proposed| proposed.payload.len());
        let (own, other) = match (proposed, &payload) {
            (Some(proposed), Some(payload)) if proposed.payload == *payload => (Some(proposed), None),
            (other, _) => (None, other),
        };
        if let Some(other) = other {
            self.supersede(other);
        }
        let applied = match (&own, payload) {
            (Some(own), _) => self.apply_entry(index, &own.entry)?,
            (None, Some(payload)) => {
                let unknown = |cause: String| Failure::UnknownEntry { index, cause };
                let entry = codec::decode_entry(payload).map_err(|error| unknown(error.to_string()))?;
                self.apply_entry(index, &entry)?
            }
            (None, None) => apply::apply_noop(&self.meta, index),
        };
        self.meta = applied.write_set.meta.clone();
        self.expiries.applied(&applied.write_set);
        if own.is_some() {
            self.expiries.answered(&applied.outcomes);
        }
        if mutants::is_active(Mutant::AppliedIndexApart) {
            self.state.write(WriteSet::of_meta(self.meta.clone()))?;
        }
        self.state.write(applied.write_set)?;
        self.take_cut(index, own.is_some());
        self.take_scrub_view(index);
        for (waiter, outcome) in own.into_iter().flat_map(|own| own.waiters).zip(applied.outcomes) {
            if let Some(Waiter { ticket, .. }) = waiter {
                self.effects.replies.push(Reply { ticket, result: Ok(outcome) });
            }
        }
        self.tell_hash()
    }

    fn apply_entry(&mut self, index: u64, entry: &Entry) -> Result<Applied, StorageError> {
        self.clock.observe(entry.stamp);
        let mut entry = Cow::Borrowed(entry);
        if mutants::is_active(Mutant::OwnClockApplied) {
            entry.to_mut().stamp = self.clock.last();
        }
        apply::apply(&self.state, &self.meta, &mut self.memory, index, &entry)
    }

    /// Another entry is proposed in its place: in between a leader had this one dropped from the log (Raft, section
    /// 5.3). Others may hold it, and choose it yet.
    fn displace(&mut self, proposed: Proposed) {
        self.proposed_bytes -= proposed.payload.len();
        let refusal = Refusal::OutcomeUnknown("leadership changed before it was known to be chosen");
        for waiter in proposed.waiters.into_iter().flatten() {
            self.refuse(waiter.ticket, refusal);
        }
    }

    /// Another entry was chosen in its place, and an entry is proposed in one place only.
    fn supersede(&mut self, proposed: Proposed) {
        let refusal = Refusal::Unavailable("a new leader took over before it was chosen");
        for waiter in proposed.waiters.into_iter().flatten() {
            self.refuse(waiter.ticket, refusal);
        }
    }

    fn tell_hash(&mut self) -> Result<(), Failure> {
        let Some(hash) = Hashes::due(self.meta.applied, self.meta.chain) else { return Ok(()) };
        let told = self.hashes.others().map(|node| (node, ReplicaMessage::ChainHash(hash)));
        self.effects.send.extend(told);
        self.compare_hash(self.own(), hash)
    }
}
