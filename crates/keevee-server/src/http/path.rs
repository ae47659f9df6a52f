//! Keys and values in the raw path.
//!
//! Keys are bytes, so nothing here assumes UTF-8: a path is split at raw slashes first and decoded then,
//! so that `%2F` is part of a key and `/` is not.

use bytes::Bytes;

/// What follows `/kv/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The key's bytes.
    pub(super) key: Bytes,
    /// The value's bytes, if there is a slash after the key.
    pub(super) value: Option<Bytes>,
}

/// A `%` that two hexadecimal digits do not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "bad percent-encoding: the % at byte {position} of `{part}` must be followed by two hexadecimal digits"
)]
pub(super) struct BadEncoding {
    /// Where the text comes from.
    pub(super) part: &'static str,
    /// Where in it, from 0.
    pub(super) position: usize,
}

/// Reads what follows `/kv/`: the first raw slash ends the key; all others belong to the value.
pub(super) fn parse(rest: &str) -> Result<Target, BadEncoding> {
    let (key, value) = match rest.split_once('/') {
        Some((key, value)) => (key, Some(value)),
        None => (rest, None),
    };
    let value = value.map(|value| decode(value, "value")).transpose()?;
    Ok(Target { key: decode(key, "key")?, value })
}

/// Percent-decodes; `+` is a plus.
pub(super) fn decode(text: &str, part: &'static str) -> Result<Bytes, BadEncoding> {
    if !text.contains('%') {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        if *first != b'%' {
            decoded.push(*first);
            rest = others;
            continue;
        }
        let bad = || BadEncoding { part, position: text.len() - rest.len() };
        let [high, low, others @ ..] = others else { return Err(bad()) };
        let (high, low) = (digit(*high).ok_or_else(bad)?, digit(*low).ok_or_else(bad)?);
        decoded.push(high << 4 | low);
        rest = others;
    }
    Ok(decoded.into())
}

fn digit(character: u8) -> Option<u8> {
    char::from(character).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows `/kv/`, then the key and the value in it.
    type Case = (&'static str, &'static [u8], Option<&'static [u8]>);

    #[test]
    fn keys_and_values_are_decoded_bytes() {
        let cases: [Case; 14] = [
            ("key", b"key", None),
            ("key/value", b"key", Some(b"value")),
            ("key/", b"key", Some(b"")),
            ("key/a/b//c/", b"key", Some(b"a/b//c/")),
            ("a%2Fb", b"a/b", None),
            ("a%2fb/c%2Fd/e", b"a/b", Some(b"c/d/e")),
            ("%00%ff%25", b"\x00\xff%", None),
            ("a+b%20c/1+1", b"a+b c", Some(b"1+1")),
            ("..", b"..", None),
            ("./..", b".", Some(b"..")),
            ("schl\u{fc}ssel", "schl\u{fc}ssel".as_bytes(), None),
            ("%C3%BC", "\u{fc}".as_bytes(), None),
            ("", b"", None),
            ("/value", b"", Some(b"value")),
        ];
        for (rest, key, value) in cases {
            let expected =
                Target { key: key.to_vec().into(), value: value.map(|value| value.to_vec().into()) };
            assert_eq!(parse(rest), Ok(expected), "{rest}");
        }
    }

    #[test]
    fn bad_encodings_are_located() {
        for (rest, part, position) in [
            ("%", "key", 0),
            ("ab%", "key", 2),
            ("ab%1", "key", 2),
            ("%20%zz", "key", 3),
            ("%+1", "key", 0),
            ("%\u{fc}", "key", 0),
            ("%2", "key", 0),
            ("%2/0", "key", 0),
            ("key/%%", "value", 0),
            ("key/a/%4g", "value", 2),
        ] {
            assert_eq!(parse(rest), Err(BadEncoding { part, position }), "{rest}");
        }
    }
}
