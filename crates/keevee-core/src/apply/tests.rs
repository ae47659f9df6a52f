use super::*;
use crate::command::{Operation, Precondition};
use crate::slots::Slot;

const SECOND: u64 = 1_000_000;
const NOW: u64 = 1_000_000 * SECOND;

/// A shard with its storage: keys and values in a map.
struct Shard {
    view: View,
    meta: ShardMeta,
    memory: RequestMemory,
}

#[derive(Default)]
struct View {
    values: BTreeMap<(Namespace, Bytes), Versioned>,
    reads: std::cell::Cell<u32>,
    fails: bool,
}

impl StateView for View {
    type Error = &'static str;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, &'static str> {
        self.reads.set(self.reads.get() + 1);
        if self.fails {
            return Err("the disk is gone");
        }
        Ok(self.values.get(&(namespace, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), &'static str> {
        self.reads.set(self.reads.get() + 1);
        if self.fails {
            return Err("the disk is gone");
        }
        let mut found = self.values.range(range.bounds(namespace));
        let _ = found.try_for_each(|((_, key), value)| take(key.clone(), value.clone()));
        Ok(())
    }

    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), &'static str> {
        let mut due: Vec<_> =
            self.values.iter().filter_map(|(place, value)| Some((value.expires?, place.clone()))).collect();
        due.sort_unstable();
        let mut due = due.into_iter().take_while(|(expires, _)| *expires <= latest);
        let _ = due.try_for_each(|(expires, place)| take(expires, place));
        Ok(())
    }
}

impl Shard {
    fn new() -> Shard {
        Shard {
            view: View::default(),
            meta: ShardMeta::new(SlotSet::all()),
            memory: RequestMemory::default(),
        }
    }

    fn try_apply(&mut self, stamp: u64, commands: &[Command]) -> Result<Applied, &'static str> {
        let proposal = ProposalId::default();
        let entry = Entry { stamp, proposal, commands: commands.to_vec() };
        apply(&self.view, &self.meta, &mut self.memory, self.meta.applied + 1, &entry)
    }

    fn apply_at(&mut self, stamp: u64, commands: &[Command]) -> Vec<Outcome> {
        let Applied { write_set, outcomes } = self.try_apply(stamp, commands).unwrap();
        for (key, value) in write_set.values {
            match value {
                Some(value) => self.view.values.insert(key, value),
                None => self.view.values.remove(&key),
            };
        }
        self.meta = write_set.meta;
        let expiring = self.view.values.values().filter(|value| value.expires.is_some()).count();
        assert_eq!(self.meta.expiring, expiring as u64);
        outcomes
    }

    fn apply(&mut self, commands: &[Command]) -> Vec<Outcome> {
        self.apply_at(NOW, commands)
    }

    fn apply_one(&mut self, command: Command) -> Outcome {
        self.apply(&[command]).remove(0)
    }

    fn value(&self, key: &'static str) -> Option<&[u8]> {
        let versioned = self.view.values.get(&(Namespace::DEFAULT, key.into()))?;
        Some(&versioned.value)
    }
}

fn put(key: &'static str, value: &'static str) -> Command {
    Command::single(Action::put(key, value))
}

fn get(key: &'static str) -> Command {
    Command::single(Action::Get { key: key.into() })
}

fn delete(key: &'static str) -> Command {
    Command::single(Action::Delete { key: key.into() })
}

fn increment(key: &'static str, by: i64) -> Command {
    Command::single(Action::Increment { key: key.into(), by })
}

fn append(key: &'static str, suffix: &'static str) -> Command {
    Command::single(Action::Append { key: key.into(), suffix: suffix.into() })
}

/// One command of all the operations.
fn batch(commands: Vec<Command>) -> Command {
    let operations = commands.into_iter().flat_map(|command| command.operations).collect();
    Command { operations, ..get("") }
}

fn if_(key: &'static str, expect: Expect, command: Command) -> Command {
    Command { preconditions: vec![Precondition { key: key.into(), expect }], ..command }
}

/// The same operations, whose errors do not abort the command.
fn tolerant(mut command: Command) -> Command {
    for Operation { on_error, .. } in &mut command.operations {
        *on_error = OnError::Continue;
    }
    command
}

fn with_id(id: RequestId, command: Command) -> Command {
    Command { request_id: Some(id), ..command }
}

fn timed(micros: u64) -> RequestId {
    RequestId::Timed(u128::from(micros / 1_000) << 80 | 7 << 76 | 2 << 62)
}

fn written(version: u64) -> Outcome {
    Outcome::Done(vec![OperationResult::Written { version }])
}

fn incremented(value: i64, version: u64) -> Outcome {
    Outcome::Done(vec![OperationResult::Incremented { value, version }])
}

fn found(version: u64, value: &'static str) -> OperationResult {
    OperationResult::Value(Some(Versioned { version, stamp: NOW, expires: None, value: value.into() }))
}

fn range(start: &'static str, end: &'static str) -> KeyRange {
    KeyRange { start: start.into(), end: Some(end.into()) }
}

fn scan(range: KeyRange, limit: u32) -> Command {
    Command::single(Action::Scan { range, limit, bytes_max: 100 })
}

fn delete_range(range: KeyRange, limit: u32) -> Command {
    Command::single(Action::DeleteRange { range, limit })
}

fn deleted_range(deleted: u64, next: Option<&'static str>) -> Outcome {
    Outcome::Done(vec![OperationResult::DeletedRange { deleted, next: next.map(Bytes::from) }])
}

/// What a scan found: each key and its version, and where the rest begins.
fn scanned(outcome: &Outcome) -> String {
    let Outcome::Done(results) = outcome else { panic!("{outcome:?}") };
    let [OperationResult::Scanned { keys, next }] = &results[..] else { panic!("{results:?}") };
    let key = |found: &ScannedKey| format!("{}:{}", found.key.escape_ascii(), found.value.version);
    let next = next.as_ref().map(|next| format!("then {}", next.escape_ascii()));
    keys.iter().map(key).chain(next).collect::<Vec<String>>().join(" ")
}

#[test]
fn two_writes_of_one_entry_have_different_versions() {
    let mut shard = Shard::new();
    assert_eq!(shard.apply(&[put("a", "1"), put("a", "2")]), [written(1), written(2)]);
    assert_eq!(shard.value("a"), Some(&b"2"[..]));
    assert_eq!(shard.meta.version, 2);
}

#[test]
fn later_commands_of_an_entry_see_earlier_ones() {
    let mut shard = Shard::new();
    let outcomes = shard.apply(&[
        put("a", "1"),
        if_("a", Expect::Version(1), get("a")),
        delete("a"),
        get("a"),
        if_("a", Expect::Absent, append("a", "x")),
    ]);
    assert_eq!(outcomes[1], Outcome::Done(vec![found(1, "1")]));
    assert_eq!(outcomes[2], Outcome::Done(vec![OperationResult::Deleted { existed: true }]));
    assert_eq!(outcomes[3], Outcome::Done(vec![OperationResult::Value(None)]));
    let appended = OperationResult::Appended { length: 1, version: 3 };
    assert_eq!(outcomes[4], Outcome::Done(vec![appended]));
}

#[test]
fn an_unconditional_put_reads_nothing() {
    let mut shard = Shard::new();
    shard.view.fails = true;
    assert_eq!(shard.apply_one(put("a", "1")), written(1));
    assert_eq!(shard.view.reads.get(), 0);
}

#[test]
fn a_delete_of_an_absent_key_is_no_mutation() {
    let mut shard = Shard::new();
    let deleted = Outcome::Done(vec![OperationResult::Deleted { existed: false }]);
    assert_eq!(shard.apply(&[delete("a"), delete("a")]), [deleted.clone(), deleted]);
    assert_eq!(shard.meta.version, 0);
    assert_eq!(shard.try_apply(NOW, &[delete("a")]).unwrap().write_set.values.len(), 0);
}

#[test]
fn a_failed_precondition_tells_the_version_and_does_nothing() {
    let mut shard = Shard::new();
    shard.apply_one(put("a", "1"));
    let conflict = |version| Outcome::Conflict { precondition: 0, version };
    for (key, expect, version) in [
        ("a", Expect::Absent, Some(1)),
        ("a", Expect::Version(2), Some(1)),
        ("b", Expect::Present, None),
        ("b", Expect::Version(1), None),
    ] {
        assert_eq!(shard.apply_one(if_(key, expect, put("a", "2"))), conflict(version));
    }
    assert_eq!(shard.value("a"), Some(&b"1"[..]));
    assert_eq!(shard.meta.version, 1);
    assert_eq!(shard.apply_one(if_("a", Expect::Version(1), put("a", "2"))), written(2));
}

#[test]
fn a_failed_batch_leaves_no_effects_and_uses_no_versions() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put("text", "x"), put("gone", "1")]);
    let failing =
        batch(vec![put("a", "2"), delete("gone"), put("new", "n"), increment("a", 5), increment("text", 1)]);
    let outcomes = shard.apply(&[put("b", "1"), failing, put("c", "1")]);
    let error = OperationError::NotAnInteger;
    assert_eq!(outcomes, [written(4), Outcome::Aborted { operation: 4, error }, written(5)]);
    assert_eq!(shard.value("a"), Some(&b"1"[..]));
    assert_eq!(shard.value("gone"), Some(&b"1"[..]));
    assert_eq!(shard.value("new"), None);
}

#[test]
fn a_failed_batch_leaves_what_the_entry_wrote_before_it() {
    let mut shard = Shard::new();
    let failing = batch(vec![put("a", "2"), put("a", "3"), increment("a", i64::MAX)]);
    let outcomes = shard.apply(&[put("a", "1"), failing, get("a")]);
    let error = OperationError::Overflow;
    assert_eq!(outcomes[1], Outcome::Aborted { operation: 2, error });
    assert_eq!(outcomes[2], Outcome::Done(vec![found(1, "1")]));
}

#[test]
fn an_error_that_may_continue_fails_its_operation_only() {
    let mut shard = Shard::new();
    shard.apply_one(put("text", "x"));
    let outcome = shard.apply_one(batch(vec![put("a", "1"), tolerant(increment("text", 1)), put("b", "1")]));
    let expected = vec![
        OperationResult::Written { version: 2 },
        OperationResult::Failed(OperationError::NotAnInteger),
        OperationResult::Written { version: 3 },
    ];
    assert_eq!(outcome, Outcome::Done(expected));
}

#[test]
fn increments_count_from_zero_and_keep_decimal_text() {
    let mut shard = Shard::new();
    assert_eq!(shard.apply_one(increment("n", -3)), incremented(-3, 1));
    assert_eq!(shard.value("n"), Some(&b"-3"[..]));
    assert_eq!(shard.apply_one(increment("n", 10)), incremented(7, 2));
    assert_eq!(shard.apply_one(increment("n", i64::MIN)), incremented(i64::MIN + 7, 3));
}

#[test]
fn only_decimal_text_of_64_bits_is_an_integer() {
    for text in
        ["", "-", "+1", " 1", "1 ", "1.0", "0x1", "--1", "9223372036854775808", "١", "007", "-0", "-01"]
    {
        assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
    }
    assert_eq!(parse_integer(b"\xff"), None);
    assert_eq!(parse_integer(b"-9223372036854775808"), Some(i64::MIN));
    assert_eq!([&b"0"[..], b"-1", b"10"].map(parse_integer), [Some(0), Some(-1), Some(10)]);
}

#[test]
fn an_increment_does_not_overflow() {
    let mut shard = Shard::new();
    shard.apply_one(put("n", "9223372036854775807"));
    let error = OperationError::Overflow;
    assert_eq!(shard.apply_one(increment("n", 1)), Outcome::Aborted { operation: 0, error });
    assert_eq!(shard.apply_one(increment("n", 0)), incremented(i64::MAX, 2));
}

#[test]
fn appends_grow_a_value_up_to_the_largest_size() {
    let mut shard = Shard::new();
    let outcomes = shard.apply(&[append("a", "one"), append("a", "two")]);
    let appended = OperationResult::Appended { length: 6, version: 2 };
    assert_eq!(outcomes[1], Outcome::Done(vec![appended]));
    assert_eq!(shard.value("a"), Some(&b"onetwo"[..]));

    let value = vec![0; VALUE_BYTES_MAX_APPLY - 1];
    shard.apply_one(Command::single(Action::put("big", value)));
    let error = OperationError::ValueTooLarge;
    assert_eq!(shard.apply_one(append("big", "xy")), Outcome::Aborted { operation: 0, error });
    assert!(matches!(shard.apply_one(append("big", "x")), Outcome::Done(_)));
}

#[test]
fn gets_of_one_command_answer_with_a_bounded_sum_of_bytes() {
    const LARGE: usize = VALUE_BYTES_MAX_APPLY;
    let mut shard = Shard::new();
    let put = |key: &'static str, bytes| Command::single(Action::put(key, vec![0; bytes]));
    shard.apply(&[put("large", LARGE), put("small", 1)]);
    let mut found = |keys: &[&'static str], answer_bytes_max, on_error| {
        let get = |key: &&'static str| Operation { action: Action::Get { key: (*key).into() }, on_error };
        let mut command = Command { answer_bytes_max, ..Command::single(Action::put("other", "1")) };
        command.operations.extend(keys.iter().map(get));
        match shard.apply_one(command) {
            Outcome::Done(results) => results[1..].iter().map(told).collect::<Vec<_>>(),
            Outcome::Aborted { operation, error: OperationError::AnswerTooLarge } => vec![Err(operation)],
            other => panic!("{other:?}"),
        }
    };
    fn told(result: &OperationResult) -> Result<usize, usize> {
        match result {
            OperationResult::Value(found) => Ok(found.as_ref().map_or(0, |found| found.value.len())),
            OperationResult::Failed(OperationError::AnswerTooLarge) => Err(usize::MAX),
            other => panic!("{other:?}"),
        }
    }
    const NONE: Result<usize, usize> = Err(usize::MAX);
    let next = OnError::Continue;
    assert_eq!(
        found(&["large", "large", "nope", "small", "nope"], None, next),
        [Ok(LARGE), Ok(LARGE), Ok(0), NONE, NONE]
    );
    assert_eq!(found(&["small", "small", "small"], Some(2), next), [Ok(1), Ok(1), NONE]);
    assert_eq!(found(&["large"; 3], Some(u32::MAX), next), [Ok(LARGE), Ok(LARGE), NONE]);
    assert_eq!(found(&["small", "large"], Some(1), OnError::Abort), [Err(2)]);
}

#[test]
fn a_scan_shows_the_first_keys_of_a_range_in_order() {
    let mut shard = Shard::new();
    shard.apply(&[put("c", "3"), put("a", "1"), put("d", "4"), put("b", "2"), put("e", "5")]);
    let read = |range, limit| read(&shard.view, &shard.meta, &scan(range, limit)).unwrap();
    assert_eq!(scanned(&read(range("a", "z"), 2)), "a:2 b:4 then c");
    assert_eq!(scanned(&read(range("b", "d"), 2)), "b:4 c:1");
    assert_eq!(scanned(&read(KeyRange::default(), 9)), "a:2 b:4 c:1 d:3 e:5");
    assert_eq!(scanned(&read(range("d", "b"), 9)), "");
}

#[test]
fn a_scan_names_a_first_key_that_does_not_fit_and_shows_it_when_asked_for_a_page() {
    let mut shard = Shard::new();
    let large = Command::single(Action::put("b", vec![0; 200]));
    shard.apply(&[put("a", "1"), large, put("c", "1")]);
    let from = |start| read(&shard.view, &shard.meta, &scan(range(start, "z"), 9)).unwrap();
    assert_eq!(scanned(&from("a")), "a:1 then b");
    assert_eq!(scanned(&from("b")), "then b");
    let page = |key_bytes: usize| {
        shard.apply_one(Command::single(Action::put("b", vec![0; key_bytes])));
        let action = Action::Scan { range: range("b", "z"), limit: 9, bytes_max: SCAN_BYTES_MAX };
        scanned(&read(&shard.view, &shard.meta, &Command::single(action)).unwrap())
    };
    assert_eq!([1 << 10, 2 << 20].map(page), ["b:4 c:3", "b:5 then c"]);
    let one = vec![0; DELETE_RANGE_BYTES_MAX];
    shard.apply_one(Command::single(Action::put("b", one)));
    assert_eq!(shard.apply_one(delete_range(range("a", "z"), 9)), deleted_range(1, Some("b")));
    assert_eq!(shard.apply_one(delete_range(range("b", "z"), 9)), deleted_range(1, Some("c")));
}

#[test]
fn ranges_see_what_the_entry_has_written_and_removed() {
    let mut shard = Shard::new();
    shard.apply(&[put("b", "1"), put("d", "1"), put("f", "1")]);
    let outcomes = shard.apply(&[
        put("a", "2"),
        put("d", "2"),
        put("g", "2"),
        delete("b"),
        scan(range("a", "z"), 9),
        scan(range("a", "z"), 3),
        delete_range(range("a", "z"), 3),
        scan(range("a", "z"), 9),
        put("a", "3"),
        scan(range("a", "z"), 1),
    ]);
    assert_eq!(scanned(&outcomes[4]), "a:4 d:5 f:3 g:6");
    assert_eq!(scanned(&outcomes[5]), "a:4 d:5 f:3 then g");
    assert_eq!(outcomes[6], deleted_range(3, Some("g")));
    assert_eq!(scanned(&outcomes[7]), "g:6");
    assert_eq!(scanned(&outcomes[9]), "a:11 then g");
    assert_eq!(shard.view.values.len(), 2);
}

#[test]
fn each_key_of_a_deleted_range_is_a_mutation() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put("b", "1"), put("c", "1")]);
    assert_eq!(shard.apply_one(delete_range(range("a", "c"), 9)), deleted_range(2, None));
    assert_eq!(shard.meta.version, 5);
    assert_eq!(shard.apply_one(delete_range(range("a", "c"), 9)), deleted_range(0, None));
    assert_eq!((shard.meta.version, shard.value("c")), (5, Some(&b"1"[..])));
}

#[test]
fn a_range_reaches_only_keys_of_owned_slots() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put("b", "1"), put("c", "1")]);
    shard.meta.owned.remove(slot(b"b"));
    let outcome = read(&shard.view, &shard.meta, &scan(range("a", "z"), 1)).unwrap();
    assert_eq!(scanned(&outcome), "a:1 then c");
    assert_eq!(shard.apply_one(delete_range(range("a", "z"), 9)), deleted_range(2, None));
    assert_eq!(shard.value("b"), Some(&b"1"[..]));
}

#[test]
fn a_retried_delete_of_a_range_removes_nothing_that_came_since() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put("b", "1")]);
    let command = with_id(timed(NOW), delete_range(range("a", "z"), 1));
    assert_eq!(shard.apply_one(command.clone()), deleted_range(1, Some("b")));
    shard.apply_one(put("a", "2"));
    assert_eq!(shard.apply_one(command), deleted_range(1, Some("b")));
    assert_eq!(shard.value("a"), Some(&b"2"[..]));
}

#[test]
fn a_failed_batch_brings_a_deleted_range_back() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put("text", "x")]);
    let failing = batch(vec![delete_range(range("a", "b"), 9), increment("text", 1)]);
    assert!(matches!(shard.apply_one(failing), Outcome::Aborted { operation: 1, .. }));
    assert_eq!((shard.value("a"), shard.meta.version), (Some(&b"1"[..]), 2));
}

#[test]
fn namespaces_do_not_touch() {
    let mut shard = Shard::new();
    let other = Command { namespace: Namespace(1), ..put("a", "other") };
    shard.apply(&[put("a", "1"), other]);
    assert_eq!(shard.value("a"), Some(&b"1"[..]));
    assert_eq!(shard.view.values.len(), 2);
}

#[test]
fn shard_time_is_the_largest_stamp_and_stamps_writes() {
    let mut shard = Shard::new();
    shard.apply_at(50, &[put("a", "1")]);
    shard.apply_at(20, &[put("b", "1")]);
    assert_eq!(shard.meta.time, 50);
    assert!(shard.view.values.values().all(|versioned| versioned.stamp == 50));
}

#[test]
fn a_key_of_another_shards_slot_is_refused() {
    let mut shard = Shard::new();
    shard.meta.owned.remove(slot(b"b"));
    let outcomes = shard.apply(&[
        put("b", "1"),
        batch(vec![put("a", "1"), put("b", "1")]),
        if_("b", Expect::Absent, put("a", "1")),
        put("a", "1"),
    ]);
    let refused = Outcome::WrongShard;
    assert_eq!(outcomes, [refused.clone(), refused.clone(), refused, written(1)]);
    assert_eq!(read(&shard.view, &shard.meta, &get("b")), Ok(Outcome::WrongShard));
}

#[test]
fn a_retry_gets_the_same_answer() {
    let mut shard = Shard::new();
    let command = with_id(timed(NOW), increment("n", 1));
    let first = shard.apply_one(command.clone());
    assert_eq!(first, incremented(1, 1));
    shard.apply_one(increment("n", 1));
    assert_eq!(shard.apply_one(command.clone()), first);
    assert_eq!(shard.apply(&[command.clone(), command]), [first.clone(), first]);
    assert_eq!(shard.value("n"), Some(&b"2"[..]));
}

#[test]
fn a_retry_within_one_entry_gets_the_same_answer() {
    let mut shard = Shard::new();
    let command = with_id(RequestId::Free(1), increment("n", 1));
    let once = incremented(1, 1);
    assert_eq!(shard.apply(&[command.clone(), command]), [once.clone(), once]);
}

#[test]
fn a_retry_of_a_conflict_or_abort_gets_the_same_answer() {
    let mut shard = Shard::new();
    let conflict = with_id(timed(NOW), if_("a", Expect::Present, put("a", "1")));
    let abort = with_id(timed(NOW + 1_000), increment("text", 1));
    shard.apply_one(put("text", "x"));
    let first = shard.apply(&[conflict.clone(), abort.clone()]);
    assert_eq!(first[0], Outcome::Conflict { precondition: 0, version: None });
    let error = OperationError::NotAnInteger;
    assert_eq!(first[1], Outcome::Aborted { operation: 0, error });
    shard.apply(&[put("a", "1"), put("text", "1")]);
    assert_eq!(shard.apply(&[conflict, abort]), first);
}

#[test]
fn an_id_with_another_payload_is_refused() {
    let mut shard = Shard::new();
    shard.apply_one(with_id(timed(NOW), put("a", "1")));
    assert_eq!(shard.apply_one(with_id(timed(NOW), put("a", "2"))), Outcome::RequestReused);
    assert_eq!(shard.value("a"), Some(&b"1"[..]));
}

#[test]
fn an_id_outside_the_window_is_refused() {
    let mut shard = Shard::new();
    for time in [NOW - 601 * SECOND, NOW + 61 * SECOND] {
        let outcome = shard.apply_one(with_id(timed(time), put("a", "1")));
        assert_eq!(outcome, Outcome::RequestExpired);
    }
    assert_eq!(shard.value("a"), None);
    assert!(shard.memory.is_empty());
}

/// A record that lived for 10 minutes from its execution would be gone while its id is still valid.
#[test]
fn an_id_dated_in_the_future_is_never_executed_twice() {
    let mut shard = Shard::new();
    let command = with_id(timed(NOW + 60 * SECOND), increment("n", 1));
    let first = shard.apply_one(command.clone());
    for seconds in [1, 60, 599, 600, 601, 659, 660] {
        let outcomes = shard.apply_at(NOW + seconds * SECOND, std::slice::from_ref(&command));
        assert_eq!(outcomes[0], first, "after {seconds} s");
    }
    let outcomes = shard.apply_at(NOW + 661 * SECOND, &[command]);
    assert_eq!(outcomes, [Outcome::RequestExpired]);
    assert_eq!(shard.value("n"), Some(&b"1"[..]));
}

#[test]
fn a_free_form_id_counts_within_the_window_only() {
    let mut shard = Shard::new();
    let command = with_id(RequestId::Free(7), increment("n", 1));
    shard.apply_one(command.clone());
    shard.apply_at(NOW + 600 * SECOND, std::slice::from_ref(&command));
    assert_eq!(shard.value("n"), Some(&b"1"[..]));
    shard.apply_at(NOW + 601 * SECOND, &[command]);
    assert_eq!(shard.value("n"), Some(&b"2"[..]));
}

#[test]
fn refusals_are_not_remembered() {
    let mut shard = Shard::new();
    let command = with_id(timed(NOW), put("a", "1"));
    shard.meta.owned.remove(slot(b"a"));
    assert_eq!(shard.apply_one(command.clone()), Outcome::WrongShard);
    assert!(shard.memory.is_empty());
    shard.meta.owned.insert(slot(b"a"));
    assert_eq!(shard.apply_one(command), written(1));
}

#[test]
fn a_retry_is_answered_even_when_the_slot_has_gone() {
    let mut shard = Shard::new();
    let command = with_id(timed(NOW), put("a", "1"));
    let first = shard.apply_one(command.clone());
    shard.meta.owned.remove(slot(b"a"));
    assert_eq!(shard.apply_one(command), first);
}

#[test]
fn a_full_memory_refuses_and_nothing_has_happened() {
    let mut shard = Shard::new();
    shard.memory = RequestMemory::new(1);
    shard.apply_one(with_id(timed(NOW), put("a", "1")));
    let (values, version) = (shard.view.values.clone(), shard.meta.version);
    let refused = with_id(timed(NOW + 1_000), batch(vec![put("a", "2"), put("b", "1")]));
    assert_eq!(shard.apply_one(refused.clone()), Outcome::RequestMemoryFull);
    assert_eq!((&shard.view.values, shard.meta.version), (&values, version));
    assert_eq!(shard.apply_one(put("c", "1")), written(2));

    let later = shard.apply_at(NOW + 61 * SECOND, &[refused]);
    assert!(matches!(later[0], Outcome::Done(_)));
    assert_eq!(shard.meta.request_horizon, NOW + 1);
    assert_eq!(shard.apply_one(with_id(timed(NOW), put("a", "1"))), Outcome::RequestExpired);
}

#[test]
fn a_read_only_command_is_not_remembered() {
    let mut shard = Shard::new();
    let command = with_id(timed(NOW - 900 * SECOND), get("a"));
    assert_eq!(shard.apply_one(command), Outcome::Done(vec![OperationResult::Value(None)]));
    assert!(shard.memory.is_empty());
}

#[test]
fn a_failed_read_changes_nothing() {
    let mut shard = Shard::new();
    shard.memory = RequestMemory::new(2);
    shard.apply_at(NOW - 650 * SECOND, &[with_id(timed(NOW - 650 * SECOND), put("a", "1"))]);
    shard.apply_at(NOW - 100 * SECOND, &[with_id(timed(NOW - 100 * SECOND), put("a", "2"))]);
    let commands = [
        with_id(timed(NOW), put("a", "3")),
        with_id(timed(NOW + 1_000), put("a", "4")),
        with_id(timed(NOW + 2_000), get("b")),
    ];
    let (meta, records): (_, Vec<_>) = (shard.meta.clone(), shard.memory.records().cloned().collect());

    shard.view.fails = true;
    assert_eq!(shard.try_apply(NOW, &commands), Err("the disk is gone"));
    assert_eq!(shard.meta, meta);
    assert_eq!(shard.memory.records().cloned().collect::<Vec<_>>(), records);

    shard.view.fails = false;
    let outcomes = shard.apply(&commands);
    assert_eq!(outcomes[..2], [written(3), written(4)]);
}

#[test]
fn a_read_sees_applied_state() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put("b", "2")]);
    let both = if_("a", Expect::Version(1), batch(vec![get("a"), get("b"), get("c")]));
    let values = vec![found(1, "1"), found(2, "2"), OperationResult::Value(None)];
    assert_eq!(read(&shard.view, &shard.meta, &both), Ok(Outcome::Done(values)));
    let conflict = Outcome::Conflict { precondition: 0, version: Some(2) };
    let command = if_("b", Expect::Absent, get("a"));
    assert_eq!(read(&shard.view, &shard.meta, &command), Ok(conflict));
}

#[test]
#[should_panic(expected = "goes through the log")]
fn a_write_is_not_answered_as_a_read() {
    let shard = Shard::new();
    _ = read(&shard.view, &shard.meta, &put("a", "1"));
}

#[test]
fn a_noop_moves_only_index_and_chain() {
    let mut shard = Shard::new();
    shard.apply_one(put("a", "1"));
    let Applied { write_set, outcomes } = apply_noop(&shard.meta, 2);
    assert_eq!(outcomes, []);
    assert_ne!(write_set.meta.chain, shard.meta.chain);
    let expected = ShardMeta { applied: 2, chain: write_set.meta.chain, ..shard.meta.clone() };
    assert_eq!(write_set.meta, expected);
    assert!(write_set.values.is_empty());
}

#[test]
#[should_panic(expected = "each once")]
fn an_entry_is_not_applied_twice() {
    let mut shard = Shard::new();
    shard.apply_one(put("a", "1"));
    apply_noop(&shard.meta, 1);
}

#[test]
fn the_chain_tells_different_histories_apart() {
    let chain_after = |commands: &[Command]| {
        let mut shard = Shard::new();
        shard.apply(commands);
        shard.meta.chain
    };
    let one = chain_after(&[put("a", "1")]);
    assert_eq!(one, chain_after(&[put("a", "1")]));
    assert_ne!(one, chain_after(&[put("a", "2")]));
    assert_ne!(one, chain_after(&[put("a", "1"), put("a", "1")]));
    assert_ne!(one, chain_after(&[]));
}

#[test]
fn every_shard_owns_a_command_without_keys() {
    let mut meta = ShardMeta::new(SlotSet::none());
    let nothing = batch(vec![]);
    assert!(meta.owns(&nothing) && !meta.owns(&get("a")));
    meta.owned.insert(Slot(slot(b"a").0));
    assert!(meta.owns(&get("a")));
}

mod expiry;
