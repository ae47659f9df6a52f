//! The bytes on disk, as version 3 writes them. A change here is a change of the format: such a folder
//! must be refused or converted, so raise the version.

use keevee_core::slots::Slot;

use super::*;

const SHARD: ShardId = ShardId(0x0102_0304);
const INCARNATION: Incarnation = Incarnation(5);

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn store(byte: u8) -> StoreId {
    StoreId(Uuid::from_bytes([byte; 16]))
}

fn request(time: u64, id: RequestId) -> RequestRecord {
    RequestRecord { time, id, payload_hash: 9, outcome: Bytes::from_static(b"outcome") }
}

#[test]
fn keys_of_the_log_are_as_in_version_3() {
    assert_eq!(hex(hard_state_key(SHARD)), "0102030401");
    assert_eq!(hex(entry_key(SHARD, 0x0708)), "01020304020000000000000708");
    assert_eq!(hex(entries_end(SHARD)), "0102030403");
    assert_eq!(hex(trimmed_key(SHARD)), "0102030403");
    assert_eq!(hex(node_key(NodeKind::Identity)), "ffffffff01");
    assert_eq!(hex(node_key(NodeKind::FirstMembers)), "ffffffff02");
    assert_eq!(hex(node_key(NodeKind::Journaled)), "ffffffff04");
    assert_eq!(hex(node_key(NodeKind::Segments)), "ffffffff05");
    assert_eq!(hex(node_key(NodeKind::Reached)), "ffffffff06");
}

#[test]
fn keys_of_the_state_are_as_in_version_3() {
    assert_eq!(hex(meta_key(SHARD, INCARNATION)), "01020304000000050100000000");
    assert_eq!(hex(owned_key(SHARD, INCARNATION)), "01020304000000050700000000");
    let key = value_key(SHARD, INCARNATION, Namespace(6), b"key");
    assert_eq!(hex(key), "010203040000000502000000066b6579");
    let timed = request(7, RequestId::Timed(8));
    let expected = "01020304000000050300000000000000000000000701";
    let expected = format!("{expected}00000000000000000000000000000008");
    assert_eq!(hex(request_key(SHARD, INCARNATION, &timed)), expected);
    let free = request(7, RequestId::Free(8));
    assert_eq!(hex(&request_key(SHARD, INCARNATION, &free)[13..22]), "000000000000000702");
}

#[test]
fn an_expiry_is_as_in_version_3() {
    let place = (Namespace(6), Bytes::from_static(b"key"));
    let key = expiry_key(SHARD, INCARNATION, 7, &place);
    assert_eq!(hex(&key), "01020304000000050800000000000000000000000700000006".to_owned() + "6b6579");
    assert_eq!(decode_expiry(&key), Ok((7, place.clone())));
    assert!(matches!(decode_expiry(&key[..24]), Err(StorageError::Corrupt { .. })));
    for (latest, is_in) in [(6, false), (7, true), (u64::MAX, true)] {
        let (from, end) = expiry_bounds(SHARD, INCARNATION, latest);
        assert_eq!(from <= key && key < end, is_in, "{latest}");
    }
    let (_, end) = expiry_bounds(SHARD, INCARNATION, u64::MAX);
    assert!(expiry_key(SHARD, INCARNATION, u64::MAX, &place) < end);
}

#[test]
fn bounds_of_a_range_hold_the_keys_of_its_namespace_alone() {
    let key = |namespace, key: &[u8]| value_key(SHARD, INCARNATION, Namespace(namespace), key);
    let bounds = |namespace, start: &'static str, end: Option<&'static str>| {
        let range = KeyRange { start: start.into(), end: end.map(Bytes::from) };
        value_bounds(SHARD, INCARNATION, Namespace(namespace), &range)
    };
    assert_eq!(bounds(6, "a", Some("b")), (key(6, b"a"), key(6, b"b")));
    assert_eq!(bounds(6, "a", None), (key(6, b"a"), key(7, b"")));
    assert_eq!(bounds(6, "b", Some("a")), (key(6, b"b"), key(6, b"b")), "never crossed");
    let (from, end) = bounds(u32::MAX, "", None);
    assert!(from < key(u32::MAX, b"\xff\xff") && key(u32::MAX, b"\xff\xff") < end);
    assert!(end <= request_bounds(SHARD, INCARNATION).0);
    assert_eq!(user_key(&key(6, b"\x00key")).unwrap(), &b"\x00key"[..]);
    assert!(user_key(&[0; 12]).is_err());
}

#[test]
fn reserved_kinds_keep_their_numbers() {
    assert_eq!(LogKind::Incarnation as u8, 4);
    assert_eq!(DataKind::Intent as u8, 4);
    assert_eq!(DataKind::Change as u8, 5);
    assert_eq!(DataKind::SnapshotMark as u8, 6);
}

#[test]
fn a_value_is_as_in_version_3() {
    let value = Versioned { version: 1, stamp: 2, expires: None, value: Bytes::from_static(b"v") };
    let bytes = encode_value(&value);
    assert_eq!(hex(&bytes), "00000000000000010000000000000002000000000000000076");
    assert_eq!(decode_value(&bytes), Ok(value.clone()));
    let value = Versioned { expires: Some(3), ..value };
    let bytes = encode_value(&value);
    assert_eq!(hex(&bytes), "00000000000000010000000000000002000000000000000376");
    assert_eq!(decode_value(&bytes), Ok(value));
    assert!(matches!(decode_value(&bytes[..23]), Err(StorageError::Corrupt { .. })));
}

#[test]
fn a_meta_record_is_as_in_version_3() {
    let meta = ShardMeta {
        applied: 1,
        time: 2,
        version: 3,
        chain: 4,
        owned: SlotSet::all(),
        request_horizon: 5,
        expiring: 6,
    };
    let bytes = codec::encode_meta(&meta);
    let expected = "0801100119020000000000000020032a10000000000000000000000000000000";
    assert_eq!(hex(&bytes), format!("{expected}043905000000000000004006"));
    assert_eq!(decode_meta(&bytes, SlotSet::all()), Ok(meta));
    assert!(matches!(decode_meta(b"\xff", SlotSet::all()), Err(StorageError::Corrupt { .. })));
}

#[test]
fn owned_slots_are_there_and_whole() {
    let mut owned = SlotSet::all();
    owned.remove(Slot(77));
    assert_eq!(decode_owned(Some(&owned.to_bytes())), Ok(owned));
    assert!(matches!(decode_owned(Some(b"\xff")), Err(StorageError::Corrupt { .. })));
    assert!(matches!(decode_owned(None), Err(StorageError::Corrupt { .. })));
}

#[test]
fn a_request_record_is_as_in_version_3() {
    let record = request(7, RequestId::Timed(8));
    let bytes = codec::encode_request(&record);
    let expected = "08011107000000000000001a120a100000000000000000000000000000000822";
    let expected = format!("{expected}10000000000000000000000000000000092a076f7574636f6d65");
    assert_eq!(hex(&bytes), expected);
    assert_eq!(decode_request(&bytes), Ok(record));
    assert!(matches!(decode_request(b"\xff"), Err(StorageError::Corrupt { .. })));
}

#[test]
fn an_identity_is_as_in_version_3() {
    let cluster_id = Uuid::from_bytes([0xcc; 16]);
    let identity = Identity { cluster_id, node_id: NodeId(2), store_id: store(0xdd) };
    let bytes = encode_identity(&identity);
    let (cluster, store) = ("cc".repeat(16), "dd".repeat(16));
    assert_eq!(hex(&bytes), format!("00000003{cluster}0000000000000002{store}"));
    assert_eq!(identity_version(&bytes), Ok(3));
    assert_eq!(decode_identity(&bytes), Ok(identity));
    assert!(decode_identity(&bytes[..43]).is_err());
    assert!(decode_identity(&[bytes.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn first_members_are_as_in_version_3() {
    let members = [(NodeId(1), store(0xaa)), (NodeId(2), store(0xbb))];
    let bytes = encode_first_members(&members);
    let (a, b) = ("aa".repeat(16), "bb".repeat(16));
    assert_eq!(hex(&bytes), format!("000000020000000000000001{a}0000000000000002{b}"));
    assert_eq!(decode_first_members(&bytes), Ok(members.to_vec()));
    assert!(decode_first_members(&bytes[..bytes.len() - 1]).is_err());
    assert!(decode_first_members(b"\xff\xff\xff\xff").is_err());
}

#[test]
fn marks_and_indexes_are_read_back() {
    assert_eq!(hex(encode_index(0x0102)), "0000000000000102");
    assert_eq!(decode_index(&encode_index(u64::MAX)), Ok(u64::MAX));
    assert!(decode_index(b"1234567").is_err());
    assert_eq!(entry_index(&entry_key(SHARD, 77)), Ok(77));
    assert!(entry_index(b"123").is_err());
}

#[test]
fn keys_sort_by_shard_incarnation_kind_namespace_and_user_key() {
    let key = |shard, incarnation, namespace, key: &[u8]| {
        value_key(ShardId(shard), Incarnation(incarnation), Namespace(namespace), key)
    };
    let sorted = [
        meta_key(ShardId(1), Incarnation(0)).to_vec(),
        key(1, 0, 0, b""),
        key(1, 0, 0, b"a"),
        key(1, 0, 0, b"b"),
        key(1, 0, 1, b"a"),
        request_bounds(ShardId(1), Incarnation(0)).0,
        request_key(ShardId(1), Incarnation(0), &request(1, RequestId::Free(1))),
        request_key(ShardId(1), Incarnation(0), &request(256, RequestId::Timed(0))),
        request_bounds(ShardId(1), Incarnation(0)).1,
        key(1, 1, 0, b"a"),
        key(256, 0, 0, b"a"),
    ];
    assert!(sorted.is_sorted());
}
