use super::*;
use crate::codec::encode_outcome;
use crate::slots::SlotSet;

const SECOND: u64 = 1_000_000;
const NOW: u64 = 1_000_000 * SECOND;

fn meta() -> ShardMeta {
    ShardMeta { time: NOW, ..ShardMeta::new(SlotSet::all()) }
}

/// A UUIDv7 of this time (a multiple of 1,000) and random part.
fn timed(micros: u64, random: u64) -> RequestId {
    let bits = u128::from(micros / 1_000) << 80 | 7 << 76 | 2 << 62 | u128::from(random);
    RequestId::Timed(bits)
}

fn record(id: RequestId, time: u64) -> RequestRecord {
    let outcome = encode_outcome(&Outcome::Done(vec![]));
    RequestRecord { time, id, payload_hash: 1, outcome }
}

fn timed_record(time: u64, random: u64) -> RequestRecord {
    record(timed(time, random), time)
}

fn admit(memory: &mut RequestMemory, meta: &mut ShardMeta, record: RequestRecord) -> Result<(), Outcome> {
    memory.admit(record, meta, &mut RequestChanges::default())
}

#[test]
fn a_uuid_v7_carries_its_time() {
    let id = RequestId::from_idempotency_key(b"017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    // The example of RFC 9562, appendix A.6.
    assert_eq!(id, RequestId::Timed(0x017f22e2_79b0_7cc3_98c4_dc0c0c07398f));
    assert_eq!(id.issued_at_micros(), Some(1_645_557_742_000_000));
    assert_eq!(RequestId::from_idempotency_key(b"017F22E279B07CC398C4DC0C0C07398F"), id);
    let quoted = b"\"017f22e2-79b0-7cc3-98c4-dc0c0c07398f\"";
    assert_eq!(RequestId::from_idempotency_key(quoted), id);
}

#[test]
fn any_other_key_is_free_form() {
    for key in [
        &b""[..],
        b"order 17",
        b"\xff\xfe",
        b"919108f7-52d1-4320-9bac-f847db4148a8",
        b"017f22e2-79b0-7cc3-18c4-dc0c0c07398f",
    ] {
        let id = RequestId::from_idempotency_key(key);
        assert_eq!(id, RequestId::Free(xxh3_128(key)));
        assert_eq!(id.issued_at_micros(), None);
    }
    let one = RequestId::from_idempotency_key(b"order 17");
    assert_ne!(one, RequestId::from_idempotency_key(b"order 18"));
    assert_eq!(one, RequestId::from_idempotency_key(b"\"order 17\""));
}

/// Stored with records: if these change, retries across an upgrade are refused as reused.
#[test]
fn hashes_are_the_same_in_every_version() {
    let id = RequestId::from_idempotency_key(b"order 17");
    assert_eq!(id, RequestId::Free(FREE_FIXTURE));
    let mut command = Command::single(Action::Increment { key: "k".into(), by: -1 });
    assert_eq!(payload_hash(&command), PAYLOAD_FIXTURE);
    command.request_id = Some(id);
    assert_eq!(payload_hash(&command), PAYLOAD_FIXTURE);
}

const FREE_FIXTURE: u128 = 0x87c4c04b43ea728b7b255245cac3bb0f;
const PAYLOAD_FIXTURE: u128 = 0x85ec7a0e78318ba4d547079e1d197128;

#[test]
fn a_step_has_an_id_of_its_own_that_follows_from_the_requests() {
    for request in [timed(NOW, 5), RequestId::Free(5)] {
        let step = request.of_step(ShardId(1), Some(b"a"));
        assert_eq!(step, request.of_step(ShardId(1), Some(b"a")));
        assert_eq!(step.issued_at_micros(), request.issued_at_micros());
        for (shard, start) in [(2, Some(&b"a"[..])), (1, Some(b"b")), (1, None)] {
            assert!(![step, request].contains(&request.of_step(ShardId(shard), start)));
        }
    }
    let RequestId::Timed(bits) = timed(NOW, 5).of_step(ShardId(1), Some(b"a")) else { panic!() };
    assert!(is_version_7(&Uuid::from_u128(bits)), "on the wire it is a UUIDv7 as before");
}

#[test]
fn the_payload_hash_covers_every_field() {
    use crate::command::{Operation, Precondition};
    use crate::ids::Namespace;
    let base = || Command::single(Action::put("k", "v"));
    let with_action = |action| Command::single(action);
    let with_condition = |expect| {
        let preconditions = vec![Precondition { key: "k".into(), expect }];
        Command { preconditions, ..base() }
    };
    let range =
        |start: &'static str, end: &'static str| KeyRange { start: start.into(), end: Some(end.into()) };
    let continuing = Operation { on_error: OnError::Continue, ..base().operations[0].clone() };
    let twice = [base().operations, base().operations].concat();
    let mut hashes: Vec<u128> = [
        base(),
        Command { namespace: Namespace(1), ..base() },
        Command { operations: vec![], ..base() },
        Command { operations: twice, ..base() },
        Command { operations: vec![continuing], ..base() },
        with_action(Action::put("kv", "")),
        with_action(Action::Append { key: "k".into(), suffix: "v".into() }),
        with_action(Action::Get { key: "k".into() }),
        with_action(Action::Delete { key: "k".into() }),
        with_action(Action::Increment { key: "k".into(), by: 1 }),
        with_action(Action::Increment { key: "k".into(), by: 2 }),
        with_action(Action::Scan { range: range("k", "v"), limit: 1, bytes_max: 1 }),
        with_action(Action::Scan { range: range("k", "v"), limit: 1, bytes_max: 2 }),
        with_action(Action::DeleteRange { range: range("k", "v"), limit: 1 }),
        with_action(Action::DeleteRange { range: range("k", "v"), limit: 2 }),
        with_action(Action::DeleteRange { range: range("kv", ""), limit: 1 }),
        with_action(Action::DeleteRange { range: KeyRange { end: None, ..range("kv", "") }, limit: 1 }),
        with_condition(Expect::Absent),
        with_condition(Expect::Present),
        with_condition(Expect::Version(1)),
        with_condition(Expect::Version(2)),
    ]
    .iter()
    .map(payload_hash)
    .collect();
    let count = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), count);
}

#[test]
fn the_window_is_from_10_minutes_before_to_1_minute_after() {
    let is_in_window = |time| timed(time, 0).is_in_window(&meta());
    assert!(is_in_window(NOW - 600 * SECOND));
    assert!(is_in_window(NOW + 60 * SECOND));
    assert!(!is_in_window(NOW - 600 * SECOND - 1_000));
    assert!(!is_in_window(NOW + 60 * SECOND + 1_000));
    assert!(RequestId::Free(0).is_in_window(&meta()));
}

#[test]
fn ids_below_the_horizon_are_out_of_the_window() {
    let meta = ShardMeta { request_horizon: NOW - 100 * SECOND, ..meta() };
    assert!(timed(NOW - 100 * SECOND, 0).is_in_window(&meta));
    assert!(!timed(NOW - 100 * SECOND - 1_000, 0).is_in_window(&meta));
}

#[test]
fn a_record_lives_until_its_own_time_leaves_the_window() {
    let mut memory = RequestMemory::new(10);
    let future = timed_record(NOW + 60 * SECOND, 1);
    let free = record(RequestId::Free(2), NOW);
    admit(&mut memory, &mut meta(), future.clone()).unwrap();
    admit(&mut memory, &mut meta(), free.clone()).unwrap();

    let mut changes = RequestChanges::default();
    let mut forget_at = |memory: &mut RequestMemory, time| {
        let meta = ShardMeta { time, ..meta() };
        memory.forget_expired(&meta, &mut changes);
    };
    forget_at(&mut memory, NOW + 600 * SECOND);
    assert_eq!(memory.len(), 2);
    forget_at(&mut memory, NOW + 600 * SECOND + 1);
    assert_eq!(memory.records().collect::<Vec<_>>(), [&future]);
    forget_at(&mut memory, NOW + 660 * SECOND);
    assert!(memory.lookup(future.id).is_some());
    forget_at(&mut memory, NOW + 660 * SECOND + 1);
    assert!(memory.is_empty());
    assert_eq!(changes.removed, [free, future]);
}

#[test]
fn when_full_the_oldest_goes_and_the_horizon_rises() {
    let (mut memory, mut meta) = (RequestMemory::new(2), meta());
    for age in [300, 200] {
        admit(&mut memory, &mut meta, timed_record(NOW - age * SECOND, 1)).unwrap();
    }
    assert_eq!(meta.request_horizon, 0);
    admit(&mut memory, &mut meta, timed_record(NOW, 1)).unwrap();
    assert_eq!(meta.request_horizon, NOW - 300 * SECOND + 1);
    assert_eq!(memory.len(), 2);
    assert!(!timed(NOW - 300 * SECOND, 1).is_in_window(&meta));
    assert!(timed(NOW - 200 * SECOND, 1).is_in_window(&meta));
}

#[test]
fn records_of_one_time_go_together() {
    let (mut memory, mut meta) = (RequestMemory::new(3), meta());
    for (age, random) in [(300, 1), (300, 2), (200, 3), (100, 4)] {
        admit(&mut memory, &mut meta, timed_record(NOW - age * SECOND, random)).unwrap();
    }
    let kept: Vec<u64> = memory.records().map(|record| record.time).collect();
    assert_eq!(kept, [NOW - 200 * SECOND, NOW - 100 * SECOND]);
}

#[test]
fn the_horizon_stays_60_seconds_behind() {
    let (mut memory, mut meta) = (RequestMemory::new(1), meta());
    admit(&mut memory, &mut meta, timed_record(NOW - 60 * SECOND, 1)).unwrap();
    let before = (meta.clone(), memory.clone());
    let refusal = admit(&mut memory, &mut meta, timed_record(NOW, 2)).unwrap_err();
    assert_eq!(refusal, Outcome::RequestMemoryFull);
    assert_eq!((&before.0, before.1.len()), (&meta, memory.len()));

    meta.time += 1;
    admit(&mut memory, &mut meta, timed_record(NOW, 2)).unwrap();
    assert_eq!(meta.request_horizon, meta.time - 60 * SECOND);
}

#[test]
fn a_request_that_would_go_next_is_refused_as_expired() {
    let (mut memory, mut meta) = (RequestMemory::new(1), meta());
    admit(&mut memory, &mut meta, timed_record(NOW - 200 * SECOND, 1)).unwrap();
    for older in [timed_record(NOW - 300 * SECOND, 2), timed_record(NOW - 200 * SECOND, 3)] {
        let refusal = admit(&mut memory, &mut meta, older).unwrap_err();
        assert_eq!(refusal, Outcome::RequestExpired);
    }
    assert_eq!((memory.len(), meta.request_horizon), (1, 0));
}

#[test]
fn a_large_outcome_counts_as_many_records() {
    let (mut memory, mut meta) = (RequestMemory::new(4), meta());
    let mut large = timed_record(NOW - 100 * SECOND, 1);
    large.outcome = vec![0; 2 * RECORD_BYTES + 1].into();
    admit(&mut memory, &mut meta, large.clone()).unwrap();
    admit(&mut memory, &mut meta, timed_record(NOW, 2)).unwrap();
    assert_eq!((memory.len(), meta.request_horizon), (2, 0));
    admit(&mut memory, &mut meta, timed_record(NOW, 3)).unwrap();
    assert_eq!((memory.len(), meta.request_horizon), (2, large.time + 1));

    large.time = NOW;
    large.outcome = vec![0; 5 * RECORD_BYTES].into();
    let refusal = admit(&mut RequestMemory::new(4), &mut meta, large).unwrap_err();
    assert_eq!(refusal, Outcome::RequestMemoryFull);
}

#[test]
fn changes_can_be_taken_back() {
    let (mut memory, mut meta) = (RequestMemory::new(2), meta());
    let free = record(RequestId::Free(1), NOW - 300 * SECOND);
    admit(&mut memory, &mut meta, free.clone()).unwrap();
    admit(&mut memory, &mut meta, timed_record(NOW, 2)).unwrap();
    let before: Vec<RequestRecord> = memory.records().cloned().collect();

    let mut changes = RequestChanges::default();
    let renewed = record(RequestId::Free(1), NOW + 90 * SECOND);
    memory.admit(timed_record(NOW, 3), &mut meta, &mut changes).unwrap();
    assert_eq!(changes.removed, [free]);
    meta.time += 90 * SECOND;
    memory.admit(renewed, &mut meta, &mut changes).unwrap();
    memory.undo(changes);
    assert_eq!(memory.records().cloned().collect::<Vec<_>>(), before);
    assert_eq!(memory.weight, 2);
}

#[test]
fn what_comes_and_goes_within_one_entry_is_not_written() {
    let (mut memory, mut meta) = (RequestMemory::new(1), meta());
    let mut changes = RequestChanges::default();
    memory.admit(timed_record(NOW - 200 * SECOND, 1), &mut meta, &mut changes).unwrap();
    memory.admit(timed_record(NOW, 2), &mut meta, &mut changes).unwrap();
    assert_eq!(changes.added.into_values().collect::<Vec<_>>(), [timed_record(NOW, 2)]);
    assert_eq!(changes.removed, []);
}

#[test]
fn loading_takes_records_in_any_order_and_refuses_damaged_ones() {
    let mut memory = RequestMemory::default();
    memory.load([timed_record(NOW, 2), timed_record(NOW - SECOND, 1)]).unwrap();
    let times: Vec<u64> = memory.records().map(|record| record.time).collect();
    assert_eq!(times, [NOW - SECOND, NOW]);

    let damaged = RequestRecord { outcome: "?".into(), ..timed_record(NOW, 3) };
    assert!(memory.load([damaged]).is_err());
}
