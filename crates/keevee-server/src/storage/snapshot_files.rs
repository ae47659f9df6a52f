//! Snapshots of a shard's state: read from `data/`, and taken into it.
//!
//! A record is a key without shard and incarnation, and its value, both as `data/` has them. Those that come are written to
//! files of `data/`'s own kind beside it, each of which is added to it when it is full. So they lie in an incarnation of which
//! nobody knows until the log says that it is in force. Threads do all of it: a node's replicas do not wait for them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use keevee_core::ids::{Incarnation, ShardId};
use keevee_replica::storage::{
    Intake, SnapshotRecord, SnapshotSource, SnapshotTarget, StorageError, record_bytes,
};
use rocksdb::{DBRawIterator, IngestExternalFileOptions, SstFileWriter, WriteBatch};

use super::{Database, FORMAT_VERSION, format, options, state_error, storage_error};

/// Bytes of records in one file. Many small ones would wait for a place among the sorted files of `data/`, and hold up what is
/// written to it.
const FILE_BYTES: usize = 64 << 20;
/// Bytes that may wait to be written before no more are asked for.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// Where the files of a snapshot are until they are full, beside `data/`.
const FOLDER: &str = "incoming";

/// Reads a state as it was when the snapshot was taken. A thread of its own holds RocksDB's view of it.
#[derive(Debug)]
pub struct StateSource {
    /// Taken when this is dropped, which ends the thread.
    requests: Option<Sender<usize>>,
    pages: Receiver<Result<Vec<SnapshotRecord>, StorageError>>,
    thread: Option<JoinHandle<()>>,
}

impl StateSource {
    pub(super) fn start(
        shard: ShardId,
        incarnation: Incarnation,
        data: Arc<Database>,
    ) -> Result<StateSource, StorageError> {
        let (requests, asked) = mpsc::channel();
        let (sender, pages) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let from = format::state_prefix(shard, incarnation).to_vec();
        let mut range = options::range(from, format::state_end(shard, incarnation).to_vec());
        range.fill_cache(false);
        let run = move || {
            let mut records = data.raw_iterator_opt(range);
            records.seek_to_first();
            let _ = ready.send(());
            for bytes_max in asked {
                if sender.send(read_page(&mut records, bytes_max)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("snapshot".to_owned()).spawn(run);
        let thread = thread.map_err(|error| io_error("starting to read a snapshot", &error))?;
        // What is written from here on is not in the view.
        is_ready.recv().map_err(|_| ended())?;
        Ok(StateSource { requests: Some(requests), pages, thread: Some(thread) })
    }
}

impl SnapshotSource for StateSource {
    const LAYOUT: u32 = FORMAT_VERSION;

    fn read(&mut self, bytes_max: usize) -> Result<Vec<SnapshotRecord>, StorageError> {
        let asked = self.requests.as_ref().is_some_and(|requests| requests.send(bytes_max).is_ok());
        if asked { self.pages.recv().unwrap_or_else(|_| Err(ended())) } else { Err(ended()) }
    }
}

/// The database must not be closed while the thread reads it.
impl Drop for StateSource {
    fn drop(&mut self) {
        self.requests = None;
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

fn read_page(records: &mut DBRawIterator<'_>, bytes_max: usize) -> Result<Vec<SnapshotRecord>, StorageError> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    while bytes < bytes_max
        && let Some((key, value)) = records.item()
    {
        let key = key.get(format::STATE_PREFIX_BYTES..).unwrap_or_default();
        bytes += key.len() + value.len();
        page.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        records.next();
    }
    records.status().map_err(|error| state_error("reading a snapshot", error))?;
    Ok(page)
}

/// An incarnation that is being taken in, by a thread of its own. If this is dropped before the end, its files go now, and
/// what of it is in `data/` before its number is used again.
#[derive(Debug)]
pub struct StateTarget {
    incarnation: Incarnation,
    /// Taken when this is dropped, which ends the thread.
    orders: Option<Sender<Order>>,
    /// Bytes of records that the thread has not written.
    waiting: Arc<AtomicUsize>,
    taken_in: Receiver<Result<(), StorageError>>,
    intake: Intake,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Write(Vec<SnapshotRecord>),
    End,
}

impl StateTarget {
    pub(super) fn start(
        shard: ShardId,
        incarnation: Incarnation,
        data: Arc<Database>,
    ) -> Result<StateTarget, StorageError> {
        let (orders, received) = mpsc::channel();
        let (sender, taken_in) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut writer = FileWriter {
            folder: folder(shard, &data),
            prefix: format::state_prefix(shard, incarnation),
            orders: received,
            waiting: Arc::clone(&waiting),
            data,
        };
        let run = move || {
            let result = writer.take_in(shard, incarnation);
            let _ = remove(&writer.folder);
            if let Some(result) = result.transpose() {
                let _ = sender.send(result);
            }
        };
        let thread = thread::Builder::new().name("snapshot".to_owned()).spawn(run);
        let thread = Some(thread.map_err(|error| io_error(TAKING_IN, &error))?);
        let (orders, intake) = (Some(orders), Intake::Ready);
        Ok(StateTarget { incarnation, orders, waiting, taken_in, intake, thread })
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // If the thread has ended, its result says why.
            let _ = orders.send(order);
        }
    }
}

impl SnapshotTarget for StateTarget {
    fn write(&mut self, records: Vec<SnapshotRecord>) {
        self.waiting.fetch_add(record_bytes(&records), Ordering::Relaxed);
        self.order(Order::Write(records));
    }

    fn end(&mut self) {
        self.order(Order::End);
    }

    fn progress(&mut self) -> Intake {
        if matches!(self.intake, Intake::Ready | Intake::Busy) {
            let is_busy = self.waiting.load(Ordering::Relaxed) > WAITING_BYTES_MAX;
            self.intake = match self.taken_in.try_recv() {
                Ok(Ok(())) => Intake::Done(self.incarnation),
                Ok(Err(error)) => Intake::Failed(error),
                Err(TryRecvError::Disconnected) => Intake::Failed(ended()),
                Err(TryRecvError::Empty) if is_busy => Intake::Busy,
                Err(TryRecvError::Empty) => Intake::Ready,
            };
        }
        self.intake.clone()
    }
}

/// The database must not be closed while the thread writes to it, and a number is not used by two at once.
impl Drop for StateTarget {
    fn drop(&mut self) {
        self.orders = None;
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// What the thread of a [`StateTarget`] does.
struct FileWriter {
    folder: PathBuf,
    prefix: [u8; format::STATE_PREFIX_BYTES],
    orders: Receiver<Order>,
    waiting: Arc<AtomicUsize>,
    data: Arc<Database>,
}

impl FileWriter {
    /// Writes one file after the other, and adds each to `data/`: nobody looks there yet. `None` if it is given up.
    fn take_in(&mut self, shard: ShardId, incarnation: Incarnation) -> Result<Option<()>, StorageError> {
        // Of an earlier attempt under this number.
        remove_later(shard, Incarnation(incarnation.0 - 1), &self.data)?;
        let made = remove(&self.folder).and_then(|()| fs::create_dir_all(&self.folder));
        made.map_err(|error| io_error(TAKING_IN, &error))?;
        let mut number = 0;
        loop {
            number += 1;
            let path = self.folder.join(format!("{number}.sst"));
            match self.write_file(&path)? {
                FileEnd::Full => self.add(&path)?,
                FileEnd::Last => return self.add(&path).map(Some),
                FileEnd::Empty => return Ok(Some(())),
                FileEnd::GivenUp => return Ok(None),
            }
        }
    }

    fn write_file(&mut self, path: &Path) -> Result<FileEnd, StorageError> {
        let options = options::snapshot_file();
        let mut file = SstFileWriter::create(&options);
        let failed = |error| storage_error(TAKING_IN, error);
        file.open(path).map_err(failed)?;
        let mut bytes = 0;
        let end = loop {
            match self.orders.recv() {
                Ok(Order::Write(records)) => {
                    let taken = record_bytes(&records);
                    for (key, value) in records {
                        file.put([&self.prefix[..], &key].concat(), value).map_err(failed)?;
                    }
                    self.waiting.fetch_sub(taken, Ordering::Relaxed);
                    bytes += taken;
                    if bytes >= FILE_BYTES {
                        break FileEnd::Full;
                    }
                }
                Ok(Order::End) if bytes == 0 => return Ok(FileEnd::Empty),
                Ok(Order::End) => break FileEnd::Last,
                Err(_) => return Ok(FileEnd::GivenUp),
            }
        };
        // Synced.
        file.finish().map_err(failed)?;
        Ok(end)
    }

    fn add(&self, path: &Path) -> Result<(), StorageError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        let added = self.data.ingest_external_file_opts(&options, vec![path]);
        added.map_err(|error| storage_error(TAKING_IN, error))
    }
}

/// Why a file has ended.
enum FileEnd {
    Full,
    Last,
    /// There was nothing to be in it.
    Empty,
    GivenUp,
}

/// At a start: removes what is left of other incarnations of a shard than the one in force.
///
/// Of earlier ones that may come to nothing in a crash, and is done again at the next start. Of later ones, which
/// were taken in and never put in force, nothing must be left when their number is used again.
pub(super) fn remove_other_incarnations(
    shard: ShardId,
    incarnation: Incarnation,
    data: &Arc<Database>,
) -> Result<(), StorageError> {
    remove(&folder(shard, data)).map_err(|error| io_error(REMOVING, &error))?;
    let first = format::state_prefix(shard, Incarnation(0));
    remove_range(data, first, format::state_prefix(shard, incarnation))?;
    remove_later(shard, incarnation, data)
}

fn remove_later(shard: ShardId, incarnation: Incarnation, data: &Database) -> Result<(), StorageError> {
    let (from, end) =
        (format::state_end(shard, incarnation), format::state_end(shard, Incarnation(u32::MAX)));
    if remove_range(data, from, end)? {
        data.flush().map_err(|error| state_error(REMOVING, error))?;
    }
    Ok(())
}

/// True if there was something.
fn remove_range(data: &Database, from: [u8; 8], end: [u8; 8]) -> Result<bool, StorageError> {
    let failed = |error| state_error(REMOVING, error);
    let is_empty = || {
        let mut records = data.raw_iterator_opt(options::range(from.to_vec(), end.to_vec()));
        records.seek_to_first();
        records.status().map(|()| !records.valid())
    };
    if is_empty().map_err(failed)? {
        return Ok(false);
    }
    // Whole files at once. What is left lies in others; where nothing is, no mark of the removal need be kept.
    data.delete_file_in_range(from, end).map_err(failed)?;
    if !is_empty().map_err(failed)? {
        let mut batch = WriteBatch::default();
        batch.delete_range(from, end);
        data.write_opt(batch, &options::unlogged()).map_err(failed)?;
    }
    Ok(true)
}

fn folder(shard: ShardId, data: &Database) -> PathBuf {
    data.path().with_file_name(FOLDER).join(shard.0.to_string())
}

fn remove(folder: &PathBuf) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn io_error(what: &'static str, error: &io::Error) -> StorageError {
    StorageError::Io { what, cause: error.to_string() }
}

fn ended() -> StorageError {
    StorageError::Io { what: "reading a snapshot", cause: "its thread has ended".to_owned() }
}

const TAKING_IN: &str = "taking in a snapshot";
const REMOVING: &str = "removing a snapshot";

#[cfg(test)]
mod tests;
