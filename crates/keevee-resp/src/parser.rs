//! Requests out of a connection's buffer.
//!
//! A request is an array of bulk strings, the same in RESP2 and RESP3, or one line of words ("inline", for people with
//! telnet). The parser keeps its place, so that a request that comes in many pieces is looked at once; arguments are
//! slices of the buffer. Every length is checked against [`ParserLimits`] before room is made for what it announces.
//! What is wrong ends the connection, as with Redis: nothing tells where the next request would begin.
//!
//! It leaves out what requests mean ([`crate::command`]).

use bytes::{Bytes, BytesMut};

/// How long a line may be: an inline request, or a count.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Room made for a request's arguments before they come.
const ARGUMENTS_AHEAD: usize = 16;

/// A request's arguments, the command's name first. Never empty.
pub type Request = Vec<Bytes>;

/// How large a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParserLimits {
    /// Arguments of one request.
    pub arguments_max: usize,
    /// Bytes of one argument.
    pub bulk_bytes_max: usize,
    /// Bytes of one request.
    pub request_bytes_max: usize,
}

/// Why no more can be read from a connection; the texts are Redis's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The count of arguments is no number, or more than allowed.
    #[error("Protocol error: invalid multibulk length")]
    ArgumentCount,
    /// The length of an argument is no number, or more than allowed.
    #[error("Protocol error: invalid bulk length")]
    BulkLength,
    /// All arguments together are larger than allowed.
    #[error("Protocol error: too big request")]
    RequestTooLarge,
    /// Something else stands where an argument begins.
    #[error("Protocol error: expected '$', got '{}'", .0.escape_ascii())]
    NotBulk(u8),
    /// An argument does not end where its length says.
    #[error("Protocol error: expected CRLF behind a bulk")]
    NoEnd,
    /// A line does not end.
    #[error("Protocol error: too big inline request")]
    LineTooLong,
    /// The line with a count of arguments does not end.
    #[error("Protocol error: too big mbulk count string")]
    CountTooLong,
    /// The line with a length does not end.
    #[error("Protocol error: too big bulk count string")]
    LengthTooLong,
    /// A quoted word of an inline request does not end.
    #[error("Protocol error: unbalanced quotes in request")]
    Quotes,
}

/// Reads requests; one for each connection.
///
/// Invariant: `at` is at most the length of the buffer that it was last handed, and everything before it is checked.
#[derive(Debug)]
pub struct Parser {
    limits: ParserLimits,
    /// Where the unread part of the buffer begins.
    at: usize,
    /// Arguments of the request at hand that are still to come; 0 between requests.
    missing: usize,
    /// The length of the argument that comes next, once it is known.
    bulk: Option<usize>,
    /// Where the arguments are in the buffer.
    arguments: Vec<(usize, usize)>,
}

impl Parser {
    /// At the beginning of a connection.
    pub fn new(limits: ParserLimits) -> Parser {
        Parser { limits, at: 0, missing: 0, bulk: None, arguments: Vec::new() }
    }

    /// Takes the next request out of the buffer; `None` if it is not all there. Not to be called after an error.
    pub fn parse(&mut self, buffer: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        loop {
            if self.missing == 0 {
                match buffer.get(self.at) {
                    None => return Ok(None),
                    Some(b'*') => {
                        let Some(count) = self.number(buffer, Place::Count)? else { return Ok(None) };
                        // As Redis: nothing asked, nothing answered.
                        if count <= 0 {
                            self.forget(buffer);
                            continue;
                        }
                        let fits =
                            usize::try_from(count).ok().filter(|count| *count <= self.limits.arguments_max);
                        self.missing = fits.ok_or(ProtocolError::ArgumentCount)?;
                        self.arguments.reserve(self.missing.min(ARGUMENTS_AHEAD));
                    }
                    Some(_) => match self.inline(buffer)? {
                        Some(request) if request.is_empty() => continue,
                        request => return Ok(request),
                    },
                }
            }
            if !self.arguments(buffer)? {
                return Ok(None);
            }
            let length = std::mem::take(&mut self.at);
            let bytes = buffer.split_to(length).freeze();
            let arguments = std::mem::take(&mut self.arguments);
            return Ok(Some(arguments.into_iter().map(|(start, end)| bytes.slice(start..end)).collect()));
        }
    }

    /// How many bytes more the argument at hand needs, if its length is known: for who makes room for them.
    pub fn needs(&self, buffer: &BytesMut) -> usize {
        let end = self.bulk.map_or(0, |length| self.at + length + 2);
        end.saturating_sub(buffer.len())
    }

    /// True between requests.
    pub fn is_idle(&self, buffer: &BytesMut) -> bool {
        self.missing == 0 && buffer.is_empty()
    }

    /// Goes on with the arguments of the request at hand; true once they are all there.
    fn arguments(&mut self, buffer: &BytesMut) -> Result<bool, ProtocolError> {
        while self.missing > 0 {
            let length = match self.bulk {
                Some(length) => length,
                None => {
                    match buffer.get(self.at) {
                        None => return Ok(false),
                        Some(b'$') => {}
                        Some(other) => return Err(ProtocolError::NotBulk(*other)),
                    }
                    let Some(length) = self.number(buffer, Place::Length)? else { return Ok(false) };
                    let fits =
                        usize::try_from(length).ok().filter(|length| *length <= self.limits.bulk_bytes_max);
                    let length = fits.ok_or(ProtocolError::BulkLength)?;
                    if self.at + length + 2 > self.limits.request_bytes_max {
                        return Err(ProtocolError::RequestTooLarge);
                    }
                    *self.bulk.insert(length)
                }
            };
            let end = self.at + length;
            match buffer.get(end..end + 2) {
                None => return Ok(false),
                Some(b"\r\n") => {}
                Some(_) => return Err(ProtocolError::NoEnd),
            }
            self.arguments.push((self.at, end));
            self.at = end + 2;
            self.bulk = None;
            self.missing -= 1;
        }
        Ok(true)
    }

    /// The number in the line at hand, behind its first byte.
    fn number(&mut self, buffer: &BytesMut, place: Place) -> Result<Option<i64>, ProtocolError> {
        let rest = &buffer[self.at..];
        // A number is short: no line of megabytes is searched again and again.
        let Some(end) = rest.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\r') else {
            return if rest.len() < LINE_BYTES_MAX { Ok(None) } else { Err(place.too_long()) };
        };
        match rest.get(end + 1) {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) => return Err(place.invalid()),
        }
        let number = integer(&rest[1..end]).ok_or(place.invalid())?;
        self.at += end + 2;
        Ok(Some(number))
    }

    fn inline(&mut self, buffer: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        let rest = &buffer[self.at..];
        let Some(end) = rest.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') else {
            return if rest.len() < LINE_BYTES_MAX { Ok(None) } else { Err(ProtocolError::LineTooLong) };
        };
        let line = &rest[..end];
        let words = words(line.strip_suffix(b"\r").unwrap_or(line))?;
        self.at += end + 1;
        self.forget(buffer);
        Ok(Some(words))
    }

    /// Drops what is read, since no request came of it or it is copied.
    fn forget(&mut self, buffer: &mut BytesMut) {
        let _ = buffer.split_to(std::mem::take(&mut self.at));
    }
}

/// Where a number stands.
#[derive(Clone, Copy)]
enum Place {
    Count,
    Length,
}

impl Place {
    fn invalid(self) -> ProtocolError {
        match self {
            Place::Count => ProtocolError::ArgumentCount,
            Place::Length => ProtocolError::BulkLength,
        }
    }

    fn too_long(self) -> ProtocolError {
        match self {
            Place::Count => ProtocolError::CountTooLong,
            Place::Length => ProtocolError::LengthTooLong,
        }
    }
}

/// Reads a number as Redis does: no `+`, no zeros in front, no `-0`, nothing beside.
pub fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_plain = match digits {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', ..] => digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_plain {
        return None;
    }
    // Below zero there is room for one number more.
    let add = |number: i64, digit: &u8| number.checked_mul(10)?.checked_sub(i64::from(digit - b'0'));
    let negative = digits.iter().try_fold(0, add)?;
    if digits.len() < text.len() { Some(negative) } else { negative.checked_neg() }
}

/// The words of a line, which may be quoted: `"` with escapes, `'` without.
fn words(line: &[u8]) -> Result<Request, ProtocolError> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while !rest.is_empty() {
        let mut word = Vec::new();
        while let Some((&byte, after)) = rest.split_first() {
            if is_space(byte) {
                break;
            }
            rest = match byte {
                b'"' => quoted(after, &mut word)?,
                b'\'' => single_quoted(after, &mut word)?,
                _ => {
                    word.push(byte);
                    after
                }
            };
        }
        words.push(word.into());
        while let Some((&byte, after)) = rest.split_first()
            && is_space(byte)
        {
            rest = after;
        }
    }
    Ok(words)
}

fn is_space(byte: u8) -> bool {
    byte == 0 || byte.is_ascii_whitespace()
}

/// Reads up to the closing `"`, behind which a word must end.
fn quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [b'"', after @ ..] => return closed(after),
            [b'\\', b'x', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap_or_default() as u8;
                word.push(digit(high) * 16 + digit(low));
                rest = after;
            }
            [b'\\', escaped, after @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
            [] => return Err(ProtocolError::Quotes),
        }
    }
}

/// Reads up to the closing `'`, behind which a word must end.
fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [b'\'', after @ ..] => return closed(after),
            [b'\\', b'\'', after @ ..] => {
                word.push(b'\'');
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
            [] => return Err(ProtocolError::Quotes),
        }
    }
}

fn closed(after: &[u8]) -> Result<&[u8], ProtocolError> {
    match after.first() {
        Some(byte) if !is_space(*byte) => Err(ProtocolError::Quotes),
        _ => Ok(after),
    }
}

#[cfg(test)]
mod tests;
