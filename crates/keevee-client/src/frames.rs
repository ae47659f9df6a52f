//! gRPC's messages in the bodies of one `Pipeline` call: each is one byte that says whether it is compressed, its
//! length in four bytes, and so many bytes (gRPC over HTTP2, "Length-Prefixed-Message").
//!
//! This is all of gRPC that a client of one method needs over hyper's HTTP/2; a library for it would cost more than
//! it saves. It leaves out compression, which the nodes refuse too.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use keevee_core::error::ErrorKind;
use prost::Message;

/// Whether it is compressed, and its length.
const HEADER_BYTES: usize = 5;
/// No node sends more, since the values of one answer have a bound of 256 MiB, or takes as much.
pub(crate) const MESSAGE_BYTES_MAX: usize = 257 << 20;

/// Appends a message of at most [`MESSAGE_BYTES_MAX`] with its header.
pub(crate) fn write(message: &impl Message, buffer: &mut BytesMut) {
    let length = message.encoded_len();
    buffer.reserve(HEADER_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(length as u32);
    message.encode(buffer).expect("a growing buffer has room");
}

/// What came and is not yet a whole message.
#[derive(Default)]
pub(crate) struct Reader {
    buffer: BytesMut,
}

/// Why bytes are no messages: the stream they came on is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("a message is compressed, or is none; is this a keevee node?")]
    Compressed,
    #[error("a message has {0} bytes, which is more than any answer has")]
    TooLarge(usize),
}

impl Reader {
    pub(crate) fn push(&mut self, data: Bytes) {
        self.buffer.extend_from_slice(&data);
    }

    /// The next message's bytes, if all of them are here.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Unreadable> {
        let Some(mut header) = self.buffer.get(..HEADER_BYTES) else { return Ok(None) };
        let (is_compressed, length) = (header.get_u8(), header.get_u32() as usize);
        if is_compressed != 0 {
            return Err(Unreadable::Compressed);
        }
        if length > MESSAGE_BYTES_MAX {
            return Err(Unreadable::TooLarge(length));
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// Why a node ended the stream, by its trailers: a kind if it is one of keevee's, and a text.
pub(crate) fn end_of_stream(trailers: &HeaderMap) -> (Option<ErrorKind>, String) {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    let kind = text("keevee-kind").and_then(ErrorKind::from_name);
    let detail = match (text("grpc-status"), text("grpc-message")) {
        (_, Some(message)) => percent_encoding::percent_decode_str(message).decode_utf8_lossy().into_owned(),
        (Some(status), None) => format!("it ended the stream, status {status}"),
        (None, None) => "the stream ended".to_owned(),
    };
    (kind, detail)
}

#[cfg(test)]
mod tests {
    use keevee_core::kv;

    use super::*;

    #[test]
    fn messages_come_in_pieces_of_any_size() {
        let messages: Vec<kv::Response> =
            (0..5).map(|sequence| kv::Response { sequence, ..kv::Response::default() }).collect();
        let mut bytes = BytesMut::new();
        messages.iter().for_each(|message| write(message, &mut bytes));
        for size in 1..=bytes.len() {
            let (mut reader, mut read) = (Reader::default(), Vec::new());
            for piece in bytes.chunks(size) {
                reader.push(Bytes::copy_from_slice(piece));
                while let Some(message) = reader.next().expect("messages") {
                    read.push(kv::Response::decode(message).expect("a response"));
                }
            }
            assert_eq!(read, messages, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused_before_memory_is_taken_for_it() {
        let mut reader = Reader::default();
        reader.push(Bytes::from_static(&[1, 0, 0, 0, 1, 0]));
        assert_eq!(reader.next(), Err(Unreadable::Compressed));
        let mut reader = Reader::default();
        reader.push(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff]));
        assert_eq!(reader.next(), Err(Unreadable::TooLarge(u32::MAX as usize)));
    }

    #[test]
    fn trailers_say_why_a_stream_ended() {
        let trailers = HeaderMap::from_iter([
            ("grpc-status".parse().expect("a name"), "14".parse().expect("a value")),
            ("grpc-message".parse().expect("a name"), "it%20stops".parse().expect("a value")),
            (http::HeaderName::from_static("keevee-kind"), "unavailable".parse().expect("a value")),
        ]);
        assert_eq!(end_of_stream(&trailers), (Some(ErrorKind::Unavailable), "it stops".to_owned()));
        assert_eq!(end_of_stream(&HeaderMap::new()), (None, "the stream ended".to_owned()));
    }
}
