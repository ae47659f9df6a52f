//! Replies, in RESP2 and RESP3.

use bytes::{BufMut, Bytes, BytesMut};

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// What every connection begins with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// What a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A status.
    Simple(&'static str),
    /// An error: a code in capitals, then text.
    Error(String),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bulk(Bytes),
    /// Text for people: marked as such in RESP3.
    Text(String),
    /// Nothing where bytes would be.
    Null,
    /// Nothing where an array would be.
    NullArray,
    /// Replies in order.
    Array(Vec<Reply>),
    /// Names and what they stand for; in RESP2 an array of both.
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    /// The status of what went well.
    pub const OK: Reply = Reply::Simple("OK");

    /// Bytes that need not be shared.
    pub fn bulk(bytes: impl Into<Bytes>) -> Reply {
        Reply::Bulk(bytes.into())
    }

    /// An error with the code that has no other.
    pub fn error(text: impl std::fmt::Display) -> Reply {
        Reply::Error(format!("ERR {text}"))
    }

    /// True of an error.
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// Writes the reply.
    pub fn encode(&self, version: Version, out: &mut BytesMut) {
        let is_resp3 = version == Version::Resp3;
        match self {
            Reply::Simple(text) => line(b'+', text.as_bytes(), out),
            Reply::Error(text) => {
                // A line break would end it early.
                out.put_u8(b'-');
                out.extend(text.bytes().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { byte }));
                out.put_slice(b"\r\n");
            }
            Reply::Integer(number) => self::number(b':', *number, out),
            Reply::Bulk(bytes) => bulk(bytes, out),
            Reply::Text(text) if is_resp3 => {
                number(b'=', text.len() as i64 + 4, out);
                out.put_slice(b"txt:");
                out.put_slice(text.as_bytes());
                out.put_slice(b"\r\n");
            }
            Reply::Text(text) => bulk(text.as_bytes(), out),
            Reply::Null | Reply::NullArray if is_resp3 => out.put_slice(b"_\r\n"),
            Reply::Null => out.put_slice(b"$-1\r\n"),
            Reply::NullArray => out.put_slice(b"*-1\r\n"),
            Reply::Array(replies) => {
                number(b'*', replies.len() as i64, out);
                replies.iter().for_each(|reply| reply.encode(version, out));
            }
            Reply::Map(pairs) => {
                match is_resp3 {
                    true => number(b'%', pairs.len() as i64, out),
                    false => number(b'*', pairs.len() as i64 * 2, out),
                }
                for (name, value) in pairs {
                    name.encode(version, out);
                    value.encode(version, out);
                }
            }
        }
    }
}

fn bulk(bytes: &[u8], out: &mut BytesMut) {
    out.reserve(bytes.len() + 32);
    number(b'$', bytes.len() as i64, out);
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

fn line(kind: u8, text: &[u8], out: &mut BytesMut) {
    out.put_u8(kind);
    out.put_slice(text);
    out.put_slice(b"\r\n");
}

/// Digits by hand, and the line at once: this is on the way of every reply.
fn number(kind: u8, number: i64, out: &mut BytesMut) {
    let mut line = [0; 23];
    let mut at = line.len() - 2;
    line[at..].copy_from_slice(b"\r\n");
    let mut put = |byte| {
        at -= 1;
        line[at] = byte;
    };
    let mut left = number.unsigned_abs();
    loop {
        put(b'0' + (left % 10) as u8);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if number < 0 {
        put(b'-');
    }
    put(kind);
    out.put_slice(&line[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply, version: Version) -> String {
        let mut out = BytesMut::new();
        reply.encode(version, &mut out);
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn replies_have_redis_forms() {
        let pair = || vec![(Reply::bulk("proto"), Reply::Integer(3))];
        for (reply, resp2, resp3) in [
            (Reply::OK, "+OK\r\n", "+OK\r\n"),
            (Reply::error("syntax error"), "-ERR syntax error\r\n", "-ERR syntax error\r\n"),
            (Reply::Integer(0), ":0\r\n", ":0\r\n"),
            (Reply::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (Reply::bulk("a\r\nb"), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
            (Reply::bulk(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (Reply::Text("x:1".into()), "$3\r\nx:1\r\n", "=7\r\ntxt:x:1\r\n"),
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (Reply::NullArray, "*-1\r\n", "_\r\n"),
            (Reply::Array(vec![Reply::Null, Reply::OK]), "*2\r\n$-1\r\n+OK\r\n", "*2\r\n_\r\n+OK\r\n"),
            (Reply::Map(pair()), "*2\r\n$5\r\nproto\r\n:3\r\n", "%1\r\n$5\r\nproto\r\n:3\r\n"),
        ] {
            assert_eq!(encoded(&reply, Version::Resp2), resp2);
            assert_eq!(encoded(&reply, Version::Resp3), resp3);
        }
    }

    #[test]
    fn an_error_stays_on_its_line() {
        let reply = Reply::error("unknown command 'a\r\n+OK'");
        assert_eq!(encoded(&reply, Version::Resp2), "-ERR unknown command 'a  +OK'\r\n");
    }
}
