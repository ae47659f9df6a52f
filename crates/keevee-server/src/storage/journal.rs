//! The journal: where a node's log is on disk first.
//!
//! Each write of the log writer is one record here, on disk when the call returns; then it goes into `log/`, without
//! a write-ahead log there. What a crash takes from RocksDB's write buffer is replayed from here at the next open.
//! The reason for a journal of our own is the cost of a sync: with a file that grows the file system has its length and
//! its blocks to write as well, and does so in turn; with one that is written over in place it has not. So segments
//! are filled with zeros ahead of their first use, and used again once `log/` has what is in them in sorted files.
//!
//! A record is cut into sectors, each with the record's sequence number, its place in the record and a
//! checksum. Sequence numbers only rise, so what is left of a segment's former use is told from what is new. A write was
//! complete before the next began: the last record may be torn, which shows as sectors of it that were
//! not written; it was never acknowledged and is dropped. A sector that is neither empty nor whole, a gap between
//! records, or an end below what `log/` has or knows to have been here, is damage.
//!
//! Not here: what the records say (the log writer and [`format`]), the layout of a sector ([`sector`]), what sectors come to
//! ([`scan`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keevee_core::ids::StoreId;
use keevee_replica::storage::StorageError;
use rocksdb::{FlushOptions, ReadOptions, WriteBatch};

use super::format::NodeKind;
use super::log_writer::LogSink;
use super::{Database, format, options, storage_error};
use scan::{Found, Scan, first_missing};
use sector::{ALIGNED, RecordShape, SECTOR};

mod scan;
mod sector;

/// As much as `log/` gathers before it writes a sorted file.
const SEGMENT_BYTES: u64 = 64 << 20;
/// From this part of a segment on it is nearly full, of a hundred: what follows takes as long as all members need to flush what they
/// have applied and to tell each other.
const NEARLY_FULL_PERCENT: u64 = 75;
/// How far ahead of a record zeros are written, in the same write: a fourth of what there is, within these bounds. More makes
/// that write slow, less makes many of them; a node that has little to write takes little of the disk.
const AHEAD_BYTES_MIN: u64 = 256 << 10;
const AHEAD_BYTES_MAX: u64 = 4 << 20;
/// A buffer that one large record made larger than this is not kept.
const KEPT_BUFFER_BYTES: usize = 4 << 20;
/// How much of a segment is read at a time.
const READ_BYTES: usize = 1 << 20;

/// Why a journal may not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    /// A file could not be read or made.
    #[error("{what} {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// It holds what no crash leaves behind.
    #[error("{0}")]
    Damaged(String),
    /// `log/` could not be read or written.
    #[error(transparent)]
    Log(#[from] StorageError),
}

/// The journal of a node, and the database that it is written in front of.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    store: StoreId,
    log: Arc<Database>,
    segment_bytes: u64,
    segments: Vec<Segment>,
    /// Which segment is written to, and where.
    current: usize,
    offset: u64,
    /// True if this segment is nearly full, and that was told.
    told_nearly_full: bool,
    /// The sequence number of the last record.
    last: u64,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    file: File,
    /// Of the checksum of its first sector.
    seed: u64,
    /// Up to here there are zeros or old records to write over.
    prepared: u64,
    /// The highest sequence number in it.
    last: u64,
}

impl Journal {
    /// Makes an empty journal for a `log/` that is empty as well. The caller syncs the folder above.
    pub(super) fn create(folder: &Path) -> Result<(), JournalError> {
        let failed = |source| JournalError::Io { what: "creating", path: folder.to_owned(), source };
        fs::create_dir(folder).map_err(failed)?;
        create_segment(folder, 1).map_err(failed)?;
        Ok(())
    }

    /// Opens a journal and brings `log/` up to its end: all of it is in sorted files there when this
    /// returns. After a failed write the page cache may hold what is not on disk, or the disk what was not seen here. So a
    /// new record is written, which changes nothing else: the journal ends where `log/` does again, and no number is used
    /// twice. A disk that can't be written to is found now.
    pub(super) fn open(folder: &Path, store: StoreId, log: Arc<Database>) -> Result<Journal, JournalError> {
        Journal::open_with(folder, store, log, SEGMENT_BYTES)
    }

    fn open_with(
        folder: &Path,
        store: StoreId,
        log: Arc<Database>,
        segment_bytes: u64,
    ) -> Result<Journal, JournalError> {
        let Missing { segments, records, applied, seen } = Missing::find(folder, store, &log)?;
        for record in &records {
            let batch = WriteBatch::from_data(&read_record(folder, record)?);
            let written = log.write_opt(batch, &options::unlogged());
            written.map_err(|error| storage_error("replaying the journal", error))?;
        }
        if seen > applied {
            // A torn record has taken its number, too: its sectors must not pass for a later record's.
            let key = format::node_key(NodeKind::Journaled);
            let marked = log.put_opt(key, format::encode_index(seen), &options::unlogged());
            let flushed = marked.and_then(|()| log.flush());
            flushed.map_err(|error| storage_error("writing out what was replayed", error))?;
        }
        let open = |number| {
            let opened = Segment::open(folder, store, number);
            opened.map_err(|source| JournalError::Io {
                what: "opening",
                path: segment_path(folder, number),
                source,
            })
        };
        let mut journal = Journal {
            folder: folder.to_owned(),
            store,
            log,
            segment_bytes,
            segments: (1..=segments).map(open).collect::<Result<_, _>>()?,
            current: 0,
            offset: 0,
            told_nearly_full: false,
            last: seen,
            buffer: Vec::new(),
        };
        journal.write_synced(WriteBatch::default())?;
        tracing::info!(replayed = records.len(), last = seen, "journal open");
        Ok(journal)
    }

    /// What a start would bring `log/` up to date with, oldest first; nothing is written.
    pub(super) fn read_missing(
        folder: &Path,
        store: StoreId,
        log: &Database,
    ) -> Result<Vec<Vec<u8>>, JournalError> {
        let Missing { records, .. } = Missing::find(folder, store, log)?;
        records.iter().map(|record| read_record(folder, record)).collect()
    }

    /// Writes a record; it is on disk when this returns.
    fn append(&mut self, record: &[u8]) -> Result<(), StorageError> {
        let shape = RecordShape::of(record.len());
        if self.offset > 0 && self.offset + shape.bytes() > self.segment_bytes {
            self.current = self.next_segment()?;
            (self.offset, self.told_nearly_full) = (0, false);
        }
        let begins = self.offset == 0;
        let segment = &mut self.segments[self.current];
        let end = self.offset + shape.bytes();
        // Zeros behind the record, once the end of those that there are is reached.
        let until =
            if end > segment.prepared { (end + ahead(end)).min(self.segment_bytes).max(end) } else { end };
        let length = (until - self.offset) as usize;
        self.buffer.clear();
        self.buffer.resize(length + ALIGNED, 0);
        let start = self.buffer.as_ptr().align_offset(ALIGNED);
        let bytes = &mut self.buffer[start..start + length];
        let seed = segment.seed.wrapping_add(self.offset / SECTOR as u64);
        shape.encode(record, self.last + 1, seed, bytes);
        let written = segment.file.write_all_at(bytes, self.offset).and_then(|()| synced(&segment.file));
        written.map_err(|error| StorageError::Io { what: "writing the log", cause: error.to_string() })?;
        self.last += 1;
        segment.last = self.last;
        segment.prepared = segment.prepared.max(until);
        self.offset = end;
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
        if begins {
            // One that is emptied is found at once.
            self.settle()?;
        }
        Ok(())
    }

    /// A segment to go on in: one whose records are all in sorted files of `log/`, or a new one.
    fn next_segment(&mut self) -> Result<usize, StorageError> {
        // What is in the full segments gets into sorted files by the time that the next one is full. This waits only while so
        // much is on its way there that RocksDB would slow writes down.
        let mut flush = FlushOptions::default();
        flush.set_wait(false);
        self.log.flush_opt(&flush).map_err(|error| storage_error("writing out the log", error))?;
        let applied = read_journaled(&self.log, &options::persisted())?;
        if let Some(free) = self.segments.iter().position(|segment| segment.last <= applied) {
            return Ok(free);
        }
        let number = self.segments.len() as u32 + 1;
        let made = create_segment(&self.folder, number);
        let made = made.and_then(|()| Segment::open(&self.folder, self.store, number));
        let segment =
            made.map_err(|error| StorageError::Io { what: "making a segment", cause: error.to_string() })?;
        note(&self.log, NodeKind::Segments, number.into())?;
        self.segments.push(segment);
        Ok(self.segments.len() - 1)
    }
}

impl LogSink for Journal {
    fn write_synced(&mut self, mut batch: WriteBatch) -> Result<(), StorageError> {
        batch.put(format::node_key(NodeKind::Journaled), format::encode_index(self.last + 1));
        self.append(batch.data())?;
        let written = self.log.write_opt(batch, &options::unlogged());
        written.map_err(|error| storage_error("writing the log", error))
    }

    /// When a segment is full, `log/` writes sorted files.
    fn writes_out_soon(&mut self) -> bool {
        let is_due = !self.told_nearly_full && self.offset >= self.segment_bytes / 100 * NEARLY_FULL_PERCENT;
        self.told_nearly_full |= is_due;
        is_due
    }

    /// A journal that loses its end leaves no trace of it, as long as `log/` has none of that in sorted files.
    fn settle(&mut self) -> Result<(), StorageError> {
        note(&self.log, NodeKind::Reached, self.last)
    }
}

impl Segment {
    /// Opens a segment to write to. All that is in it is in sorted files already.
    fn open(folder: &Path, store: StoreId, number: u32) -> io::Result<Segment> {
        let file = open_synced(&segment_path(folder, number))?;
        let prepared = file.metadata()?.len() / ALIGNED as u64 * ALIGNED as u64;
        Ok(Segment { file, seed: sector::segment_seed(store, number), prepared, last: 0 })
    }
}

/// Writes that are on disk when they return, past the page cache where the file system knows how: a third of the CPU
/// time.
#[cfg(target_os = "linux")]
fn open_synced(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let open = |flags| OpenOptions::new().write(true).custom_flags(flags).open(path);
    match open(libc::O_DSYNC | libc::O_DIRECT) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => open(libc::O_DSYNC),
        opened => opened,
    }
}

#[cfg(target_os = "linux")]
fn synced(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn open_synced(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

#[cfg(not(target_os = "linux"))]
fn synced(file: &File) -> io::Result<()> {
    file.sync_data()
}

fn ahead(end: u64) -> u64 {
    (end / 4).clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX).next_multiple_of(ALIGNED as u64)
}

fn segment_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number}.segment"))
}

/// Makes an empty segment; its name is on disk when this returns. One that a crash left unused is taken.
fn create_segment(folder: &Path, number: u32) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(segment_path(folder, number))?
        .sync_all()?;
    File::open(folder)?.sync_all()
}

/// Remembers a number in `log/`, on the disk when this returns.
fn note(log: &Database, kind: NodeKind, number: u64) -> Result<(), StorageError> {
    let noted = log.put_opt(format::node_key(kind), format::encode_index(number), &options::synced());
    noted.map_err(|error| storage_error("noting where the journal is", error))
}

/// How many segments there are; the first was made with the folder.
fn count_segments(folder: &Path, log: &Database) -> Result<u32, JournalError> {
    let noted = read_mark(log, NodeKind::Segments, &Default::default())?.unwrap_or(1) as u32;
    for number in 1..=noted {
        let path = segment_path(folder, number);
        match fs::metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(JournalError::Damaged(format!("its segment {number} of {noted} is missing")));
            }
            Err(source) => return Err(JournalError::Io { what: "looking for", path, source }),
        }
    }
    Ok(noted)
}

/// `log/` knows of a segment before anything is written to it, but from its write-ahead file alone, for a while: one that is cut
/// or emptied looks like a shorter one.
fn check_unknown(folder: &Path, store: StoreId, known: u32) -> Result<(), JournalError> {
    let failed = |source| JournalError::Io { what: "reading", path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".segment")?.parse::<u32>().ok());
        let Some(number) = number.filter(|number| *number > known) else { continue };
        if read_segment(folder, store, number, &mut Vec::new())? > 0 {
            let cause = format!("there are records in {number}.segment, of which log/ does not know");
            return Err(JournalError::Damaged(cause));
        }
    }
    Ok(())
}

/// The sequence number up to which `log/` has what was journaled.
fn read_journaled(log: &Database, read: &ReadOptions) -> Result<u64, StorageError> {
    Ok(read_mark(log, NodeKind::Journaled, read)?.unwrap_or(0))
}

fn read_mark(log: &Database, kind: NodeKind, read: &ReadOptions) -> Result<Option<u64>, StorageError> {
    let found = log.get_opt(format::node_key(kind), read);
    let found = found.map_err(|error| storage_error("reading the log", error))?;
    found.map(|bytes| format::decode_index(&bytes)).transpose()
}

/// What the journal has and `log/` has not.
struct Missing {
    segments: u32,
    /// In order, each the next.
    records: Vec<Found>,
    /// The last record that `log/` has.
    applied: u64,
    /// The highest sequence number of all, perhaps a torn record's.
    seen: u64,
}

impl Missing {
    fn find(folder: &Path, store: StoreId, log: &Database) -> Result<Missing, JournalError> {
        let segments = count_segments(folder, log)?;
        let (mut records, mut seen) = (Vec::new(), 0);
        for number in 1..=segments {
            seen = seen.max(read_segment(folder, store, number, &mut records)?);
        }
        check_unknown(folder, store, segments)?;
        let applied = read_journaled(log, &Default::default())?;
        records.retain(|record| record.sequence > applied);
        records.sort_unstable_by_key(|record| record.sequence);
        check_complete(&records, applied, seen)?;
        // A record that `log/` knows to have been here was whole: what is left of it is no torn write.
        let reached = read_mark(log, NodeKind::Reached, &Default::default())?.unwrap_or(0);
        let (last, known) = (applied + records.len() as u64, applied.max(reached));
        if last < known || seen < known {
            let cause = format!("it ends at record {}, and had record {known}", last.min(seen));
            return Err(JournalError::Damaged(cause));
        }
        Ok(Missing { segments, records, applied, seen })
    }
}

/// Adds the whole records of a segment; returns the highest sequence number that any sector has.
fn read_segment(
    folder: &Path,
    store: StoreId,
    number: u32,
    records: &mut Vec<Found>,
) -> Result<u64, JournalError> {
    let path = segment_path(folder, number);
    let failed = |source| JournalError::Io { what: "reading", path: path.clone(), source };
    let mut file = File::open(&path).map_err(failed)?;
    let mut scan = Scan::new(number, sector::segment_seed(store, number));
    let mut bytes = Vec::with_capacity(READ_BYTES);
    loop {
        bytes.clear();
        file.by_ref().take(READ_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
        // Less than a sector at the end is where a crash cut zeros.
        let (sectors, _) = bytes.as_chunks::<SECTOR>();
        scan.read(sectors, records).map_err(|(what, offset)| {
            JournalError::Damaged(format!("{what} at byte {offset} of {}", path.display()))
        })?;
        if bytes.len() < READ_BYTES {
            return Ok(scan.highest());
        }
    }
}

/// The records follow what `log/` has without a gap, and behind them is one torn record at most.
fn check_complete(records: &[Found], applied: u64, seen: u64) -> Result<(), JournalError> {
    match first_missing(records, applied, seen) {
        Some(missing) => {
            let cause = format!("record {missing} is missing or damaged, and later ones are there");
            Err(JournalError::Damaged(cause))
        }
        None => Ok(()),
    }
}

fn read_record(folder: &Path, record: &Found) -> Result<Vec<u8>, JournalError> {
    let path = segment_path(folder, record.segment);
    let mut bytes = vec![0; record.shape.bytes() as usize];
    let read = File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, record.offset));
    read.map_err(|source| JournalError::Io { what: "reading", path, source })?;
    Ok(record.shape.decode(&bytes))
}

#[cfg(test)]
mod tests;
