//! How the Raft engine's entries and hard state look on disk: `proto/raft_log.proto`.
//!
//! [`RaftEngine`](crate::RaftEngine) writes and reads them by itself; these are for whoever looks at a log from
//! outside. It leaves out where they are kept ([`keevee_replica::storage`]), and an entry's index, which is its key
//! there.

use bytes::Bytes;
use keevee_replica::storage::StorageError;
use prost::Message;

use crate::message::{LogEntry, LogId, Payload, Vote};

mod proto {
    #![allow(missing_docs, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/keevee.raft_log.rs"));
}

const VERSION: u32 = 1;

/// What a replica must remember besides its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// What it voted for.
    pub vote: Option<Vote>,
    /// How far it knew entries to be committed.
    pub committed: Option<LogId>,
    /// How far its log was dropped.
    pub purged: Option<LogId>,
}

/// The bytes of a [`LogRecord::Entry`](keevee_replica::storage::LogRecord::Entry).
pub fn encode_entry(entry: &LogEntry) -> Bytes {
    let value = match &entry.payload {
        Payload::Blank => proto::entry::Value::Blank(proto::Blank {}),
        Payload::Data(bytes) => proto::entry::Value::Data(bytes.clone()),
        Payload::Members(voters) => {
            proto::entry::Value::Members(proto::Members { voters: voters.iter().copied().collect() })
        }
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
        Some(proto::entry::Value::Members(members)) => Payload::Members(members.voters.into_iter().collect()),
        None => return Err(corrupt(format!("index {index} holds a value of an unknown kind"))),
    };
    Ok(LogEntry { id: LogId { term: record.term, index }, payload })
}

/// The bytes of a [`LogRecord::HardState`](keevee_replica::storage::LogRecord::HardState).
pub fn encode_hard_state(state: &HardState) -> Bytes {
    let id = |id: LogId| proto::LogId { term: id.term, index: id.index };
    let vote = |vote: Vote| proto::Vote { term: vote.term, node: vote.node, committed: vote.committed };
    let record = proto::HardState {
        version: VERSION,
        vote: state.vote.map(vote),
        committed: state.committed.map(id),
        purged: state.purged.map(id),
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
    check_version(record.version).map_err(corrupt)?;
    let id = |id: proto::LogId| LogId { term: id.term, index: id.index };
    let vote = |vote: proto::Vote| Vote { term: vote.term, node: vote.node, committed: vote.committed };
    Ok(HardState {
        vote: record.vote.map(vote),
        committed: record.committed.map(id),
        purged: record.purged.map(id),
    })
}

/// What a snapshot carries: the entry that its state was applied through.
pub(crate) fn encode_mark(id: LogId) -> Bytes {
    proto::LogId { term: id.term, index: id.index }.encode_to_vec().into()
}

/// Reads what [`encode_mark`] wrote, of a snapshot of this index.
pub(crate) fn decode_mark(index: u64, mark: &Bytes) -> Result<LogId, StorageError> {
    let corrupt = |cause: String| StorageError::Corrupt { what: "a snapshot", cause };
    let id = proto::LogId::decode(mark.clone()).map_err(|error| corrupt(error.to_string()))?;
    if id.index != index {
        return Err(corrupt(format!("it is of index {index}, and its mark of {}", id.index)));
    }
    Ok(LogId { term: id.term, index: id.index })
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
        let members = entry(0, 0, Payload::Members([1, 2, 300].into()));
        for (entry, old) in [
            (data, &b"\x08\x01\x10\x03\x22\x03abc"[..]),
            (blank, b"\x08\x01\x10\x04\x1a\x00"),
            (members, b"\x08\x01\x2a\x06\x0a\x04\x01\x02\xac\x02"),
        ] {
            assert_eq!(encode_entry(&entry), old);
            assert_eq!(decode_entry(entry.id.index, Bytes::from_static(old)), Ok(entry));
        }
        let state = HardState {
            vote: Some(Vote { term: 5, node: 2, committed: true }),
            committed: Some(LogId { term: 4, index: 300 }),
            purged: Some(LogId { term: 0, index: 0 }),
        };
        let old = b"\x08\x01\x12\x06\x08\x05\x10\x02\x18\x01\x1a\x05\x08\x04\x10\xac\x02\x22\x00";
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
        assert!(decode_hard_state(Bytes::from_static(b"\x08\x02")).is_err());
    }
}
