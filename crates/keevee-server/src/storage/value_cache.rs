//! Values that were read lately, of all shards of a node: a read of one of them costs no search in RocksDB, which takes
//! longer than all else that a read does here. Which ones stay when there are too many is the library's business
//! (S3-FIFO: a scan over cold keys does not push the hot ones out).
//!
//! Invariant: what is here of a key is what the shard has applied last; keys are those of `data/`.

use std::sync::{Mutex, MutexGuard};

use keevee_core::command::Versioned;
use quick_cache::Weighter;
use quick_cache::unsync::Cache;

/// Larger values are read from files of their own, and would push out many small ones.
const VALUE_BYTES_MAX: usize = 64 << 10;
/// What a key and its value take besides their bytes.
const PLACE_BYTES: usize = 128;
/// Of a usual value, to begin with.
const VALUE_BYTES_USUAL: usize = 128;

/// See the module.
#[derive(Debug)]
pub struct ValueCache(Mutex<Cache<Vec<u8>, Versioned, Bytes>>);

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Vec<u8>, Versioned> for Bytes {
    fn weight(&self, key: &Vec<u8>, found: &Versioned) -> u64 {
        (key.len() + found.value.len() + PLACE_BYTES) as u64
    }
}

impl ValueCache {
    /// A cache of so many bytes, which takes them as values come.
    pub fn new(bytes_max: u64) -> ValueCache {
        let values = bytes_max as usize / (PLACE_BYTES + VALUE_BYTES_USUAL);
        ValueCache(Mutex::new(Cache::with_weighter(values, bytes_max, Bytes)))
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Versioned> {
        self.lock().get(key).cloned()
    }

    /// Adds what was read.
    pub(super) fn add(&self, key: Vec<u8>, found: &Versioned) {
        if found.value.len() <= VALUE_BYTES_MAX {
            self.lock().insert(key, found.clone());
        }
    }

    /// A key has another value, or none. What nobody reads does not get in by this.
    pub(super) fn set(&self, key: &[u8], value: Option<&Versioned>) {
        let mut values = self.lock();
        match value.filter(|found| found.value.len() <= VALUE_BYTES_MAX) {
            // A copy: it lies in an entry's buffer, and would keep all of that alive.
            Some(found) if values.peek(key).is_some() => {
                let value = bytes::Bytes::copy_from_slice(&found.value);
                values.insert(key.to_vec(), Versioned { value, ..found.clone() });
            }
            Some(_) => {}
            None => {
                values.remove(key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache<Vec<u8>, Versioned, Bytes>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(byte: u8, length: usize) -> Versioned {
        Versioned { value: vec![byte; length].into(), version: byte.into(), stamp: 0, expires: None }
    }

    #[test]
    fn what_was_read_stays_as_it_was_written_last() {
        let cache = ValueCache::new(1 << 20);
        cache.set(b"unread", Some(&value(1, 10)));
        assert_eq!(cache.get(b"unread"), None);
        cache.add(b"read".to_vec(), &value(1, 10));
        assert_eq!(cache.get(b"read"), Some(value(1, 10)));
        cache.set(b"read", Some(&value(2, 20)));
        assert_eq!(cache.get(b"read"), Some(value(2, 20)));
        cache.set(b"read", Some(&value(3, VALUE_BYTES_MAX + 1)));
        assert_eq!(cache.get(b"read"), None, "too large to stay, and the old one is gone");
        cache.add(b"read".to_vec(), &value(4, 10));
        cache.set(b"read", None);
        assert_eq!(cache.get(b"read"), None);
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let cache = ValueCache::new(64 << 10);
        for key in 0..1000_u32 {
            cache.add(key.to_be_bytes().to_vec(), &value(1, 1000));
        }
        let held = (0..1000_u32).filter(|key| cache.get(&key.to_be_bytes()).is_some()).count();
        assert!((1..=64).contains(&held), "{held} of 1,000 values of 1,000 bytes in 64 KiB");
        cache.add(b"large".to_vec(), &value(1, VALUE_BYTES_MAX + 1));
        assert_eq!(cache.get(b"large"), None);
        let none = ValueCache::new(0);
        none.add(b"key".to_vec(), &value(1, 10));
        assert_eq!(none.get(b"key"), None);
    }
}
