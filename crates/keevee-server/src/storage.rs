//! The storage room: the data folder, and a shard's log and state on RocksDB.
//!
//! [`DataFolder`] formats and opens a node's folder; [`LogWriter`] is the only writer of entries and hard state, to the
//! [`Journal`] and then to `log/`; [`RocksLog`] and [`RocksState`] give one shard what `keevee-replica` asks of storage. Every key and
//! record that reaches a disk is laid out in [`mod@format`]; `docs/storage-format.md` tells the same to
//! people. Not here: what entries and hard state mean (the engines) and what is in a record of meta or
//! of a request (`keevee_core::codec`).

pub mod format;

mod folder;
mod journal;
mod log_files;
mod log_store;
mod log_view;
mod log_writer;
mod options;
mod snapshot_files;
mod state_store;
mod value_cache;

pub use folder::{
    DataFolder, FolderError, FolderLock, NewFolder, OpenFolder, Survivor, give_up_state, remove_given_up,
    store_shard_map,
};
pub use format::{FORMAT_VERSION, FirstMember, Identity};
pub use journal::Journal;
pub use keevee_core::ids::StoreId;
pub use log_store::RocksLog;
pub(crate) use log_view::LogView;
pub use log_writer::{LogEvent, LogSink, LogWriter, LogWriterHandle};
pub use snapshot_files::{StateSource, StateTarget};
pub use state_store::{RocksState, flush_states};
pub use value_cache::ValueCache;

use keevee_replica::storage::StorageError;

/// One of a node's two databases.
pub type Database = rocksdb::DB;

/// What is told of an error of `data/`: its damage is not the log's, and can be made good.
fn state_error(what: &'static str, error: rocksdb::Error) -> StorageError {
    storage_error(what, error).of_state()
}

/// What a replica is told of an error of the database.
fn storage_error(what: &'static str, error: rocksdb::Error) -> StorageError {
    let corrupt = error.kind() == rocksdb::ErrorKind::Corruption;
    let cause = error.into_string();
    if corrupt { StorageError::Corrupt { what, cause } } else { StorageError::Io { what, cause } }
}
