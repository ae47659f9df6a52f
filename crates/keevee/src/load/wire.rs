//! Just enough HTTP/1.1 for measuring: a request in one write, an answer with a `Content-Length`.
//!
//! A general client costs several times as much CPU for a request, which the nodes on the same machine would
//! lack. Chunked answers are left out: keevee sends none for keys.

use std::io;

use keevee_client::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection and its buffer.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// The status and where the body is, as far as an answer's head says.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    body_start: usize,
    body_length: usize,
}

impl Wire {
    pub(crate) async fn open(endpoint: &Endpoint) -> io::Result<Wire> {
        let stream = TcpStream::connect(endpoint.authority()).await?;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, buffer: vec![0; 4096], filled: 0 })
    }

    /// Sends a whole request and reads the whole answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<Reply<'_>> {
        self.stream.write_all(request).await?;
        self.filled = 0;
        let head = loop {
            self.read_more().await?;
            if let Some(head) = parse_head(&self.buffer[..self.filled])? {
                break head;
            }
        };
        let end = head.body_start + head.body_length;
        while self.filled < end {
            self.read_more().await?;
        }
        if self.filled > end {
            return Err(invalid("more than one answer came for one request"));
        }
        Ok(Reply { status: head.status, body: &self.buffer[head.body_start..end] })
    }

    async fn read_more(&mut self) -> io::Result<()> {
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

/// Reads an answer's head; `None` if it is not all there yet.
fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > 64 * 1024 { Err(invalid("an endless head")) } else { Ok(None) };
    };
    let status = bytes
        .get(..12)
        .filter(|line| line.starts_with(b"HTTP/1.1 "))
        .and_then(|line| number(&line[9..]))
        .ok_or_else(|| invalid("not an HTTP/1.1 answer"))?;
    let mut body_length = if matches!(status, 204 | 304) { Some(0) } else { None };
    for line in bytes[..end].split(|byte| *byte == b'\n').skip(1) {
        let name = b"content-length:";
        if line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name) {
            body_length = number(line[name.len()..].trim_ascii());
        }
    }
    let body_length = body_length.ok_or_else(|| invalid("an answer without Content-Length"))?;
    Ok(Some(Head { status: status as u16, body_start: end + 4, body_length }))
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let text = b"HTTP/1.1 200 OK\r\nEtag: \"1\"\r\nContent-Length:  5 \r\n\r\nhello";
        let head = parse_head(text).expect("a head").expect("all of it");
        assert_eq!(head, Head { status: 200, body_start: text.len() - 5, body_length: 5 });
        for cut in 0..text.len() - 5 {
            assert_eq!(parse_head(&text[..cut]).expect("no error"), None, "cut at {cut}");
        }
        let text = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(parse_head(text).expect("a head").expect("all of it").body_length, 0);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            &b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            b"\r\n\r\n",
        ] {
            assert!(parse_head(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }
}
