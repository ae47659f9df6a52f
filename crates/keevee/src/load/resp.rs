//! The Redis protocol for measuring: `SET`, `GET` and `DEL`, and the replies to them.

use std::io::{self, Write};

use super::connection::{Answer, Operation};
use super::wire::{Wire, invalid, number};
use super::workload::Kind;

/// Has this connection's reads answered from what the node itself has applied.
pub(super) async fn read_only(wire: &mut Wire) -> io::Result<()> {
    wire.send(b"*1\r\n$8\r\nREADONLY\r\n").await?;
    answer(wire).await?.map_err(|kind| invalid(&format!("READONLY is refused: {kind}")))
}

/// Appends a command.
pub(super) fn add(request: &mut Vec<u8>, operation: &Operation<'_>) {
    let Operation { kind, key, value } = *operation;
    let command: &[u8] = match kind {
        Kind::Get => b"*2\r\n$3\r\nGET\r\n",
        Kind::Put => b"*3\r\n$3\r\nSET\r\n",
        Kind::Delete => b"*2\r\n$3\r\nDEL\r\n",
    };
    request.extend_from_slice(command);
    add_bulk(request, key.as_bytes());
    if kind == Kind::Put {
        add_bulk(request, value);
    }
}

pub(crate) fn add_bulk(request: &mut Vec<u8>, bytes: &[u8]) {
    // Writing to memory does not fail.
    let _ = write!(request, "${}\r\n", bytes.len());
    request.extend_from_slice(bytes);
    request.extend_from_slice(b"\r\n");
}

/// What became of a command: that of an error is its first word.
pub(super) async fn answer(wire: &mut Wire) -> io::Result<Answer> {
    let (is_error, reply) = wire.receive(parse_reply).await?;
    if !is_error {
        return Ok(Ok(()));
    }
    let text = String::from_utf8_lossy(&reply[1..]);
    Ok(Err(text.split_whitespace().next().unwrap_or_default().to_owned()))
}

/// Whether a reply is an error, and how long it is; `None` if its first line is not all there yet.
pub(crate) fn parse_reply(bytes: &[u8]) -> io::Result<Option<(bool, usize)>> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let line_length = end + 1;
    match bytes[0] {
        b'+' | b':' | b'_' => Ok(Some((false, line_length))),
        b'-' => Ok(Some((true, line_length))),
        b'$' if bytes[1..end].trim_ascii() == b"-1" => Ok(Some((false, line_length))),
        b'$' => {
            let length =
                number(bytes[1..end].trim_ascii()).ok_or_else(|| invalid("a length that is none"))?;
            Ok(Some((false, line_length + length + 2)))
        }
        _ => Err(invalid("not a reply of the Redis protocol")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_measured() {
        for (text, expected) in [
            (&b"+OK\r\n+"[..], (false, 5)),
            (b":12\r\n", (false, 5)),
            (b"$-1\r\n$", (false, 5)),
            (b"$3\r\na\nb\r\n", (false, 9)),
            (b"-OOM too much\r\n", (true, 15)),
        ] {
            assert_eq!(parse_reply(text).expect("a reply"), Some(expected));
        }
        for text in [&b""[..], b"+", b"$12\r"] {
            assert_eq!(parse_reply(text).expect("no error"), None);
        }
        for text in [&b"*1\r\n"[..], b"$x\r\n", b"HTTP/1.1 200 OK\r\n"] {
            assert!(parse_reply(text).is_err());
        }
    }

    #[test]
    fn commands_are_arrays_of_their_words() {
        let mut request = Vec::new();
        add(&mut request, &Operation { kind: Kind::Put, key: "key", value: b"12" });
        add(&mut request, &Operation { kind: Kind::Get, key: "key", value: b"" });
        let expected = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$2\r\n12\r\n*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n";
        assert_eq!(request, expected);
    }
}
