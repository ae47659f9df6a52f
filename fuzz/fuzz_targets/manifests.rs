//! A backup's manifest, and the file of a shard: read or refused, never more room than a key and a value may take, and the
//! same however the bytes are cut.
#![no_main]

use keevee_core::cut::{CutError, Decoder, End, Head, Record};
use keevee_fuzz::backup::read_manifest;
use libfuzzer_sys::fuzz_target;

type Read = (Vec<Record>, Result<(Head, End), CutError>);

fn read(bytes: &[u8], piece: usize) -> Read {
    let (mut decoder, mut records) = (Decoder::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next_record() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(error) => return (records, Err(error)),
            }
        }
    }
    (records, decoder.finish())
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else { return };
    match piece {
        0 => read_manifest(bytes),
        piece => assert_eq!(read(bytes, bytes.len().max(1)), read(bytes, usize::from(*piece))),
    }
});
