//! On sinks that the test holds back or makes fail.

use bytes::Bytes;

use super::*;

/// Each write waits for what it is to return.
struct GatedSink {
    arrived: Sender<usize>,
    results: Receiver<Result<(), StorageError>>,
}

impl LogSink for GatedSink {
    fn write_synced(&mut self, batch: WriteBatch) -> Result<(), StorageError> {
        let _ = self.arrived.send(batch.len());
        self.results.recv().expect("the test gives a result for each write")
    }
}

struct Gated {
    writer: LogWriter,
    handle: LogWriterHandle,
    arrived: Receiver<usize>,
    results: Sender<Result<(), StorageError>>,
    events: Receiver<LogEvent>,
}

fn start() -> Gated {
    let (arrived_in, arrived) = mpsc::channel();
    let (results, results_out) = mpsc::channel();
    let (events_in, events) = mpsc::channel();
    let sink = GatedSink { arrived: arrived_in, results: results_out };
    let on_event = move |event| {
        let _ = events_in.send(event);
    };
    let (writer, handle) = LogWriter::start(sink, on_event).unwrap();
    Gated { writer, handle, arrived, results, events }
}

fn entry(index: u64) -> LogRecord {
    LogRecord::Entry { index, bytes: Bytes::from_static(b"entry") }
}

fn disk_error() -> StorageError {
    StorageError::Io { what: "writing the log", cause: "no".to_owned() }
}

fn persisted(events: &Receiver<LogEvent>) -> Vec<(u32, u64)> {
    let tokens = events.iter().filter_map(|event| match event {
        LogEvent::Persisted { shard, token } => Some((shard.0, token)),
        _ => None,
    });
    tokens.collect()
}

#[test]
fn what_waits_during_a_sync_goes_into_one_sync() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    assert_eq!(arrived.recv(), Ok(1));
    for shard in 2..=100 {
        handle.submit(ShardId(shard), vec![entry(1), entry(2)], 7);
    }
    results.send(Ok(())).unwrap();
    assert_eq!(arrived.recv(), Ok(198));
    results.send(Ok(())).unwrap();
    drop(handle);
    let expected: Vec<(u32, u64)> = [(1, 1)].into_iter().chain((2..=100).map(|shard| (shard, 7))).collect();
    let (mut seen, mut synced) = (Vec::new(), Vec::new());
    for event in events {
        match event {
            LogEvent::Persisted { shard, token } => seen.push((shard.0, token)),
            LogEvent::Synced { records, .. } => synced.push(records),
            LogEvent::WritesOutSoon => panic!("this sink writes nothing out"),
            LogEvent::Failed { error } => panic!("{error}"),
        }
    }
    assert_eq!(seen, expected);
    assert_eq!(synced, [1, 198]);
    assert!(writer.join());
}

#[test]
fn small_entries_overtake_large_ones_of_other_shards() {
    let Gated { writer, handle, arrived, results, events } = start();
    let large = |index| LogRecord::Entry { index, bytes: Bytes::from(vec![0; BATCH_BYTES_MAX]) };
    handle.submit(ShardId(1), vec![entry(1)], 1);
    assert_eq!(arrived.recv(), Ok(1));
    for (shard, token, record) in
        [(2, 1, large(1)), (3, 1, large(1)), (3, 2, entry(2)), (4, 1, entry(1)), (2, 2, entry(2))]
    {
        handle.submit(ShardId(shard), vec![record], token);
    }
    for _ in 0..3 {
        results.send(Ok(())).unwrap();
    }
    drop(handle);
    // With the oldest, what is small and behind nothing of its own shard.
    assert_eq!(persisted(&events), [(1, 1), (2, 1), (4, 1), (2, 2), (3, 1), (3, 2)]);
    assert_eq!(arrived.iter().collect::<Vec<usize>>(), [3, 2]);
    assert!(writer.join());
}

#[test]
fn nothing_is_persisted_before_its_sync_has_returned() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    arrived.recv().unwrap();
    assert!(events.try_recv().is_err());
    results.send(Ok(())).unwrap();
    drop(handle);
    assert_eq!(persisted(&events), [(1, 1)]);
    assert!(writer.join());
}

#[test]
fn a_failed_sync_poisons_the_log() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    arrived.recv().unwrap();
    handle.submit(ShardId(1), vec![entry(2)], 2);
    results.send(Err(disk_error())).unwrap();
    // A second try would succeed. The writer may be gone already, and should.
    let _ = results.send(Ok(()));
    let event = events.recv().unwrap();
    assert!(matches!(&event, LogEvent::Failed { error } if *error == disk_error()), "{event:?}");
    assert!(events.recv().is_err(), "there was more after the failure");
    assert!(writer.join());
    handle.submit(ShardId(1), vec![entry(3)], 3);
    assert!(arrived.recv().is_err(), "something was written after the failure");
}

#[test]
fn a_panic_of_the_writer_is_told_as_a_failure() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    arrived.recv().unwrap();
    // The sink panics where it has no result to give.
    drop(results);
    let event = events.recv().unwrap();
    assert!(
        matches!(&event, LogEvent::Failed { error } if error.to_string().contains("panicked")),
        "{event:?}"
    );
    assert!(!writer.join());
}

#[test]
fn a_failure_takes_back_nothing_that_was_reported() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    arrived.recv().unwrap();
    results.send(Ok(())).unwrap();
    handle.submit(ShardId(2), vec![entry(1)], 5);
    arrived.recv().unwrap();
    results.send(Err(disk_error())).unwrap();
    assert_eq!(persisted(&events), [(1, 1)]);
    assert!(writer.join());
}

#[test]
fn an_empty_submission_comes_back_without_a_sync() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), Vec::new(), 1);
    drop((handle, results));
    assert_eq!(persisted(&events), [(1, 1)]);
    assert!(arrived.recv().is_err());
    assert!(writer.join());
}

#[test]
fn dropping_the_handles_writes_what_waits() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    arrived.recv().unwrap();
    handle.submit(ShardId(1), vec![entry(2)], 2);
    drop(handle);
    results.send(Ok(())).unwrap();
    results.send(Ok(())).unwrap();
    assert!(writer.join());
    assert_eq!(persisted(&events), [(1, 1), (1, 2)]);
}

#[test]
fn a_sync_is_bounded() {
    let Gated { writer, handle, arrived, results, events } = start();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    arrived.recv().unwrap();
    let big = Bytes::from(vec![0; BATCH_BYTES_MAX / 2]);
    for index in 2..=5 {
        handle.submit(ShardId(1), vec![LogRecord::Entry { index, bytes: big.clone() }], index);
    }
    drop(handle);
    for _ in 0..3 {
        results.send(Ok(())).unwrap();
    }
    assert_eq!(persisted(&events), [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]);
    assert_eq!(arrived.iter().collect::<Vec<_>>(), [2, 2]);
    assert!(writer.join());
}

/// Tells the numbers of writes and of those that are settled. Writes out after the second.
struct SettlingSink {
    written: usize,
    settled: Sender<usize>,
}

impl LogSink for SettlingSink {
    fn write_synced(&mut self, _: WriteBatch) -> Result<(), StorageError> {
        self.written += 1;
        Ok(())
    }

    fn writes_out_soon(&mut self) -> bool {
        self.written == 2
    }

    fn settle(&mut self) -> Result<(), StorageError> {
        let _ = self.settled.send(self.written);
        Ok(())
    }
}

#[test]
fn what_was_written_is_settled_once_nobody_writes_and_at_the_end() {
    let (settled_in, settled) = mpsc::channel();
    let sink = SettlingSink { written: 0, settled: settled_in };
    let (writer, handle) = LogWriter::start(sink, |_| {}).unwrap();
    handle.submit(ShardId(1), vec![entry(1)], 1);
    assert_eq!(settled.recv(), Ok(1));
    handle.submit(ShardId(1), vec![entry(2)], 2);
    drop(handle);
    assert!(writer.join());
    assert_eq!(settled.iter().collect::<Vec<_>>(), [2]);
}

#[test]
fn the_node_hears_that_the_log_is_written_out_soon_after_the_write_that_leads_to_it() {
    let (events_in, events) = mpsc::channel();
    let sink = SettlingSink { written: 0, settled: mpsc::channel().0 };
    let on_event = move |event| drop(events_in.send(event));
    let (writer, handle) = LogWriter::start(sink, on_event).unwrap();
    let mut seen = Vec::new();
    for token in 1..=3 {
        handle.submit(ShardId(1), vec![entry(token)], token);
        loop {
            match events.recv().unwrap() {
                LogEvent::WritesOutSoon => seen.push(0),
                LogEvent::Persisted { token, .. } => break seen.push(token),
                _ => {}
            }
        }
    }
    drop(handle);
    assert!(writer.join());
    assert_eq!(seen, [1, 2, 0, 3]);
}
