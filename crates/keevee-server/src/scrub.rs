//! Scrubs on this node: a thread reads the views that replicas took of their states, one after the other, at a bounded rate.
//!
//! A view keeps RocksDB from freeing what was written over since. So one that is of no use any more goes at once, also while
//! another is read. It leaves out what a scrub is and what follows from it (`keevee_replica::Scrub`), and when one is due
//! (`executor.rs`).

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keevee_core::ids::ShardId;
use keevee_replica::storage::StorageError;
use keevee_replica::{Content, Scrub, ScrubProgress};

use crate::storage::StateSource;

/// Bytes that are read at once.
const PAGE_BYTES: usize = 64 << 10;

/// A view, until it was read through or given up.
type Shared = Arc<Mutex<Option<Scrub<StateSource>>>>;

/// A view that was read to its end, or as far as it can be.
pub(crate) struct Scrubbed {
    pub(crate) shard: ShardId,
    pub(crate) index: u64,
    pub(crate) content: Result<Content, StorageError>,
}

struct Open {
    shard: ShardId,
    index: u64,
    view: Shared,
}

/// Reads views. Dropped, it reads none any more: the database may be closed.
pub(crate) struct Scrubber {
    /// Taken when this is dropped, which ends the thread.
    views: Option<Sender<Open>>,
    ended: Receiver<Scrubbed>,
    open: Vec<Open>,
    thread: Option<JoinHandle<()>>,
}

impl Scrubber {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// [`StorageError::Io`] if the system has none left.
    pub(crate) fn start(bytes_per_second: u64) -> Result<Scrubber, StorageError> {
        let (views, received) = mpsc::channel();
        let (sender, ended) = mpsc::channel();
        let run = move || {
            for Open { shard, index, view } in received {
                if let Some(content) = read(&view, bytes_per_second)
                    && sender.send(Scrubbed { shard, index, content }).is_err()
                {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("scrub".to_owned()).spawn(run);
        let failed =
            |error: std::io::Error| StorageError::Io { what: "starting to scrub", cause: error.to_string() };
        let thread = Some(thread.map_err(failed)?);
        Ok(Scrubber { views: Some(views), ended, open: Vec::new(), thread })
    }

    /// Reads a view once those before it are through.
    pub(crate) fn add(&mut self, shard: ShardId, scrub: Scrub<StateSource>) {
        let index = scrub.index();
        let view = Arc::new(Mutex::new(Some(scrub)));
        if let Some(views) = &self.views {
            // It ends with this.
            let _ = views.send(Open { shard, index, view: Arc::clone(&view) });
        }
        self.open.push(Open { shard, index, view });
    }

    /// What was read since the last call.
    pub(crate) fn take_ended(&mut self) -> Vec<Scrubbed> {
        let ended: Vec<Scrubbed> = self.ended.try_iter().collect();
        let is_this = |open: &Open, ended: &Scrubbed| (open.shard, open.index) == (ended.shard, ended.index);
        self.open.retain(|open| !ended.iter().any(|ended| is_this(open, ended)));
        ended
    }

    /// Gives up what is of no use. What is being read at this moment goes with the next call.
    pub(crate) fn retain(&mut self, is_of_use: impl Fn(ShardId, u64) -> bool) {
        self.open.retain(|Open { shard, index, view }| {
            let is_kept = is_of_use(*shard, *index);
            let given_up = if is_kept { None } else { view.try_lock().ok() };
            given_up.map(|mut view| *view = None).is_none()
        });
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.views = None;
        self.open.iter().for_each(|open| *lock(&open.view) = None);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // Its results go nowhere.
            let _ = thread.join();
        }
    }
}

fn lock(view: &Shared) -> MutexGuard<'_, Option<Scrub<StateSource>>> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a view to its end; `None` if it is given up.
fn read(view: &Shared, bytes_per_second: u64) -> Option<Result<Content, StorageError>> {
    loop {
        let mut held = lock(view);
        let bytes = match held.as_mut()?.read(PAGE_BYTES) {
            Ok(ScrubProgress::Page(bytes)) => bytes,
            Ok(ScrubProgress::Done(content)) => {
                *held = None;
                return Some(Ok(content));
            }
            Err(error) => {
                *held = None;
                return Some(Err(error));
            }
        };
        drop(held);
        // Only the end of the node cuts it short.
        thread::park_timeout(Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64));
    }
}
