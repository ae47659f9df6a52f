//! Just enough HTTP/1.1 for measuring: requests in one write, answers with a `Content-Length`.
//!
//! A general client costs several times as much CPU for a request, which the nodes on the same machine would
//! lack. Chunked answers are left out: keevee sends none for keys.

use std::io::{self, Write};

use keevee_client::{Endpoint, ErrorKind};
use serde::Deserialize;
use uuid::Uuid;

use super::connection::{Answer, Operation};
use super::wire::{Wire, invalid, number};
use super::workload::{Kind, Workload};

/// One answer.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// The status and where the body starts, as an answer's head says.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    body_start: usize,
}

#[derive(Deserialize)]
struct Problem<'a> {
    kind: &'a str,
}

/// Sends a whole request and reads the whole answer.
pub(crate) async fn exchange<'a>(wire: &'a mut Wire, request: &[u8]) -> io::Result<Reply<'a>> {
    wire.send(request).await?;
    receive(wire).await
}

async fn receive(wire: &mut Wire) -> io::Result<Reply<'_>> {
    let (Head { status, body_start }, answer) = wire.receive(parse_head).await?;
    Ok(Reply { status, body: &answer[body_start..] })
}

/// Appends a request for a key.
pub(super) fn add(
    request: &mut Vec<u8>,
    operation: &Operation<'_>,
    endpoint: &Endpoint,
    workload: &Workload,
) {
    let Operation { kind, key, value } = *operation;
    let method = match kind {
        Kind::Get => "GET ",
        Kind::Put => "PUT ",
        Kind::Delete => "DELETE ",
    };
    let query = if kind == Kind::Get && workload.stale { "?consistency=stale" } else { "" };
    for part in [method, "/kv/", key, query, " HTTP/1.1\r\nhost: ", endpoint.authority(), "\r\n"] {
        request.extend_from_slice(part.as_bytes());
    }
    // Writing to memory does not fail.
    if kind != Kind::Get && workload.request_ids {
        let _ = write!(request, "idempotency-key: {}\r\n", Uuid::now_v7());
    }
    if kind == Kind::Put {
        let _ = write!(request, "content-length: {}\r\n", value.len());
    }
    request.extend_from_slice(b"\r\n");
    if kind == Kind::Put {
        request.extend_from_slice(value);
    }
}

/// What became of a request: a get of a key that holds no value is no error.
pub(super) async fn answer(wire: &mut Wire, kind: Kind) -> io::Result<Answer> {
    let reply = receive(wire).await?;
    if reply.status == 200 || reply.status == 404 && kind == Kind::Get {
        return Ok(Ok(()));
    }
    let problem = serde_json::from_slice::<Problem<'_>>(reply.body).ok();
    let kind = problem.and_then(|problem| ErrorKind::from_name(problem.kind));
    Ok(Err(kind.map_or("not keevee's answer", ErrorKind::name).to_owned()))
}

/// Reads an answer's head, and how long the answer is; `None` if the head is not all there yet.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
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
    let body_start = end + 4;
    Ok(Some((Head { status: status as u16, body_start }, body_start + body_length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let text = b"HTTP/1.1 200 OK\r\nEtag: \"1\"\r\nContent-Length:  5 \r\n\r\nhello";
        let head = parse_head(text).expect("a head").expect("all of it");
        assert_eq!(head, (Head { status: 200, body_start: text.len() - 5 }, text.len()));
        for cut in 0..text.len() - 5 {
            assert_eq!(parse_head(&text[..cut]).expect("no error"), None, "cut at {cut}");
        }
        let text = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(parse_head(text).expect("a head").expect("all of it").1, text.len());
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
