//! What replicas say to each other, and what goes in and out of one.

use std::time::Duration;

use bytes::Bytes;

use crate::ballot::{Ballot, Index, NodeId};
use crate::quorum::Configuration;

/// What a place of the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: fills a hole, or marks the start of a leadership.
    Noop,
    /// The caller's bytes.
    Data(Bytes),
    /// Who takes part from the next index on.
    Configuration(Box<Configuration>),
}

impl Value {
    /// The number of payload bytes.
    pub fn len(&self) -> usize {
        match self {
            Value::Noop => 0,
            Value::Data(bytes) => bytes.len(),
            Value::Configuration(configuration) => configuration.nodes().len() * size_of::<NodeId>(),
        }
    }

    /// True if there are no payload bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A value accepted at an index, and the ballot at which it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The place.
    pub index: Index,
    /// The ballot of the acceptance.
    pub ballot: Ballot,
    /// The value.
    pub value: Value,
}

/// A message between replicas of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// May I raise a ballot? Changes nothing at the receiver.
    Poll {
        /// Tells this poll from the sender's others.
        poll: u64,
    },
    /// Answers a [`Message::Poll`].
    PollReply {
        /// The poll that is answered.
        poll: u64,
        /// False if the sender leads, or has heard a connected leader.
        granted: bool,
    },
    /// Phase 1a: promise me this ballot, and tell what you accepted from an index on.
    Prepare {
        /// The candidate's ballot.
        ballot: Ballot,
        /// The first index that the candidate does not know to be chosen, or the next page's first.
        from: Index,
    },
    /// Phase 1b: a promise, with one page of what the sender accepted.
    Promise {
        /// The ballot promised.
        ballot: Ballot,
        /// The index that was asked for.
        from: Index,
        /// What the sender accepted, from `from` on, in order.
        entries: Vec<Entry>,
        /// Where the next page starts; `None` on the last one.
        next: Option<Index>,
        /// Everything up to here is known by the sender to be chosen.
        chosen: Index,
        /// The first index that the sender still has in its log.
        first: Index,
    },
    /// Phase 2a: accept these entries at this ballot.
    Accept {
        /// The leader's ballot, also that of every entry.
        ballot: Ballot,
        /// The leader's clock, strictly increasing over its messages, in microseconds.
        sent_at: u64,
        /// Consecutive entries.
        entries: Vec<Entry>,
        /// Everything up to here is known by the leader to be chosen.
        chosen: Index,
    },
    /// Phase 2b, cumulative: every index up to `through` is accepted at `ballot`, or known chosen, and on disk.
    Accepted {
        /// The ballot at which it was accepted.
        ballot: Ballot,
        /// The `sent_at` of the message answered.
        sent_at: u64,
        /// The end of the prefix.
        through: Index,
        /// Everything up to here is known by the sender to be chosen.
        chosen: Index,
    },
    /// I lead. Also a read round's question: is a higher ballot promised?
    Heartbeat {
        /// The leader's ballot.
        ballot: Ballot,
        /// The leader's clock, strictly increasing over its messages, in microseconds.
        sent_at: u64,
        /// Everything up to here is known by the leader to be chosen.
        chosen: Index,
        /// True if a quorum answered the leader within the minimum timeout.
        connected: bool,
        /// Everything up to here is applied and flushed on every member.
        flushed: Index,
    },
    /// Answers a [`Message::Heartbeat`].
    HeartbeatReply {
        /// The leader's ballot.
        ballot: Ballot,
        /// The `sent_at` of the heartbeat.
        sent_at: u64,
        /// As in [`Message::Accepted`].
        through: Index,
        /// Everything up to here is known by the sender to be chosen.
        chosen: Index,
        /// Everything up to here is applied and flushed at the sender.
        flushed: Index,
    },
    /// More is chosen now; needs no answer.
    Chosen {
        /// The leader's ballot.
        ballot: Ballot,
        /// Everything up to here is known by the leader to be chosen.
        chosen: Index,
    },
    /// The message at `ballot` is refused: a higher one is promised. Not an acknowledgement.
    Refused {
        /// The ballot of the refused message.
        ballot: Ballot,
        /// The ballot promised by the sender.
        promised: Ballot,
    },
    /// Which index must I have applied to read linearizably?
    ReadIndex {
        /// Tells this question from the sender's others.
        request: u64,
    },
    /// Answers a [`Message::ReadIndex`].
    ReadIndexReply {
        /// The question answered.
        request: u64,
        /// The leader's ballot.
        ballot: Ballot,
        /// The index to wait for: chosen when the question's round began.
        index: Index,
    },
    /// Start phase 1 now, without a poll: I hand leadership over to you.
    TakeOver {
        /// The ballot of the leader that goes.
        ballot: Ballot,
    },
    /// You lack entries that I have dropped from my log: only a snapshot helps.
    Dropped {
        /// The leader's ballot.
        ballot: Ballot,
        /// The first index that the leader still has in its log.
        first: Index,
    },
}

/// No group gets so far: a number above it is a mistake, and arithmetic on it could overflow.
const PLAUSIBLE_MAX: u64 = 1 << 62;

impl Message {
    /// False if a ballot or an index is so high that no correct replica can have sent it.
    pub(crate) fn is_plausible(&self) -> bool {
        let sane = |ballot: &Ballot, indexes: &[Index]| {
            ballot.round < PLAUSIBLE_MAX && indexes.iter().all(|index| *index < PLAUSIBLE_MAX)
        };
        match self {
            Message::Poll { .. } | Message::PollReply { .. } | Message::ReadIndex { .. } => true,
            Message::Prepare { ballot, from } => sane(ballot, &[*from]),
            Message::Promise { ballot, from, entries, next, chosen, first } => {
                let plausible = |entry: &Entry| sane(&entry.ballot, &[entry.index]);
                sane(ballot, &[*from, next.unwrap_or(0), *chosen, *first]) && entries.iter().all(plausible)
            }
            Message::Accept { ballot, entries, chosen, .. } => {
                sane(ballot, &[*chosen]) && entries.iter().all(|entry| sane(ballot, &[entry.index]))
            }
            Message::Accepted { ballot, through, chosen, .. } => sane(ballot, &[*through, *chosen]),
            Message::Heartbeat { ballot, chosen, flushed, .. } => sane(ballot, &[*chosen, *flushed]),
            Message::HeartbeatReply { ballot, through, chosen, flushed, .. } => {
                sane(ballot, &[*through, *chosen, *flushed])
            }
            Message::Chosen { ballot, chosen } => sane(ballot, &[*chosen]),
            Message::Refused { ballot, promised } => sane(ballot, &[]) && sane(promised, &[]),
            Message::ReadIndexReply { ballot, index, .. } => sane(ballot, &[*index]),
            Message::TakeOver { ballot } => sane(ballot, &[]),
            Message::Dropped { ballot, first } => sane(ballot, &[*first]),
        }
    }
}

/// Names a read of the caller.
pub type ReadId = u64;

/// What moves a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message arrived. Messages to oneself are delivered like all others.
    Message {
        /// The sender.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// Time passed: call it several times per heartbeat interval.
    Tick,
    /// Propose these bytes at the next index; [`Output::proposed`] answers.
    Propose(Bytes),
    /// Make this read linearizable; [`Output::reads_ready`] answers, unless leadership is never settled.
    Read(ReadId),
    /// Nobody waits for this read any more.
    CancelRead(ReadId),
    /// Every [`Persist`] up to this token is on disk.
    Persisted(u64),
    /// Every chosen entry up to this index is applied.
    Applied(Index),
    /// Every applied entry up to this index survives a crash without the log.
    Flushed(Index),
    /// The log need not be kept up to this index for members that lack some of it.
    Compact(Index),
    /// The connection to a node was reset.
    Disconnected(NodeId),
    /// Hand leadership to this member, or to the one that is furthest along.
    TransferLeadership(Option<NodeId>),
    /// Propose that these take part from the next index on; [`Output::proposed`] answers. Refused while an earlier
    /// configuration is not chosen.
    ProposeConfiguration(Configuration),
}

/// What an input brought about. The caller carries it out in the order of the fields.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// To be written and synced, in order with every earlier one.
    pub persist: Option<Persist>,
    /// To be sent now. None of it depends on a pending write.
    pub send: Vec<(NodeId, Message)>,
    /// Chosen, and on this node's disk: to be applied in order, then answered by [`Input::Applied`].
    pub chosen: Vec<Entry>,
    /// Reads that may be served from the applied state now.
    pub reads_ready: Vec<ReadId>,
    /// Of an [`Input::Propose`]: its index, or `None` if this replica does not lead.
    pub proposed: Option<Index>,
    /// Another configuration is in force.
    pub configuration: Option<Configuration>,
    /// True of an [`Input::Message`] that no correct replica can have sent: nothing was done with it.
    pub is_implausible: bool,
    /// This replica lacks entries that this other one has dropped from its log: only a snapshot helps.
    pub needs_snapshot: Option<NodeId>,
}

/// A write to the log, and what may be said only once it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Comes back as [`Input::Persisted`]; strictly increasing.
    pub token: u64,
    /// What to write. Empty records order `then_send` behind earlier writes.
    pub records: Vec<Record>,
    /// To be sent once the records are synced; some of it to this node itself.
    pub then_send: Vec<(NodeId, Message)>,
}

/// A change to the durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The entry now accepted at its index, in place of any other.
    Accepted(Entry),
    /// The promise and the chosen mark, in place of the earlier ones.
    HardState(HardState),
    /// Everything below this index may be forgotten.
    DropBelow(Index),
    /// Removes every entry from an index on. An acceptor keeps what it accepted: only a mutant asks for this.
    DropFrom(Index),
}

/// What an acceptor must never forget besides its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest ballot promised.
    pub promised: Ballot,
    /// Everything up to here is chosen. May lag behind; never ahead.
    pub chosen: Index,
    /// The first index still in the log.
    pub first: Index,
    /// The last configuration known to be chosen, and where; `None`: the one that the replica was first started with.
    pub configuration: Option<(Index, Configuration)>,
}

/// What a replica starts from: read from the disk, or [`Restored::default`] at the first start.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The last hard state written.
    pub hard_state: HardState,
    /// The applied index of the state machine.
    pub applied: Index,
    /// Every entry of the log above `applied`.
    pub entries: Vec<Entry>,
}

/// Reads entries that the replica no longer keeps in memory.
pub trait LogRead {
    /// The entries from `from` to `to` (both included), in order: at least one if there is any, then no
    /// more than `bytes_max`. Every record of every earlier [`Persist`] is visible.
    fn read(&self, from: Index, to: Index, bytes_max: usize) -> Vec<Entry>;
}

/// How often and how much. The same on every node of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between a leader's heartbeats.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower polls.
    pub timeout_min: Duration,
    /// The longest: each wait is drawn anew between the two.
    pub timeout_max: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(100),
            timeout_min: Duration::from_millis(600),
            timeout_max: Duration::from_millis(1200),
        }
    }
}
