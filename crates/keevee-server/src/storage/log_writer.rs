//! The log writer: the one thread that writes the journal and `log/`, for all shards of a node.
//!
//! It takes what waits, writes it as one batch with one fsync, and reports each submission, those of a shard in
//! order. While one sync runs the next batch gathers, so batches grow with the load and no timer is
//! needed. A batch is bounded, and what fits overtakes what does not: else small entries, promises too, would wait for
//! every large value before them, and leaders seem to have stalled. After any error the log is poisoned: what a failed fsync left on the disk cannot be known, so
//! nothing is written or tried again. Not here: bounds on what waits (the replica bounds its proposals)
//! and reading (the log store).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::mem;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use keevee_core::ids::ShardId;
use keevee_replica::storage::{LogRecord, StorageError};
use rocksdb::WriteBatch;

use super::format;

/// One sync takes no more than this beside the oldest submission: what comes during it waits so long.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// For so long what was written may not be settled.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);
/// What a record counts for besides its bytes.
const RECORD_BYTES: usize = 32;

/// What the log writer tells its node. Called on the writer's thread: hand it on and return.
#[derive(Debug)]
pub enum LogEvent {
    /// Everything up to this submission of the shard is on disk.
    Persisted {
        /// Whose submission.
        shard: ShardId,
        /// Its token.
        token: u64,
    },
    /// One sync was made; for metrics. Comes before the submissions that it covers.
    Synced {
        /// How long the write and its fsync took.
        took: Duration,
        /// How many records it wrote.
        records: usize,
    },
    /// The log will be written to sorted files before long: what applied state makes superfluous by then need not be.
    WritesOutSoon,
    /// The disk failed. Nothing will be written any more; the node stops.
    Failed {
        /// What the disk said.
        error: StorageError,
    },
}

/// Where the log writer writes: the journal; a seam for tests that make the disk fail.
pub trait LogSink: Send + 'static {
    /// Writes the batch atomically; it is on disk when the call returns `Ok`.
    fn write_synced(&mut self, batch: WriteBatch) -> Result<(), StorageError>;

    /// True once before all that was written and is still wanted is written to sorted files too: see [`LogEvent::WritesOutSoon`].
    fn writes_out_soon(&mut self) -> bool {
        false
    }

    /// Does for what was written what its answers need not wait for: now and then, and last.
    fn settle(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// The thread that writes the log. It ends when every handle is dropped and all of it is written, or at
/// the first error.
#[derive(Debug)]
pub struct LogWriter {
    thread: JoinHandle<()>,
}

/// Submits to the log writer.
#[derive(Clone, Debug)]
pub struct LogWriterHandle {
    submissions: Sender<Submission>,
}

#[derive(Debug)]
struct Submission {
    shard: ShardId,
    records: Vec<LogRecord>,
    bytes: usize,
    token: u64,
}

impl LogWriter {
    /// Starts the writer of a node's log.
    pub fn start(
        sink: impl LogSink,
        on_event: impl Fn(LogEvent) + Send + 'static,
    ) -> Result<(LogWriter, LogWriterHandle), StorageError> {
        let (submissions, receiver) = mpsc::channel();
        let run = move || {
            Writer { sink, on_event, dropped_below: HashMap::new(), is_shared: false, unsettled: None }
                .run(&receiver)
        };
        let thread = thread::Builder::new().name("log-writer".to_owned()).spawn(run);
        let thread = thread.map_err(|error| StorageError::Io {
            what: "starting the log writer",
            cause: error.to_string(),
        })?;
        Ok((LogWriter { thread }, LogWriterHandle { submissions }))
    }

    /// Waits until every handle is dropped and everything submitted was written or given up. False if
    /// the thread panicked.
    pub fn join(self) -> bool {
        self.thread.join().is_ok()
    }
}

impl LogWriterHandle {
    /// Queues records, without blocking. The token comes back in [`LogEvent::Persisted`], or never if
    /// the log has failed. The records' size must have been bounded before.
    pub fn submit(&self, shard: ShardId, records: Vec<LogRecord>, token: u64) {
        let bytes = records.iter().map(record_bytes).sum();
        // The thread is gone only after it reported an error: nothing is to be written any more.
        let _ = self.submissions.send(Submission { shard, records, bytes, token });
    }
}

struct Writer<S, F: Fn(LogEvent)> {
    sink: S,
    on_event: F,
    /// No entry of the shard is on disk below this index: what a drop need not cover again. Without it
    /// each drop would lay one more range over all those before it.
    dropped_below: HashMap<ShardId, u64>,
    /// True if several shards shared the last sync.
    is_shared: bool,
    /// When the first write was made that is not settled.
    unsettled: Option<Instant>,
}

impl<S: LogSink, F: Fn(LogEvent)> Writer<S, F> {
    fn run(mut self, submissions: &Receiver<Submission>) {
        if let Err(error) = self.write_all(submissions) {
            (self.on_event)(LogEvent::Failed { error });
            // Whatever waits is dropped, and so is whatever is still submitted.
        }
    }

    fn write_all(&mut self, submissions: &Receiver<Submission>) -> Result<(), StorageError> {
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let Some(first) = self.next(submissions)? else { return Ok(()) };
                waiting.push_back(first);
            }
            if self.is_shared {
                // Where threads wait for a core, those that are about to submit for other shards go first: else the first
                // shard would have a sync for itself. One shard alone has nobody to wait for.
                thread::yield_now();
            }
            waiting.extend(submissions.try_iter());
            self.write(take_batch(&mut waiting))?;
            if self.unsettled.is_some_and(|since| since.elapsed() >= SETTLED_WITHIN) {
                self.settle()?;
            }
        }
    }

    /// The next submission, if there will be one. While nobody waits, what was written is settled.
    fn next(&mut self, submissions: &Receiver<Submission>) -> Result<Option<Submission>, StorageError> {
        loop {
            let Some(since) = self.unsettled else { return Ok(submissions.recv().ok()) };
            match submissions.recv_timeout(SETTLED_WITHIN.saturating_sub(since.elapsed())) {
                Ok(submission) => return Ok(Some(submission)),
                Err(RecvTimeoutError::Timeout) => self.settle()?,
                Err(RecvTimeoutError::Disconnected) => return self.settle().map(|()| None),
            }
        }
    }

    fn settle(&mut self) -> Result<(), StorageError> {
        self.unsettled = None;
        self.sink.settle()
    }

    fn write(&mut self, submissions: Vec<Submission>) -> Result<(), StorageError> {
        let bytes = submissions.iter().map(|submission| submission.bytes).sum();
        let records = submissions.iter().map(|submission| submission.records.len()).sum();
        self.is_shared = submissions.windows(2).any(|two| two[0].shard != two[1].shard);
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        for submission in &submissions {
            for record in &submission.records {
                self.add(&mut batch, submission.shard, record);
            }
        }
        if records > 0 {
            let started = Instant::now();
            self.sink.write_synced(batch)?;
            self.unsettled.get_or_insert(started);
            (self.on_event)(LogEvent::Synced { took: started.elapsed(), records });
        }
        for Submission { shard, token, .. } in submissions {
            (self.on_event)(LogEvent::Persisted { shard, token });
        }
        if self.sink.writes_out_soon() {
            (self.on_event)(LogEvent::WritesOutSoon);
        }
        Ok(())
    }

    fn add(&mut self, batch: &mut WriteBatch, shard: ShardId, record: &LogRecord) {
        let dropped_below = self.dropped_below.entry(shard).or_default();
        match record {
            LogRecord::Entry { index, bytes } => {
                *dropped_below = (*dropped_below).min(*index);
                batch.put(format::entry_key(shard, *index), bytes);
            }
            LogRecord::HardState(bytes) => batch.put(format::hard_state_key(shard), bytes),
            LogRecord::DropBelow(index) if index <= dropped_below => {}
            LogRecord::DropBelow(index) => {
                let from = format::entry_key(shard, *dropped_below);
                batch.delete_range(from, format::entry_key(shard, *index));
                batch.put(format::trimmed_key(shard), format::encode_index(*index));
                *dropped_below = *index;
            }
            LogRecord::DropFrom(index) => {
                let from = format::entry_key(shard, *index);
                batch.delete_range(from.as_slice(), &format::entries_end(shard));
            }
            LogRecord::Incarnation(incarnation) => {
                let number = format::encode_incarnation(*incarnation);
                batch.put(format::incarnation_key(shard), number);
            }
        }
    }
}

/// The node must hear of every end but the one it asked for: else it waits for ever for what is never persisted.
impl<S, F: Fn(LogEvent)> Drop for Writer<S, F> {
    fn drop(&mut self) {
        if thread::panicking() {
            let cause = "the log writer panicked".to_owned();
            (self.on_event)(LogEvent::Failed { error: StorageError::Io { what: "writing the log", cause } });
        }
    }
}

/// The oldest submission, however large, and whatever fits beside it. Those of one shard stay in order.
fn take_batch(waiting: &mut VecDeque<Submission>) -> Vec<Submission> {
    let mut batch: Vec<Submission> = waiting.pop_front().into_iter().collect();
    let (mut bytes, mut passed_over) = (0, BTreeSet::new());
    for submission in mem::take(waiting) {
        let fits = bytes + submission.bytes <= BATCH_BYTES_MAX;
        if fits && !passed_over.contains(&submission.shard) {
            bytes += submission.bytes;
            batch.push(submission);
        } else {
            passed_over.insert(submission.shard);
            waiting.push_back(submission);
        }
    }
    batch
}

fn record_bytes(record: &LogRecord) -> usize {
    RECORD_BYTES
        + match record {
            LogRecord::Entry { bytes, .. } | LogRecord::HardState(bytes) => bytes.len(),
            LogRecord::DropBelow(_) | LogRecord::DropFrom(_) | LogRecord::Incarnation(_) => 0,
        }
}

#[cfg(test)]
mod tests;
