//! A small client: one request, one reply, as they are on the wire.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::PATIENCE;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Null,
    Array(Vec<Reply>),
    Map(Vec<Reply>),
}

impl Reply {
    pub(super) fn ok() -> Reply {
        Reply::Simple("OK".to_owned())
    }

    /// Keys have no order in Redis.
    pub(super) fn sort(&mut self) {
        if let Reply::Array(replies) = self {
            replies.sort_by_key(Reply::text);
        }
    }

    pub(super) fn number(&self) -> String {
        match self {
            Reply::Integer(number) => number.to_string(),
            other => panic!("no number: {other:?}"),
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Reply::Simple(text) | Reply::Error(text) => text.clone(),
            Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Reply::Array(replies) => {
                format!("[{}]", replies.iter().map(Reply::text).collect::<Vec<_>>().join(", "))
            }
            other => format!("{other:?}"),
        }
    }
}

pub(super) fn bulk(text: &str) -> Reply {
    Reply::Bulk(text.into())
}

pub(super) struct Resp {
    reader: BufReader<OwnedReadHalf>,
    pub(super) writer: OwnedWriteHalf,
}

impl Resp {
    pub(super) async fn connect(address: &str) -> Resp {
        Resp::try_connect(address).await.expect("a connection")
    }

    /// `None` if nobody listens there.
    pub(super) async fn try_connect(address: &str) -> Option<Resp> {
        let (reader, writer) = TcpStream::connect(address).await.ok()?.into_split();
        Some(Resp { reader: BufReader::new(reader), writer })
    }

    pub(super) async fn send<A: AsRef<[u8]>>(&mut self, request: &[A]) {
        let mut bytes = format!("*{}\r\n", request.len()).into_bytes();
        for argument in request {
            let argument = argument.as_ref();
            bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
        self.writer.write_all(&bytes).await.expect("sent");
    }

    pub(super) async fn ask<A: AsRef<[u8]>>(&mut self, request: &[A]) -> Reply {
        self.send(request).await;
        self.receive().await
    }

    /// The next reply.
    pub(super) async fn receive(&mut self) -> Reply {
        let reply = timeout(PATIENCE, self.try_receive()).await.expect("a reply in time");
        reply.expect("a reply")
    }

    /// The next reply; `None` at the end of the connection.
    pub(super) async fn try_receive(&mut self) -> Option<Reply> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).await.ok().filter(|length| *length > 0)?;
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r\n")?).into_owned();
        let (kind, rest) = line.split_at(1);
        let count = || rest.parse::<i64>().expect("a count");
        Some(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(count()),
            "_" => Reply::Null,
            "$" | "=" | "*" if count() < 0 => Reply::Null,
            "$" | "=" => {
                let mut bytes = vec![0; count() as usize + 2];
                self.reader.read_exact(&mut bytes).await.ok()?;
                bytes.truncate(bytes.len() - 2);
                Reply::Bulk(bytes)
            }
            "*" => Reply::Array(self.several(count()).await?),
            "%" => Reply::Map(self.several(2 * count()).await?),
            other => panic!("a reply that begins with {other:?}"),
        })
    }

    async fn several(&mut self, count: i64) -> Option<Vec<Reply>> {
        let mut replies = Vec::new();
        for _ in 0..count {
            replies.push(Box::pin(self.try_receive()).await?);
        }
        Some(replies)
    }
}
