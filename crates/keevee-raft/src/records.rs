//! How the Raft engine's entries and hard state look on disk: `proto/raft_log.proto`.
//!
//! [`RaftEngine`](crate::RaftEngine) writes and reads them by itself; these are for whoever looks at a log from
//! outside. It leaves out where they are kept ([`keevee_replica::storage`]), and an entry's index, which is its key
//! there.

use std::collections::BTreeSet;

use bytes::Bytes;
use keevee_core::ids::NodeId;
use keevee_replica::Members;
use keevee_replica::storage::StorageError;
use prost::Message;

use crate::message::{Configured, LogEntry, LogId, Payload, Vote, make_sense};

mod proto {
    #![allow(missing_docs, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/keevee.raft_log.rs"));
}

const VERSION: u32 = 1;

/// What a replica must remember besides its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// What it voted for.
    pub vote: Option<Vote>,
    /// How far it knew entries to be committed.
    pub committed: Option<LogId>,
    /// How far its log was dropped.
    pub purged: Option<LogId>,
    /// In order: the last configuration of what was dropped, and all that the log holds but for the first members, whom the
    /// replica is told at its start. So none of them has to be looked for in the log.
    pub configurations: Vec<Configured>,
}

/// The bytes of a [`LogRecord::Entry`](keevee_replica::storage::LogRecord::Entry).
pub fn encode_entry(entry: &LogEntry) -> Bytes {
    let value = match &entry.payload {
        Payload::Blank => proto::entry::Value::Blank(proto::Blank {}),
        Payload::Data(bytes) => proto::entry::Value::Data(bytes.clone()),
        Payload::Members(members) if members.next.is_none() && members.learners.is_empty() => {
            proto::entry::Value::Members(proto::Members { voters: write_nodes(&members.voters) })
        }
        Payload::Members(members) => proto::entry::Value::Configuration(write_members(members)),
    };
    let record = proto::Entry { version: VERSION, term: entry.id.term, value: Some(value) };
    record.encode_to_vec().into()
}

/// The entry at an index, as [`encode_entry`] made it.
///
/// # Errors
///
/// [`StorageError::Corrupt`] if the bytes are no entry of a layout known here.
pub fn decode_entry(index: u64, bytes: Bytes) -> Result<LogEntry, StorageError> {
    let corrupt = |cause: String| StorageError::Corrupt { what: "a log entry", cause };
    let record = proto::Entry::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
    check_version(record.version).map_err(&corrupt)?;
    let payload = match record.value {
        Some(proto::entry::Value::Blank(_)) => Payload::Blank,
        Some(proto::entry::Value::Data(data)) => Payload::Data(data),
        Some(proto::entry::Value::Members(proto::Members { voters })) => {
            Payload::Members(Members::of_voters(voters.into_iter().map(NodeId)))
        }
        Some(proto::entry::Value::Configuration(configuration)) => {
            Payload::Members(read_members(configuration))
        }
        None => return Err(corrupt(format!("index {index} holds a value of an unknown kind"))),
    };
    Ok(LogEntry { id: LogId { term: record.term, index }, payload })
}

/// The bytes of a [`LogRecord::HardState`](keevee_replica::storage::LogRecord::HardState).
pub fn encode_hard_state(state: &HardState) -> Bytes {
    let vote = |vote: Vote| proto::Vote { term: vote.term, node: vote.node, committed: vote.committed };
    let record = proto::HardState {
        version: VERSION,
        vote: state.vote.map(vote),
        committed: state.committed.map(write_id),
        purged: state.purged.map(write_id),
        configurations: state.configurations.iter().map(write_configured).collect(),
    };
    record.encode_to_vec().into()
}

/// The hard state, as [`encode_hard_state`] made it.
///
/// # Errors
///
/// [`StorageError::Corrupt`] if the bytes are no hard state of a layout known here.
pub fn decode_hard_state(bytes: Bytes) -> Result<HardState, StorageError> {
    let corrupt = |cause: String| StorageError::Corrupt { what: "the hard state", cause };
    let record = proto::HardState::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
    check_version(record.version).map_err(&corrupt)?;
    let configured = |one| read_configured(one).ok_or_else(|| corrupt("a configuration lacks a part".into()));
    let vote = |vote: proto::Vote| Vote { term: vote.term, node: vote.node, committed: vote.committed };
    Ok(HardState {
        vote: record.vote.map(vote),
        committed: record.committed.map(read_id),
        purged: record.purged.map(read_id),
        configurations: record.configurations.into_iter().map(configured).collect::<Result<_, _>>()?,
    })
}

/// What a snapshot carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The entry that its state was applied through.
    pub(crate) id: LogId,
    /// The last configuration up to there. None in one of an earlier version, which knew only the first members.
    pub(crate) configured: Option<Configured>,
}

/// The bytes of a snapshot's mark.
pub(crate) fn encode_mark(mark: &Mark) -> Bytes {
    let configuration = mark.configured.as_ref().map(write_configured);
    proto::Mark { term: mark.id.term, index: mark.id.index, configuration }.encode_to_vec().into()
}

/// Reads what [`encode_mark`] wrote, of a snapshot of this index.
pub(crate) fn decode_mark(index: u64, mark: &Bytes) -> Result<Mark, StorageError> {
    let corrupt = |cause: String| StorageError::Corrupt { what: "a snapshot", cause };
    let record = proto::Mark::decode(mark.clone()).map_err(|error| corrupt(error.to_string()))?;
    let id = LogId { term: record.term, index: record.index };
    if id.index != index {
        return Err(corrupt(format!("it is of index {index}, and its mark of {}", id.index)));
    }
    // It comes from a peer.
    let is_sound = |one: &Configured| one.id <= id && one.id.index <= index && make_sense(&one.members);
    let configured = match record.configuration {
        Some(one) => {
            let sound = read_configured(one).filter(is_sound);
            Some(sound.ok_or_else(|| corrupt("its members make no sense".into()))?)
        }
        None => None,
    };
    Ok(Mark { id, configured })
}

fn write_id(id: LogId) -> proto::LogId {
    proto::LogId { term: id.term, index: id.index }
}

fn read_id(id: proto::LogId) -> LogId {
    LogId { term: id.term, index: id.index }
}

fn write_nodes(nodes: &BTreeSet<NodeId>) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn write_members(members: &Members) -> proto::Configuration {
    proto::Configuration {
        voters: write_nodes(&members.voters),
        next: members.next.as_ref().map(write_nodes).unwrap_or_default(),
        learners: write_nodes(&members.learners),
    }
}

fn read_members(configuration: proto::Configuration) -> Members {
    let nodes = |nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect();
    Members {
        voters: nodes(configuration.voters),
        next: (!configuration.next.is_empty()).then(|| nodes(configuration.next)),
        learners: nodes(configuration.learners),
    }
}

fn write_configured(one: &Configured) -> proto::Configured {
    let configuration = Some(write_members(&one.members));
    proto::Configured { id: Some(write_id(one.id)), configuration }
}

fn read_configured(one: proto::Configured) -> Option<Configured> {
    Some(Configured { id: read_id(one.id?), members: read_members(one.configuration?) })
}

fn check_version(version: u32) -> Result<(), String> {
    let expected = || format!("layout {version}, this program knows {VERSION}: use a newer one");
    (version == VERSION).then_some(()).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_records_stay_readable() {
        let entry = |index, term, payload| LogEntry { id: LogId { term, index }, payload };
        let data = entry(7, 3, Payload::Data(Bytes::from_static(b"abc")));
        let blank = entry(8, 4, Payload::Blank);
        let voters = Members::of_voters([1, 2, 300].map(NodeId));
        let members = entry(0, 0, Payload::Members(voters.clone()));
        let next = Some([2].map(NodeId).into());
        let joint = Members { next, learners: [3].map(NodeId).into(), ..voters.clone() };
        let learner = Members { learners: [3].map(NodeId).into(), ..voters };
        for (entry, old) in [
            (data, &b"\x08\x01\x10\x03\x22\x03abc"[..]),
            (blank, b"\x08\x01\x10\x04\x1a\x00"),
            (members, b"\x08\x01\x2a\x06\x0a\x04\x01\x02\xac\x02"),
            (
                entry(9, 4, Payload::Members(joint.clone())),
                b"\x08\x01\x10\x04\x32\x0c\x0a\x04\x01\x02\xac\x02\x12\x01\x02\x1a\x01\x03",
            ),
            (
                entry(9, 4, Payload::Members(learner)),
                b"\x08\x01\x10\x04\x32\x09\x0a\x04\x01\x02\xac\x02\x1a\x01\x03",
            ),
        ] {
            assert_eq!(encode_entry(&entry), old);
            assert_eq!(decode_entry(entry.id.index, Bytes::from_static(old)), Ok(entry));
        }
        let state = HardState {
            vote: Some(Vote { term: 5, node: 2, committed: true }),
            committed: Some(LogId { term: 4, index: 300 }),
            purged: Some(LogId { term: 0, index: 0 }),
            configurations: Vec::new(),
        };
        let old = b"\x08\x01\x12\x06\x08\x05\x10\x02\x18\x01\x1a\x05\x08\x04\x10\xac\x02\x22\x00";
        assert_eq!(encode_hard_state(&state), &old[..]);
        assert_eq!(decode_hard_state(Bytes::from_static(old)), Ok(state));
        let configurations = vec![Configured { id: LogId { term: 4, index: 9 }, members: joint }];
        let state = HardState { configurations, ..HardState::default() };
        let old = b"\x08\x01\x2a\x14\x0a\x04\x08\x04\x10\x09\x12\x0c\x0a\x04\x01\x02\xac\x02\x12\x01\x02\x1a\x01\x03";
        assert_eq!(encode_hard_state(&state), &old[..]);
        assert_eq!(decode_hard_state(Bytes::from_static(old)), Ok(state));
        let nothing = Bytes::from_static(b"\x08\x01");
        assert_eq!(encode_hard_state(&HardState::default()), nothing);
        assert_eq!(decode_hard_state(nothing), Ok(HardState::default()));
    }

    #[test]
    fn what_is_not_a_record_is_corrupt() {
        let newer = Bytes::from_static(b"\x08\x02\x10\x03\x22\x03abc");
        let kindless = Bytes::from_static(b"\x08\x01\x10\x03");
        for bytes in [newer, kindless, Bytes::from_static(b"\xff\xff")] {
            assert!(matches!(decode_entry(1, bytes), Err(StorageError::Corrupt { .. })));
        }
        let half = Bytes::from_static(b"\x08\x01\x2a\x02\x0a\x00");
        for bytes in [Bytes::from_static(b"\x08\x02"), half] {
            assert!(decode_hard_state(bytes).is_err());
        }
    }

    #[test]
    fn a_mark_names_the_members_of_its_time() {
        let (id, members) = (LogId { term: 4, index: 300 }, Members::of_voters([1, 2].map(NodeId)));
        let at = |id| Some(Configured { id, members: members.clone() });
        let mark = |configured| Mark { id, configured };
        let right = mark(at(LogId { term: 3, index: 9 }));
        assert_eq!(decode_mark(300, &encode_mark(&right)), Ok(right.clone()));
        assert!(decode_mark(301, &encode_mark(&right)).is_err());
        let before_there_were_any = Bytes::from_static(b"\x08\x04\x10\xac\x02");
        assert_eq!(decode_mark(300, &before_there_were_any), Ok(mark(None)));
        let empty = Some(Configured { id, members: Members::default() });
        for wrong in [at(LogId { term: 4, index: 301 }), at(LogId { term: 5, index: 9 }), empty] {
            assert!(decode_mark(300, &encode_mark(&mark(wrong.clone()))).is_err(), "{wrong:?}");
        }
    }
}
