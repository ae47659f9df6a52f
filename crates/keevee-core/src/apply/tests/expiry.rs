//! Keys that expire, by shard time alone.

use super::*;

const LATER: u64 = NOW + 10 * SECOND;

fn put_with(key: &'static str, expires: Expiry, only: Only) -> Command {
    Command::single(Action::Put { key: key.into(), value: "7".into(), expires, only })
}

fn put_until(key: &'static str, time: u64) -> Command {
    put_with(key, Expiry::At(time), Only::Always)
}

fn set_expiry(key: &'static str, expires: Expiry, only: ExpiryOnly) -> Command {
    Command::single(Action::SetExpiry { key: key.into(), expires, only })
}

fn remove_expired(limit: u32) -> Command {
    Command::single(Action::RemoveExpired { limit })
}

fn done(result: OperationResult) -> Outcome {
    Outcome::Done(vec![result])
}

fn removed(removed: u64) -> Outcome {
    done(OperationResult::RemovedExpired { removed })
}

fn skipped() -> Outcome {
    done(OperationResult::Skipped)
}

impl Shard {
    fn expires(&self, key: &'static str) -> Option<u64> {
        self.view.values.get(&(Namespace::DEFAULT, key.into()))?.expires
    }

    /// What a read sees once shard time has come to this.
    fn reads(&mut self, shard_time: u64, key: &'static str) -> OperationResult {
        self.apply_at(shard_time, &[]);
        let Ok(Outcome::Done(mut results)) = read(&self.view, &self.meta, &get(key)) else { panic!() };
        results.remove(0)
    }
}

#[test]
fn a_key_is_gone_once_shard_time_reaches_its_expiry() {
    let mut shard = Shard::new();
    shard.apply_one(put_until("k", LATER));
    let OperationResult::Value(Some(held)) = shard.reads(LATER - 1, "k") else { panic!("too early") };
    assert_eq!(held.expires, Some(LATER));
    assert_eq!(shard.reads(LATER, "k"), OperationResult::Value(None));
    // An old stamp does not bring it back: shard time is the largest.
    assert_eq!(shard.apply_at(NOW, &[get("k")]), [done(OperationResult::Value(None))]);
}

#[test]
fn a_gone_key_is_absent_for_every_command_whether_it_was_removed_or_not() {
    for is_removed in [false, true] {
        let mut shard = Shard::new();
        shard.apply(&["a", "b", "c", "d", "e"].map(|key| put_until(key, LATER)));
        shard.apply_at(LATER, &[]);
        if is_removed {
            assert_eq!(shard.apply_one(remove_expired(9)), removed(5));
        }
        let version = 5;
        assert_eq!(shard.meta.version, version, "the removal took no version");
        let absent = done(OperationResult::Value(None));
        assert_eq!(shard.apply_one(if_("a", Expect::Absent, get("a"))), absent);
        let conflict = Outcome::Conflict { precondition: 0, version: None };
        assert_eq!(shard.apply_one(if_("a", Expect::Version(1), get("a"))), conflict);
        let nothing = OperationResult::Scanned { keys: vec![], next: None };
        assert_eq!(shard.apply_one(scan(range("a", "z"), 9)), done(nothing));
        assert_eq!(shard.apply_one(delete("a")), done(OperationResult::Deleted { existed: false }));
        let delete_range = Command::single(Action::DeleteRange { range: range("a", "z"), limit: 9 });
        let none = OperationResult::DeletedRange { deleted: 0, next: None };
        assert_eq!(shard.apply_one(delete_range), done(none));
        assert_eq!(shard.apply_one(put_with("b", Expiry::Never, Only::IfPresent)), skipped());
        assert_eq!(shard.apply_one(set_expiry("b", Expiry::Never, ExpiryOnly::Always)), skipped());
        assert_eq!(shard.meta.version, version);
        assert_eq!(shard.apply_one(increment("c", 2)), incremented(2, version + 1));
        shard.apply_one(append("d", "x"));
        assert_eq!(shard.value("d"), Some(&b"x"[..]));
        assert_eq!(shard.apply_one(put_with("e", Expiry::Keep, Only::IfAbsent)), written(version + 3));
        assert_eq!(["c", "d", "e"].map(|key| shard.expires(key)), [None; 3]);
    }
}

#[test]
fn a_put_takes_an_expiry_away_unless_it_keeps_it() {
    let mut shard = Shard::new();
    shard.apply_one(put_with("k", Expiry::After(10 * SECOND), Only::Always));
    assert_eq!(shard.expires("k"), Some(LATER));
    shard.apply_one(put_with("k", Expiry::Keep, Only::Always));
    assert_eq!(shard.expires("k"), Some(LATER));
    shard.apply(&[increment("k", 1), append("k", "1")]);
    assert_eq!((shard.value("k"), shard.expires("k")), (Some(&b"81"[..]), Some(LATER)));
    shard.apply_one(put("k", "1"));
    assert_eq!((shard.expires("k"), shard.meta.expiring), (None, 0));
    assert_eq!(shard.reads(LATER, "k"), found(5, "1"));
}

#[test]
fn a_put_can_demand_that_the_key_is_there_or_not() {
    let mut shard = Shard::new();
    assert_eq!(shard.apply_one(put_with("k", Expiry::Never, Only::IfPresent)), skipped());
    assert_eq!(shard.apply_one(put_with("k", Expiry::Never, Only::IfAbsent)), written(1));
    assert_eq!(shard.apply_one(put_with("k", Expiry::Never, Only::IfAbsent)), skipped());
    assert_eq!(shard.apply_one(put_with("k", Expiry::Never, Only::IfPresent)), written(2));
    // The command goes on.
    let both = batch(vec![put_with("k", Expiry::Never, Only::IfAbsent), put("l", "1")]);
    let results = vec![OperationResult::Skipped, OperationResult::Written { version: 3 }];
    assert_eq!(shard.apply_one(both), Outcome::Done(results));
}

#[test]
fn an_expiry_is_set_if_it_is_as_demanded() {
    use ExpiryOnly::{Always, IfLater, IfNone, IfSome, IfSomeAndSooner, IfSooner};
    let (at, never) = (|seconds| Expiry::At(NOW + seconds * SECOND), Expiry::Never);
    for (before, expires, sets) in [
        (never, at(5), vec![Always, IfNone, IfSooner]),
        (at(5), at(4), vec![Always, IfSome, IfSooner, IfSomeAndSooner]),
        (at(5), at(5), vec![Always, IfSome]),
        (at(5), at(6), vec![Always, IfSome, IfLater]),
        (at(5), never, vec![Always, IfSome, IfLater]),
        (at(5), Expiry::After(6 * SECOND), vec![Always, IfSome, IfLater]),
    ] {
        for only in [Always, IfNone, IfSome, IfLater, IfSooner, IfSomeAndSooner] {
            let mut shard = Shard::new();
            shard.apply_one(put_with("k", before, Only::Always));
            let found = shard.expires("k");
            let is_set = sets.contains(&only);
            let outcome = shard.apply_one(set_expiry("k", expires, only));
            assert_eq!(
                outcome,
                if is_set { written(2) } else { skipped() },
                "{before:?} {expires:?} {only:?}"
            );
            assert_eq!(shard.expires("k") != found, is_set && before != expires);
            assert_eq!(shard.value("k"), Some(&b"7"[..]));
        }
    }
}

#[test]
fn an_expiry_that_has_come_removes_the_key() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put("b", "1"), put("c", "1")]);
    assert_eq!(shard.apply_one(set_expiry("a", Expiry::At(NOW), ExpiryOnly::Always)), written(4));
    assert_eq!(shard.apply_one(put_until("b", NOW - 1)), written(5));
    assert_eq!(shard.apply_one(put_with("c", Expiry::After(0), Only::Always)), written(6));
    assert!(shard.view.values.is_empty());
}

#[test]
fn removals_are_bounded_and_take_the_oldest_first() {
    let mut shard = Shard::new();
    let expiring = [("a", 3), ("b", 1), ("c", 2), ("d", 9)];
    shard.apply(&expiring.map(|(key, seconds)| put_until(key, NOW + seconds * SECOND)));
    let due = NOW + 3 * SECOND;
    assert_eq!(shard.apply_at(due - 1, &[remove_expired(1)]), [removed(1)]);
    let left = |shard: &Shard| shard.view.values.keys().map(|(_, key)| key.clone()).collect::<Vec<_>>();
    assert_eq!(left(&shard), ["a", "c", "d"]);
    // What is written in the same entry stays.
    assert_eq!(shard.apply_at(due, &[put("a", "1"), remove_expired(9)])[1], removed(1));
    assert_eq!(left(&shard), ["a", "d"]);
    assert_eq!(shard.meta.version, 5);
    let puts: Vec<Command> = (0..=REMOVE_EXPIRED_KEYS_MAX)
        .map(|number| {
            let (key, expires) = (number.to_string().into(), Expiry::After(1));
            Command::single(Action::Put { key, value: "".into(), expires, only: Only::Always })
        })
        .collect();
    shard.apply_at(due, &puts);
    let all = shard.apply_at(due + 1, &[remove_expired(u32::MAX), remove_expired(u32::MAX)]);
    assert_eq!(all, [removed(REMOVE_EXPIRED_KEYS_MAX.into()), removed(1)]);
}

#[test]
fn a_command_that_aborts_leaves_expiries_as_they_were() {
    let mut shard = Shard::new();
    shard.apply(&[put("text", "text"), put_until("k", LATER), put_until("gone", NOW + 1)]);
    let changes = batch(vec![put("k", "1"), remove_expired(9), increment("text", 1)]);
    assert!(matches!(shard.apply_at(NOW + 1, &[changes])[0], Outcome::Aborted { operation: 2, .. }));
    assert_eq!((shard.expires("k"), shard.expires("gone")), (Some(LATER), Some(NOW + 1)));
    assert_eq!(shard.meta.expiring, 2);
}

#[test]
fn puts_do_not_read_while_no_key_expires() {
    let mut shard = Shard::new();
    shard.apply(&[put("a", "1"), put_until("b", LATER)]);
    assert_eq!(shard.view.reads.get(), 0);
    shard.apply_one(put("b", "1"));
    assert_eq!((shard.view.reads.get(), shard.meta.expiring), (1, 0));
    shard.apply_one(put("b", "1"));
    assert_eq!(shard.view.reads.get(), 1);
}

#[test]
fn bytes_are_written_into_a_value() {
    let set_range = |key: &'static str, offset, bytes: &'static str| {
        Command::single(Action::SetRange { key: key.into(), offset, bytes: bytes.into() })
    };
    let appended = |length, version| done(OperationResult::Appended { length, version });
    let mut shard = Shard::new();
    assert_eq!(shard.apply_one(set_range("k", 5, "")), appended(0, 0));
    assert_eq!(shard.value("k"), None, "no bytes make no key");
    assert_eq!(shard.apply_one(set_range("k", 2, "xy")), appended(4, 1));
    assert_eq!(shard.value("k"), Some(&b"\0\0xy"[..]));
    shard.apply_one(set_expiry("k", Expiry::At(LATER), ExpiryOnly::Always));
    assert_eq!(shard.apply_one(set_range("k", 1, "ab")), appended(4, 3));
    assert_eq!((shard.value("k"), shard.expires("k")), (Some(&b"\0aby"[..]), Some(LATER)));
    assert_eq!(shard.apply_one(set_range("k", 9, "")), appended(4, 3));
    let error = OperationError::ValueTooLarge;
    assert_eq!(shard.apply_one(set_range("k", u32::MAX, "x")), Outcome::Aborted { operation: 0, error });
}
