//! How the two databases are opened and written. Nothing here changes what is in them.

use rocksdb::{
    BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options, ReadOptions, ReadTier, WriteOptions,
};

/// Entries are read back soon after they are written: most never leave the write buffer.
const LOG_WRITE_BUFFER_BYTES: usize = 64 << 20;
/// Small, since a key costs a search in the buffer that is written to, each step of which waits for memory once it is more
/// than the processor's caches hold…
const DATA_WRITE_BUFFER_BYTES: usize = 8 << 20;
/// …and so many become one file together, as large as if there was one buffer.
const DATA_WRITE_BUFFERS_MERGED: i32 = 8;
/// Of a buffer's size: a filter that spares a read most of the searches in all of them.
const DATA_WRITE_BUFFER_FILTER: f64 = 0.05;
const DATA_CACHE_BYTES: usize = 128 << 20;
/// Values from this size on lie in files of their own. A block holds whole values: a small key beside one of 8 MiB would
/// cost a read of both, and a block that large stays in no cache.
const BLOB_BYTES_MIN: u64 = 64 << 10;
const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Manifests are checked in full at each open, so they are kept short.
const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// A file in which so many keys in a row are mostly removed ones is rewritten without them soon, or scans would go on
/// walking over what a delete by prefix left.
const REMOVED_WINDOW_KEYS: usize = 4096;
const REMOVED_KEYS: usize = 2048;
/// The disk is given files while they are written, so many bytes at a time, and no more before it has those.
const WRITE_BACK_BYTES: u64 = 1 << 20;
const INFO_LOG_BYTES_MAX: usize = 16 << 20;
const INFO_LOGS_MAX: usize = 4;

/// What both databases share. Keys that share so many first bytes are written in order, more often than not.
fn shared(create: bool, ordered_prefix_bytes: usize) -> Options {
    let mut options = written_back_steadily();
    options.create_if_missing(create);
    options.set_error_if_exists(create);
    options.set_paranoid_checks(true);
    options.set_compression_type(DBCompressionType::None);
    options.set_max_manifest_file_size(MANIFEST_BYTES_MAX);
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
    options.set_keep_log_file_num(INFO_LOGS_MAX);
    // A torn last write was never acknowledged: it is dropped. Any other damage refuses to open. The
    // default, point in time, would cut a committed log short at a flipped byte, in silence.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    // A reused file has old records behind its end, which look like damage or hide it.
    options.set_recycle_log_file_num(0);
    // Each database has one writer.
    options.set_allow_concurrent_memtable_write(false);
    // The write buffer remembers for each prefix where its last key went: shards take turns, so that the place of the
    // last key of all, which RocksDB would begin at, is of no use.
    let hint =
        format!("memtable_insert_with_hint_prefix_extractor=rocksdb.FixedPrefix.{ordered_prefix_bytes}");
    options.get_options_from_string(hint).expect("an option that RocksDB knows")
}

/// Else the kernel keeps a whole file back until its sync, and the log's next sync waits behind all of it.
fn written_back_steadily() -> Options {
    let mut options = Options::default()
        .get_options_from_string("strict_bytes_per_sync=true")
        .expect("an option that RocksDB knows");
    options.set_bytes_per_sync(WRITE_BACK_BYTES);
    options
}

/// Options of `log/`.
///
/// What is recovered from the write-ahead log at an open, marks of the node's own, is flushed to synced files before the
/// open returns (RocksDB's default): after a failed fsync the page cache may hold what the disk does not, and
/// only that flush makes what was read back durable.
pub(super) fn log(create: bool) -> Options {
    let mut options = shared(create, 5);
    options.set_write_buffer_size(LOG_WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(4);
    // A synced write-ahead file that is missing or short refuses to open.
    options.set_track_and_verify_wals_in_manifest(true);
    options
}

/// Options of `data/`.
///
/// One column family has one stream of write buffers: a batch goes into one of them whole, and they are
/// installed oldest first. So the files on disk hold a prefix of all batches ever written, and after a
/// crash every shard's meta is that of the last batch of the shard in that prefix.
pub(super) fn data(create: bool) -> Options {
    let mut table = data_table();
    table.set_block_cache(&Cache::new_lru_cache(DATA_CACHE_BYTES));
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = shared(create, 9);
    options.set_write_buffer_size(DATA_WRITE_BUFFER_BYTES);
    options.set_min_write_buffer_number_to_merge(DATA_WRITE_BUFFERS_MERGED);
    options.set_max_write_buffer_number(4 * DATA_WRITE_BUFFERS_MERGED);
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(DATA_WRITE_BUFFER_FILTER);
    options.set_block_based_table_factory(&table);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(BLOB_BYTES_MIN);
    options.set_enable_blob_gc(true);
    options.add_compact_on_deletion_collector_factory(REMOVED_WINDOW_KEYS, REMOVED_KEYS, 0.0);
    options
}

fn data_table() -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
    table
}

/// Options of a file that is made to be added to `data/`.
pub(super) fn snapshot_file() -> Options {
    let mut options = written_back_steadily();
    options.set_compression_type(DBCompressionType::None);
    options.set_block_based_table_factory(&data_table());
    options
}

/// How `log/` is written: on disk when the call returns.
pub(super) fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

/// How `data/` is written: without a write-ahead log, since `log/` replays it.
pub(super) fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

/// Reads only what a crash leaves: of an unlogged database, what is flushed to files.
pub(super) fn persisted() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_read_tier(ReadTier::Persisted);
    options
}

/// Reads from a key up to another, which is not included.
pub(super) fn range(from: Vec<u8>, end: Vec<u8>) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(end);
    options
}
