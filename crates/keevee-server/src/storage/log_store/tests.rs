//! Against a map that does what was submitted at once, while the disk is any number of syncs behind.

use std::sync::mpsc::{self, Receiver, Sender};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rocksdb::WriteBatch;
use tempfile::TempDir;

use super::*;
use crate::storage::{LogEvent, LogSink, LogWriter};

const SHARD: ShardId = ShardId(3);

/// Writes to a database, each time the test lets it.
struct GatedSink {
    log: Arc<Database>,
    gate: Receiver<()>,
}

impl LogSink for GatedSink {
    fn write_synced(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        // A gate that is gone is open.
        let _ = self.gate.recv();
        self.log.write(batch).map_err(|error| storage_error("writing the log", error))
    }
}

struct Bench {
    folder: TempDir,
    log: Arc<Database>,
    store: RocksLog,
    gate: Sender<()>,
    events: Receiver<LogEvent>,
    writer: LogWriter,
}

impl Bench {
    fn new() -> Bench {
        let folder = TempDir::new().unwrap();
        let log = Database::open(&options::log(true), folder.path().join("log")).unwrap();
        Bench::on(folder, Arc::new(log))
    }

    fn on(folder: TempDir, log: Arc<Database>) -> Bench {
        let (gate, gate_out) = mpsc::channel();
        let (events_in, events) = mpsc::channel();
        let sink = GatedSink { log: Arc::clone(&log), gate: gate_out };
        let on_event = move |event| {
            let _ = events_in.send(event);
        };
        let (writer, handle) = LogWriter::start(sink, on_event).unwrap();
        let store = RocksLog::open(SHARD, Arc::clone(&log), handle).unwrap();
        Bench { folder, log, store, gate, events, writer }
    }

    /// Waits for the next token.
    fn next_token(&self) -> u64 {
        loop {
            match self.events.recv().unwrap() {
                LogEvent::Persisted { token, .. } => return token,
                LogEvent::Synced { .. } | LogEvent::WritesOutSoon => {}
                LogEvent::Failed { error } => panic!("{error}"),
            }
        }
    }

    /// The last token reported and not looked at.
    fn tokens_so_far(&self) -> Option<u64> {
        let token = |event| match event {
            LogEvent::Persisted { token, .. } => Some(token),
            _ => None,
        };
        self.events.try_iter().filter_map(token).last()
    }

    /// Lets everything reach the disk.
    fn settle(&mut self, token: u64) {
        self.gate = mpsc::channel().0;
        while self.next_token() < token {}
        self.store.persisted(token);
    }

    /// Closes the log once everything submitted is on disk. A database that a thread still holds when
    /// the process exits would abort it.
    fn close(self) -> TempDir {
        let Bench { folder, store, gate, writer, .. } = self;
        drop((store, gate));
        assert!(writer.join());
        folder
    }

    fn reopen(self) -> Bench {
        let folder = self.close();
        let log = Database::open(&options::log(false), folder.path().join("log")).unwrap();
        Bench::on(folder, Arc::new(log))
    }

    fn indexes(&self) -> Vec<u64> {
        let entries = self.store.read(0, u64::MAX, usize::MAX).unwrap();
        entries.into_iter().map(|(index, _)| index).collect()
    }
}

fn entry(index: u64) -> LogRecord {
    LogRecord::Entry { index, bytes: format!("entry {index}").into() }
}

fn entries(range: std::ops::RangeInclusive<u64>) -> Vec<LogRecord> {
    range.map(entry).collect()
}

#[test]
fn an_empty_log_has_nothing() {
    let bench = Bench::new();
    assert_eq!(bench.store.last(), Ok(0));
    assert_eq!(bench.store.hard_state(), Ok(None));
    assert!(bench.indexes().is_empty());
    bench.close();
}

#[test]
fn what_is_submitted_reads_at_once_and_after_it_is_persisted() {
    let mut bench = Bench::new();
    bench.store.submit(entries(1..=3), 1);
    bench.store.submit(vec![LogRecord::HardState(Bytes::from_static(b"hard"))], 2);
    for is_settled in [false, true] {
        if is_settled {
            bench.settle(2);
            assert!(bench.store.pending.is_empty() && bench.store.in_flight.is_empty());
        }
        assert_eq!(bench.indexes(), [1, 2, 3]);
        assert_eq!(bench.store.last(), Ok(3));
        assert_eq!(bench.store.hard_state(), Ok(Some(Bytes::from_static(b"hard"))));
    }
    let bench = bench.reopen();
    assert_eq!(bench.indexes(), [1, 2, 3]);
    assert_eq!(bench.store.last(), Ok(3));
    assert_eq!(bench.store.hard_state(), Ok(Some(Bytes::from_static(b"hard"))));
    bench.close();
}

#[test]
fn a_read_is_cut_at_its_size_but_gives_one_entry() {
    let mut bench = Bench::new();
    bench.store.submit(entries(1..=4), 1);
    bench.settle(1);
    // 1 to 4 are on disk, 5 to 8 in memory; each has 7 bytes.
    bench.gate = mpsc::channel().0;
    bench.store.submit(entries(5..=8), 2);
    let count = |from, to, bytes_max| bench.store.read(from, to, bytes_max).unwrap().len();
    assert_eq!(count(1, 8, usize::MAX), 8);
    assert_eq!(count(1, 8, 0), 1);
    assert_eq!(count(1, 8, 13), 1);
    assert_eq!(count(1, 8, 14), 2);
    assert_eq!(count(3, 8, 21), 3);
    assert_eq!(count(5, 8, 1), 1);
    assert_eq!(count(3, 6, usize::MAX), 4);
    assert_eq!(count(9, 20, usize::MAX), 0);
    assert_eq!(count(4, 3, usize::MAX), 0);
    bench.close();
}

#[test]
fn drops_hide_what_the_disk_still_has() {
    let mut bench = Bench::new();
    let gate = bench.gate.clone();
    bench.store.submit(entries(1..=10), 1);
    gate.send(()).unwrap();
    assert_eq!(bench.next_token(), 1);
    bench.store.persisted(1);
    bench.store.submit(vec![LogRecord::DropFrom(8)], 2);
    bench.store.submit(vec![LogRecord::DropBelow(3)], 3);
    assert_eq!(bench.indexes(), [3, 4, 5, 6, 7]);
    assert_eq!(bench.store.last(), Ok(7));
    bench.store.submit(vec![entry(9)], 4);
    assert_eq!(bench.indexes(), [3, 4, 5, 6, 7, 9]);
    bench.store.submit(vec![LogRecord::DropFrom(0)], 5);
    assert_eq!(bench.store.last(), Ok(0));
    assert!(bench.indexes().is_empty());
    drop(gate);
    bench.settle(5);
    assert!(bench.indexes().is_empty());
    assert_eq!(bench.store.last(), Ok(0));
    bench.close();
}

#[test]
fn shards_do_not_see_each_other() {
    let mut bench = Bench::new();
    bench.store.submit(entries(1..=2), 1);
    let handle = bench.store.writer.clone();
    let neighbours = [ShardId(SHARD.0 - 1), ShardId(SHARD.0 + 1)];
    for shard in neighbours {
        let mut other = RocksLog::open(shard, Arc::clone(&bench.log), handle.clone()).unwrap();
        other.submit(entries(1..=5), 1);
        other.submit(vec![LogRecord::DropFrom(4)], 2);
        other.submit(vec![LogRecord::DropBelow(2)], 3);
    }
    drop(handle);
    let bench = bench.reopen();
    assert_eq!(bench.indexes(), [1, 2]);
    for shard in neighbours {
        let handle = bench.store.writer.clone();
        let other = RocksLog::open(shard, Arc::clone(&bench.log), handle).unwrap();
        let found = other.read(0, u64::MAX, usize::MAX).unwrap();
        assert_eq!(found.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [2, 3]);
    }
    bench.close();
}

#[test]
fn the_log_must_fit_the_applied_state() {
    let mut bench = Bench::new();
    bench.store.check_fits(0).unwrap();
    bench.store.check_fits(1).unwrap_err();
    bench.store.submit(entries(1..=10), 1);
    bench.store.check_fits(10).unwrap();
    bench.store.check_fits(11).unwrap_err();
    bench.store.submit(vec![LogRecord::DropBelow(6)], 2);
    bench.store.check_fits(5).unwrap();
    bench.store.check_fits(4).unwrap_err();
    bench.store.submit(vec![LogRecord::DropBelow(11)], 3);
    drop(std::mem::replace(&mut bench.gate, mpsc::channel().0));
    let mut bench = bench.reopen();
    assert_eq!(bench.store.last(), Ok(0));
    bench.store.check_fits(10).unwrap();
    bench.store.check_fits(11).unwrap_err();
    // A drop of what is gone already does not lower the mark.
    bench.store.submit(vec![LogRecord::DropBelow(3)], 1);
    let bench = bench.reopen();
    bench.store.check_fits(10).unwrap();
    bench.store.check_fits(9).unwrap_err();
    bench.close();
}

/// The log as a map.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, Bytes>,
    hard_state: Option<Bytes>,
    incarnation: Incarnation,
}

impl Model {
    fn take(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Entry { index, bytes } => {
                self.entries.insert(*index, bytes.clone());
            }
            LogRecord::HardState(bytes) => self.hard_state = Some(bytes.clone()),
            LogRecord::DropBelow(index) => self.entries = self.entries.split_off(index),
            LogRecord::DropFrom(index) => {
                self.entries.split_off(index);
            }
            LogRecord::Incarnation(incarnation) => self.incarnation = *incarnation,
        }
    }

    fn check(&self, store: &RocksLog, random: &mut StdRng) {
        let last = self.entries.last_key_value().map_or(0, |(index, _)| *index);
        assert_eq!(store.last(), Ok(last));
        assert_eq!(store.hard_state(), Ok(self.hard_state.clone()));
        assert_eq!(store.incarnation(), Ok(self.incarnation));
        let from = random.random_range(0..30);
        let to = random.random_range(from..=30);
        let range = self.entries.range(from..=to);
        let expected: Vec<(u64, Bytes)> = range.map(|(i, bytes)| (*i, bytes.clone())).collect();
        assert_eq!(store.read(from, to, usize::MAX), Ok(expected));
    }
}

fn random_record(random: &mut StdRng, number: u64) -> LogRecord {
    let index = random.random_range(1..30);
    match random.random_range(0..10) {
        0 => LogRecord::DropBelow(index),
        1 => LogRecord::DropFrom(index),
        2 => LogRecord::HardState(format!("hard {number}").into()),
        3 => LogRecord::Incarnation(Incarnation(number as u32)),
        _ => LogRecord::Entry { index, bytes: format!("entry {index}, {number}").into() },
    }
}

#[test]
fn any_order_of_records_and_syncs_reads_as_submitted() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bench = Bench::new();
        let mut model = Model::default();
        let (mut submitted, mut on_disk, mut told) = (0, 0, 0);
        for step in 0..400 {
            match random.random_range(0..4) {
                0 | 1 => {
                    submitted += 1;
                    let count = random.random_range(1..4);
                    let records: Vec<LogRecord> =
                        (0..count).map(|_| random_record(&mut random, step)).collect();
                    records.iter().for_each(|record| model.take(record));
                    bench.store.submit(records, submitted);
                }
                // The disk goes ahead of what the store is told, by one sync.
                2 => {
                    on_disk = bench.tokens_so_far().unwrap_or(on_disk);
                    if on_disk < submitted {
                        bench.gate.send(()).unwrap();
                        on_disk = bench.next_token();
                    }
                }
                _ => {
                    told = random.random_range(told..=on_disk);
                    bench.store.persisted(told);
                }
            }
            model.check(&bench.store, &mut random);
        }
        drop(std::mem::replace(&mut bench.gate, mpsc::channel().0));
        let bench = bench.reopen();
        model.check(&bench.store, &mut random);
        bench.close();
    }
}
