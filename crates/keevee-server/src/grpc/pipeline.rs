//! Many requests on one stream, answered as they are done.
//!
//! One task serves a stream: it reads a request, submits it, and goes on reading while the answers come. What is
//! done at the same time goes out in one frame. So one connection does what many would, at less cost.
//!
//! Nothing grows without a bound. With [`REQUESTS_MAX`] requests or [`BYTES_MAX`] bytes under way, or while the
//! client does not take its answers, nothing more is read; HTTP/2's windows then stop the client.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::StreamBody;
use hyper::body::Frame;
use keevee_core::error::ErrorKind;
use keevee_core::kv::{self, request, response};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::failure::Failure;
use super::messages::{self, Message, Messages, Patience};
use super::transit::{Pulse, Transit};
use super::{operations, stops};
use crate::http::problem::Problem;
use crate::http::query::TIMEOUT_MAX;
use crate::http::{Api, Store};
use crate::metrics::Operation;
use crate::node::Context;

/// Requests of one stream under way at once.
pub(super) const REQUESTS_MAX: usize = 512;
/// Bytes of requests of one stream under way at once, but for the one that reaches it.
const BYTES_MAX: usize = 16 << 20;
/// Answers that are done go out together up to so many bytes.
const FRAME_BYTES: usize = 32 << 10;
/// Frames that wait to be written: one that is written, and the next.
const FRAMES_WAITING_MAX: usize = 2;

/// Where the frames of the response go.
type Frames = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// Answers a call; its requests come and go for as long as the client likes, or until the node stops.
pub(super) fn respond<S, B>(
    api: Api<S>,
    body: B,
    redirect: bool,
    pulse: Arc<Pulse>,
    stopping: watch::Receiver<bool>,
) -> Response
where
    S: Store,
    B: hyper::body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: std::fmt::Display,
{
    let (frames, written) = mpsc::channel(FRAMES_WAITING_MAX);
    let messages = Messages::new(body, &api, Patience::Wait);
    let transit = Transit::new(Instant::now(), pulse);
    tokio::spawn(async move {
        let end = serve(&api, messages, transit, redirect, &frames, stopping).await;
        let trailers = end.map_or_else(|failure| failure.trailers(), |()| super::success());
        // If the client has gone, nobody is left to be told.
        let _ = frames.send(Ok(Frame::trailers(trailers))).await;
    });
    super::response(Body::new(StreamBody::new(ReceiverStream::new(written))))
}

/// Ends when all that was read is answered and nothing more will be read, or when the client has gone.
async fn serve<S, B>(
    api: &Api<S>,
    mut messages: Messages<B>,
    mut transit: Transit,
    redirect: bool,
    frames: &Frames,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Failure>
where
    S: Store,
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut under_way = FuturesUnordered::new();
    let mut bytes_under_way = 0;
    let mut answers = BytesMut::new();
    // Why nothing more is read.
    let mut end = None;
    loop {
        let reads_on = end.is_none() && under_way.len() < REQUESTS_MAX && bytes_under_way < BYTES_MAX;
        tokio::select! {
            biased;
            Some((length, answer)) = under_way.next() => {
                let mut done = Some((length, answer));
                while let Some((length, answer)) = done {
                    bytes_under_way -= length;
                    messages::write(&answer, &mut answers);
                    let has_room = answers.len() < FRAME_BYTES;
                    done = has_room.then(|| under_way.next().now_or_never().flatten()).flatten();
                }
                if frames.send(Ok(Frame::data(answers.split().freeze()))).await.is_err() {
                    return Ok(());
                }
            }
            () = stops(&mut stopping), if end.is_none() => end = Some(Err(stopped())),
            read = next(&mut messages, &mut transit), if reads_on => match read {
                Ok(Some(message)) => match messages::decode::<kv::Request>(message.bytes.clone()) {
                    Ok(request) => {
                        bytes_under_way += message.bytes.len();
                        let waited = transit.waited(Instant::now(), request.sent_ms);
                        under_way.push(answer(api, request, waited, redirect, message));
                    }
                    Err(problem) => end = Some(Err(problem.into())),
                },
                Ok(None) => end = Some(Ok(())),
                Err(problem) => end = Some(Err(problem.into())),
            },
            else => return end.unwrap_or(Ok(())),
        }
    }
}

/// The next message; whether it had to be waited for is noted.
async fn next<B>(messages: &mut Messages<B>, transit: &mut Transit) -> Result<Option<Message>, Problem>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut next = pin!(messages.next());
    poll_fn(|context| {
        let polled = next.as_mut().poll(context);
        if polled.is_pending() {
            transit.wait();
        }
        polled
    })
    .await
}

/// The length of the request's message, and the response to it. It has waited for so long already.
async fn answer<S: Store>(
    api: &Api<S>,
    request: kv::Request,
    waited: Duration,
    redirect: bool,
    message: Message,
) -> (usize, kv::Response) {
    let kv::Request { sequence, timeout_ms, operation, epoch, .. } = request;
    let started = Instant::now();
    let result = match operation {
        Some(operation) => {
            let metric = metric(&operation);
            let result = async {
                let timeout = timeout(timeout_ms)?.unwrap_or(api.settings.timeout);
                let deadline = started + timeout.saturating_sub(waited);
                let context = Context { redirect, epoch, ..Context::until(deadline) };
                operations::carry_out(api, operation, context).await
            };
            let result = result.await;
            operations::count(api, metric, &result, started);
            result
        }
        None => Err(Problem::invalid("the request has no operation that this version knows").into()),
    };
    let result = result.unwrap_or_else(|failure| response::Result::Error(failure.error));
    // Only now is its room given back.
    (message.bytes.len(), kv::Response { sequence, result: Some(result), epoch: api.store.epoch() })
}

fn metric(operation: &request::Operation) -> Operation {
    match operation {
        request::Operation::Put(_) => Operation::Put,
        request::Operation::Get(_) => Operation::Get,
        request::Operation::Delete(_) => Operation::Delete,
        request::Operation::Execute(_) => Operation::Execute,
    }
}

fn timeout(milliseconds: Option<u64>) -> Result<Option<Duration>, Problem> {
    let Some(timeout) = milliseconds.map(Duration::from_millis) else { return Ok(None) };
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(Problem::invalid("`timeout_ms` takes 1 to 60000"));
    }
    Ok(Some(timeout))
}

fn stopped() -> Failure {
    let detail = "this node is stopping: what has no answer was not begun, ask another node";
    Problem::new(ErrorKind::Unavailable, detail).into()
}
