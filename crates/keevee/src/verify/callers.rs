//! The clients of a run, one operation at a time each: HTTP and the Redis protocol over a plain connection to one node and
//! without retries, gRPC by the client library, which goes to the leaders and retries under request ids.

use std::io;
use std::io::Write as _;

use keevee_client::{Client, Consistency, Endpoint, ErrorKind, Expect, Write};
use serde::Deserialize;

use super::history::{Answer, Input, Output};
use crate::load::http::exchange;
use crate::load::resp::{add_bulk, parse_reply};
use crate::load::wire::Wire;

/// A client.
pub(crate) enum Caller {
    Http(Plain),
    Resp(Plain),
    Grpc(Client),
}

/// A connection to one of the nodes, opened when it is needed.
pub(crate) struct Plain {
    nodes: Vec<Endpoint>,
    at: usize,
    wire: Option<Wire>,
}

impl Plain {
    /// To one of these nodes after the other, beginning with this one.
    pub(crate) fn new(nodes: Vec<Endpoint>, at: usize) -> Plain {
        Plain { nodes, at, wire: None }
    }

    fn next(&mut self) {
        self.wire = None;
        self.at += 1;
    }

    fn node(&self) -> &Endpoint {
        &self.nodes[self.at % self.nodes.len()]
    }

    async fn wire(&mut self) -> io::Result<&mut Wire> {
        let wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::open(self.node()).await?,
        };
        Ok(self.wire.insert(wire))
    }
}

impl Caller {
    /// 0 is HTTP, 1 RESP, 2 gRPC.
    pub(crate) fn protocol(&self) -> usize {
        match self {
            Caller::Http(_) => 0,
            Caller::Resp(_) => 1,
            Caller::Grpc(_) => 2,
        }
    }

    pub(crate) async fn call(&mut self, key: &str, input: Input) -> Answer {
        let answer = match self {
            Caller::Http(plain) => http(plain, key, input).await,
            Caller::Resp(plain) => resp(plain, key, input).await,
            Caller::Grpc(client) => grpc(client, key, input).await,
        };
        if !matches!(answer, Answer::Done(_)) {
            self.give_up();
        }
        answer
    }

    /// Whatever the connection still brings is no answer to what is asked next.
    pub(crate) fn give_up(&mut self) {
        if let Caller::Http(plain) | Caller::Resp(plain) = self {
            plain.next();
        }
    }
}

/// What a failure says of an operation.
fn of_kind(kind: Option<ErrorKind>) -> Answer {
    match kind {
        None | Some(ErrorKind::OutcomeUnknown | ErrorKind::Fatal) => Answer::Unknown,
        Some(_) => Answer::Refused,
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The value of a read; one that no client wrote is told as none ever written.
fn read(value: &[u8]) -> Answer {
    Answer::Done(Output::Value(Some(number(value).unwrap_or(u64::MAX))))
}

#[derive(Deserialize)]
struct Deleted {
    deleted: bool,
}

#[derive(Deserialize)]
struct Problem {
    kind: String,
}

async fn http(plain: &mut Plain, key: &str, input: Input) -> Answer {
    let host = plain.node().authority().to_owned();
    let (method, condition, body) = match input {
        Input::Get => ("GET", "", String::new()),
        Input::Put(value) => ("PUT", "", value.to_string()),
        Input::PutIfAbsent(value) => ("PUT", "if-none-match: *\r\n", value.to_string()),
        Input::Delete => ("DELETE", "", String::new()),
    };
    let length = body.len();
    let request = format!(
        "{method} /kv/{key} HTTP/1.1\r\nhost: {host}\r\n{condition}content-length: {length}\r\n\r\n{body}"
    );
    // Without a connection nothing was sent.
    let Ok(wire) = plain.wire().await else { return Answer::Refused };
    let Ok(reply) = exchange(wire, request.as_bytes()).await else { return Answer::Unknown };
    if reply.status == 200 {
        return match input {
            Input::Get => read(reply.body),
            Input::Put(_) | Input::PutIfAbsent(_) => Answer::Done(Output::Written),
            Input::Delete => match serde_json::from_slice::<Deleted>(reply.body) {
                Ok(Deleted { deleted }) => Answer::Done(Output::Deleted { existed: deleted }),
                Err(_) => Answer::Unknown,
            },
        };
    }
    let problem = serde_json::from_slice::<Problem>(reply.body).ok();
    match (input, problem.and_then(|problem| ErrorKind::from_name(&problem.kind))) {
        (Input::Get, Some(ErrorKind::NotFound)) => Answer::Done(Output::Value(None)),
        (Input::PutIfAbsent(_), Some(ErrorKind::Conflict)) => Answer::Done(Output::Kept),
        (_, kind) => of_kind(kind),
    }
}

async fn resp(plain: &mut Plain, key: &str, input: Input) -> Answer {
    let value;
    let words: &[&str] = match input {
        Input::Get => &["GET", key],
        Input::Put(number) => {
            value = number.to_string();
            &["SET", key, &value]
        }
        Input::PutIfAbsent(number) => {
            value = number.to_string();
            &["SET", key, &value, "NX"]
        }
        Input::Delete => &["DEL", key],
    };
    let mut request = Vec::new();
    // Writing to memory does not fail.
    let _ = write!(request, "*{}\r\n", words.len());
    words.iter().for_each(|word| add_bulk(&mut request, word.as_bytes()));
    // Without a connection nothing was sent.
    let Ok(wire) = plain.wire().await else { return Answer::Refused };
    let Ok((is_error, reply)) = answer(wire, &request).await else { return Answer::Unknown };
    let line = reply.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if is_error {
        // As docs/redis.md has it: of all errors this one alone says that nobody knows.
        return if line.starts_with(b"-UNKNOWN") { Answer::Unknown } else { Answer::Refused };
    }
    match (input, line) {
        (Input::Get, b"$-1" | b"_") => Answer::Done(Output::Value(None)),
        (Input::Get, _) => read(reply[line.len()..].trim_ascii()),
        (Input::Put(_) | Input::PutIfAbsent(_), b"+OK") => Answer::Done(Output::Written),
        (Input::PutIfAbsent(_), b"$-1" | b"_") => Answer::Done(Output::Kept),
        (Input::Delete, b":0" | b":1") => Answer::Done(Output::Deleted { existed: line == b":1" }),
        _ => Answer::Unknown,
    }
}

async fn answer<'a>(wire: &'a mut Wire, request: &[u8]) -> io::Result<(bool, &'a [u8])> {
    wire.send(request).await?;
    wire.receive(parse_reply).await
}

async fn grpc(client: &Client, key: &str, input: Input) -> Answer {
    let (key, usual) = (key.as_bytes(), Write::default());
    let result = match input {
        Input::Get => match client.get(key, Consistency::Linearizable).await {
            Ok(Some(value)) => return read(&value.bytes),
            Ok(None) => Ok(Output::Value(None)),
            Err(error) => Err(error),
        },
        Input::Put(value) => client.put(key, value.to_string(), usual).await.map(|_| Output::Written),
        Input::PutIfAbsent(value) => {
            let written = client.put(key, value.to_string(), Write::only_if(Expect::Absent)).await;
            match written.map(|_| Output::Written) {
                Err(error) if error.kind == ErrorKind::Conflict => Ok(Output::Kept),
                result => result,
            }
        }
        Input::Delete => client.delete(key, usual).await.map(|existed| Output::Deleted { existed }),
    };
    result.map_or_else(|error| of_kind(Some(error.kind)), Answer::Done)
}
