//! A folder whose node will not run any more, looked at without a write; and the folder that is made of such.
//!
//! Not here: what of it is kept ([`crate::recover`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use keevee_core::ids::{Incarnation, NodeId, ShardId};
use keevee_core::shard_map::{Consensus, ShardMap};
use keevee_replica::storage::StorageError;
use rocksdb::WriteBatch;
use uuid::Uuid;

use super::{
    DATA, DataFolder, FolderError, FolderLock, JOURNAL, LOCK, LOG, formatted, identity_file, journal_error,
    lock, lock_file, open_checked, open_database, read_map, store_shard_map, sync_folder,
};
use crate::storage::format::{self, Identity};
use crate::storage::journal::{Journal, JournalError};
use crate::storage::{Database, LogView, options, storage_error};

/// How many bytes are copied at a time.
const BATCH_BYTES: usize = 1 << 20;
const UNFINISHED: &str = ".unfinished";

/// The folder of a stopped node, open for reading only: nothing in it changes.
#[derive(Debug)]
pub struct Survivor {
    /// Whose it is.
    pub identity: Identity,
    /// The newest shard map that its node had taken in.
    pub shard_map: Option<ShardMap>,
    pub(crate) log: LogView,
    pub(crate) data: Database,
    /// Nobody may start the node meanwhile. A folder without a lock file was never started.
    _lock: Option<FolderLock>,
}

impl Survivor {
    /// Opens a folder, and checks it as a start would.
    pub fn open(path: &Path) -> Result<Survivor, FolderError> {
        let identity = formatted(path)?;
        let lock_path = path.join(LOCK);
        let lock = match File::open(&lock_path) {
            Ok(file) => Some(lock_file(path, file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(FolderError::Io { what: "locking", path: lock_path, source }),
        };
        let read_only = |database, options: &rocksdb::Options| {
            open_checked(path, database, &identity, |path| Database::open_for_read_only(options, path, false))
        };
        let mut log = LogView::new(read_only(LOG, &options::log(false))?);
        let damaged = |error: JournalError| journal_error(path, error);
        let missing = Journal::read_missing(&path.join(JOURNAL), identity.store_id, log.database());
        for batch in missing.map_err(damaged)? {
            log.replay(batch).map_err(|error| damaged(error.into()))?;
        }
        let shard_map = read_map(path, log.database())?;
        let data = read_only(DATA, &options::data(false))?;
        Ok(Survivor { identity, shard_map, log, data, _lock: lock })
    }

    /// Hands all keys and values of a shard's state to `take`, without shard and incarnation. What is damaged shows.
    pub(crate) fn state(
        &self,
        shard: ShardId,
        incarnation: Incarnation,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let from = format::state_prefix(shard, incarnation).to_vec();
        let mut range = options::range(from, format::state_end(shard, incarnation).to_vec());
        range.fill_cache(false);
        let mut records = self.data.raw_iterator_opt(range);
        records.seek_to_first();
        while let Some((key, value)) = records.item() {
            take(key.get(format::STATE_PREFIX_BYTES..).unwrap_or_default(), value)?;
            records.next();
        }
        records.status().map_err(|error| storage_error("reading the state", error))
    }
}

/// A folder that is being made. It has another name until it is whole; dropped before, it is gone.
#[derive(Debug)]
pub struct NewFolder {
    /// Whose it is: under a store id of its own.
    pub identity: Identity,
    path: PathBuf,
    unfinished: PathBuf,
    databases: Option<(Database, Database)>,
    _lock: FolderLock,
}

impl NewFolder {
    /// Begins a folder where there is nothing.
    pub fn begin(path: &Path, cluster_id: Uuid, node_id: NodeId) -> Result<NewFolder, FolderError> {
        if let Some(identity) = identity_file::read(path)? {
            return Err(FolderError::AlreadyFormatted { path: path.to_owned(), identity });
        }
        // An empty folder may be where a disk is mounted, and a link leads elsewhere: what is done could not take its place.
        if path.symlink_metadata().is_ok() {
            return Err(FolderError::InTheWay { path: path.to_owned() });
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(UNFINISHED);
        let unfinished = path.with_file_name(name);
        if unfinished.exists() {
            return Err(FolderError::Unfinished { path: unfinished });
        }
        let identity = DataFolder::format(&unfinished, cluster_id, node_id)?;
        let lock = lock(&unfinished)?;
        let mut new = NewFolder { identity, path: path.to_owned(), unfinished, databases: None, _lock: lock };
        let log = open_database(&new.unfinished, LOG, &options::log(false), &identity)?;
        let data = open_database(&new.unfinished, DATA, &options::data(false), &identity)?;
        new.databases = Some((log, data));
        Ok(new)
    }

    fn databases(&self) -> &(Database, Database) {
        self.databases.as_ref().expect("they are open until it is finished")
    }

    /// Copies a shard's state.
    pub(crate) fn copy_state(
        &self,
        shard: ShardId,
        from: &Survivor,
        incarnation: Incarnation,
    ) -> Result<(), StorageError> {
        let (_, data) = self.databases();
        let prefix = format::state_prefix(shard, Incarnation(0));
        let mut batch = WriteBatch::default();
        let write = |batch: &mut WriteBatch| {
            let written = data.write_opt(std::mem::take(batch), &options::unlogged());
            written.map_err(|error| storage_error("writing the state", error))
        };
        from.state(shard, incarnation, |key, value| {
            batch.put([&prefix[..], key].concat(), value);
            if batch.size_in_bytes() >= BATCH_BYTES { write(&mut batch) } else { Ok(()) }
        })?;
        write(&mut batch)
    }

    /// Writes a shard's log: its engine, its hard state, and its first index.
    pub(crate) fn write_log(
        &self,
        shard: ShardId,
        engine: Consensus,
        hard_state: &[u8],
        first: u64,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put(format::engine_key(shard), format::encode_engine(engine));
        batch.put(format::hard_state_key(shard), hard_state);
        batch.put(format::trimmed_key(shard), format::encode_index(first));
        self.write_to_log(batch)
    }

    /// Writes an entry of a shard's log.
    pub(crate) fn write_entry(&self, shard: ShardId, index: u64, entry: &[u8]) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put(format::entry_key(shard, index), entry);
        self.write_to_log(batch)
    }

    fn write_to_log(&self, batch: WriteBatch) -> Result<(), StorageError> {
        let written = self.databases().0.write_opt(batch, &options::unlogged());
        written.map_err(|error| storage_error("writing the log", error))
    }

    /// All is there: puts it on the disk, and gives it its name.
    pub(crate) fn finish(mut self, map: &ShardMap) -> Result<(), FolderError> {
        let failed = |error: StorageError| FolderError::Database {
            what: "finishing",
            path: self.unfinished.clone(),
            cause: error.to_string(),
        };
        let (log, data) = self.databases();
        for database in [data, log] {
            database.flush().map_err(|error| failed(storage_error("writing out", error)))?;
        }
        store_shard_map(log, map).map_err(failed)?;
        self.databases = None;
        sync_folder(&self.unfinished)?;
        let renamed = fs::rename(&self.unfinished, &self.path);
        renamed.map_err(|source| FolderError::Io { what: "naming", path: self.path.clone(), source })?;
        match self.path.parent() {
            Some(above) if !above.as_os_str().is_empty() => sync_folder(above),
            _ => sync_folder(Path::new(".")),
        }
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        self.databases = None;
        // After it is finished there is none of this name.
        let _ = fs::remove_dir_all(&self.unfinished);
    }
}
