//! The chain hash: one number that stands for all that a shard has applied.
//!
//! Each entry's hash covers the one before, so replicas whose hashes agree at an index agree on all
//! entries up to it and on all that these changed. Replicas compare it from time to time; snapshots
//! carry it.
//!
//! What is hashed is fixed, since replicas of two versions compare results. It is the 128-bit xxh3
//! (seed 0) of these fields, one after another; numbers are little-endian and 64 bits wide unless said
//! otherwise, byte strings are preceded by their length, lists by their count:
//!
//! 1. the previous hash (128 bits); 0 before the first entry;
//! 2. the entry's index;
//! 3. a byte: 0 for an entry without commands; else 1, then the entry's stamp;
//! 4. the list of values, in order of namespace, then key: namespace, key, and a byte: 0 if the key was
//!    removed; else 1, version, stamp, value; of one that expires 2, version, stamp, expiry, value;
//! 5. the list of requests remembered, in order of time, then id: time, a byte for the kind of id (1
//!    timed, 2 free), the id (128 bits), payload hash (128 bits), encoded outcome;
//! 6. the list of requests forgotten, in the order in which they were: the same fields;
//! 7. the meta after the entry: applied index, time, version, request horizon, and the owned slots: a
//!    byte (0 none, 1 all, 2 some), then as a byte string the bitmap if some, else nothing.
//!
//! It leaves out outcomes that are not remembered, the index of expiries and their count: they follow from the state
//! before.

use crate::apply::WriteSet;
use crate::digest::Digest;
use crate::requests::RequestRecord;

/// The chain hash after an entry: `previous` is the one before it, `stamp` is `None` for an entry
/// without commands. The hash in the write set's own meta does not count.
pub fn next(previous: u128, index: u64, stamp: Option<u64>, write_set: &WriteSet) -> u128 {
    let mut digest = Digest::new();
    digest.wide(previous);
    digest.number(index);
    match stamp {
        None => digest.tag(0),
        Some(stamp) => {
            digest.tag(1);
            digest.number(stamp);
        }
    }
    add_values(&mut digest, write_set);
    add_requests(&mut digest, &write_set.requests_added);
    add_requests(&mut digest, &write_set.requests_removed);
    add_meta(&mut digest, write_set);
    digest.finish()
}

fn add_values(digest: &mut Digest, write_set: &WriteSet) {
    digest.number(write_set.values.len() as u64);
    for ((namespace, key), value) in &write_set.values {
        digest.number(namespace.0.into());
        digest.bytes(key);
        match value {
            None => digest.tag(0),
            Some(versioned) => {
                digest.tag(if versioned.expires.is_some() { 2 } else { 1 });
                digest.number(versioned.version);
                digest.number(versioned.stamp);
                if let Some(expires) = versioned.expires {
                    digest.number(expires);
                }
                digest.bytes(&versioned.value);
            }
        }
    }
}

fn add_requests(digest: &mut Digest, records: &[RequestRecord]) {
    digest.number(records.len() as u64);
    for record in records {
        digest.number(record.time);
        digest.request_id(record.id);
        digest.wide(record.payload_hash);
        digest.bytes(&record.outcome);
    }
}

fn add_meta(digest: &mut Digest, write_set: &WriteSet) {
    let meta = &write_set.meta;
    digest.number(meta.applied);
    digest.number(meta.time);
    digest.number(meta.version);
    digest.number(meta.request_horizon);
    let (marker, bitmap) = meta.owned.parts();
    digest.tag(marker);
    digest.bytes(bitmap);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::ShardMeta;
    use crate::command::Versioned;
    use crate::ids::Namespace;
    use crate::requests::RequestId;
    use crate::slots::{Slot, SlotSet};

    fn record(id: RequestId) -> RequestRecord {
        RequestRecord { time: 5, id, payload_hash: 6, outcome: "outcome".into() }
    }

    fn sample() -> WriteSet {
        let value = Versioned { version: 9, stamp: 1_000, expires: None, value: "value".into() };
        let values = [((Namespace(0), "gone".into()), None), ((Namespace(0), "key".into()), Some(value))];
        WriteSet {
            values: values.into_iter().collect(),
            expiries_removed: vec![],
            requests_added: vec![record(RequestId::Timed(7))],
            requests_removed: vec![record(RequestId::Free(8))],
            meta: ShardMeta {
                applied: 3,
                time: 1_000,
                version: 9,
                chain: 0,
                owned: SlotSet::all(),
                request_horizon: 4,
                expiring: 0,
            },
        }
    }

    /// If this fails, replicas of two versions would take each other for corrupt.
    #[test]
    fn the_hash_is_the_same_in_every_version() {
        assert_eq!(next(0, 3, Some(999), &sample()), CHAIN_FIXTURE);
        let mut some_slots = sample();
        some_slots.meta.owned = [Slot(0), Slot(9), Slot(16383)].into_iter().collect();
        assert_eq!(next(CHAIN_FIXTURE, 3, None, &some_slots), CHAIN_FIXTURE_SOME_SLOTS);
    }

    const CHAIN_FIXTURE: u128 = 0xe8ffd7f2afb30eb1376d9b1823be2b0b;
    const CHAIN_FIXTURE_SOME_SLOTS: u128 = 0x5f3b090fac74f3ca18aa168e1586559b;

    #[test]
    fn the_hash_covers_every_field() {
        let changes: Vec<fn(&mut WriteSet)> = vec![
            |set| _ = set.values.pop_last(),
            |set| _ = set.values.insert((Namespace(0), "gone".into()), sample_value(9)),
            |set| _ = set.values.insert((Namespace(0), "key".into()), sample_value(8)),
            |set| _ = set.values.insert((Namespace(1), "gone".into()), None),
            |set| _ = set.values.insert((Namespace(0), "key".into()), sample_expiring(2_000)),
            |set| _ = set.values.insert((Namespace(0), "key".into()), sample_expiring(2_001)),
            |set| set.requests_added.clear(),
            |set| set.requests_removed.clear(),
            |set| std::mem::swap(&mut set.requests_added, &mut set.requests_removed),
            |set| set.requests_added[0].id = RequestId::Free(7),
            |set| set.requests_added[0].time += 1,
            |set| set.requests_added[0].payload_hash += 1,
            |set| set.requests_added[0].outcome = "other".into(),
            |set| set.meta.applied += 1,
            |set| set.meta.time += 1,
            |set| set.meta.version += 1,
            |set| set.meta.request_horizon += 1,
            |set| _ = set.meta.owned.remove(Slot(5)),
            |set| set.meta.owned = SlotSet::none(),
        ];
        let mut hashes = vec![
            next(0, 3, Some(999), &sample()),
            next(1, 3, Some(999), &sample()),
            next(0, 4, Some(999), &sample()),
            next(0, 3, Some(998), &sample()),
            next(0, 3, None, &sample()),
        ];
        for change in changes {
            let mut changed = sample();
            change(&mut changed);
            hashes.push(next(0, 3, Some(999), &changed));
        }
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), count);
    }

    fn sample_value(version: u64) -> Option<Versioned> {
        Some(Versioned { version, stamp: 1_000, expires: None, value: "value".into() })
    }

    fn sample_expiring(expires: u64) -> Option<Versioned> {
        sample_value(9).map(|value| Versioned { expires: Some(expires), ..value })
    }

    #[test]
    fn the_hash_in_the_meta_does_not_count() {
        let mut other = sample();
        other.meta.chain = 77;
        assert_eq!(next(0, 3, None, &sample()), next(0, 3, None, &other));
    }
}
