//! A snapshot on its way: whatever is done to its chunks, a receiver that takes it for whole has the records that were sent.
#![no_main]

use bytes::Bytes;
use keevee_fuzz::transfer::{SnapshotChunk, chunks, receive};
use libfuzzer_sys::fuzz_target;

/// What happens to a chunk on its way: what, to which, and with what.
type Fault = (u8, u8, u64, Vec<u8>);

fuzz_target!(|input: (Vec<(Vec<u8>, Vec<u8>)>, Vec<Fault>)| {
    let (records, faults) = input;
    let mut records: Vec<(Bytes, Bytes)> = records.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    records.sort();
    records.dedup_by(|one, other| one.0 == other.0);
    // No store has an empty key: all begin with their kind.
    records.retain(|(key, _)| !key.is_empty());
    let mut chunks = chunks(records.clone());
    assert_eq!(receive(chunks.clone()), Some(records.clone()));
    for fault in faults.into_iter().take(16) {
        strike(&mut chunks, fault);
    }
    if let Some(received) = receive(chunks) {
        assert_eq!(received, records);
    }
});

fn strike(chunks: &mut Vec<SnapshotChunk>, (kind, place, number, bytes): Fault) {
    if chunks.is_empty() {
        return;
    }
    let at = usize::from(place) % chunks.len();
    let other = number as usize % chunks.len();
    match kind % 10 {
        0 => drop(chunks.remove(at)),
        1 => chunks.insert(other, chunks[at].clone()),
        2 => chunks.swap(at, other),
        3 => chunks[at].number = number,
        4 => chunks[at].snapshot = number,
        5 => chunks[at].index = number,
        6 => chunks[at].layout = number as u32,
        7 => chunks[at].digest ^= u128::from(number),
        8 => chunks[at].mark = (number % 2 == 0).then(|| bytes.into()),
        _ => chunks[at].records = bytes.chunks(2).map(|key| (Bytes::copy_from_slice(key), Bytes::new())).collect(),
    }
}
