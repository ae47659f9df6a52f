//! Whether anything goes on on a connection, and whether its answers are taken.
//!
//! HTTP/1 has a timeout of hyper's own for a connection without a request; HTTP/2 has none, and neither has a connection that
//! does not say which it is. Of HTTP/2 nobody else sees either that an answer is not taken: a client may close the window of
//! its stream and keep the connection alive. Not here: what is read from and written to the socket (`socket.rs`).

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// An answer over HTTP/2 is handed over in pieces of so many bytes, each once the client has room for the one before.
const PIECE_BYTES: usize = 64 << 10;

/// What one connection does.
pub(super) struct Activity {
    /// It is HTTP/1.
    times_itself: AtomicBool,
    /// Requests of HTTP/1 so far.
    plain_begun: AtomicUsize,
    /// The first of them whose head has two lengths; 0: none.
    with_two_lengths: AtomicUsize,
    /// Requests of HTTP/2 so far.
    begun: AtomicUsize,
    /// Held by each request of HTTP/2 until its answer is written.
    open: Arc<()>,
    /// How long an answer may wait to be taken.
    stalled_timeout: Duration,
    has_stalled: Notify,
}

impl Activity {
    pub(super) fn new(stalled_timeout: Duration) -> Activity {
        Activity {
            times_itself: AtomicBool::new(false),
            plain_begun: AtomicUsize::new(0),
            with_two_lengths: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
            open: Arc::new(()),
            stalled_timeout,
            has_stalled: Notify::new(),
        }
    }

    /// How long an answer may wait to be taken.
    pub(super) fn stalled_timeout(&self) -> Duration {
        self.stalled_timeout
    }

    /// A request of HTTP/1 begins. True if its head, or one before it, says the length of its body twice.
    pub(super) fn begin_plain(&self) -> bool {
        self.times_itself.store(true, Ordering::Relaxed);
        let number = self.plain_begun.fetch_add(1, Ordering::Relaxed) + 1;
        let first = self.with_two_lengths.load(Ordering::Relaxed);
        first > 0 && number >= first
    }

    /// The head of the request of HTTP/1 with this number, from 1, has two lengths.
    pub(super) fn note_two_lengths(&self, number: usize) {
        self.with_two_lengths.store(number, Ordering::Relaxed);
    }

    /// A request of HTTP/2 begins.
    pub(super) fn begin(self: &Arc<Activity>) -> Begun {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Begun { activity: Arc::clone(self), _open: Arc::clone(&self.open) }
    }

    /// Resolves once there was no request for so long, or up to twice as long.
    pub(super) async fn ceases(&self, timeout: Duration) {
        let mut seen = 0;
        loop {
            tokio::time::sleep(timeout).await;
            if self.times_itself.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let begun = self.begun.load(Ordering::Relaxed);
            if begun == seen && Arc::strong_count(&self.open) == 1 {
                return;
            }
            seen = begun;
        }
    }

    /// Resolves once an answer was not taken for too long.
    pub(super) async fn stalls(&self) {
        self.has_stalled.notified().await;
    }
}

/// A request of HTTP/2 that is under way, until this is dropped.
pub(super) struct Begun {
    activity: Arc<Activity>,
    _open: Arc<()>,
}

/// The body of an answer of HTTP/2, which tells when it was written.
pub(super) struct OpenBody {
    body: Body,
    /// What of the last frame was not handed over.
    rest: Bytes,
    begun: Begun,
    /// Of a large answer: whether it is taken.
    watch: Option<Watch>,
}

impl OpenBody {
    pub(super) fn new(body: Body, begun: Begun) -> OpenBody {
        OpenBody { body, rest: Bytes::new(), begun, watch: None }
    }

    /// The next piece of a frame of data. It was asked for: the client has taken the one before.
    fn piece(&mut self) -> Frame<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        if let Some(watch) = &self.watch {
            watch.pieces.fetch_add(1, Ordering::Relaxed);
        } else if !self.rest.is_empty() {
            self.watch = Some(Watch::begin(Arc::clone(&self.begun.activity)));
        }
        Frame::data(piece)
    }
}

impl hyper::body::Body for OpenBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                // All that there was is taken: hyper asks for a piece once it is rid of the one before.
                end => {
                    self.watch = None;
                    return end;
                }
            }
        }
        Poll::Ready(Some(Ok(self.piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest + of_body.lower());
        of_body.upper().into_iter().for_each(|upper| hint.set_upper(rest + upper));
        hint
    }
}

/// Watches over one answer, until this is dropped.
struct Watch {
    /// How many were taken.
    pieces: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Watch {
    fn begin(activity: Arc<Activity>) -> Watch {
        let pieces = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&pieces);
        let task = tokio::spawn(async move {
            let mut seen = 0;
            loop {
                tokio::time::sleep(activity.stalled_timeout).await;
                let taken = taken.load(Ordering::Relaxed);
                if taken == seen {
                    return activity.has_stalled.notify_one();
                }
                seen = taken;
            }
        });
        Watch { pieces, task }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
