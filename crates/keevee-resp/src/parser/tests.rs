use super::*;

const LIMITS: ParserLimits =
    ParserLimits { arguments_max: 8, bulk_bytes_max: 1 << 20, request_bytes_max: 2 << 20 };

/// Everything that these bytes hold, and the error that ends them.
fn all(bytes: &[u8]) -> (Vec<Vec<String>>, Option<ProtocolError>) {
    let whole = read_in_pieces(bytes, bytes.len());
    assert_eq!(whole, read_in_pieces(bytes, 1), "pieces change nothing");
    whole
}

fn read_in_pieces(bytes: &[u8], piece: usize) -> (Vec<Vec<String>>, Option<ProtocolError>) {
    let (mut parser, mut buffer, mut requests) = (Parser::new(LIMITS), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match parser.parse(&mut buffer) {
                Ok(Some(request)) => {
                    let text = |argument: &Bytes| argument.escape_ascii().to_string();
                    requests.push(request.iter().map(text).collect());
                }
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
    }
    (requests, None)
}

#[test]
fn arrays_of_bulk_strings_are_requests() {
    let (requests, error) =
        all(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n*3\r\n$0\r\n\r\n$2\r\n\r\n\r\n");
    assert_eq!((requests, error), (vec![vec!["GET".into(), "a".into()], vec!["PING".into()]], None));
    let (requests, _) = all(b"*2\r\n$2\r\n\r\n\r\n$2\r\n\x00\xff\r\n");
    assert_eq!(requests, [[r"\r\n", r"\x00\xff"]], "bytes of any kind");
}

#[test]
fn empty_requests_are_skipped() {
    let (requests, error) = all(b"*0\r\n*-1\r\n\r\n  \r\n\nPING\r\n");
    assert_eq!((requests, error), (vec![vec!["PING".to_owned()]], None));
}

#[test]
fn lines_are_requests_too() {
    let of = |line: &str| all(line.as_bytes()).0.pop().unwrap_or_default();
    assert_eq!(of("set  a 1\n"), ["set", "a", "1"]);
    assert_eq!(of("set \"a b\" 'c d'\r\n"), ["set", "a b", "c d"]);
    assert_eq!(of("echo \"\\x41\\n\\\"\" 'it\\'s'\r\n"), ["echo", r#"A\n\""#, r"it\'s"]);
    for line in ["echo \"a\r\n", "echo 'a\r\n", "echo \"a\"b\r\n"] {
        assert_eq!(all(line.as_bytes()).1, Some(ProtocolError::Quotes), "{line}");
    }
}

#[test]
fn what_is_wrong_is_told_as_redis_does() {
    for (bytes, text) in [
        (&b"*9\r\n"[..], "Protocol error: invalid multibulk length"),
        (b"*x\r\n", "Protocol error: invalid multibulk length"),
        (b"*01\r\n", "Protocol error: invalid multibulk length"),
        (b"*99999999999999999999\r\n", "Protocol error: invalid multibulk length"),
        (b"*1\r\n:1\r\n", "Protocol error: expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$536870912\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$1\rx", "Protocol error: invalid bulk length"),
        (b"*1\r\n$1\r\nabc", "Protocol error: expected CRLF behind a bulk"),
    ] {
        let (requests, error) = all(bytes);
        assert_eq!((requests, error.map(|error| error.to_string())), (vec![], Some(text.to_owned())));
    }
}

#[test]
fn nothing_is_kept_room_for_before_its_length_is_checked() {
    let (mut parser, mut buffer) = (Parser::new(LIMITS), BytesMut::from(&b"*1\r\n$536870912\r\n"[..]));
    assert_eq!(parser.parse(&mut buffer), Err(ProtocolError::BulkLength));
    assert_eq!(parser.needs(&buffer), 0);
    let (mut parser, mut buffer) = (Parser::new(LIMITS), BytesMut::from(&b"*1\r\n$1048576\r\n"[..]));
    assert_eq!(parser.parse(&mut buffer), Ok(None));
    assert_eq!(parser.needs(&buffer), (1 << 20) + 2);
    assert!(!parser.is_idle(&buffer));
}

#[test]
fn a_request_is_bounded_as_a_whole() {
    let mut bytes = b"*3\r\n".to_vec();
    for _ in 0..2 {
        bytes.extend_from_slice(b"$1000000\r\n");
        bytes.extend_from_slice(&[b'x'; 1_000_000]);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"$1000000\r\n");
    assert_eq!(read_in_pieces(&bytes, 1 << 16).1, Some(ProtocolError::RequestTooLarge));
}

#[test]
fn lines_are_bounded() {
    let long = vec![b'a'; LINE_BYTES_MAX];
    assert_eq!(read_in_pieces(&long, 1 << 12).1, Some(ProtocolError::LineTooLong));
    let long = [b"*", &vec![b'1'; LINE_BYTES_MAX][..]].concat();
    assert_eq!(read_in_pieces(&long, 1 << 12).1, Some(ProtocolError::CountTooLong));
    let long = [b"*1\r\n$", &vec![b'1'; LINE_BYTES_MAX][..]].concat();
    assert_eq!(read_in_pieces(&long, 1 << 12).1, Some(ProtocolError::LengthTooLong));
}

#[test]
fn numbers_are_plain() {
    for (text, number) in
        [("0", 0), ("-1", -1), ("9223372036854775807", i64::MAX), ("-9223372036854775808", i64::MIN)]
    {
        assert_eq!(integer(text.as_bytes()), Some(number));
    }
    for text in ["", "-", "+1", "01", "-0", "1 ", "0x1", "9223372036854775808", "1.0"] {
        assert_eq!(integer(text.as_bytes()), None, "{text}");
    }
}
