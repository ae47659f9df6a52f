//! Messages in a body: each is one byte that says whether it is compressed, its length in four bytes, and so
//! many bytes (gRPC over HTTP2, "Length-Prefixed-Message").
//!
//! A message has its room in memory before any of it is kept, of the room that all bodies share with HTTP's, and
//! it must arrive in time once it has begun.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use keevee_core::error::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::Api;
use crate::http::body::BodyError;
use crate::http::problem::Problem;

/// Whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;
/// What a message may have besides the keys and values, which have a limit: at a thousand operations and
/// preconditions, some twenty bytes for each.
const OVERHEAD_BYTES_MAX: usize = 64 << 10;

/// How long a stream waits before it looks for room again. It does not queue for it: that would keep the room that
/// there is from those who need less.
const ROOM_PAUSE: Duration = Duration::from_millis(10);

/// A message, and its room: to be kept as long as its bytes are.
pub(super) struct Message {
    pub(super) bytes: Bytes,
    pub(super) room: OwnedSemaphorePermit,
}

/// What to do about what may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Refuse at once if there is no room. All must have arrived so long after the beginning.
    Refuse {
        /// Of everything.
        timeout: Duration,
    },
    /// Wait for room, and not read on meanwhile. There may be any time between messages.
    Wait,
}

/// The messages of one body.
pub(super) struct Messages<B> {
    body: B,
    buffer: BytesMut,
    room: Arc<Semaphore>,
    bytes_max: usize,
    patience: Patience,
    /// How long a message may take from when it began.
    limit: Duration,
    /// When the message that is read began, if it has.
    begun: Option<Instant>,
    /// The room of the message that is read.
    taken: Option<OwnedSemaphorePermit>,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) fn new<S>(body: B, api: &Api<S>, patience: Patience) -> Messages<B> {
        let (begun, limit) = match patience {
            Patience::Refuse { timeout } => (Some(Instant::now()), timeout),
            Patience::Wait => (None, api.settings.body_timeout),
        };
        Messages {
            body,
            buffer: BytesMut::new(),
            room: Arc::clone(&api.body_room),
            bytes_max: api.settings.limits.command_bytes_max + OVERHEAD_BYTES_MAX,
            patience,
            limit,
            begun,
            taken: None,
        }
    }

    /// The next message; `None` at the end. After an error there is nothing more to read. The future may be
    /// dropped at any time: the next one goes on.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Problem> {
        while self.buffer.len() < HEADER_BYTES {
            if !self.read_on().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(cut_off()) };
            }
        }
        let length = self.length()?;
        let room = match self.taken.take() {
            Some(room) => room,
            None => self.take_room(length).await?,
        };
        // Put away while there is more to wait for.
        self.taken = Some(room);
        while self.buffer.len() < HEADER_BYTES + length {
            self.buffer.reserve(HEADER_BYTES + length - self.buffer.len());
            if !self.read_on().await? {
                return Err(cut_off());
            }
        }
        self.buffer.advance(HEADER_BYTES);
        let bytes = self.buffer.split_to(length).freeze();
        if self.patience == Patience::Wait {
            self.begun = (!self.buffer.is_empty()).then(Instant::now);
        }
        Ok(self.taken.take().map(|room| Message { bytes, room }))
    }

    /// The length that the header tells.
    fn length(&self) -> Result<usize, Problem> {
        let mut header = &self.buffer[..HEADER_BYTES];
        let (is_compressed, length) = (header.get_u8(), header.get_u32() as usize);
        if is_compressed != 0 {
            return Err(Problem::invalid("a message is compressed, or is none"));
        }
        if length > self.bytes_max {
            let max = self.bytes_max;
            let detail = format!("a message has {length} bytes, more than the {max} allowed");
            return Err(Problem::new(ErrorKind::TooLarge, detail));
        }
        Ok(length)
    }

    /// A permit for each byte.
    async fn take_room(&mut self, length: usize) -> Result<OwnedSemaphorePermit, Problem> {
        let bytes = u32::try_from(length).unwrap_or(u32::MAX);
        loop {
            match Arc::clone(&self.room).try_acquire_many_owned(bytes) {
                Ok(permit) => {
                    if self.patience == Patience::Wait {
                        // A wait was not the client's fault.
                        self.begun = Some(Instant::now());
                    }
                    return Ok(permit);
                }
                Err(_) if self.patience == Patience::Wait => tokio::time::sleep(ROOM_PAUSE).await,
                Err(_) => {
                    let detail = "too many bodies are in memory: try again";
                    return Err(Problem::new(ErrorKind::Unavailable, detail));
                }
            }
        }
    }

    /// Reads a frame; false at the end.
    async fn read_on(&mut self) -> Result<bool, Problem> {
        let limit = self.limit;
        let frame = match self.begun {
            Some(begun) => {
                let slow = || Problem::invalid(format!("a message did not arrive within {limit:?}"));
                let frame = tokio::time::timeout_at((begun + limit).into(), self.body.frame()).await;
                frame.map_err(|_| slow())?
            }
            None => self.body.frame().await,
        };
        let Some(frame) = frame else { return Ok(false) };
        let frame = frame.map_err(|error| BodyError::Broken(error.to_string()))?;
        // Trailers are of no interest.
        if let Ok(data) = frame.into_data() {
            self.buffer.extend_from_slice(&data);
            self.begun = self.begun.or_else(|| Some(Instant::now()));
        }
        Ok(true)
    }
}

fn cut_off() -> Problem {
    Problem::invalid("the body ends in the middle of a message")
}

/// Decodes what [`Messages`] read.
pub(super) fn decode<M: prost::Message + Default>(bytes: Bytes) -> Result<M, Problem> {
    M::decode(bytes).map_err(|error| Problem::invalid(format!("the message can't be decoded: {error}")))
}

/// Appends a message with its header.
pub(super) fn write<M: prost::Message>(message: &M, buffer: &mut BytesMut) {
    let length = message.encoded_len();
    buffer.reserve(HEADER_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).expect("answers have a bound"));
    message.encode(buffer).expect("a growing buffer has room");
}

#[cfg(test)]
mod tests;
