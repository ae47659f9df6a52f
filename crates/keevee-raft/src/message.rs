//! What Raft replicas say to each other, in types of this crate's own: whoever carries them knows nothing of openraft.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use keevee_core::ids::NodeId;
use keevee_replica::Members;

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
    /// Who takes part from here on.
    Members(Members),
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

/// A configuration, and the place of the entry that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The entry's place.
    pub id: LogId,
    /// Who takes part from there on.
    pub members: Members,
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
    /// The leader hands leadership over (Ongaro's dissertation, 3.10).
    TransferLeader {
        /// The leader's vote.
        vote: Vote,
        /// Who is to lead: it gets what the others get, who only stop protecting the leader.
        to: u64,
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
    /// The receiver lacks entries that the sender no longer has: it needs a snapshot. Asks for an answer once it has
    /// got so far.
    TooFarBehind {
        /// The request's number.
        call: u64,
        /// The leader's vote.
        vote: Vote,
        /// The last index that the sender has dropped.
        through: u64,
    },
    /// Answers a [`RaftMessage::TooFarBehind`]: the sender's vote is the leader's.
    CaughtUp {
        /// The request's number.
        call: u64,
        /// True if it has applied as much.
        has_all: bool,
    },
}

/// No group gets so far: a number above it is a mistake, and arithmetic on it could overflow.
const PLAUSIBLE_MAX: u64 = 1 << 62;

/// No replica is so many terms behind another: who took such a term in would be refused by all others, for ever.
const TERMS_AHEAD_MAX: u64 = 1 << 32;

/// No group has so many members.
const MEMBERS_MAX: usize = 1 << 10;

impl RaftMessage {
    /// False if no correct replica can have sent it to one in this term. openraft trusts what it is told. Who takes part is
    /// not asked: the receiver may be the one that has yet to learn it.
    pub(crate) fn is_plausible(&self, from: u64, term: u64) -> bool {
        let sane = |id: &LogId| id.term < PLAUSIBLE_MAX && id.index < PLAUSIBLE_MAX;
        let all_sane = |ids: &[&Option<LogId>]| ids.iter().all(|id| id.as_ref().is_none_or(sane));
        let votes = |vote: &Vote| vote.term < PLAUSIBLE_MAX && vote.term <= term + TERMS_AHEAD_MAX;
        // What a leader or a candidate of this vote can know.
        let known = |vote: &Vote, ids: &[&Option<LogId>]| {
            all_sane(ids) && ids.iter().all(|id| id.is_none_or(|id| id.term <= vote.term))
        };
        let own = |vote: &Vote, committed| votes(vote) && vote.node == from && vote.committed == committed;
        match self {
            RaftMessage::Append { vote, previous, entries, committed, .. } => {
                own(vote, true)
                    && known(vote, &[previous, committed])
                    && entries.iter().all(|entry| sane(&entry.id) && entry.id.term <= vote.term)
                    && follow(previous, entries)
                    && entries.iter().all(holds_what_it_may)
            }
            RaftMessage::Heartbeat { vote, previous, committed, .. } => {
                own(vote, true) && known(vote, &[previous, committed])
            }
            RaftMessage::RequestVote { vote, last, .. } => own(vote, false) && known(vote, &[last]),
            RaftMessage::TransferLeader { vote, last, .. } => own(vote, true) && known(vote, &[last]),
            RaftMessage::TooFarBehind { vote, through, .. } => own(vote, true) && *through < PLAUSIBLE_MAX,
            RaftMessage::Voted { vote, last, .. } => votes(vote) && all_sane(&[last]),
            RaftMessage::Appended { result, .. } | RaftMessage::HeartbeatReply { result, .. } => match result
            {
                AppendResult::HigherVote(vote) => votes(vote),
                AppendResult::Success | AppendResult::Conflict => true,
            },
            RaftMessage::ReadIndex { .. } | RaftMessage::CaughtUp { .. } => true,
            RaftMessage::ReadIndexReply { index, .. } => index.is_none_or(|index| index < PLAUSIBLE_MAX),
            RaftMessage::Flushed { index } => *index < PLAUSIBLE_MAX,
        }
    }
}

/// Whether entries stand in a row behind `previous`, in terms that do not fall.
fn follow(previous: &Option<LogId>, entries: &[LogEntry]) -> bool {
    let before = std::iter::once(*previous).chain(entries.iter().map(|entry| Some(entry.id)));
    before.zip(entries).all(|(before, entry)| match before {
        Some(before) => entry.id.index == before.index + 1 && entry.id.term >= before.term,
        None => entry.id.index == 0,
    })
}

/// The first entry names the first voters. The others may hold anything that makes sense.
fn holds_what_it_may(entry: &LogEntry) -> bool {
    let is_first = entry.id.index == 0;
    match &entry.payload {
        Payload::Members(members) => {
            let are_voters_all = members.next.is_none() && members.learners.is_empty();
            make_sense(members) && (are_voters_all || !is_first)
        }
        Payload::Blank | Payload::Data(_) => !is_first,
    }
}

/// Whether members may be a configuration: some of them decide, and no learner does.
pub(crate) fn make_sense(members: &Members) -> bool {
    let is_quorum_possible = |voters: &BTreeSet<NodeId>| (1..=MEMBERS_MAX).contains(&voters.len());
    is_quorum_possible(&members.voters)
        && members.next.as_ref().is_none_or(is_quorum_possible)
        && members.learners.len() <= MEMBERS_MAX
        && !members.learners.iter().any(|learner| members.is_voter(*learner))
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendResult {
    /// All entries are on disk.
    Success,
    /// The log does not hold what should come before them.
    Conflict,
    /// The replica has voted for somebody else since.
    HigherVote(Vote),
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTE: Vote = Vote { term: 3, node: 2, committed: true };

    fn id(term: u64, index: u64) -> LogId {
        LogId { term, index }
    }

    fn entry(term: u64, index: u64) -> LogEntry {
        LogEntry { id: id(term, index), payload: Payload::Blank }
    }

    fn append(vote: Vote, previous: Option<LogId>, entries: Vec<LogEntry>) -> RaftMessage {
        RaftMessage::Append { call: 1, vote, previous, entries, committed: None }
    }

    #[test]
    fn only_what_a_correct_replica_may_say_is_plausible() {
        let holding = |id, members| LogEntry { id, payload: Payload::Members(members) };
        let voters = |voters: &[u64]| Members::of_voters(voters.iter().copied().map(NodeId));
        let joint = |next: &[u64], learners: &[u64]| Members {
            next: Some(voters(next).voters),
            learners: voters(learners).voters,
            ..voters(&[1, 2])
        };
        let change = |members| append(VOTE, Some(id(1, 4)), vec![holding(id(1, 5), members)]);
        let candidate = Vote { committed: false, ..VOTE };
        let ask = |vote| RaftMessage::RequestVote { call: 1, poll: false, vote, last: None, transfer: false };
        let voted = |vote| RaftMessage::Voted { call: 1, vote, granted: false, last: None };
        let transfer = |to| RaftMessage::TransferLeader { vote: VOTE, to, last: None };
        let nobody = Vote { term: 0, node: 0, committed: false };
        for right in [
            append(VOTE, None, vec![holding(id(0, 0), voters(&[1, 2, 3])), entry(1, 1)]),
            append(VOTE, Some(id(1, 4)), vec![entry(1, 5), entry(3, 6)]),
            append(VOTE, Some(id(1, 4)), Vec::new()),
            change(voters(&[7, 8, 9])),
            change(joint(&[2, 3], &[4])),
            ask(candidate),
            voted(nobody),
            voted(Vote { node: 9, ..VOTE }),
            transfer(9),
            RaftMessage::TooFarBehind { call: 1, vote: VOTE, through: 9 },
        ] {
            assert!(right.is_plausible(2, 3), "{right:?}");
        }
        for wrong in [
            append(VOTE, Some(id(1, u64::MAX)), vec![entry(1, 0)]),
            append(Vote { term: u64::MAX, ..VOTE }, None, Vec::new()),
            append(Vote { term: 1 << 40, ..VOTE }, None, Vec::new()),
            append(VOTE, Some(id(4, 4)), Vec::new()),
            append(Vote { node: 3, ..VOTE }, None, Vec::new()),
            append(candidate, None, Vec::new()),
            append(VOTE, Some(id(1, 4)), vec![entry(1, 6)]),
            append(VOTE, Some(id(2, 4)), vec![entry(1, 5)]),
            append(VOTE, Some(id(1, 4)), vec![entry(4, 5)]),
            append(VOTE, None, vec![entry(1, 0)]),
            append(VOTE, None, vec![holding(id(0, 0), joint(&[2, 3], &[]))]),
            append(VOTE, None, vec![holding(id(0, 0), voters(&[]))]),
            change(voters(&[])),
            change(joint(&[], &[])),
            change(joint(&[2, 3], &[3])),
            change(Members::of_voters((0..2_000).map(NodeId))),
            ask(VOTE),
            ask(Vote { node: 1, ..candidate }),
            voted(Vote { term: u64::MAX, ..VOTE }),
            RaftMessage::TransferLeader { vote: candidate, to: 1, last: None },
            RaftMessage::TooFarBehind { call: 1, vote: candidate, through: 9 },
            RaftMessage::Flushed { index: u64::MAX },
            RaftMessage::ReadIndexReply { call: 1, index: Some(u64::MAX) },
        ] {
            assert!(!wrong.is_plausible(2, 3), "{wrong:?}");
        }
    }
}
