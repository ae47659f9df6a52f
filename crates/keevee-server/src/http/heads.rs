//! Where the heads are in what a client of HTTP/1 sends, and which says the length of its body twice.
//!
//! A head with both `content-length` and `transfer-encoding` is what request smuggling is made of: one side takes for a body
//! what the other takes for the next request. hyper goes by the second alone and takes the first out of the head, so that
//! nobody behind it can refuse such a request. So the heads are looked for here as well. Two different `content-length`s
//! and all else that is malformed, hyper refuses itself.

/// Of a line so much is looked at: a name, and the digits of a length.
const LINE_BYTES_MAX: usize = 256;

/// Follows one connection.
#[derive(Debug, Default)]
pub(super) struct Heads {
    place: Place,
    /// The line that has begun, as much of it as is looked at.
    line: Vec<u8>,
    /// Heads that have ended.
    ended: usize,
    /// What the head at hand says.
    length: Option<u64>,
    is_chunked: bool,
    with_two_lengths: Option<usize>,
}

/// What the next byte is part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// A head: its first line if nothing is before it.
    #[default]
    Start,
    Head,
    /// A body of which so many bytes are left.
    Body(u64),
    /// The line that says how long a chunk is.
    ChunkLength,
    /// A chunk, and its line's end.
    Chunk(u64),
    Trailers,
    /// It is no HTTP: hyper ends it.
    Lost,
}

impl Heads {
    /// The number, from 1, of the first request whose head says its length twice. What follows it is not looked at.
    pub(super) fn with_two_lengths(&self) -> Option<usize> {
        self.with_two_lengths
    }

    /// True if a head has begun and not ended.
    pub(super) fn is_in_head(&self) -> bool {
        self.place == Place::Head || (self.place == Place::Start && !self.line.is_empty())
    }

    /// How many heads have ended.
    pub(super) fn ended(&self) -> usize {
        self.ended
    }

    /// The next bytes of the connection.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.place {
                Place::Lost => return,
                Place::Body(left) | Place::Chunk(left) => {
                    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[skipped..];
                    self.skip(left - skipped as u64);
                }
                _ => {
                    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
                        return self.keep(bytes);
                    };
                    let (line, rest) = bytes.split_at(end + 1);
                    bytes = rest;
                    if self.line.is_empty() {
                        self.take_line(line);
                    } else {
                        self.keep(line);
                        let line = std::mem::take(&mut self.line);
                        self.take_line(&line);
                    }
                }
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// So much is left of a body or a chunk.
    fn skip(&mut self, left: u64) {
        self.place = match self.place {
            Place::Chunk(_) if left == 0 => Place::ChunkLength,
            Place::Chunk(_) => Place::Chunk(left),
            _ if left == 0 => Place::Start,
            _ => Place::Body(left),
        };
    }

    fn take_line(&mut self, line: &[u8]) {
        let line = line.trim_ascii();
        self.place = match self.place {
            // Empty lines before a request are skipped.
            Place::Start if line.is_empty() => Place::Start,
            Place::Start => Place::Head,
            Place::Head if line.is_empty() => self.end_head(),
            Place::Head => {
                self.take_field(line);
                Place::Head
            }
            Place::ChunkLength => match chunk_length(line) {
                Some(0) => Place::Trailers,
                Some(length) => Place::Chunk(length.saturating_add(2)),
                None => Place::Lost,
            },
            Place::Trailers if line.is_empty() => Place::Start,
            other => other,
        };
    }

    fn take_field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"content-length") {
            // Without sense it is refused by hyper.
            self.length = Some(number(value.trim_ascii(), 10).unwrap_or(0));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_chunked = true;
        }
    }

    /// What follows the head.
    fn end_head(&mut self) -> Place {
        self.ended += 1;
        match (std::mem::take(&mut self.length), std::mem::take(&mut self.is_chunked)) {
            (Some(_), true) => {
                self.with_two_lengths = Some(self.ended);
                Place::Lost
            }
            (_, true) => Place::ChunkLength,
            (None | Some(0), _) => Place::Start,
            (Some(length), _) => Place::Body(length),
        }
    }
}

fn chunk_length(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    number(digits.trim_ascii(), 16)
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    u64::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which request says its length twice, however the bytes are cut.
    fn found(text: &str) -> Option<usize> {
        let whole = found_in_pieces(text, text.len());
        for piece in 1..text.len() {
            assert_eq!(found_in_pieces(text, piece), whole, "in pieces of {piece}: {text}");
        }
        whole
    }

    fn found_in_pieces(text: &str, piece: usize) -> Option<usize> {
        let mut heads = Heads::default();
        text.as_bytes().chunks(piece).for_each(|piece| heads.feed(piece));
        heads.with_two_lengths()
    }

    const BOTH: &str = "PUT /kv/k HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn a_head_with_both_lengths_is_found_in_any_order_and_writing() {
        assert_eq!(found(BOTH), Some(1));
        assert_eq!(found("\r\nPUT / HTTP/1.1\r\ntransfer-encoding:chunked\nCONTENT-LENGTH:5\n\n"), Some(1));
        let padded = format!("PUT / HTTP/1.1\r\ncontent-length:{}5\r\nte: x\r\n", " ".repeat(300));
        assert_eq!(found(&format!("{padded}transfer-encoding: chunked\r\n\r\n")), Some(1));
    }

    #[test]
    fn what_looks_like_a_head_in_a_body_is_none() {
        let inner = "x\r\ncontent-length: 1\r\n\r\n";
        let by_length = format!("PUT / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{BOTH}", BOTH.len());
        assert_eq!(found(&by_length), None);
        let chunks = format!("{:x};ext=1\r\n{inner}\r\n{:X}\r\n{BOTH}\r\n0\r\n", inner.len(), BOTH.len());
        let chunked =
            format!("PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{chunks}content-length: 3\r\n\r\n");
        assert_eq!(found(&chunked), None);
        let get = "GET / HTTP/1.1\r\nhost: content-length: 5\r\n\r\n";
        assert_eq!(found(&format!("{get}{by_length}{chunked}{get}{BOTH}{BOTH}")), Some(5));
    }

    #[test]
    fn what_is_no_http_is_left_to_hyper() {
        for text in
            ["\r\n\r\n", "x", "PUT / HTTP/1.1\r\ntransfer-encoding: x\r\n\r\nffffffffffffffffffff\r\n"]
        {
            assert_eq!(found(text), None);
        }
        let endless = "PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n";
        assert_eq!(found(&format!("{endless}{BOTH}")), None);
    }
}
