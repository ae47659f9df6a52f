//! A client's socket that gives up who is too slow: a head that does not end, an answer that is not taken.
//!
//! hyper has one time for both the silence between two requests and the head that follows. A client may be silent for long,
//! and must not be slow for as long; so the head's own time is kept here. Of what comes the heads are looked at
//! (`heads.rs`), because hyper does not tell of all that is wrong with one.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::activity::Activity;
use super::heads::Heads;

/// What a client of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The socket.
pub(super) struct Socket {
    stream: TcpStream,
    activity: Arc<Activity>,
    speaks: Speaks,
    head_timeout: Duration,
    /// The head that has begun behind so many others must have ended by then.
    head_ends: Option<(usize, Pin<Box<Sleep>>)>,
    /// Something must have been written by then.
    write_ends: Option<Pin<Box<Sleep>>>,
}

/// What the client speaks.
enum Speaks {
    /// It began as HTTP/2 does, with so many bytes.
    Unknown(usize),
    Http1(Heads),
    Http2,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, head_timeout: Duration) -> Socket {
        let speaks = Speaks::Unknown(0);
        Socket { stream, activity, speaks, head_timeout, head_ends: None, write_ends: None }
    }

    /// These bytes came.
    fn heard(&mut self, bytes: &[u8]) {
        if let Speaks::Unknown(before) = self.speaks {
            let (_, expected) = PREFACE.split_at(before);
            let length = bytes.len().min(expected.len());
            if bytes[..length] == expected[..length] {
                let is_whole = length == expected.len();
                self.speaks = if is_whole { Speaks::Http2 } else { Speaks::Unknown(before + length) };
            } else {
                let mut heads = Heads::default();
                heads.feed(&PREFACE[..before]);
                self.speaks = Speaks::Http1(heads);
            }
        }
        if let Speaks::Http1(heads) = &mut self.speaks {
            heads.feed(bytes);
            heads.with_two_lengths().into_iter().for_each(|number| self.activity.note_two_lengths(number));
        }
    }

    /// Nothing has come; an error if a head should have ended by now.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let behind = match &self.speaks {
            Speaks::Unknown(count) => (*count > 0).then_some(0),
            Speaks::Http1(heads) => heads.is_in_head().then(|| heads.ended()),
            Speaks::Http2 => None,
        };
        let Some(behind) = behind else {
            self.head_ends = None;
            return Poll::Pending;
        };
        if self.head_ends.as_ref().is_none_or(|(of, _)| *of != behind) {
            self.head_ends = Some((behind, Box::pin(sleep(self.head_timeout))));
        }
        let Some((_, ends)) = &mut self.head_ends else { return Poll::Pending };
        ready!(ends.as_mut().poll(context));
        Poll::Ready(Err(too_slow("the request's head did not arrive in time")))
    }

    /// What came of writing; an error if nothing was taken for too long.
    fn poll_written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write_ends = None;
            return written;
        }
        let timeout = self.activity.stalled_timeout();
        let ends = self.write_ends.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(ends.as_mut().poll(context));
        Poll::Ready(Err(too_slow("the answer is not taken")))
    }
}

fn too_slow(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(read) => {
                if !matches!(self.speaks, Speaks::Http2) {
                    self.heard(&buffer.filled()[before..]);
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_head(context),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.poll_written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.poll_written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
