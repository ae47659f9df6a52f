//! openraft's type parameters, and the way between its types and this crate's.
//!
//! openraft's types stay within this crate.

use std::fmt;

use bytes::Bytes;
use keevee_core::ids::NodeId;
use keevee_replica::Members;
use openraft::alias::{CommittedLeaderIdOf, LogIdOf, StoredMembershipOf, VoteOf};
use openraft::impls::leader_id_std::LeaderId;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, EntryPayload, Membership};
use openraft_rt_sim::SimRuntime;

use crate::message::{AppendResult, Configured, LogEntry, LogId, Payload, Vote};

openraft::declare_raft_types!(
    /// The runtime is one that runs only when the engine says so: see `engine.rs`.
    pub(crate) Types:
        D = Proposal,
        R = (),
        NodeId = u64,
        Node = EmptyNode,
        LeaderId = LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = SimRuntime,
);

pub(crate) type Entry = openraft::alias::EntryOf<Types>;

/// A payload on its way through openraft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// Tells this replica's own proposals apart until they are in its log; 0 for those of others.
    pub(crate) tag: u64,
    pub(crate) payload: Bytes,
}

impl fmt::Display for Proposal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.payload.len())
    }
}

pub(crate) fn membership(members: &Members) -> Membership<u64, EmptyNode> {
    let sets = std::iter::once(&members.voters).chain(&members.next);
    let configs = sets.map(|voters| voters.iter().map(|node| node.0).collect());
    Membership::new_with_defaults(configs.collect(), members.learners.iter().map(|node| node.0))
}

fn our_members(membership: &Membership<u64, EmptyNode>) -> Members {
    let mut configs = membership.get_joint_config().iter();
    let mut voters = || configs.next().map(|voters| voters.iter().copied().map(NodeId).collect());
    Members {
        voters: voters().unwrap_or_default(),
        next: voters(),
        learners: membership.learner_ids().map(NodeId).collect(),
    }
}

/// What openraft makes of a configuration; nobody takes part without one.
pub(crate) fn stored_membership(configured: Option<&Configured>) -> StoredMembershipOf<Types> {
    configured.map_or_else(StoredMembershipOf::<Types>::default, |Configured { id, members }| {
        StoredMembershipOf::<Types>::new(Some(theirs(*id)), membership(members))
    })
}

/// Where the first members stand in every log.
pub(crate) const FIRST: LogId = LogId { term: 0, index: 0 };

pub(crate) fn theirs(id: LogId) -> LogIdOf<Types> {
    LogIdOf::<Types> { leader_id: CommittedLeaderIdOf::<Types>::new(id.term), index: id.index }
}

pub(crate) fn ours(id: &LogIdOf<Types>) -> LogId {
    LogId { term: id.leader_id.term, index: id.index }
}

pub(crate) fn their_vote(vote: Vote) -> VoteOf<Types> {
    let leader_id = LeaderId { term: vote.term, voted_for: vote.node };
    VoteOf::<Types> { leader_id, committed: vote.committed }
}

pub(crate) fn our_vote(vote: &VoteOf<Types>) -> Vote {
    Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn their_entry(entry: LogEntry) -> Entry {
    let payload = match entry.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Data(payload) => EntryPayload::Normal(Proposal { tag: 0, payload }),
        Payload::Members(members) => EntryPayload::Membership(membership(&members)),
    };
    Entry { log_id: theirs(entry.id), payload }
}

pub(crate) fn our_entry(entry: &Entry) -> LogEntry {
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(proposal) => Payload::Data(proposal.payload.clone()),
        EntryPayload::Membership(membership) => Payload::Members(our_members(membership)),
    };
    LogEntry { id: ours(&entry.log_id), payload }
}

pub(crate) fn their_append(
    vote: Vote,
    previous: Option<LogId>,
    entries: Vec<LogEntry>,
    committed: Option<LogId>,
) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: their_vote(vote),
        prev_log_id: previous.map(theirs),
        entries: entries.into_iter().map(their_entry).collect(),
        leader_commit: committed.map(theirs),
    }
}

pub(crate) fn our_append_result(response: &AppendEntriesResponse<Types>) -> AppendResult {
    match response {
        AppendEntriesResponse::Success => AppendResult::Success,
        // Only a receiver that stops early says so, and openraft's never does. Sent again, the rest does no harm.
        AppendEntriesResponse::PartialSuccess(_) => AppendResult::Conflict,
        AppendEntriesResponse::Conflict => AppendResult::Conflict,
        AppendEntriesResponse::HigherVote(vote) => AppendResult::HigherVote(our_vote(vote)),
    }
}

pub(crate) fn their_append_response(result: AppendResult) -> AppendEntriesResponse<Types> {
    match result {
        AppendResult::Success => AppendEntriesResponse::Success,
        AppendResult::Conflict => AppendEntriesResponse::Conflict,
        AppendResult::HigherVote(vote) => AppendEntriesResponse::HigherVote(their_vote(vote)),
    }
}

pub(crate) fn their_vote_request(vote: Vote, last: Option<LogId>, transfer: bool) -> VoteRequest<Types> {
    VoteRequest { vote: their_vote(vote), last_log_id: last.map(theirs), leadership_transfer: transfer }
}

pub(crate) fn their_vote_response(vote: Vote, granted: bool, last: Option<LogId>) -> VoteResponse<Types> {
    VoteResponse::new(their_vote(vote), last.map(theirs), granted)
}

pub(crate) fn their_transfer(vote: Vote, to: u64, last: Option<LogId>) -> TransferLeaderRequest<Types> {
    TransferLeaderRequest::new(their_vote(vote), to, last.map(theirs))
}
