//! How the Multi-Paxos engine's entries and hard state look on disk: `proto/log.proto`.
//!
//! [`PaxosEngine`](crate::PaxosEngine) writes and reads them by itself; these are for whoever looks at a log from
//! outside. It leaves out where they are kept ([`crate::storage`]), and an entry's index, which is its key there.

use bytes::Bytes;
use keevee_paxos::{Ballot, Entry, HardState, Value};
use prost::Message;

use crate::storage::StorageError;

mod proto {
    #![allow(missing_docs, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/keevee.log.rs"));
}

const VERSION: u32 = 1;

/// The bytes of a [`LogRecord::Entry`](crate::storage::LogRecord::Entry).
pub fn encode_entry(entry: &Entry) -> Bytes {
    let value = match &entry.value {
        Value::Noop => proto::accepted::Value::Noop(proto::Noop {}),
        Value::Data(bytes) => proto::accepted::Value::Data(bytes.clone()),
    };
    let record = proto::Accepted {
        version: VERSION,
        ballot_round: entry.ballot.round,
        ballot_node: entry.ballot.node,
        value: Some(value),
    };
    record.encode_to_vec().into()
}

/// The entry at an index, as [`encode_entry`] made it.
///
/// # Errors
///
/// [`StorageError::Corrupt`] if the bytes are no entry of a layout known here.
pub fn decode_entry(index: u64, bytes: Bytes) -> Result<Entry, StorageError> {
    let corrupt = |cause: String| StorageError::Corrupt { what: "a log entry", cause };
    let record = proto::Accepted::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
    check_version(record.version).map_err(&corrupt)?;
    let value = match record.value {
        Some(proto::accepted::Value::Noop(_)) => Value::Noop,
        Some(proto::accepted::Value::Data(data)) => Value::Data(data),
        None => return Err(corrupt(format!("index {index} holds a value of an unknown kind"))),
    };
    let ballot = Ballot { round: record.ballot_round, node: record.ballot_node };
    Ok(Entry { index, ballot, value })
}

/// The bytes of a [`LogRecord::HardState`](crate::storage::LogRecord::HardState).
pub fn encode_hard_state(state: &HardState) -> Bytes {
    let record = proto::HardState {
        version: VERSION,
        promised_round: state.promised.round,
        promised_node: state.promised.node,
        chosen: state.chosen,
        first: state.first,
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
    let promised = Ballot { round: record.promised_round, node: record.promised_node };
    Ok(HardState { promised, chosen: record.chosen, first: record.first })
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
        let entry = Entry {
            index: 7,
            ballot: Ballot { round: 3, node: 2 },
            value: Value::Data(Bytes::from_static(b"abc")),
        };
        let old = Bytes::from_static(b"\x08\x01\x10\x03\x18\x02\x2a\x03abc");
        assert_eq!(encode_entry(&entry), old);
        assert_eq!(decode_entry(7, old), Ok(entry));
        let noop = Entry { index: 8, ballot: Ballot { round: 1, node: 1 }, value: Value::Noop };
        let old = Bytes::from_static(b"\x08\x01\x10\x01\x18\x01\x22\x00");
        assert_eq!(encode_entry(&noop), old);
        assert_eq!(decode_entry(8, old), Ok(noop));
        let state = HardState { promised: Ballot { round: 5, node: 1 }, chosen: 300, first: 9 };
        let old = Bytes::from_static(b"\x08\x01\x10\x05\x18\x01\x20\xac\x02\x28\x09");
        assert_eq!(encode_hard_state(&state), old);
        assert_eq!(decode_hard_state(old), Ok(state));
    }

    #[test]
    fn what_is_not_a_record_is_corrupt() {
        let newer = Bytes::from_static(b"\x08\x02\x10\x03\x18\x02\x2a\x03abc");
        let kindless = Bytes::from_static(b"\x08\x01\x10\x03\x18\x02");
        for bytes in [newer, kindless, Bytes::from_static(b"\xff\xff")] {
            assert!(matches!(decode_entry(1, bytes), Err(StorageError::Corrupt { .. })));
        }
        assert!(decode_hard_state(Bytes::from_static(b"\x08\x02")).is_err());
    }
}
