//! How the Multi-Paxos engine's entries and hard state look on disk: `proto/log.proto`.
//!
//! [`PaxosEngine`](crate::PaxosEngine) writes and reads them by itself; these are for whoever looks at a log from
//! outside. It leaves out where they are kept ([`crate::storage`]), and an entry's index, which is its key there.

use std::collections::BTreeSet;

use bytes::Bytes;
use keevee_paxos::{Ballot, Configuration, Entry, HardState, QuorumSystem, Value};
use prost::Message;

use crate::members::Members;
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
        Value::Configuration(configuration) => {
            proto::accepted::Value::Configuration(write_configuration(configuration))
        }
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
        Some(proto::accepted::Value::Configuration(configuration)) => {
            Value::Configuration(Box::new(read_configuration(configuration).map_err(corrupt)?))
        }
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
        configuration: state.configuration.as_ref().map(write_placed),
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
    let promised = Ballot { round: record.promised_round, node: record.promised_node };
    let configuration = record.configuration.map(read_placed).transpose().map_err(corrupt)?;
    Ok(HardState { promised, chosen: record.chosen, first: record.first, configuration })
}

/// What a snapshot carries: the configuration in force at its index, and its place.
pub(crate) fn encode_mark(configuration: &(u64, Configuration)) -> Bytes {
    write_placed(configuration).encode_to_vec().into()
}

/// Reads what [`encode_mark`] wrote, of a snapshot of this index.
pub(crate) fn decode_mark(index: u64, mark: Bytes) -> Result<(u64, Configuration), StorageError> {
    let corrupt = |cause: String| StorageError::Corrupt { what: "a snapshot", cause };
    let record = proto::PlacedConfiguration::decode(mark).map_err(|error| corrupt(error.to_string()))?;
    let (place, configuration) = read_placed(record).map_err(&corrupt)?;
    if place > index {
        return Err(corrupt(format!("it is of index {index}, its configuration of {place}")));
    }
    Ok((place, configuration))
}

fn write_placed((index, configuration): &(u64, Configuration)) -> proto::PlacedConfiguration {
    let configuration = Some(write_configuration(configuration));
    proto::PlacedConfiguration { index: *index, configuration }
}

pub use crate::paxos::members;

/// Who takes part, as an entry says.
pub fn members_of(entry: &Entry) -> Option<Members> {
    match &entry.value {
        Value::Configuration(configuration) => Some(members(configuration)),
        Value::Noop | Value::Data(_) => None,
    }
}

fn read_placed(record: proto::PlacedConfiguration) -> Result<(u64, Configuration), String> {
    let configuration = record.configuration.ok_or("a configuration is missing")?;
    Ok((record.index, read_configuration(configuration)?))
}

fn write_configuration(configuration: &Configuration) -> proto::Configuration {
    let Configuration { quorum, learners } = configuration;
    let (voters, next) = match quorum {
        QuorumSystem::Majority(voters) => (voters.clone(), BTreeSet::new()),
        QuorumSystem::Joint { old, new } => (old.clone(), new.clone()),
        QuorumSystem::Flexible { .. } => unreachable!("no log has quorums by count"),
    };
    let list = |nodes: &BTreeSet<u64>| nodes.iter().copied().collect();
    proto::Configuration { voters: list(&voters), next: list(&next), learners: list(learners) }
}

fn read_configuration(record: proto::Configuration) -> Result<Configuration, String> {
    let set = |nodes: Vec<u64>| -> BTreeSet<u64> { nodes.into_iter().collect() };
    let (old, new, learners) = (set(record.voters), set(record.next), set(record.learners));
    if old.is_empty() {
        return Err("a configuration without voters".to_owned());
    }
    let quorum = if new.is_empty() { QuorumSystem::Majority(old) } else { QuorumSystem::Joint { old, new } };
    Ok(Configuration { quorum, learners })
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
        let promised = Ballot { round: 5, node: 1 };
        let state = HardState { promised, chosen: 300, first: 9, configuration: None };
        let old = Bytes::from_static(b"\x08\x01\x10\x05\x18\x01\x20\xac\x02\x28\x09");
        assert_eq!(encode_hard_state(&state), old);
        assert_eq!(decode_hard_state(old), Ok(state));
    }

    fn joint() -> Configuration {
        let quorum = QuorumSystem::Joint { old: [1, 2, 3].into(), new: [2, 3, 4].into() };
        Configuration { quorum, learners: [5].into() }
    }

    #[test]
    fn configurations_stay_readable() {
        let bytes = b"\x0a\x03\x01\x02\x03\x12\x03\x02\x03\x04\x1a\x01\x05";
        let value = Value::Configuration(Box::new(joint()));
        let entry = Entry { index: 8, ballot: Ballot { round: 1, node: 1 }, value };
        let old = Bytes::from([&b"\x08\x01\x10\x01\x18\x01\x32\x0d"[..], bytes].concat());
        assert_eq!(encode_entry(&entry), old);
        assert_eq!(decode_entry(8, old), Ok(entry));
        let mark = Bytes::from([&b"\x08\x07\x12\x0d"[..], bytes].concat());
        assert_eq!(encode_mark(&(7, joint())), mark);
        assert_eq!(decode_mark(7, mark.clone()), Ok((7, joint())));
        assert!(decode_mark(6, mark.clone()).is_err(), "it is of later");
        let state = HardState { configuration: Some((7, joint())), ..HardState::default() };
        let old = Bytes::from([&b"\x08\x01\x32\x11"[..], &mark[..]].concat());
        assert_eq!(encode_hard_state(&state), old);
        assert_eq!(decode_hard_state(old), Ok(state));
    }

    #[test]
    fn a_configuration_has_voters() {
        let nobody = Bytes::from_static(b"\x08\x01\x10\x01\x18\x01\x32\x00");
        assert!(matches!(decode_entry(8, nobody), Err(StorageError::Corrupt { .. })));
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
