//! `SET` and `GET` of the Redis protocol, as much as a load needs: arrays of bulk strings.

use std::io;

/// A command as it lies in a connection's buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Set { key: &'a [u8], value: &'a [u8] },
    Get { key: &'a [u8] },
    Other,
}

/// The first command of a buffer and its length; `None` if it is not all there yet.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Option<(Command<'_>, usize)>> {
    let mut rest = Rest { bytes, at: 0 };
    let Some(count) = rest.number(b'*')? else { return Ok(None) };
    let mut arguments: [&[u8]; 3] = [b""; 3];
    for number in 0..count {
        let Some(argument) = rest.bulk()? else { return Ok(None) };
        if let Some(place) = arguments.get_mut(number) {
            *place = argument;
        }
    }
    let [name, key, value] = arguments;
    let command = match count {
        3 if name.eq_ignore_ascii_case(b"SET") => Command::Set { key, value },
        2 if name.eq_ignore_ascii_case(b"GET") => Command::Get { key },
        _ => Command::Other,
    };
    Ok(Some((command, rest.at)))
}

/// Appends a value as a reply.
pub(super) fn bulk(reply: &mut Vec<u8>, value: &[u8]) {
    reply.extend_from_slice(format!("${}\r\n", value.len()).as_bytes());
    reply.extend_from_slice(value);
    reply.extend_from_slice(b"\r\n");
}

struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn bulk(&mut self) -> io::Result<Option<&'a [u8]>> {
        let Some(length) = self.number(b'$')? else { return Ok(None) };
        let argument = self.bytes.get(self.at..self.at + length + 2);
        self.at += length + 2;
        Ok(argument.map(|argument| &argument[..length]))
    }

    /// A line of this mark and a number.
    fn number(&mut self, mark: u8) -> io::Result<Option<usize>> {
        let line = self.bytes.get(self.at..).unwrap_or_default();
        let Some(end) = line.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        self.at += end + 1;
        let digits = line[..end].strip_prefix(&[mark]).and_then(|line| line.strip_suffix(b"\r"));
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let number = number.filter(|number| *number < 64 << 20);
        number.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a command"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_cut_out_of_what_has_come() {
        let set = b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$4\r\na\r\nb\r\n";
        let expected = Command::Set { key: b"key", value: b"a\r\nb" };
        assert_eq!(parse(set).expect("a command"), Some((expected, set.len())));
        for cut in 0..set.len() {
            assert_eq!(parse(&set[..cut]).expect("no error"), None, "cut at {cut}");
        }
        let get = b"*2\r\n$3\r\nget\r\n$1\r\nk\r\n*1\r\n";
        assert_eq!(parse(get).expect("a command"), Some((Command::Get { key: b"k" }, get.len() - 4)));
        assert!(parse(b"GET k\r\n").is_err());
    }
}
