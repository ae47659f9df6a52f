//! The seam between a shard and what makes its replicas agree.
//!
//! An engine is told the time, what arrived, what is on disk, what to propose and what is applied; what it brings
//! about is collected by [`Engine::take_events`]. It never waits and has no thread, so that whoever moves it decides
//! when it runs: the server's executor, or a simulator.

use std::time::Duration;

use bytes::Bytes;
use keevee_core::ids::{Incarnation, NodeId};

use crate::members::Members;
use crate::storage::StorageError;

/// What makes replicas agree on a log of opaque payloads.
pub trait Engine {
    /// What its replicas say to each other.
    type Message;

    /// A message arrived from another replica. False if no correct replica can have sent it: nothing was done with it.
    fn message(&mut self, now: Duration, from: NodeId, message: Self::Message) -> bool;

    /// True if a message only acknowledges what the leader had sent: it asks for nothing.
    fn is_acknowledgement(message: &Self::Message) -> bool;

    /// Time passed.
    fn tick(&mut self, now: Duration);

    /// The log says that a token's records, and all earlier ones, are on disk.
    fn persisted(&mut self, now: Duration, token: u64);

    /// The connection to a node was reset.
    fn disconnected(&mut self, now: Duration, node: NodeId);

    /// Proposes a payload at the next index, which it returns; `None` if this replica does not lead.
    fn propose(&mut self, now: Duration, payload: Bytes) -> Option<u64>;

    /// Asks for a linearizable read; [`Events::reads_ready`] answers once everything acknowledged so far is
    /// applied here.
    fn read_barrier(&mut self, now: Duration, read: u64);

    /// Tells that nobody waits for a read any more.
    fn cancel_read(&mut self, now: Duration, read: u64);

    /// Tells that everything up to an index is applied.
    fn applied(&mut self, now: Duration, index: u64);

    /// Tells that everything up to an index survives a crash without the log.
    fn flushed(&mut self, now: Duration, index: u64);

    /// Tells that the log need not be kept up to an index, though a member may lack some of it: a snapshot would bring it
    /// that. What a crash would need again is kept all the same.
    fn compact(&mut self, now: Duration, index: u64);

    /// What a snapshot of the state at this applied index must carry, so that another replica's log can begin behind it.
    fn snapshot_mark(&mut self, applied: u64) -> Result<Bytes, StorageError>;

    /// True if the log can begin behind a snapshot: one of this index, above what is chosen here, that came with this mark.
    fn may_adopt_snapshot(&self, index: u64, mark: &Bytes) -> bool;

    /// True if the log goes on from a snapshot of this index, which came with this mark: of a replica that has lost its state,
    /// and was opened as if it had applied all below its log. It may be of an index within the log.
    fn may_restore_snapshot(&self, index: u64, mark: &Bytes) -> bool;

    /// Puts a snapshot that may be adopted or restored in the place of the log up to its index: in one write, which puts an
    /// incarnation of the state in force as well. A log that is known to be chosen further than that stays as it is. The write's
    /// token; once that is persisted the replica is to be opened anew, and this engine must not be used for anything in between.
    fn adopt_snapshot(
        &mut self,
        index: u64,
        mark: &Bytes,
        incarnation: Incarnation,
    ) -> Result<u64, StorageError>;

    /// Proposes the members that are to be in force next, if this replica leads and those in force were chosen. They are one
    /// step from those in force: other learners; voters that decide together with those there are; or those alone. It may be
    /// refused, or lost with the leader: whoever wants it looks at [`EngineStatus::members`] and asks again.
    ///
    /// An engine that takes the last of these steps by itself, after the one before it, may do so.
    fn propose_members(&mut self, now: Duration, members: Members);

    /// True while a configuration that is not chosen yet holds up whatever else would be proposed.
    fn is_changing_members(&self) -> bool;

    /// Hands leadership to a member, or to the one that is furthest along, if this replica leads.
    fn transfer_leadership(&mut self, now: Duration, to: Option<NodeId>);

    /// About how many bytes of entries its log has on disk.
    fn log_bytes(&self) -> Result<u64, StorageError>;

    /// How many writes of entries are not on this node's disk yet.
    fn unsynced(&self) -> usize;

    /// The leader that it knows, perhaps itself.
    fn leader(&self) -> Option<NodeId>;

    /// What it is now.
    fn status(&self) -> EngineStatus;

    /// What happened since the last call.
    fn take_events(&mut self) -> Events<Self::Message>;
}

/// What an engine brought about.
#[derive(Debug)]
pub struct Events<M> {
    /// To be sent, in order.
    pub send: Vec<(NodeId, M)>,
    /// Chosen and on this node's disk, in order: to be applied. `None` changes nothing but the index.
    pub chosen: Vec<(u64, Option<Bytes>)>,
    /// Reads that may be served now.
    pub reads_ready: Vec<u64>,
    /// Other members are in force than before, or than the engine was opened with.
    pub members: Option<Members>,
    /// This replica lacks entries that its peers have dropped: only a snapshot helps, which this one has.
    pub needs_snapshot: Option<NodeId>,
    /// The engine's log failed, and it can't go on.
    pub failed: Option<StorageError>,
}

impl<M> Events<M> {
    /// The same with other messages.
    pub fn map<N>(self, message: impl Fn(M) -> N) -> Events<N> {
        let Events { send, chosen, reads_ready, members, needs_snapshot, failed } = self;
        let send = send.into_iter().map(|(to, one)| (to, message(one))).collect();
        Events { send, chosen, reads_ready, members, needs_snapshot, failed }
    }
}

impl<M> Default for Events<M> {
    fn default() -> Events<M> {
        Events {
            send: Vec::new(),
            chosen: Vec::new(),
            reads_ready: Vec::new(),
            members: None,
            needs_snapshot: None,
            failed: None,
        }
    }
}

/// What an engine is, as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// The engine's name.
    pub engine: &'static str,
    /// What this replica does besides following.
    pub role: Role,
    /// The leader that it knows, perhaps itself.
    pub leader: Option<NodeId>,
    /// The leader's number, as the engine writes it.
    pub ballot: String,
    /// The first index in the log.
    pub first: u64,
    /// The last index in the log.
    pub last: u64,
    /// Everything up to here is chosen.
    pub chosen: u64,
    /// Everything up to here survives a crash without the log.
    pub flushed: u64,
    /// Who takes part, as far as this replica knows it to be chosen. Nobody, if it is new and has not been told.
    pub members: Members,
    /// True once a quorum of them knows, or acts as if it knew: those that take part no longer are not needed any more.
    pub are_members_known: bool,
    /// Of a leader: what each other member has acknowledged.
    pub acknowledged: Vec<(NodeId, u64)>,
}

/// What a replica does besides following.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It follows, or looks for a leader.
    Follower,
    /// It tries to lead.
    Candidate,
    /// It leads.
    Leader,
}

impl Role {
    /// The role's name, as statuses show it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        }
    }
}
