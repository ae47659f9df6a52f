//! What Raft replicas say to each other, in types of this crate's own: whoever carries them knows nothing of openraft.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;

/// An entry's place: no two entries of one term share an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// From 0; that one holds the first members.
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.term, self.index)
    }
}

/// What a replica has voted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The candidate of that term.
    pub node: u64,
    /// True if a quorum has granted it: its candidate leads.
    pub committed: bool,
}

impl fmt::Display for Vote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leads = if self.committed { " leads" } else { "" };
        write!(formatter, "{}.{}{leads}", self.term, self.node)
    }
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a leader's first entry.
    Blank,
    /// What was proposed.
    Data(Bytes),
    /// Who votes from here on.
    Members(BTreeSet<u64>),
}

impl Payload {
    /// How many bytes were proposed.
    pub fn len(&self) -> usize {
        match self {
            Payload::Data(bytes) => bytes.len(),
            Payload::Blank | Payload::Members(_) => 0,
        }
    }

    /// True if nothing was proposed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub id: LogId,
    /// What it holds.
    pub payload: Payload,
}

/// A message between replicas. A request carries a number, which its answer repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RaftMessage {
    /// Entries that follow `previous`, perhaps none (Raft, section 5.3).
    Append {
        /// The request's number.
        call: u64,
        /// The leader's vote.
        vote: Vote,
        /// The place before the first entry.
        previous: Option<LogId>,
        /// The entries.
        entries: Vec<LogEntry>,
        /// How far the leader knows entries to be committed.
        committed: Option<LogId>,
    },
    /// What became of an [`RaftMessage::Append`].
    Appended {
        /// The request's number.
        call: u64,
        /// The result.
        result: AppendResult,
    },
    /// An [`RaftMessage::Append`] without entries that is not part of the stream of appends, so that it need not
    /// wait behind them.
    Heartbeat {
        /// The request's number.
        call: u64,
        /// The leader's vote.
        vote: Vote,
        /// An entry that the receiver should have.
        previous: Option<LogId>,
        /// How far the leader knows entries to be committed.
        committed: Option<LogId>,
    },
    /// Answers a [`RaftMessage::Heartbeat`].
    HeartbeatReply {
        /// The request's number.
        call: u64,
        /// The result.
        result: AppendResult,
    },
    /// Asks for a vote, or whether there would be one (Raft, section 5.2; Ongaro's dissertation, 9.6).
    RequestVote {
        /// The request's number.
        call: u64,
        /// True if nothing is to be recorded: would it be granted?
        poll: bool,
        /// The vote asked for.
        vote: Vote,
        /// The last entry of the candidate.
        last: Option<LogId>,
        /// True if the leader itself wants this election.
        transfer: bool,
    },
    /// Answers a [`RaftMessage::RequestVote`].
    Voted {
        /// The request's number.
        call: u64,
        /// What the replica has voted for.
        vote: Vote,
        /// True if that is, or would be, what was asked for.
        granted: bool,
        /// The last entry of the replica.
        last: Option<LogId>,
    },
    /// Hands leadership to the receiver (Ongaro's dissertation, 3.10).
    TransferLeader {
        /// The leader's vote.
        vote: Vote,
        /// The last entry of the leader.
        last: Option<LogId>,
    },
    /// Asks the leader how far a linearizable read must have applied (Ongaro's dissertation, 6.4).
    ReadIndex {
        /// The request's number.
        call: u64,
    },
    /// Answers a [`RaftMessage::ReadIndex`].
    ReadIndexReply {
        /// The request's number.
        call: u64,
        /// The index; none if the replica does not lead.
        index: Option<u64>,
    },
    /// Everything up to here survives a crash of the sender without its log.
    Flushed {
        /// The index.
        index: u64,
    },
    /// The receiver lacks entries that the sender no longer has.
    TooFarBehind,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendResult {
    /// All entries are on disk.
    Success,
    /// Those up to here are.
    Partial(Option<LogId>),
    /// The log does not hold what should come before them.
    Conflict,
    /// The replica has voted for somebody else since.
    HigherVote(Vote),
}
