//! Raft's messages as they travel, `proto/raft.proto`: the way from and to the engine's own types.

use std::collections::BTreeSet;

use keevee_core::ids::NodeId;
use keevee_raft::{AppendResult, LogEntry, LogId, Payload, RaftMessage, Vote};
use keevee_replica::Members;

use super::proto::raft::Kind;
use super::{PeerMessage, Received, WireError, proto};

impl From<RaftMessage> for super::Kind {
    fn from(message: RaftMessage) -> super::Kind {
        let id = |id: Option<LogId>| id.map(write_id);
        let kind = match message {
            RaftMessage::Append { call, vote, previous, entries, committed } => {
                let entries = entries.into_iter().map(write_entry).collect();
                let (vote, previous, committed) = (write_vote(vote), id(previous), id(committed));
                Kind::Append(proto::RaftAppend { call, vote, previous, entries, committed })
            }
            RaftMessage::Appended { call, result } => Kind::Appended(write_appended(call, result)),
            RaftMessage::Heartbeat { call, vote, previous, committed } => {
                let (vote, previous, committed) = (write_vote(vote), id(previous), id(committed));
                Kind::Heartbeat(proto::RaftHeartbeat { call, vote, previous, committed })
            }
            RaftMessage::HeartbeatReply { call, result } => {
                Kind::HeartbeatReply(write_appended(call, result))
            }
            RaftMessage::RequestVote { call, poll, vote, last, transfer } => {
                let (vote, last) = (write_vote(vote), id(last));
                Kind::RequestVote(proto::RaftRequestVote { call, poll, vote, last, transfer })
            }
            RaftMessage::Voted { call, vote, granted, last } => {
                Kind::Voted(proto::RaftVoted { call, vote: write_vote(vote), granted, last: id(last) })
            }
            RaftMessage::TransferLeader { vote, to, last } => {
                Kind::TransferLeader(proto::RaftTransferLeader { vote: write_vote(vote), to, last: id(last) })
            }
            RaftMessage::ReadIndex { call } => Kind::ReadIndex(proto::RaftReadIndex { call }),
            RaftMessage::ReadIndexReply { call, index } => {
                Kind::ReadIndexReply(proto::RaftReadIndexReply { call, index })
            }
            RaftMessage::Flushed { index } => Kind::Flushed(proto::RaftFlushed { index }),
            RaftMessage::TooFarBehind { call, vote, through } => {
                Kind::TooFarBehind(proto::RaftTooFarBehind { call, vote: write_vote(vote), through })
            }
            RaftMessage::CaughtUp { call, has_all } => Kind::CaughtUp(proto::RaftCaughtUp { call, has_all }),
        };
        super::Kind::Raft(proto::Raft { kind: Some(kind) })
    }
}

impl Received for proto::Raft {
    fn check(self) -> Result<PeerMessage, WireError> {
        let id = |id: Option<proto::RaftLogId>| id.map(read_id);
        let message = match self.kind.ok_or(WireError::Missing("kind"))? {
            Kind::Append(proto::RaftAppend { call, vote, previous, entries, committed }) => {
                let entries = entries.into_iter().map(read_entry).collect::<Result<_, _>>()?;
                let (vote, previous, committed) = (read_vote(vote)?, id(previous), id(committed));
                RaftMessage::Append { call, vote, previous, entries, committed }
            }
            Kind::Appended(appended) => {
                RaftMessage::Appended { call: appended.call, result: read_result(appended)? }
            }
            Kind::Heartbeat(proto::RaftHeartbeat { call, vote, previous, committed }) => {
                let (vote, previous, committed) = (read_vote(vote)?, id(previous), id(committed));
                RaftMessage::Heartbeat { call, vote, previous, committed }
            }
            Kind::HeartbeatReply(appended) => {
                RaftMessage::HeartbeatReply { call: appended.call, result: read_result(appended)? }
            }
            Kind::RequestVote(proto::RaftRequestVote { call, poll, vote, last, transfer }) => {
                RaftMessage::RequestVote { call, poll, vote: read_vote(vote)?, last: id(last), transfer }
            }
            Kind::Voted(proto::RaftVoted { call, vote, granted, last }) => {
                RaftMessage::Voted { call, vote: read_vote(vote)?, granted, last: id(last) }
            }
            Kind::TransferLeader(proto::RaftTransferLeader { vote, to, last }) => {
                RaftMessage::TransferLeader { vote: read_vote(vote)?, to, last: id(last) }
            }
            Kind::ReadIndex(proto::RaftReadIndex { call }) => RaftMessage::ReadIndex { call },
            Kind::ReadIndexReply(proto::RaftReadIndexReply { call, index }) => {
                RaftMessage::ReadIndexReply { call, index }
            }
            Kind::Flushed(proto::RaftFlushed { index }) => RaftMessage::Flushed { index },
            Kind::TooFarBehind(proto::RaftTooFarBehind { call, vote, through }) => {
                RaftMessage::TooFarBehind { call, vote: read_vote(vote)?, through }
            }
            Kind::CaughtUp(proto::RaftCaughtUp { call, has_all }) => RaftMessage::CaughtUp { call, has_all },
        };
        Ok(PeerMessage::Raft(message))
    }
}

fn write_id(id: LogId) -> proto::RaftLogId {
    proto::RaftLogId { term: id.term, index: id.index }
}

fn read_id(id: proto::RaftLogId) -> LogId {
    LogId { term: id.term, index: id.index }
}

fn write_vote(vote: Vote) -> Option<proto::RaftVote> {
    Some(proto::RaftVote { term: vote.term, node: vote.node, committed: vote.committed })
}

fn read_vote(vote: Option<proto::RaftVote>) -> Result<Vote, WireError> {
    let vote = vote.ok_or(WireError::Missing("vote"))?;
    Ok(Vote { term: vote.term, node: vote.node, committed: vote.committed })
}

fn write_entry(entry: LogEntry) -> proto::RaftEntry {
    let mut written = proto::RaftEntry { id: Some(write_id(entry.id)), ..proto::RaftEntry::default() };
    match entry.payload {
        Payload::Blank => written.blank = true,
        Payload::Data(data) => written.data = Some(data),
        Payload::Members(Members { voters, next: None, learners }) if learners.is_empty() => {
            written.voters = write_nodes(voters);
        }
        Payload::Members(Members { voters, next, learners }) => {
            let next = next.map(write_nodes).unwrap_or_default();
            let (voters, learners) = (write_nodes(voters), write_nodes(learners));
            written.members = Some(proto::RaftMembers { voters, next, learners });
        }
    }
    written
}

fn write_nodes(nodes: BTreeSet<NodeId>) -> Vec<u64> {
    nodes.into_iter().map(|node| node.0).collect()
}

fn read_entry(entry: proto::RaftEntry) -> Result<LogEntry, WireError> {
    let id = read_id(entry.id.ok_or(WireError::Missing("id"))?);
    let voters = Members::of_voters(entry.voters.into_iter().map(NodeId));
    let payload = match (entry.data, voters.voters.is_empty(), entry.members, entry.blank) {
        (Some(data), true, None, false) => Payload::Data(data),
        (None, false, None, false) => Payload::Members(voters),
        (None, true, Some(members), false) => Payload::Members(read_members(members)?),
        (None, true, None, true) => Payload::Blank,
        // Perhaps of a kind that came later: an entry can't be skipped.
        (None, true, None, false) => return Err(WireError::Missing("data")),
        _ => return Err(WireError::Malformed("data")),
    };
    Ok(LogEntry { id, payload })
}

/// Members that are more than voters, as every sender writes them. Whether they make sense the engine says.
fn read_members(members: proto::RaftMembers) -> Result<Members, WireError> {
    let nodes = |nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect::<BTreeSet<NodeId>>();
    let members = Members {
        voters: nodes(members.voters),
        next: (!members.next.is_empty()).then(|| nodes(members.next)),
        learners: nodes(members.learners),
    };
    let is_more = members.next.is_some() || !members.learners.is_empty();
    is_more.then_some(members).ok_or(WireError::Malformed("members"))
}

fn write_appended(call: u64, result: AppendResult) -> proto::RaftAppended {
    let (result, vote) = match result {
        AppendResult::Success => (proto::RaftAppendResult::Success, None),
        AppendResult::Conflict => (proto::RaftAppendResult::Conflict, None),
        AppendResult::HigherVote(vote) => (proto::RaftAppendResult::HigherVote, write_vote(vote)),
    };
    proto::RaftAppended { call, result: result.into(), vote }
}

fn read_result(appended: proto::RaftAppended) -> Result<AppendResult, WireError> {
    match appended.result() {
        proto::RaftAppendResult::Success => Ok(AppendResult::Success),
        proto::RaftAppendResult::Conflict => Ok(AppendResult::Conflict),
        proto::RaftAppendResult::HigherVote => Ok(AppendResult::HigherVote(read_vote(appended.vote)?)),
        proto::RaftAppendResult::Unspecified => Err(WireError::Malformed("result")),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;

    use super::*;
    use crate::transport::wire::{Kind as AnyKind, read_shard};

    /// Today's bytes of every message, as hexadecimal text: one on each line.
    const MESSAGES: &str = include_str!("raft_v1.txt");

    fn every_message() -> Vec<RaftMessage> {
        let id = |index| Some(LogId { term: 3, index });
        let vote = Vote { term: 4, node: 2, committed: true };
        let entry = |index, payload| LogEntry { id: LogId { term: 4, index }, payload };
        let voters = Members::of_voters([1, 2, 300].map(NodeId));
        let learners: BTreeSet<NodeId> = [4].map(NodeId).into();
        let next = Some([2, 300].map(NodeId).into());
        let changes = vec![
            entry(11, Payload::Members(Members { learners: learners.clone(), ..voters.clone() })),
            entry(12, Payload::Members(Members { next: next.clone(), ..voters.clone() })),
            entry(13, Payload::Members(Members { next, learners, ..voters.clone() })),
        ];
        let entries = vec![
            entry(7, Payload::Blank),
            entry(8, Payload::Data(Bytes::from_static(b"data"))),
            entry(9, Payload::Data(Bytes::new())),
            entry(10, Payload::Members(voters)),
        ];
        let results = [AppendResult::Success, AppendResult::Conflict, AppendResult::HigherVote(vote)];
        let appended = results.map(|result| RaftMessage::Appended { call: 1, result });
        let rest = [
            RaftMessage::Append { call: 2, vote, previous: id(6), entries, committed: id(5) },
            RaftMessage::Append { call: 2, vote, previous: None, entries: Vec::new(), committed: None },
            RaftMessage::Heartbeat { call: 3, vote, previous: id(6), committed: id(5) },
            RaftMessage::HeartbeatReply { call: 3, result: AppendResult::Conflict },
            RaftMessage::RequestVote { call: 4, poll: true, vote, last: id(6), transfer: false },
            RaftMessage::RequestVote { call: 4, poll: false, vote, last: None, transfer: true },
            RaftMessage::Voted { call: 4, vote, granted: true, last: id(6) },
            RaftMessage::TransferLeader { vote, to: 3, last: id(6) },
            RaftMessage::ReadIndex { call: 5 },
            RaftMessage::ReadIndexReply { call: 5, index: Some(0) },
            RaftMessage::ReadIndexReply { call: 5, index: None },
            RaftMessage::Flushed { index: 6 },
            RaftMessage::TooFarBehind { call: 0, vote, through: 0 },
            RaftMessage::TooFarBehind { call: 7, vote, through: 8 },
            RaftMessage::CaughtUp { call: 7, has_all: true },
            RaftMessage::Append { call: 2, vote, previous: id(10), entries: changes, committed: id(5) },
        ];
        appended.into_iter().chain(rest).collect()
    }

    fn message_of(kind: AnyKind) -> proto::Message {
        proto::Message { kind: Some(kind) }
    }

    #[test]
    fn messages_have_the_bytes_that_they_always_had() {
        let hexadecimal = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let messages = every_message().into_iter().map(|message| message_of(message.into()));
        let written: Vec<String> = messages.map(|message| hexadecimal(message.encode_to_vec())).collect();
        let lines: Vec<&str> = MESSAGES.lines().collect();
        assert_eq!(written, lines);
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        for message in every_message() {
            let bytes = Bytes::from(message_of(message.clone().into()).encode_to_vec());
            let Some(AnyKind::Raft(read)) = proto::Message::decode(bytes).unwrap().kind else {
                panic!("another kind: {message:?}");
            };
            assert_eq!(read.clone().check().unwrap(), PeerMessage::Raft(message.clone()));
            let text = serde_json::to_string(&read).unwrap();
            let read: proto::Raft = serde_json::from_str(&text).unwrap();
            assert_eq!(read.check().unwrap(), PeerMessage::Raft(message), "{text}");
        }
    }

    #[test]
    fn a_message_of_a_later_version_is_skipped_and_counted() {
        let later = message_of(AnyKind::Raft(proto::Raft { kind: None }));
        let known = message_of(RaftMessage::ReadIndex { call: 5 }.into());
        let messages = proto::ShardMessages { shard: 1, messages: vec![later, known] };
        let (_, read, skipped) = read_shard(messages).unwrap();
        assert_eq!((read, skipped), (vec![PeerMessage::Raft(RaftMessage::ReadIndex { call: 5 })], 1));
    }

    #[test]
    fn what_lacks_a_part_or_contradicts_itself_is_refused() {
        let no_kind = proto::Raft { kind: None };
        let no_vote = proto::Raft { kind: Some(Kind::Heartbeat(proto::RaftHeartbeat::default())) };
        let no_result = proto::Raft { kind: Some(Kind::Appended(proto::RaftAppended::default())) };
        let id = Some(proto::RaftLogId::default());
        let both = proto::RaftEntry { id, data: Some(Bytes::new()), voters: vec![1], ..Default::default() };
        let only_voters = Some(proto::RaftMembers { voters: vec![1], ..Default::default() });
        let other_words = proto::RaftEntry { id, members: only_voters, ..Default::default() };
        let members = Some(proto::RaftMembers { voters: vec![1], next: vec![2], learners: Vec::new() });
        let twice = proto::RaftEntry { id, voters: vec![1], members, ..Default::default() };
        let unknown = proto::RaftEntry { id, ..proto::RaftEntry::default() };
        let append = |entry| {
            let vote = Some(proto::RaftVote::default());
            let append = proto::RaftAppend { vote, entries: vec![entry], ..proto::RaftAppend::default() };
            proto::Raft { kind: Some(Kind::Append(append)) }
        };
        let entries = [both, other_words, twice, unknown].map(append);
        for raft in [no_kind, no_vote, no_result].into_iter().chain(entries) {
            assert!(raft.clone().check().is_err(), "{raft:?}");
        }
    }
}
