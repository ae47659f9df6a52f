//! The parser of the Redis protocol: it never panics, never asks for more room than its limits allow, and reads the same
//! requests however the bytes are cut into pieces.
#![no_main]

use bytes::BytesMut;
use keevee_resp::parser::{Parser, ParserLimits, ProtocolError, Request};
use libfuzzer_sys::fuzz_target;

const LIMITS: ParserLimits = ParserLimits { arguments_max: 64, bulk_bytes_max: 4096, request_bytes_max: 8192 };

fn read(bytes: &[u8], piece: usize) -> (Vec<Request>, Option<ProtocolError>) {
    let (mut parser, mut buffer, mut requests) = (Parser::new(LIMITS), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            match parser.parse(&mut buffer) {
                Ok(Some(request)) => {
                    assert!(!request.is_empty() && request.len() <= 65_536);
                    requests.push(request);
                }
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
        assert!(parser.needs(&buffer) <= LIMITS.bulk_bytes_max + 2);
    }
    (requests, None)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, usize::from(piece).max(1)));
});
