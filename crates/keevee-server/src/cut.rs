//! Cuts of shards for whoever backs the cluster up: how many are open, and how they are read and sent.
//!
//! A cut holds RocksDB's view of a shard's state, and with it what compactions would have removed since. So there is a bound
//! of cuts, one that nobody reads goes, and all have ended before the node has. Threads read them, no faster than they
//! are taken. It leaves out what a cut is (`keevee_replica::Cut`) and how it looks as bytes (`keevee_core::cut`).

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use keevee_core::command::Versioned;
use keevee_core::cut::{Encoder, Head};
use keevee_core::error::ErrorKind;
use keevee_core::ids::{Namespace, ShardId};
use keevee_core::slots::slot;
use keevee_replica::Cut;
use keevee_replica::storage::{SnapshotSource, StorageError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::executor::{Job, Jobs};
use crate::node::ExecuteError;
use crate::storage::StateSource;
use crate::storage::format::{self, DataKind};

/// Cuts that are open on a node at once. A backup needs one for each shard that the node leads.
pub(crate) const CUTS_MAX: u32 = 1024;
/// Bytes that are read from the state at once.
const PAGE_BYTES: usize = 64 << 10;
/// A cut of which nobody has taken anything for so long goes.
const STALLED: Duration = Duration::from_secs(60);

/// Why there is no cut. Nothing has happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutFailure {
    /// It is not to be had here, or not now.
    #[error(transparent)]
    Refused(#[from] ExecuteError),
    /// The time does not fit the shard's clock.
    #[error("{detail}")]
    Time {
        /// [`ErrorKind::Conflict`] if the time has passed, [`ErrorKind::Invalid`] if it is too far ahead.
        kind: ErrorKind,
        /// For people.
        detail: String,
        /// The shard's clock, in microseconds since the Unix epoch.
        clock: u64,
    },
}

/// The cuts that are open on a node.
pub(crate) struct Cuts {
    /// A permit for each.
    room: Arc<Semaphore>,
    has_ended: watch::Sender<bool>,
    /// Told if a state is found to be damaged.
    jobs: Jobs,
}

impl Cuts {
    pub(crate) fn new(jobs: Jobs) -> Cuts {
        let room = Arc::new(Semaphore::new(CUTS_MAX as usize));
        Cuts { room, has_ended: watch::Sender::new(false), jobs }
    }

    /// Room for one more; `None` if there are too many.
    pub(crate) fn make_room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_owned().ok()
    }

    /// Has a cut sent as it is taken.
    pub(crate) fn send(
        &self,
        shard: ShardId,
        cut: Cut<StateSource>,
        permit: OwnedSemaphorePermit,
    ) -> CutBody {
        let Cut { time, owned, source } = cut;
        let (head, mut bytes) = (Head { shard, time, owned }, BytesMut::new());
        let encoder = Some(Encoder::begin(&head, &mut bytes));
        let reading = Reading { head, source, encoder, bytes, _permit: permit };
        let (sender, pages) = mpsc::channel(1);
        tokio::spawn(send(reading, sender, self.has_ended.subscribe(), self.jobs.clone()));
        CutBody { pages }
    }

    /// Breaks off what is sent: this node stops.
    pub(crate) fn end(&self) {
        self.has_ended.send_replace(true);
    }

    /// Resolves once no cut is open, and none will be. Call it when the executor has ended.
    pub(crate) async fn ended(&self) {
        self.end();
        // It is closed only here.
        let _ = self.room.acquire_many(CUTS_MAX).await;
        self.room.close();
    }
}

/// The body of a response: a cut as `keevee_core::cut` lays it out. If it breaks off, so does the response, or its end is
/// missing.
#[derive(Debug)]
pub struct CutBody {
    pages: mpsc::Receiver<Result<Bytes, StorageError>>,
}

impl Body for CutBody {
    type Data = Bytes;
    type Error = StorageError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StorageError>>> {
        self.pages.poll_recv(context).map(|page| page.map(|page| page.map(Frame::data)))
    }
}

async fn send(
    mut reading: Reading,
    pages: mpsc::Sender<Result<Bytes, StorageError>>,
    mut has_ended: watch::Receiver<bool>,
    jobs: Jobs,
) {
    let shard = reading.head.shard;
    loop {
        let read = spawn_blocking(move || {
            let page = reading.read();
            (reading, page)
        });
        let Ok((back, page)) = read.await else { return };
        reading = back;
        if let Err(error) = &page
            && error.is_damage()
        {
            jobs.send(Job::StateDamaged { shard, error: error.clone() });
        }
        let is_last = !matches!(page, Ok(Some(_)));
        let Some(page) = page.transpose() else { return };
        let sent = tokio::select! {
            sent = timeout(STALLED, pages.send(page)) => matches!(sent, Ok(Ok(()))),
            _ = has_ended.wait_for(|ended| *ended) => false,
        };
        if is_last || !sent {
            return;
        }
    }
}

/// A cut that is read.
struct Reading {
    head: Head,
    source: StateSource,
    /// None behind the end.
    encoder: Option<Encoder>,
    /// Encoded, and not sent.
    bytes: BytesMut,
    /// Given back when the source is gone.
    _permit: OwnedSemaphorePermit,
}

impl Reading {
    /// The next bytes; `None` behind the end.
    fn read(&mut self) -> Result<Option<Bytes>, StorageError> {
        let Some(mut encoder) = self.encoder.take() else { return Ok(None) };
        let mut bytes = mem::take(&mut self.bytes);
        bytes.reserve(2 * PAGE_BYTES);
        let page = self.source.read(PAGE_BYTES)?;
        let mut is_last = page.is_empty();
        for (key, value) in &page {
            let (kind, namespace, key) = format::snapshot_key(key)?;
            // Behind the values comes nothing that a cut has.
            is_last = kind > DataKind::Value as u8;
            if is_last {
                break;
            }
            if kind == DataKind::Value as u8 {
                self.add(&mut encoder, namespace, key, value, &mut bytes)?;
            }
        }
        if is_last {
            encoder.end(&mut bytes);
        } else {
            self.encoder = Some(encoder);
        }
        Ok(Some(bytes.freeze()))
    }

    /// Adds a key, unless it is gone by the time of the cut, or another shard's.
    fn add(
        &self,
        encoder: &mut Encoder,
        namespace: Namespace,
        key: &[u8],
        value: &[u8],
        to: &mut BytesMut,
    ) -> Result<(), StorageError> {
        if namespace != Namespace::DEFAULT {
            // Nobody can have written one; to leave it out in silence would be worse.
            let cause = format!("a key is in namespace {}", namespace.0);
            return Err(StorageError::Corrupt { what: "a cut", cause });
        }
        let Versioned { value, expires, .. } = format::decode_value(value)?;
        let is_gone = expires.is_some_and(|expires| expires <= self.head.time);
        if !is_gone && self.head.owned.contains(slot(key)) {
            encoder.add(key, &value, expires, to);
        }
        Ok(())
    }
}
