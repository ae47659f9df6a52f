//! One node, and the one stream of requests to it.
//!
//! A [`Link`] opens an HTTP/2 connection when something is to be sent, and on it one `Pipeline` call that lasts as
//! long as the connection. All calls of the client share it: each request has a number, and its answer wakes the
//! caller that waits for that number. What is handed in at the same time leaves in one frame.
//!
//! What a broken stream means for a request depends on how far it came, and that is known exactly: as long as it
//! stands in `waiting` nothing of it was written, from then on it may have arrived.
//!
//! It leaves out which node is asked, and trying again: an error here ends one attempt (`attempts.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use keevee_core::kv::{self, request, response};
use prost::Message;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::endpoint::Endpoint;
use crate::frames::MESSAGE_BYTES_MAX;
use crate::retry::Backoff;
use crate::stream::{self, End, EndKind};

/// Requests under way at once: as many as a node reads of one stream.
const REQUESTS_MAX: usize = 512;
/// Requests leave together up to so many bytes.
const FRAME_BYTES: usize = 32 << 10;

/// Why an attempt has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nothing happened at that node, and nothing will.
    #[error("{0} can't be reached: {1}")]
    NotSent(Endpoint, String),
    /// It may have happened, or may yet.
    #[error("{0} did not answer: {1}")]
    NoAnswer(Endpoint, String),
    /// Nothing happened: the node takes no request of this size.
    #[error("{0} refuses a request of this size: {1}")]
    TooLarge(Endpoint, String),
}

/// A node, and the stream to it if there is one. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    permits: Semaphore,
}

/// What the link and the task of its stream have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) connect_timeout: Duration,
    /// Ask the node to redirect us rather than forward.
    pub(crate) asks_for_redirects: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// How many streams there were: the end of an older one says nothing of the present one.
    stream: u64,
    /// When the present one began.
    began: Instant,
    /// The number of the next request: never used twice, so that no answer is taken for another's.
    next: u64,
    /// Not a byte of these was written.
    waiting: BTreeMap<u64, Waiting>,
    /// These may have arrived.
    sent: HashMap<u64, Sent>,
    /// Who writes, if all was written.
    writer: Option<Waker>,
    backoff: Backoff,
    /// A request got no answer in time, and none came for any since.
    is_silent: bool,
}

#[derive(Debug)]
enum Phase {
    /// There is no stream, and a new one is not tried before `until`.
    Closed { until: Instant, cause: String },
    /// The stream's task, which may still be connecting.
    Open(AbortHandle),
}

#[derive(Debug)]
struct Waiting {
    operation: request::Operation,
    epoch: u64,
    until: Instant,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
struct Sent {
    length: usize,
    answer: oneshot::Sender<Answer>,
}

/// With the epoch of the node's shard map.
type Answer = Result<(response::Result, u64), LinkError>;

impl Link {
    /// Connects with the first request.
    pub(crate) fn new(endpoint: Endpoint, connect_timeout: Duration, asks_for_redirects: bool) -> Link {
        let state = State {
            phase: Phase::Closed { until: Instant::now(), cause: String::new() },
            stream: 0,
            began: Instant::now(),
            next: 1,
            waiting: BTreeMap::new(),
            sent: HashMap::new(),
            writer: None,
            backoff: Backoff::new(Duration::from_millis(20), 6),
            is_silent: false,
        };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { endpoint, connect_timeout, asks_for_redirects, state });
        Link { shared, permits: Semaphore::new(REQUESTS_MAX) }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }

    /// True if there is reason to try another node first.
    pub(crate) fn is_doubtful(&self) -> bool {
        let state = self.shared.lock();
        let is_down = matches!(&state.phase, Phase::Closed { until, .. } if *until > Instant::now());
        is_down || state.is_silent
    }

    /// Sends a request and waits for its answer until then. The node is told to answer a little earlier, and by which
    /// epoch's map the request comes to it.
    ///
    /// Dropping the future stops the waiting; what was sent stays sent.
    pub(crate) async fn send(&self, operation: request::Operation, epoch: u64, until: Instant) -> Answer {
        let not_sent = |cause: &str| LinkError::NotSent(self.endpoint().clone(), cause.to_owned());
        if operation.encoded_len() > MESSAGE_BYTES_MAX {
            let cause = "no node takes as much".to_owned();
            return Err(LinkError::TooLarge(self.endpoint().clone(), cause));
        }
        let permit = timeout_at(until, self.permits.acquire()).await;
        // The semaphore is never closed.
        let Ok(Ok(_permit)) = permit else { return Err(not_sent("too many requests are under way")) };
        let (mut place, mut answer) = self.enqueue(operation, epoch, until)?;
        match timeout_at(until, &mut answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(LinkError::NoAnswer(self.endpoint().clone(), "the stream is gone".to_owned())),
            Err(_) if place.withdraw() => Err(not_sent("nothing could be written in time")),
            Err(_) => {
                // It may have come this very moment.
                answer.try_recv().unwrap_or_else(|_| {
                    self.shared.lock().is_silent = true;
                    Err(LinkError::NoAnswer(self.endpoint().clone(), "too slow".to_owned()))
                })
            }
        }
    }

    fn enqueue(
        &self,
        operation: request::Operation,
        epoch: u64,
        until: Instant,
    ) -> Result<(Place<'_>, oneshot::Receiver<Answer>), LinkError> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.shared.lock();
        if let Phase::Closed { until, cause } = &state.phase {
            if *until > Instant::now() {
                return Err(LinkError::NotSent(self.endpoint().clone(), cause.clone()));
            }
            state.stream += 1;
            state.began = Instant::now();
            let task = tokio::spawn(stream::run(self.shared.clone(), state.stream));
            state.phase = Phase::Open(task.abort_handle());
        }
        let sequence = state.next;
        state.next += 1;
        state.waiting.insert(sequence, Waiting { operation, epoch, until, answer: sender });
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        Ok((Place { shared: &self.shared, sequence }, receiver))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let task = match &self.shared.lock().phase {
            Phase::Open(task) => task.clone(),
            Phase::Closed { .. } => return,
        };
        task.abort();
    }
}

/// A request's place among those that wait or were sent; given up when its caller is done or gone.
struct Place<'a> {
    shared: &'a Shared,
    sequence: u64,
}

impl Place<'_> {
    /// True if nothing of it was written.
    fn withdraw(&mut self) -> bool {
        let mut state = self.shared.lock();
        state.sent.remove(&self.sequence);
        state.waiting.remove(&self.sequence).is_some()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is to be written next, as soon as there is something; `None` once this stream is over.
    pub(crate) fn poll_take(&self, stream: u64, context: &mut Context<'_>) -> Poll<Option<Vec<kv::Request>>> {
        let mut state = self.lock();
        if state.stream != stream || !matches!(state.phase, Phase::Open(_)) {
            return Poll::Ready(None);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < FRAME_BYTES
            && let Some((sequence, Waiting { operation, epoch, until, answer })) = state.waiting.pop_first()
        {
            let now = Instant::now();
            let timeout_ms = Some(told_timeout(until.saturating_duration_since(now)));
            let sent_ms = u64::try_from((now - state.began).as_millis()).ok();
            let request = kv::Request { sequence, timeout_ms, operation: Some(operation), epoch, sent_ms };
            let length = request.encoded_len();
            bytes += length;
            state.sent.insert(sequence, Sent { length, answer });
            batch.push(request);
        }
        if batch.is_empty() {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(batch))
    }

    /// The node answered. An answer that nobody waits for is dropped.
    pub(crate) fn answered(&self, response: kv::Response) {
        let sent = {
            let mut state = self.lock();
            state.is_silent = false;
            state.backoff.reset();
            state.sent.remove(&response.sequence)
        };
        let Some(sent) = sent else { return };
        let unknown = || {
            let what = "its answer is of a kind that this version does not know".to_owned();
            LinkError::NoAnswer(self.endpoint.clone(), what)
        };
        // Its caller may be gone.
        let epoch = response.epoch;
        let _ = sent.answer.send(response.result.map(|result| (result, epoch)).ok_or_else(unknown));
    }

    /// The stream is over: says to all whose requests have no answer what that means for them.
    pub(crate) fn ended(&self, stream: u64, end: &End) {
        let mut state = self.lock();
        if state.stream != stream {
            return;
        }
        let until = Instant::now() + state.backoff.next();
        state.phase = Phase::Closed { until, cause: end.cause.clone() };
        let waiting = std::mem::take(&mut state.waiting);
        let sent = std::mem::take(&mut state.sent);
        let writer = state.writer.take();
        drop(state);
        // hyper's connection lives as long as the body of a call, which is to end now.
        if let Some(writer) = writer {
            writer.wake();
        }
        let (endpoint, cause) = (&self.endpoint, &end.cause);
        for (_, Waiting { answer, .. }) in waiting {
            let _ = answer.send(Err(LinkError::NotSent(endpoint.clone(), cause.clone())));
        }
        // A node that refuses a message by its size does not say which: the largest that it did not answer.
        let largest = sent.values().map(|sent| sent.length).max();
        for (_, Sent { length, answer }) in sent {
            let error = match end.kind {
                EndKind::Broken => LinkError::NoAnswer(endpoint.clone(), cause.clone()),
                EndKind::TooLarge if Some(length) == largest => {
                    LinkError::TooLarge(endpoint.clone(), cause.clone())
                }
                EndKind::NotBegun | EndKind::TooLarge => LinkError::NotSent(endpoint.clone(), cause.clone()),
            };
            let _ = answer.send(Err(error));
        }
    }
}

/// How long the node may take, in milliseconds: less than we wait, for the way there and back.
fn told_timeout(patience: Duration) -> u64 {
    (patience * 7 / 8).as_millis().clamp(1, 60_000) as u64
}
