//! The data folder of a node: formatting it, telling it the first members, opening it.
//!
//! A folder holds `log/` and `data/` (the databases), `journal/` (in front of `log/`), `identity.json` (for people and for
//! checks) and a lock file. The identity is in the databases and the file, the store id in every sector's checksum of the
//! journal, so that a folder put together from parts of others is refused. `identity.json` is renamed into place last: a folder with it is formatted, one without it
//! never was used. A folder that nobody will run any more is only looked at ([`survivor`]). Not here: what shards keep in the
//! databases.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::{ShardMap, codec};
use keevee_replica::storage::StorageError;
use rocksdb::{Options, WriteBatch};
use uuid::Uuid;

use super::format::{self, FORMAT_VERSION, FirstMember, Identity, NodeKind};
use super::journal::{Journal, JournalError};
use super::{Database, log_files, options, storage_error};
use keevee_core::ids::StoreId;

mod identity_file;
mod lost;
mod survivor;

pub use survivor::{NewFolder, Survivor};

const LOG: &str = "log";
const DATA: &str = "data";
const JOURNAL: &str = "journal";
const DAMAGED: &str = "damaged";
const LOCK: &str = "keevee.lock";

/// Why a folder was not formatted or opened. Each says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// There is no formatted folder at the path.
    #[error(
        "{} is not a formatted data folder: for a new node, format it with `keevee init`; a node that was a member and lost its folder \
         joins under a new number (`keevee server --join`), and takes the old one's place with `keevee node replace`",
        path.display()
    )]
    NotFormatted {
        /// The folder.
        path: PathBuf,
    },
    /// The folder belongs to a node already.
    #[error(
        "{} is already formatted for node {}, store {}; start it with `keevee server`, or name another folder",
        path.display(), identity.node_id, identity.store_id
    )]
    AlreadyFormatted {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        identity: Identity,
    },
    /// The folder to format holds something.
    #[error("{} is not empty; name an empty or a new folder", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// Something is where a folder is to be made aside and then moved to.
    #[error("{} is there already: name a folder that is not there yet, in one that is", path.display())]
    InTheWay {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has databases, or begins of them, but no identity.
    #[error(
        "{} holds databases but no identity.json; if `keevee init` was interrupted here, empty the folder and run it again; \
         if a node ran here, put its identity.json back",
        path.display()
    )]
    Interrupted {
        /// The folder.
        path: PathBuf,
    },
    /// A folder was being made here and was not finished.
    #[error("{} was left by a `keevee recover` that was interrupted, or another makes it now; remove it, then try again", path.display())]
    Unfinished {
        /// What is left.
        path: PathBuf,
    },
    /// Another process has the folder open.
    #[error("another keevee process (pid {pid}) uses {}; stop it first", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process, as the lock file names it; `unknown` if it does not.
        pid: String,
    },
    /// The folder was formatted, but its cluster's first members are not known.
    #[error(
        "{} does not know the first members of its cluster; set them with `keevee init`, the same ones on every node",
        path.display()
    )]
    NoFirstMembers {
        /// The folder.
        path: PathBuf,
    },
    /// The first members are set, and other ones were given.
    #[error(
        "the first members in {} are set and cannot be changed: {}; give the same ones, or format a new folder",
        path.display(), format_members(members)
    )]
    FirstMembersSet {
        /// The folder.
        path: PathBuf,
        /// The members as they are set.
        members: Vec<FirstMember>,
    },
    /// The first shards are set, and other ones were given.
    #[error(
        "the shards of the cluster in {} are set and cannot be changed like this; give the same ones, or format a new \
         folder",
        path.display()
    )]
    FirstShardsSet {
        /// The folder.
        path: PathBuf,
    },
    /// The node of the folder is a member of a cluster already.
    #[error("{} is a member's folder already; start it with `keevee server`", path.display())]
    AlreadyMember {
        /// The folder.
        path: PathBuf,
    },
    /// The first members given make no configuration.
    #[error("the first members are wrong: {cause}; name each node once, this one (node {}, store {}) among them", own.0, own.1)]
    FirstMembersInvalid {
        /// What is wrong.
        cause: String,
        /// The folder's own pair.
        own: FirstMember,
    },
    /// The identities within the folder differ.
    #[error(
        "{}: {database}/ belongs to node {}, store {}, but identity.json to node {}, store {}; \
         put the parts back that belong together",
        path.display(), found.node_id, found.store_id, expected.node_id, expected.store_id
    )]
    IdentityMismatch {
        /// The folder.
        path: PathBuf,
        /// The database that differs.
        database: &'static str,
        /// What `identity.json` says.
        expected: Identity,
        /// What the database says.
        found: Identity,
    },
    /// Something wrote the folder in a format that this program does not know.
    #[error(
        "{} has format version {found}, this keevee knows version {FORMAT_VERSION}; start the keevee that wrote it, or upgrade this one",
        path.display()
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
    /// A database or the journal is missing, empty or damaged. The node may have promised or accepted what it no
    /// longer knows, so it must not take part under its old store id.
    #[error(
        "{}: {database}/ is unusable: {cause}; it must not vote as this store again, and `keevee init` must not format another one \
         for its number: join a node with a new folder under a new number (`keevee server --join`) and give it this one's place \
         (`keevee node replace`)",
        path.display()
    )]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// The database, or the journal.
        database: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// The applied state is damaged, and no other node has one to rebuild it from.
    #[error(
        "{}: data/ is damaged, and no other node has a replica of shard {shard}: the state is not given up; restore a backup to a \
         new cluster (`keevee restore`)",
        path.display()
    )]
    NoOtherReplica {
        /// The folder.
        path: PathBuf,
        /// The shard.
        shard: ShardId,
    },
    /// The applied state is damaged, and no other node that answers has one to rebuild it from.
    #[error(
        "{}: data/ is damaged, and of shard {shard} no other node that answers has a state that this node's log goes on from: \
         nothing is given up; start this node again once the others are there, and if none has the shard, see what is left of all \
         folders with `keevee recover`",
        path.display()
    )]
    NoOtherState {
        /// The folder.
        path: PathBuf,
        /// The shard.
        shard: ShardId,
    },
    /// `identity.json` cannot be read as what it is.
    #[error("{}: {cause}; put the file back as `keevee init` wrote it", path.display())]
    BadIdentityFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The file system refused.
    #[error("{what} {}: {source}; check the disk and the rights on the folder", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A database refused, for a reason other than damage.
    #[error("{what} {}: {cause}; check the disk and the rights on the folder", path.display())]
    Database {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the database said.
        cause: String,
    },
}

/// Formats and opens data folders.
pub struct DataFolder;

/// A node's folder, ready for use.
///
/// Whoever takes it apart keeps the lock for as long as one of the databases is in use.
#[derive(Debug)]
pub struct OpenFolder {
    /// Whose it is.
    pub identity: Identity,
    /// The first configuration of the cluster, by node id; empty if the node joined later.
    pub first_members: Vec<FirstMember>,
    /// The newest shard map that the node has taken in; folders of the first versions have none.
    pub shard_map: Option<ShardMap>,
    /// Entries and hard state of all shards; written by the journal only, but for marks of the node's own.
    pub log: Arc<Database>,
    /// The applied state of all shards.
    pub data: Arc<Database>,
    /// Keeps other processes out.
    pub lock: FolderLock,
}

/// Keeps other processes out of a folder until it is dropped, or the process ends in any way.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone does not unlock while a process that was just forked shares the open file. If it
        // fails, closing has to do.
        let _ = self.file.unlock();
    }
}

impl DataFolder {
    /// Makes the folder that a node will live in, under a new store id.
    ///
    /// When it returns, everything is on the disk. After a crash within it the folder is either refused
    /// as interrupted, looks untouched, or is formatted.
    pub fn format(path: &Path, cluster_id: Uuid, node_id: NodeId) -> Result<Identity, FolderError> {
        if let Some(identity) = identity_file::read(path)? {
            return Err(FolderError::AlreadyFormatted { path: path.to_owned(), identity });
        }
        create_folder(path)?;
        let _lock = lock(path)?;
        check_empty(path)?;
        let identity = Identity { cluster_id, node_id, store_id: StoreId(Uuid::new_v4()) };
        create_database(&path.join(DATA), &options::data(true), &identity)?;
        create_database(&path.join(LOG), &options::log(true), &identity)?;
        Journal::create(&path.join(JOURNAL)).map_err(|error| journal_error(path, error))?;
        sync_folder(path)?;
        identity_file::write(path, &identity)?;
        sync_folder(path)?;
        Ok(identity)
    }

    /// Whose folder it is; `None` if it is not formatted.
    pub fn identity(path: &Path) -> Result<Option<Identity>, FolderError> {
        identity_file::read(path)
    }

    /// Tells a formatted folder the first configuration of its cluster: every voter's node id and store
    /// id, and the first shard map. It can be told once, and the same again; a node does not start before it was.
    pub fn set_first_members(
        path: &Path,
        members: &[FirstMember],
        map: &ShardMap,
    ) -> Result<(), FolderError> {
        let (identity, _lock) = enter(path)?;
        let mut members = members.to_vec();
        members.sort_unstable();
        check_members(&members, (identity.node_id, identity.store_id))?;
        let log = open_database(path, LOG, &options::log(false), &identity)?;
        match read_members(path, &log)? {
            Some(set) if set == members => {
                let known = read_map(path, &log)?;
                let differs = known.is_some_and(|known| known.epoch == map.epoch && known != *map);
                let path = path.to_owned();
                return if differs { Err(FolderError::FirstShardsSet { path }) } else { Ok(()) };
            }
            Some(set) => {
                return Err(FolderError::FirstMembersSet { path: path.to_owned(), members: set });
            }
            None => {}
        }
        let mut batch = WriteBatch::default();
        batch.put(format::node_key(NodeKind::FirstMembers), format::encode_first_members(&members));
        batch.put(format::node_key(NodeKind::ShardMap), codec::encode(map));
        let written = log.write_opt(batch, &options::synced());
        written.map_err(|error| database_error("writing to", &path.join(LOG), error))
    }

    /// Tells a formatted folder the map of the cluster that its node has joined.
    pub fn join(path: &Path, map: &ShardMap) -> Result<(), FolderError> {
        let (identity, _lock) = enter(path)?;
        let log = open_database(path, LOG, &options::log(false), &identity)?;
        if read_members(path, &log)?.is_some() || read_map(path, &log)?.is_some() {
            return Err(FolderError::AlreadyMember { path: path.to_owned() });
        }
        store_shard_map(&log, map).map_err(|error| unusable_log(path, &error))
    }

    /// True if the node of a formatted folder is a member of its cluster: it was told the first members, or joined.
    pub fn is_member(path: &Path) -> Result<bool, FolderError> {
        let (identity, _lock) = enter(path)?;
        let log = open_database(path, LOG, &options::log(false), &identity)?;
        Ok(read_members(path, &log)?.is_some() || read_map(path, &log)?.is_some())
    }

    /// Opens a folder that was formatted and told the first members, and checks that all its parts
    /// belong together and none is damaged. The journal is for the folder's log writer.
    pub fn open(path: &Path) -> Result<(OpenFolder, Journal), FolderError> {
        let (identity, lock) = enter(path)?;
        let log = Arc::new(open_database(path, LOG, &options::log(false), &identity)?);
        let (first_members, shard_map) = (read_members(path, &log)?, read_map(path, &log)?);
        if first_members.is_none() && shard_map.is_none() {
            return Err(FolderError::NoFirstMembers { path: path.to_owned() });
        }
        let first_members = first_members.unwrap_or_default();
        let data = open_database(path, DATA, &options::data(false), &identity)?;
        let journal = Journal::open(&path.join(JOURNAL), identity.store_id, Arc::clone(&log));
        let journal = journal.map_err(|error| journal_error(path, error))?;
        let data = Arc::new(data);
        if let Some(map) = &shard_map {
            lost::give_up_departed(map, identity.node_id, &log, &data)
                .map_err(|error| storage_failed(path, error))?;
        }
        Ok((OpenFolder { identity, first_members, shard_map, log, data, lock }, journal))
    }
}

impl FolderError {
    /// What is wrong if the applied state alone can't be used: it may be given up, and rebuilt from other nodes.
    pub fn state_damage(&self) -> Option<String> {
        match self {
            FolderError::Unusable { path, database: DATA, cause } => {
                Some(format!("{}: {DATA}/ is unusable: {cause}", path.display()))
            }
            _ => None,
        }
    }
}

/// Gives the applied state up, of all shards of the node that is stopped: marks it as lost in `log/`, puts `data/` aside as
/// `damaged/`, and makes an empty one. Each replica gets its state from another node's at the next start. Logs, and with them
/// what was promised, stay.
///
/// All of it goes, since shards share files: as long as a damaged one is there, RocksDB can merge it with no other. After a
/// crash within this either the state was not given up, or a start finds no `data/` that it can use and does it again.
///
/// `elsewhere` asks the other nodes of the map: how far the state of each shard was applied by whoever has gone furthest and has
/// one. This node must not answer to such a question any more: so of several that find damage at the same time the last one finds nobody,
/// and keeps what it has.
///
/// # Errors
///
/// [`FolderError::NoOtherReplica`] if there is a shard that no other node shall have, [`FolderError::NoOtherState`] if there is one
/// that none has; as [`DataFolder::open`] otherwise.
pub fn give_up_state(
    path: &Path,
    elsewhere: impl FnOnce(&ShardMap) -> BTreeMap<ShardId, u64>,
) -> Result<(), FolderError> {
    let (identity, _lock) = enter(path)?;
    let log = Arc::new(open_database(path, LOG, &options::log(false), &identity)?);
    // What only the journal has comes first: logs may begin later than `log/` says, and it must not take a mark back.
    let journal = Journal::open(&path.join(JOURNAL), identity.store_id, Arc::clone(&log));
    drop(journal.map_err(|error| journal_error(path, error))?);
    check_others_have_it(path, identity.node_id, &log, elsewhere)?;
    lost::give_up_all(&log).map_err(|error| unusable_log(path, &error))?;
    put_aside(path).map_err(|source| FolderError::Io {
        what: "putting aside",
        path: path.join(DATA),
        source,
    })?;
    create_database(&path.join(DATA), &options::data(true), &identity)?;
    sync_folder(path)
}

/// What is given up must be had elsewhere.
fn check_others_have_it(
    path: &Path,
    own: NodeId,
    log: &Database,
    elsewhere: impl FnOnce(&ShardMap) -> BTreeMap<ShardId, u64>,
) -> Result<(), FolderError> {
    let missing = |shard| FolderError::NoOtherState { path: path.to_owned(), shard };
    // Only a folder of an old version has none.
    let map = read_map(path, log)?.ok_or_else(|| missing(ShardId::SYSTEM))?;
    if let Some(shard) = map.shards.iter().find(|shard| shard.members == [own]) {
        return Err(FolderError::NoOtherReplica { path: path.to_owned(), shard: shard.id });
    }
    let elsewhere = elsewhere(&map);
    for shard in map.shards.iter().filter(|shard| shard.is_on(own)) {
        let mark = log
            .get(format::trimmed_key(shard.id))
            .map_err(|error| database_error("reading", &path.join(LOG), error))?;
        let first = format::trimmed_below(mark).map_err(|error| unusable_log(path, &error))?;
        let is_of_use = |applied: &u64| *applied > 0 && applied.saturating_add(1) >= first;
        if !elsewhere.get(&shard.id).is_some_and(is_of_use) {
            return Err(missing(shard.id));
        }
    }
    Ok(())
}

fn unusable_log(path: &Path, error: &StorageError) -> FolderError {
    FolderError::Unusable { path: path.to_owned(), database: LOG, cause: error.to_string() }
}

/// Only the first state that is given up is kept until all is rebuilt: a later one holds less.
fn put_aside(path: &Path) -> io::Result<()> {
    let (data, damaged) = (path.join(DATA), path.join(DAMAGED));
    if !data.exists() {
        return Ok(());
    }
    if damaged.exists() { fs::remove_dir_all(data) } else { fs::rename(data, damaged) }
}

/// Removes what [`give_up_state`] put aside: all is rebuilt.
pub fn remove_given_up(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path.join(DAMAGED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps a newer shard map in `log/`: it is on the disk when this returns.
pub fn store_shard_map(log: &Database, map: &ShardMap) -> Result<(), StorageError> {
    let key = format::node_key(NodeKind::ShardMap);
    let written = log.put_opt(key, codec::encode(map), &options::synced());
    written.map_err(|error| storage_error("keeping the shard map", error))
}

/// Finds out whose formatted folder it is, and locks it.
fn enter(path: &Path) -> Result<(Identity, FolderLock), FolderError> {
    let identity = formatted(path)?;
    let lock = lock(path)?;
    // Whoever formatted it may have been killed before its names were on the disk.
    sync_folder(path)?;
    Ok((identity, lock))
}

fn formatted(path: &Path) -> Result<Identity, FolderError> {
    if let Some(identity) = identity_file::read(path)? {
        return Ok(identity);
    }
    let path = path.to_owned();
    if [LOG, DATA, JOURNAL].iter().any(|part| path.join(part).exists()) {
        return Err(FolderError::Interrupted { path });
    }
    Err(FolderError::NotFormatted { path })
}

fn lock(path: &Path) -> Result<FolderLock, FolderError> {
    let lock_path = path.join(LOCK);
    let failed = |source| FolderError::Io { what: "locking", path: lock_path.clone(), source };
    let mut open = OpenOptions::new();
    let open = open.read(true).write(true).create(true).truncate(false);
    let mut lock = lock_file(path, open.open(&lock_path).map_err(failed)?)?;
    lock.file.set_len(0).map_err(failed)?;
    lock.file.write_all(std::process::id().to_string().as_bytes()).map_err(failed)?;
    Ok(lock)
}

/// Locks a folder by its lock file, and writes nothing.
fn lock_file(path: &Path, mut file: File) -> Result<FolderLock, FolderError> {
    match file.try_lock() {
        Ok(()) => Ok(FolderLock { file }),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The pid only makes the message better.
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
            Err(FolderError::Locked { path: path.to_owned(), pid })
        }
        Err(TryLockError::Error(source)) => {
            Err(FolderError::Io { what: "locking", path: path.join(LOCK), source })
        }
    }
}

/// Creates a folder and what is missing above it, and syncs each new name: a name that is not synced in
/// the folder above it can be gone after a power failure, with all that was synced below it.
fn create_folder(path: &Path) -> Result<(), FolderError> {
    let above = match path.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => return Ok(()),
    };
    if !path.is_dir() {
        create_folder(above)?;
        fs::create_dir(path).map_err(|source| FolderError::Io {
            what: "creating",
            path: path.to_owned(),
            source,
        })?;
    }
    sync_folder(above)
}

fn sync_folder(path: &Path) -> Result<(), FolderError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| FolderError::Io { what: "syncing", path: path.to_owned(), source })
}

fn check_empty(path: &Path) -> Result<(), FolderError> {
    let failed = |source| FolderError::Io { what: "listing", path: path.to_owned(), source };
    for file in fs::read_dir(path).map_err(failed)? {
        let name = file.map_err(failed)?.file_name();
        if name == LOG || name == DATA || name == JOURNAL {
            return Err(FolderError::Interrupted { path: path.to_owned() });
        }
        if name != LOCK {
            return Err(FolderError::NotEmpty { path: path.to_owned() });
        }
    }
    Ok(())
}

fn create_database(path: &Path, options: &Options, identity: &Identity) -> Result<(), FolderError> {
    let failed = |error| database_error("creating", path, error);
    let database = Database::open(options, path).map_err(failed)?;
    let key = format::node_key(NodeKind::Identity);
    database.put_opt(key, format::encode_identity(identity), &options::synced()).map_err(failed)?;
    // In a sorted file it does not hang on the write-ahead log, which `data/` does not use.
    database.flush().map_err(failed)?;
    drop(database);
    sync_folder(path)
}

fn open_database(
    folder: &Path,
    database: &'static str,
    options: &Options,
    expected: &Identity,
) -> Result<Database, FolderError> {
    open_checked(folder, database, expected, |path| Database::open(options, path))
}

/// Opens a database in either way, if it is whole and belongs to this folder.
fn open_checked(
    folder: &Path,
    database: &'static str,
    expected: &Identity,
    open: impl FnOnce(&Path) -> Result<Database, rocksdb::Error>,
) -> Result<Database, FolderError> {
    let path = folder.join(database);
    let unusable = |cause: String| FolderError::Unusable { path: folder.to_owned(), database, cause };
    log_files::check(&path).map_err(|damage| match damage {
        log_files::Damage::Io { path, source } => FolderError::Io { what: "reading", path, source },
        damage => unusable(damage.to_string()),
    })?;
    let opened = open(&path).map_err(|error| match error.kind() {
        rocksdb::ErrorKind::Corruption => unusable(error.into_string()),
        _ => database_error("opening", &path, error),
    })?;
    let found = match read_node(&opened, NodeKind::Identity) {
        Ok(Some(found)) => found,
        Ok(None) => return Err(unusable("it holds no identity".to_owned())),
        Err(error) => return Err(unusable(error.to_string())),
    };
    let version = format::identity_version(&found).map_err(|error| unusable(error.to_string()))?;
    if version != FORMAT_VERSION {
        return Err(FolderError::Version { path, found: version });
    }
    let found = format::decode_identity(&found).map_err(|error| unusable(error.to_string()))?;
    if found != *expected {
        let path = folder.to_owned();
        return Err(FolderError::IdentityMismatch { path, database, expected: *expected, found });
    }
    Ok(opened)
}

fn read_node(database: &Database, kind: NodeKind) -> Result<Option<Vec<u8>>, rocksdb::Error> {
    database.get(format::node_key(kind))
}

fn read_map(path: &Path, log: &Database) -> Result<Option<ShardMap>, FolderError> {
    let found = read_node(log, NodeKind::ShardMap)
        .map_err(|error| database_error("reading", &path.join(LOG), error))?;
    let map = found.map(|record| codec::decode(record.into())).transpose();
    map.map_err(|error| FolderError::Unusable {
        path: path.to_owned(),
        database: LOG,
        cause: format!("the shard map: {error}"),
    })
}

fn read_members(path: &Path, log: &Database) -> Result<Option<Vec<FirstMember>>, FolderError> {
    let found = read_node(log, NodeKind::FirstMembers)
        .map_err(|error| database_error("reading", &path.join(LOG), error))?;
    let members = found.map(|record| format::decode_first_members(&record)).transpose();
    members.map_err(|error: StorageError| FolderError::Unusable {
        path: path.to_owned(),
        database: LOG,
        cause: error.to_string(),
    })
}

/// The members are sorted.
fn check_members(members: &[FirstMember], own: FirstMember) -> Result<(), FolderError> {
    let wrong = |cause: String| Err(FolderError::FirstMembersInvalid { cause, own });
    if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return wrong(format!("node {} is named twice", pair[0].0));
    }
    let mut stores: Vec<StoreId> = members.iter().map(|(_, store)| *store).collect();
    stores.sort_unstable();
    if let Some(pair) = stores.windows(2).find(|pair| pair[0] == pair[1]) {
        return wrong(format!("store {} is named twice", pair[0]));
    }
    if !members.contains(&own) {
        return wrong("this node's own pair is not among them".to_owned());
    }
    Ok(())
}

fn format_members(members: &[FirstMember]) -> String {
    let members: Vec<String> =
        members.iter().map(|(node, store)| format!("node {node} store {store}")).collect();
    members.join(", ")
}

fn database_error(what: &'static str, path: &Path, error: rocksdb::Error) -> FolderError {
    FolderError::Database { what, path: path.to_owned(), cause: error.into_string() }
}

fn storage_failed(folder: &Path, error: StorageError) -> FolderError {
    match error {
        StorageError::Io { what, cause } => FolderError::Database { what, path: folder.to_owned(), cause },
        StorageError::Corrupt { .. } => unusable_log(folder, &error),
        StorageError::Damaged { .. } => {
            FolderError::Unusable { path: folder.to_owned(), database: DATA, cause: error.to_string() }
        }
    }
}

fn journal_error(folder: &Path, error: JournalError) -> FolderError {
    match error {
        JournalError::Io { what, path, source } => FolderError::Io { what, path, source },
        // A full disk, most likely: the folder is as good as it was.
        JournalError::Log(StorageError::Io { what, cause }) => {
            FolderError::Database { what, path: folder.to_owned(), cause }
        }
        error @ (JournalError::Damaged(_)
        | JournalError::Log(StorageError::Corrupt { .. } | StorageError::Damaged { .. })) => {
            FolderError::Unusable { path: folder.to_owned(), database: JOURNAL, cause: error.to_string() }
        }
    }
}
