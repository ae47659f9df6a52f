//! A socket that remembers how it ended.
//!
//! hyper tells the user of a connection that it is over, not always why. Whether the peer closed it, as the system
//! does for a process that died, or this node gave it up, is seen here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is known of a socket, also once it is closed.
#[derive(Default)]
pub(super) struct Fate {
    has_received: AtomicBool,
    end: OnceLock<String>,
}

impl Fate {
    /// True if the peer sent something.
    pub(super) fn has_received(&self) -> bool {
        self.has_received.load(Ordering::Relaxed)
    }

    /// How the peer or the system ended it; `None` if they did not.
    pub(super) fn end(&self) -> Option<&str> {
        self.end.get().map(String::as_str)
    }

    fn failed(&self, error: &io::Error) {
        // Nothing came back for minutes: that is silence, not an end.
        if error.kind() != io::ErrorKind::TimedOut {
            self.end.get_or_init(|| error.to_string());
        }
    }
}

/// The socket.
pub(super) struct Socket {
    stream: TcpStream,
    fate: Arc<Fate>,
    /// Counts what is written.
    sent_bytes: Option<IntCounter>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, sent_bytes: Option<IntCounter>) -> (Socket, Arc<Fate>) {
        let fate = Arc::new(Fate::default());
        (Socket { stream, fate: fate.clone(), sent_bytes }, fate)
    }

    fn written(&self, result: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let (Ok(count), Some(sent_bytes)) = (&result, &self.sent_bytes) {
            sent_bytes.inc_by(*count as u64);
        }
        self.noted(result)
    }

    fn noted<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        if let Err(error) = &result {
            self.fate.failed(error);
        }
        Poll::Ready(result)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, has_room) = (buffer.filled().len(), buffer.remaining() > 0);
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if result.is_ok() && buffer.filled().len() > before {
            self.fate.has_received.store(true, Ordering::Relaxed);
        } else if result.is_ok() && has_room {
            self.fate.end.get_or_init(|| "closed by the peer".to_owned());
        }
        self.noted(result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices));
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.noted(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
