//! What peers send, of both engines, as an item of gRPC's or a post of JSON's: it is read or refused, never more, and what
//! is read means the same once it is written again.
#![no_main]

use bytes::Bytes;
use keevee_fuzz::transport::{read_item, read_post};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // By the first byte: seeds are made by hand.
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind.checked_sub(1) {
        None => read_item(Bytes::copy_from_slice(bytes)),
        Some(path) => read_post(path, bytes),
    }
});
