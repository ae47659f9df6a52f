//! One socket and its buffers: requests go out in one write, answers are cut out of what has come.
//!
//! What an answer looks like is for [`super::http`] and [`super::resp`] to say.

use std::io;

use keevee_client::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Answers that were taken end here…
    taken: usize,
    /// …and what has come ends here.
    filled: usize,
}

impl Wire {
    pub(crate) async fn open(endpoint: &Endpoint) -> io::Result<Wire> {
        let stream = TcpStream::connect(endpoint.authority()).await?;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, buffer: vec![0; 4096], taken: 0, filled: 0 })
    }

    pub(crate) async fn send(&mut self, requests: &[u8]) -> io::Result<()> {
        self.stream.write_all(requests).await
    }

    /// The next answer, and what `head` says of it: that is asked with all that has come, and tells the answer's
    /// length too as soon as it is known.
    pub(crate) async fn receive<H>(
        &mut self,
        head: impl Fn(&[u8]) -> io::Result<Option<(H, usize)>>,
    ) -> io::Result<(H, &[u8])> {
        loop {
            let come = &self.buffer[self.taken..self.filled];
            match head(come)? {
                Some((head, length)) if length <= come.len() => {
                    let start = self.taken;
                    self.taken += length;
                    return Ok((head, &self.buffer[start..start + length]));
                }
                _ => self.read_more().await?,
            }
        }
    }

    /// True if more has come than was taken.
    pub(crate) fn has_more(&self) -> bool {
        self.taken < self.filled
    }

    async fn read_more(&mut self) -> io::Result<()> {
        if self.taken > 0 {
            self.buffer.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
        }
        if self.filled == self.buffer.len() {
            self.buffer.resize(2 * self.filled, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.filled += count;
                Ok(())
            }
        }
    }
}

pub(super) fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

pub(super) fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
