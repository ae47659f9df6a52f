//! Every record of `log/` and `data/`, of both engines, and what is within an entry: it is read or refused, and what is
//! read comes back the same once it is written again.
#![no_main]

use bytes::Bytes;
use keevee_core::codec;
use keevee_core::shard_map::codec as shard_map;
use keevee_core::slots::SlotSet;
use keevee_fuzz::storage::format;
use keevee_raft::records as raft;
use keevee_replica::records as paxos;
use libfuzzer_sys::fuzz_target;

/// Reads, writes and reads again.
macro_rules! comes_back {
    ($read:expr, $write:expr, $bytes:expr) => {{
        let read = $read;
        if let Ok(first) = read($bytes) {
            let second = read(Bytes::from($write(&first))).expect("what was written");
            assert_eq!(first, second);
        }
    }};
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, record)) = input.split_first() else { return };
    let bytes = Bytes::copy_from_slice(record);
    match kind {
        0 => comes_back!(|bytes| paxos::decode_entry(7, bytes), paxos::encode_entry, bytes),
        1 => comes_back!(paxos::decode_hard_state, paxos::encode_hard_state, bytes),
        2 => comes_back!(|bytes| raft::decode_entry(7, bytes), raft::encode_entry, bytes),
        3 => comes_back!(raft::decode_hard_state, raft::encode_hard_state, bytes),
        4 => comes_back!(codec::decode_entry, codec::encode_entry, bytes),
        5 => comes_back!(codec::decode_command, codec::encode_command, bytes),
        6 => comes_back!(codec::decode_outcome, codec::encode_outcome, bytes),
        7 => comes_back!(codec::decode_request, codec::encode_request, bytes),
        8 => comes_back!(|bytes| codec::decode_meta(bytes, SlotSet::all()), codec::encode_meta, bytes),
        9 => comes_back!(shard_map::decode, shard_map::encode, bytes),
        10 => comes_back!(|bytes: Bytes| format::decode_value(&bytes), format::encode_value, bytes),
        11 => comes_back!(|bytes: Bytes| format::decode_identity(&bytes), format::encode_identity, with_version(&bytes)),
        12 => comes_back!(
            |bytes: Bytes| format::decode_first_members(&bytes),
            |members: &Vec<_>| format::encode_first_members(members),
            bytes
        ),
        _ => {
            let _ = (format::decode_engine(record), format::decode_incarnation(record), format::decode_index(record));
            let _ = (format::entry_index(record), format::user_key(record), format::snapshot_key(record));
            let _ = (format::decode_expiry(record), format::decode_request(record), format::identity_version(record));
            if let Ok(slots) = format::decode_owned(Some(record)) {
                assert_eq!(format::decode_owned(Some(&slots.to_bytes())).expect("what was written"), slots);
            }
        }
    }
});

/// Whoever reads an identity has checked its version before.
fn with_version(bytes: &Bytes) -> Bytes {
    let rest = bytes.get(4..).unwrap_or_default();
    [&format::FORMAT_VERSION.to_be_bytes(), rest].concat().into()
}
