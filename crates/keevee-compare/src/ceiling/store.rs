//! The two databases of a replica: a log that is synced, and data that is not logged. With keevee's options, as far as
//! they count for speed (`keevee-server/src/storage/options.rs`). Nothing is overwritten in place, which RocksDB could: no
//! store with scans or backups can have that.
//!
//! The log is never cut. So that it costs nothing once it is written, its files are not compacted either.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBPinnableSlice, Error, Options, WriteBatch,
    WriteOptions,
};

const WRITE_BUFFER_BYTES: usize = 64 << 20;
const DATA_WRITE_BUFFER_BYTES: usize = 8 << 20;
const DATA_WRITE_BUFFERS_MERGED: i32 = 8;

pub(super) struct Store {
    log: DB,
    data: DB,
    synced: WriteOptions,
    unlogged: WriteOptions,
}

impl Store {
    pub(super) fn open(folder: &Path) -> Result<Store, Error> {
        let mut log = shared();
        log.set_disable_auto_compactions(true);
        log.set_level_zero_slowdown_writes_trigger(1 << 20);
        log.set_level_zero_stop_writes_trigger(1 << 20);
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(128 << 20));
        table.set_bloom_filter(10.0, false);
        let mut data = shared();
        data.set_block_based_table_factory(&table);
        data.set_write_buffer_size(DATA_WRITE_BUFFER_BYTES);
        data.set_min_write_buffer_number_to_merge(DATA_WRITE_BUFFERS_MERGED);
        data.set_max_write_buffer_number(4 * DATA_WRITE_BUFFERS_MERGED);
        data.set_memtable_whole_key_filtering(true);
        data.set_memtable_prefix_bloom_ratio(0.05);
        let (mut synced, mut unlogged) = (WriteOptions::default(), WriteOptions::default());
        synced.set_sync(true);
        unlogged.disable_wal(true);
        Ok(Store {
            log: DB::open(&log, folder.join("log"))?,
            data: DB::open(&data, folder.join("data"))?,
            synced,
            unlogged,
        })
    }

    /// Puts a batch on the disk.
    pub(super) fn log(&self, index: u64, batch: &[u8]) -> Result<(), Error> {
        self.log.put_opt(index.to_be_bytes(), batch, &self.synced)
    }

    pub(super) fn apply(&self, batch: &[u8]) -> Result<(), Error> {
        let mut writes = WriteBatch::with_capacity_bytes(batch.len());
        let mut rest = batch;
        while let Some((key, value)) = take(&mut rest).zip(take(&mut rest)) {
            writes.put(key, value);
        }
        self.data.write_opt(writes, &self.unlogged)
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, Error> {
        self.data.get_pinned(key)
    }
}

fn shared() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_error_if_exists(true);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(4);
    options.set_bytes_per_sync(1 << 20);
    options.set_allow_concurrent_memtable_write(false);
    options
}

/// Appends a key and its value to a batch.
pub(super) fn add(batch: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        batch.extend_from_slice(&(part.len() as u32).to_le_bytes());
        batch.extend_from_slice(part);
    }
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (part, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let mut batch = Vec::new();
        add(&mut batch, b"one", b"1");
        add(&mut batch, b"empty", b"");
        store.log(1, &batch).expect("on disk");
        store.apply(&batch).expect("applied");
        for (key, value) in [(&b"one"[..], Some(&b"1"[..])), (b"empty", Some(b"")), (b"none", None)] {
            assert_eq!(store.get(key).expect("read").as_deref(), value);
        }
    }
}
