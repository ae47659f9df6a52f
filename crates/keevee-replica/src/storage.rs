//! What a replica asks of storage: a log that never blocks, and a state that is read and written in
//! place. The server implements both on RocksDB, the simulator and the tests in memory.

use bytes::Bytes;
use keevee_core::apply::{ShardMeta, StateView, WriteSet};
use keevee_core::ids::Incarnation;
use keevee_core::requests::RequestRecord;

mod memory;

pub use memory::{MemoryLog, MemorySource, MemoryState, MemoryTarget};

/// One change to a shard's log. Engines encode entries and hard state; the log only keeps the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// Sets the entry at an index, whether or not there was one.
    Entry {
        /// The entry's place.
        index: u64,
        /// The entry, as its engine encoded it.
        bytes: Bytes,
    },
    /// Replaces what an engine must remember besides its entries: promises, votes, marks.
    HardState(Bytes),
    /// Removes every entry below an index.
    DropBelow(u64),
    /// Removes every entry from an index on.
    DropFrom(u64),
    /// This incarnation of the shard's state is in force from now on: a snapshot was taken over.
    Incarnation(Incarnation),
}

/// The log of one shard.
///
/// After an error the log is poisoned: nothing submitted later reaches the disk.
pub trait LogStore {
    /// Queues records for the disk, in order, and returns at once. The records are readable from now on;
    /// the token comes back, in order, once they are synced.
    fn submit(&mut self, records: Vec<LogRecord>, token: u64);

    /// Tells the log that its owner has seen this token come back: what is synced needs no copy in memory.
    fn persisted(&mut self, token: u64);

    /// The entries from `from` to `to` (both included) that exist, in order; at least one if there is any,
    /// then no more than `bytes_max` bytes of them.
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Bytes)>, StorageError>;

    /// The last hard state submitted.
    fn hard_state(&self) -> Result<Option<Bytes>, StorageError>;

    /// The index of the last entry; 0 if there is none.
    fn last(&self) -> Result<u64, StorageError>;

    /// About how many bytes the entries on disk take.
    fn bytes(&self) -> Result<u64, StorageError>;

    /// The incarnation of the state that is in force.
    fn incarnation(&self) -> Result<Incarnation, StorageError>;
}

/// The applied state of one shard.
pub trait StateStore: StateView<Error = StorageError> {
    /// Reads a snapshot of this state.
    type Source: SnapshotSource;
    /// Takes in a snapshot of another replica's.
    type Target: SnapshotTarget;

    /// The meta of the last write set written.
    fn meta(&self) -> Result<ShardMeta, StorageError>;

    /// Every request remembered.
    fn requests(&self) -> Result<Vec<RequestRecord>, StorageError>;

    /// Writes all of it, atomically. It need not survive a crash: the log replays it.
    fn write(&mut self, write_set: WriteSet) -> Result<(), StorageError>;

    /// The highest applied index known to survive a crash.
    fn flushed(&self) -> Result<u64, StorageError>;

    /// All that is written now, whatever is written later.
    fn snapshot(&self) -> Result<Self::Source, StorageError>;

    /// The next incarnation of this state: empty, and beside the one in force.
    fn next_incarnation(&self) -> Result<Self::Target, StorageError>;
}

/// A record of a snapshot: a key and its value, as stores of one layout keep them.
pub type SnapshotRecord = (Bytes, Bytes);

/// How many bytes the keys and values of records have.
pub fn record_bytes(records: &[SnapshotRecord]) -> usize {
    records.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// Reads a snapshot, from its first record to its last.
pub trait SnapshotSource {
    /// How records look. Only a store of the same layout can take them in.
    const LAYOUT: u32;

    /// The next records, in strictly ascending order of their keys: at least one if there is any, then no more than
    /// about so many bytes. Nothing at the end.
    fn read(&mut self, bytes_max: usize) -> Result<Vec<SnapshotRecord>, StorageError>;
}

/// Takes in a snapshot, without holding up whoever brings it. If it is dropped before it is in force, nothing has
/// happened.
pub trait SnapshotTarget {
    /// Takes in records that follow on the earlier ones.
    fn write(&mut self, records: Vec<SnapshotRecord>);

    /// That was all.
    fn end(&mut self);

    /// How it stands.
    fn progress(&mut self) -> Intake;
}

/// How a [`SnapshotTarget`] stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intake {
    /// It can take in more.
    Ready,
    /// The disk has enough to do.
    Busy,
    /// All of it survives a crash, and counts once the log says so: [`LogRecord::Incarnation`].
    Done(Incarnation),
    /// It can't be taken in; the state in force is as it was.
    Failed(StorageError),
}

/// Storage failed. The replica that meets it stops: it cannot know what is on its disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The disk or the database refused.
    #[error("{what}: {cause}; the node stops, check the disk and start it again")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the database said.
        cause: String,
    },
    /// What was read is not what was written.
    #[error(
        "{what} is corrupt: {cause}; this node must not go on, the others do without it: join a node with a new folder under a \
         new number (`keevee server --join`) and give it this one's place (`keevee node replace`)"
    )]
    Corrupt {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// What was read of an applied state is not what was written. The log has no part in it: the replica need forget nothing
    /// that it promised, and its state is to be had from another one.
    #[error(
        "{what}: the applied state is damaged: {cause}; it must be given up and rebuilt from another replica's"
    )]
    Damaged {
        /// What was being done.
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
}

impl StorageError {
    /// The same, known to be about an applied state: what is corrupt there is damaged, and can be rebuilt.
    pub fn of_state(self) -> StorageError {
        match self {
            StorageError::Corrupt { what, cause } => StorageError::Damaged { what, cause },
            other => other,
        }
    }

    /// True if an applied state is damaged.
    pub fn is_damage(&self) -> bool {
        matches!(self, StorageError::Damaged { .. })
    }
}
