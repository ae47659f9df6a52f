//! Histories whose verdict a person can tell, and what the checker says of them.
//!
//! Times stand in the order of a story: `told(0, 10, ...)` was called at 0 and returned at 10.

use keevee_core::command::{
    Action, Command, Expect, OnError, Operation as Asked, OperationError, OperationResult, Outcome,
    Precondition, Versioned,
};
use keevee_verify::checker::key::{Key, Version};
use keevee_verify::checker::{self, CONCURRENCY_MAX, Violation};

use crate::recording::{KEY, Recorded};

#[test]
fn a_read_during_a_write_may_show_either_value() {
    let write = [told(0, 10, put("old"), wrote(1)), told(20, 50, put("new"), wrote(2))];
    assert_good(&with(&write, [told(30, 40, get(), shows("old", 1))]));
    assert_good(&with(&write, [told(30, 40, get(), shows("new", 2))]));
    assert_bad(&with(&write, [told(30, 40, get(), shows_nothing())]));
}

#[test]
fn a_call_at_the_time_of_a_return_is_concurrent_with_it() {
    let write = told(0, 10, put("a"), wrote(1));
    assert_good(&[write.clone(), told(10, 20, get(), shows_nothing())]);
    assert_bad(&[write, told(11, 20, get(), shows_nothing())]);
}

#[test]
fn the_order_in_which_operations_are_given_does_not_matter() {
    let mut history =
        [told(20, 30, get(), shows("a", 1)), told(0, 10, put("a"), wrote(1)), lost(5, delete())];
    assert_good(&history);
    history.reverse();
    assert_good(&history);
}

#[test]
fn a_stale_read_is_found() {
    let writes = [told(0, 10, put("old"), wrote(1)), told(20, 30, put("new"), wrote(2))];
    assert_bad(&with(&writes, [told(40, 50, get(), shows("old", 1))]));
    assert_bad(&with(&writes, [told(40, 50, get(), shows_nothing())]));
    assert_good(&with(&writes, [told(40, 50, get(), shows("new", 2))]));
}

#[test]
fn a_lost_update_is_found() {
    let write = told(0, 10, put("a"), wrote(1));
    let both = [told(20, 40, append("b"), length(2, 2)), told(20, 40, append("c"), length(3, 3))];
    let written = with(&[write], both);
    assert_good(&with(&written, [told(50, 60, get(), shows("abc", 3))]));
    assert_bad(&with(&written, [told(50, 60, get(), shows("ac", 3))]));
    assert_bad(&with(&written, [told(50, 60, get(), shows("acb", 3))]));
}

#[test]
fn an_increment_that_counts_twice_or_not_at_all_is_found() {
    let first = told(0, 10, increment(1), sum(1, 1));
    assert_good(&[first.clone(), told(0, 20, increment(1), sum(2, 2))]);
    assert_bad(&[first.clone(), told(0, 20, increment(1), sum(1, 2))]);
    assert_bad(&[first.clone(), told(30, 40, get(), shows("2", 2))]);
    assert_bad(&[first.clone(), told(30, 40, increment(1), sum(3, 3))]);
    // Once is enough for an answer that was lost, twice is too often.
    let unknown = [first, lost(5, increment(1))];
    assert_good(&with(&unknown, [told(30, 40, get(), shows("2", 2))]));
    assert_bad(&with(&unknown, [told(30, 40, get(), shows("3", 3))]));
}

#[test]
fn a_read_of_a_value_that_nobody_wrote_is_found() {
    assert_bad(&[told(0, 10, get(), shows("a", 1))]);
    assert_bad(&[told(0, 20, put("a"), wrote(1)), told(0, 20, get(), shows("b", 1))]);
    // Nor may it be written only later.
    assert_bad(&[told(0, 10, get(), shows("a", 1)), told(20, 30, put("a"), wrote(1))]);
    assert_bad(&[told(0, 10, get(), shows("a", 1)), lost(20, put("a"))]);
}

#[test]
fn a_value_and_a_version_that_were_never_written_together_are_found() {
    let writes = [told(0, 10, put("a"), wrote(1)), told(20, 60, put("b"), wrote(2))];
    assert_bad(&with(&writes, [told(30, 40, get(), shows("a", 2))]));
    assert_bad(&with(&writes, [told(30, 40, get(), shows("b", 1))]));
    assert_bad(&with(&writes, [told(30, 40, get(), shows("b", 3))]));
}

#[test]
fn a_write_that_is_seen_and_then_unseen_is_found() {
    let writes = [told(0, 10, put("a"), wrote(1)), told(20, 100, put("b"), wrote(2))];
    let old_then_new = [told(30, 40, get(), shows("a", 1)), told(50, 60, get(), shows("b", 2))];
    let new_then_old = [told(30, 40, get(), shows("b", 2)), told(50, 60, get(), shows("a", 1))];
    assert_good(&with(&writes, old_then_new));
    assert_bad(&with(&writes, new_then_old));
}

#[test]
fn two_clients_who_see_writes_in_two_orders_are_found() {
    // The versions say the order already: unknown writes have none.
    let writes = [lost(0, append("a")), lost(0, append("b"))];
    let one = [told(0, 10, get(), shows("a", 1)), told(20, 30, get(), shows("ab", 2))];
    let other = [told(0, 10, get(), shows("b", 1)), told(20, 30, get(), shows("ba", 2))];
    assert_good(&with(&writes, one.clone()));
    assert_good(&with(&writes, other.clone()));
    assert_bad(&with(&with(&writes, one), other));
}

#[test]
fn two_compare_and_sets_on_one_version_cannot_both_succeed() {
    let write = told(0, 10, put("a"), wrote(1));
    let one = told(20, 40, expecting(Expect::Version(1), put("b")), wrote(2));
    let other = |outcome| told(20, 40, expecting(Expect::Version(1), put("c")), outcome);
    assert_good(&[write.clone(), one.clone(), other(conflict(0, Some(2)))]);
    assert_bad(&[write, one, other(wrote(3))]);
}

#[test]
fn two_creations_of_one_key_cannot_both_succeed() {
    let create = |value, outcome| told(0, 10, expecting(Expect::Absent, put(value)), outcome);
    assert_good(&[create("a", wrote(1)), create("b", conflict(0, Some(1)))]);
    assert_bad(&[create("a", wrote(1)), create("b", wrote(2))]);
    let removal = told(0, 10, delete(), deleted(true));
    assert_good(&[create("a", wrote(1)), removal, create("b", wrote(3))]);
}

#[test]
fn a_deleted_value_that_comes_back_is_found() {
    let gone = [told(0, 10, put("a"), wrote(1)), told(20, 30, delete(), deleted(true))];
    assert_good(&with(&gone, [told(40, 50, get(), shows_nothing())]));
    assert_bad(&with(&gone, [told(40, 50, get(), shows("a", 1))]));
    assert_good(&with(&gone, [told(40, 50, delete(), deleted(false))]));
    assert_bad(&with(&gone, [told(40, 50, delete(), deleted(true))]));
}

#[test]
fn a_delete_says_whether_there_was_a_value() {
    assert_bad(&[told(0, 10, delete(), deleted(true))]);
    assert_bad(&[told(0, 10, put("a"), wrote(1)), told(20, 30, delete(), deleted(false))]);
}

#[test]
fn an_append_that_is_applied_twice_is_found() {
    let append_once = [told(0, 10, append("ab"), length(2, 1))];
    assert_good(&with(&append_once, [told(20, 30, get(), shows("ab", 1))]));
    assert_bad(&with(&append_once, [told(20, 30, get(), shows("abab", 2))]));
    assert_bad(&with(&append_once, [told(20, 30, append("c"), length(5, 3))]));
    assert_bad(&[told(0, 10, append("ab"), length(4, 2))]);
}

#[test]
fn a_version_that_goes_back_or_stands_still_is_found() {
    let write = told(0, 10, put("a"), wrote(5));
    for version in [4, 5] {
        assert_bad(&[write.clone(), told(20, 30, put("a"), wrote(version))]);
        assert_bad(&[write.clone(), told(20, 30, append("b"), length(2, version))]);
    }
    assert_bad(&[write.clone(), told(20, 30, get(), shows("a", 4))]);
    // Other keys may have used up versions in between.
    assert_good(&[write, told(20, 30, put("a"), wrote(9))]);
    assert_bad(&[told(0, 10, put("a"), wrote(0))]);
}

#[test]
fn a_removal_uses_up_a_version_that_nobody_is_told() {
    let gone = [told(0, 10, put("a"), wrote(1)), told(20, 30, delete(), deleted(true))];
    assert_bad(&with(&gone, [told(40, 50, put("b"), wrote(2))]));
    assert_good(&with(&gone, [told(40, 50, put("b"), wrote(3))]));
}

#[test]
fn a_write_that_never_returned_may_appear_late_or_never() {
    let start = [told(0, 10, put("a"), wrote(1)), lost(20, put("b")), told(30, 40, get(), shows("a", 1))];
    assert_good(&start);
    assert_good(&with(&start, [told(1_000, 1_010, get(), shows("b", 2))]));
    // It is some mutation of the key, whichever version it has.
    assert_good(&with(&start, [told(1_000, 1_010, get(), shows("b", 70))]));
    assert_bad(&with(&start, [told(1_000, 1_010, get(), shows("b", 1))]));
}

#[test]
fn a_write_that_never_returned_cannot_appear_before_its_call() {
    assert_bad(&[told(0, 10, get(), shows("b", 1)), lost(11, put("b"))]);
    assert_good(&[told(0, 10, get(), shows("b", 1)), lost(10, put("b"))]);
}

#[test]
fn a_write_that_appears_and_disappears_and_reappears_is_found() {
    let appears = [lost(0, put("a")), told(10, 20, get(), shows("a", 1))];
    let disappears = with(&appears, [told(30, 40, delete(), deleted(true))]);
    assert_good(&disappears);
    assert_bad(&with(&disappears, [told(50, 60, get(), shows("a", 1))]));
    assert_bad(&with(&disappears, [told(50, 60, get(), shows("a", 3))]));
    // Unless two of them were on their way.
    let second = with(&disappears, [lost(0, put("a"))]);
    assert_good(&with(&second, [told(50, 60, get(), shows("a", 3))]));
    assert_bad(&with(&second, [told(50, 60, get(), shows("a", 1))]));
    assert_bad(&with(&appears, [told(30, 40, get(), shows_nothing()), told(50, 60, get(), shows("a", 1))]));
}

#[test]
fn a_command_that_was_carried_out_shows_by_its_return_though_its_answer_is_unknown() {
    let read = told(20, 30, get(), shows_nothing());
    assert_bad(&[unheard(0, 10, put("a")), read.clone()]);
    assert_good(&[unheard(0, 20, put("a")), read.clone()]);
    assert_good(&[lost(0, put("a")), read]);
    assert_good(&[unheard(0, 10, put("a")), told(20, 30, get(), shows("a", 8))]);
    // And it does so once.
    let twice = [told(20, 30, delete(), deleted(true)), told(40, 50, get(), shows("a", 9))];
    assert_bad(&with(&[unheard(0, 100, put("a"))], twice));
}

#[test]
fn a_command_of_unknown_answer_may_have_found_its_precondition_broken() {
    let create = |value| unheard(0, 10, expecting(Expect::Absent, put(value)));
    assert_good(&[create("a"), create("b"), told(20, 30, get(), shows("a", 1))]);
    assert_good(&[create("a"), create("b"), told(20, 30, get(), shows("b", 1))]);
    assert_bad(&[create("a"), create("b"), told(20, 30, get(), shows_nothing())]);
}

#[test]
fn a_command_of_unknown_answer_found_the_version_that_it_expects_or_another() {
    let start = [
        unheard(0, 10, put("a")),
        // Nobody knows the version that it found.
        unheard(20, 30, expecting(Expect::Version(5), put("b"))),
    ];
    assert_good(&with(&start, [told(40, 50, get(), shows("a", 4))]));
    assert_good(&with(&start, [told(40, 50, get(), shows("a", 6))]));
    assert_good(&with(&start, [told(40, 50, get(), shows("b", 6))]));
    assert_bad(&with(&start, [told(40, 50, get(), shows("b", 5))]));
    // Had it been this, it would have been replaced.
    assert_bad(&with(&start, [told(40, 50, get(), shows("a", 5))]));
}

#[test]
fn a_refused_command_changes_nothing() {
    let refusals =
        [Outcome::WrongShard, Outcome::RequestReused, Outcome::RequestExpired, Outcome::RequestMemoryFull];
    for refusal in refusals {
        let start = [told(0, 10, put("a"), wrote(1)), told(20, 30, put("b"), refusal)];
        assert_good(&with(&start, [told(40, 50, get(), shows("a", 1))]));
        assert_bad(&with(&start, [told(40, 50, get(), shows("b", 2))]));
    }
}

#[test]
fn a_conflict_must_be_true() {
    let write = [told(0, 10, put("a"), wrote(5))];
    let asked = |expect, outcome| with(&write, [told(20, 30, expecting(expect, put("b")), outcome)]);
    assert_good(&asked(Expect::Absent, conflict(0, Some(5))));
    assert_good(&asked(Expect::Version(4), conflict(0, Some(5))));
    // The version that it names is not the key's.
    assert_bad(&asked(Expect::Absent, conflict(0, Some(4))));
    assert_bad(&asked(Expect::Version(4), conflict(0, None)));
    // The precondition holds.
    assert_bad(&asked(Expect::Present, conflict(0, Some(5))));
    assert_bad(&asked(Expect::Present, conflict(0, None)));
    assert_bad(&asked(Expect::Version(5), conflict(0, Some(5))));
    // There is no such precondition.
    assert_bad(&asked(Expect::Absent, conflict(1, Some(5))));
    // It conflicts, but it was carried out.
    assert_bad(&asked(Expect::Absent, wrote(6)));
    assert_bad(&asked(Expect::Version(4), wrote(6)));
}

#[test]
fn a_conflict_is_of_the_first_precondition_that_does_not_hold() {
    let two = expecting(Expect::Present, expecting(Expect::Version(4), put("b")));
    let write = told(0, 10, put("a"), wrote(5));
    assert_good(&[write.clone(), told(20, 30, two.clone(), conflict(1, Some(5)))]);
    assert_bad(&[write, told(20, 30, two.clone(), conflict(0, Some(5)))]);
    assert_good(&[told(0, 10, two.clone(), conflict(0, None))]);
    assert_bad(&[told(0, 10, two, conflict(1, None))]);
}

#[test]
fn a_conflict_changes_nothing_and_tells_a_version() {
    let start =
        [unheard(0, 10, put("a")), told(20, 30, expecting(Expect::Absent, put("b")), conflict(0, Some(5)))];
    assert_good(&with(&start, [told(40, 50, get(), shows("a", 5))]));
    assert_bad(&with(&start, [told(40, 50, get(), shows("a", 6))]));
    assert_bad(&with(&start, [told(40, 50, get(), shows("b", 6))]));
}

#[test]
fn an_aborted_command_must_have_had_reason() {
    let after = |value, command, outcome| [told(0, 10, put(value), wrote(1)), told(20, 30, command, outcome)];
    let not_an_integer = aborted(0, OperationError::NotAnInteger);
    assert_good(&after("a", increment(1), not_an_integer.clone()));
    assert_bad(&after("7", increment(1), not_an_integer.clone()));
    assert_bad(&after("a", put("b"), not_an_integer.clone()));
    let overflow = aborted(0, OperationError::Overflow);
    assert_good(&after("9223372036854775807", increment(1), overflow.clone()));
    assert_bad(&after("9223372036854775806", increment(1), overflow.clone()));
    assert_bad(&after("a", increment(1), overflow));
    assert_bad(&after("a", increment(1), sum(1, 2)));
    // What the operation's error does not abort is not aborted.
    assert_bad(&after("a", continuing(increment(1)), not_an_integer));
    // Preconditions come first.
    let expecting_absence = expecting(Expect::Absent, increment(1));
    assert_bad(&after("a", expecting_absence, aborted(0, OperationError::NotAnInteger)));
}

#[test]
fn what_counts_as_an_integer_is_decimal_text_as_an_increment_writes_it() {
    let after = |value, outcome| [told(0, 10, put(value), wrote(1)), told(20, 30, increment(1), outcome)];
    assert_good(&after("-7", sum(-6, 2)));
    for text in ["+7", "007", "-0", "", "-", "7 ", "0x7", "9223372036854775808"] {
        assert_good(&after(text, aborted(0, OperationError::NotAnInteger)));
    }
}

#[test]
fn an_aborted_command_has_changed_nothing() {
    let command = several([put("b"), increment(1)]);
    let start =
        [told(0, 10, put("a"), wrote(1)), told(20, 30, command, aborted(1, OperationError::NotAnInteger))];
    assert_good(&with(&start, [told(40, 50, get(), shows("a", 1)), told(60, 70, put("c"), wrote(2))]));
    assert_bad(&with(&start, [told(40, 50, get(), shows("b", 2))]));
}

#[test]
fn an_error_that_does_not_abort_is_the_result_of_its_operation_only() {
    let failed = OperationResult::Failed(OperationError::NotAnInteger);
    let results = |first| Outcome::Done(vec![first, OperationResult::Appended { length: 2, version: 2 }]);
    let after = |value, first| {
        let command = several([continuing(increment(1)), append("b")]);
        [told(0, 10, put(value), wrote(1)), told(20, 30, command, results(first))]
    };
    assert_good(&after("a", failed.clone()));
    assert_bad(&after("7", failed.clone()));
    assert_bad(&after("a", OperationResult::Incremented { value: 1, version: 2 }));
    // Without leave to continue it aborts.
    let command = several([increment(1), append("b")]);
    assert_bad(&[told(0, 10, put("a"), wrote(1)), told(20, 30, command, results(failed))]);
}

#[test]
fn nobody_sees_a_command_half_done() {
    let both = several([put("a"), append("b")]);
    let results = |length| {
        let appended = OperationResult::Appended { length, version: 2 };
        Outcome::Done(vec![OperationResult::Written { version: 1 }, appended])
    };
    let command = told(0, 100, both.clone(), results(2));
    assert_good(&[command.clone(), told(10, 20, get(), shows_nothing())]);
    assert_good(&[command.clone(), told(10, 20, get(), shows("ab", 2))]);
    assert_bad(&[command, told(10, 20, get(), shows("a", 1))]);
    assert_bad(&[told(0, 100, both.clone(), results(3))]);
    // Nothing of another client comes between two operations of one command, known or not.
    assert_bad(&[told(0, 100, both.clone(), results(3)), told(0, 100, append("c"), length(2, 2))]);
    assert_good(&[lost(0, both.clone()), told(10, 20, get(), shows("ab", 2))]);
    assert_bad(&[lost(0, both), told(10, 20, get(), shows("a", 1))]);
}

#[test]
fn each_operation_of_a_command_has_a_result_and_sees_those_before_it() {
    let command = several([get(), put("b"), get(), delete(), get()]);
    let value = |value, version| OperationResult::Value(Some(versioned(value, version)));
    let nothing = OperationResult::Value(None);
    let (written, deleted) =
        (OperationResult::Written { version: 2 }, OperationResult::Deleted { existed: true });
    let answer = |results: &[&OperationResult]| {
        let results = results.iter().map(|result| (*result).clone()).collect();
        [told(0, 10, put("a"), wrote(1)), told(20, 30, command.clone(), Outcome::Done(results))]
    };
    let (old, new) = (value("a", 1), value("b", 2));
    assert_good(&answer(&[&old, &written, &new, &deleted, &nothing]));
    assert_bad(&answer(&[&old, &written, &old, &deleted, &nothing]));
    assert_bad(&answer(&[&new, &written, &new, &deleted, &nothing]));
    assert_bad(&answer(&[&old, &written, &new, &deleted, &new]));
    assert_bad(&answer(&[&old, &written, &new, &deleted]));
    assert_bad(&answer(&[&old, &written, &new, &deleted, &nothing, &nothing]));
    // A result of another kind.
    assert_bad(&answer(&[&old, &nothing, &new, &deleted, &nothing]));
}

#[test]
fn the_obstacle_of_a_stale_read_is_that_read() {
    let history = [
        told(0, 10, put("old"), wrote(1)),
        told(60, 70, put("newest"), wrote(3)),
        told(20, 30, put("new"), wrote(2)),
        told(40, 50, get(), shows("old", 1)),
    ];
    let Err(Violation::NotLinearizable(obstacle)) = checker::check(&Key, &history, STEPS_MAX) else {
        panic!("the read is stale");
    };
    assert_eq!(obstacle.linearized, [0, 2]);
    assert_eq!(obstacle.blocked, [3]);
    assert_eq!(obstacle.state.value, Some("new".into()));
    assert_eq!(obstacle.state.version, Version::Exactly(2));
}

#[test]
fn an_obstacle_names_all_of_which_one_had_to_come_next() {
    let history = [
        told(0, 10, put("a"), wrote(1)),
        told(20, 50, get(), shows("b", 2)),
        told(30, 40, delete(), deleted(false)),
        told(45, 60, get(), shows("c", 3)),
    ];
    let violation = checker::check(&Key, &history, STEPS_MAX).expect_err("nobody wrote these");
    assert_eq!(violation.obstacle().linearized, [0]);
    // The second read was called after the delete returned.
    assert_eq!(violation.obstacle().blocked, [1, 2]);
    let text = violation.to_string();
    assert!(text.starts_with("not linearizable") && text.ends_with("none of [1, 2] can come next"), "{text}");
}

#[test]
fn a_check_that_runs_out_of_steps_gives_up_and_claims_nothing() {
    let good: Vec<Recorded> =
        (1..=10).map(|count| told(0, 100, increment(1), sum(count, count as u64))).collect();
    let bad = with(&good, [told(0, 100, get(), shows("a", 11))]);
    for history in [good, bad] {
        let Err(Violation::GaveUp(obstacle)) = checker::check(&Key, &history, 5) else {
            panic!("five steps do not suffice for ten increments");
        };
        assert_eq!(obstacle.steps, 5);
        assert_eq!(obstacle.linearized, [0, 1, 2, 3, 4]);
    }
    assert_eq!(checker::check(&Key, &[], 0).map(|checked| checked.steps), Ok(0));
}

#[test]
fn a_history_is_split_by_key_in_the_order_given() {
    let (first, second, third) = (lost(3, put("a")), lost(2, put("b")), lost(1, put("c")));
    let histories = checker::partition([("x", first.clone()), ("y", second.clone()), ("x", third.clone())]);
    assert_eq!(histories["x"], [first, third]);
    assert_eq!(histories["y"], [second]);
}

#[test]
fn as_many_operations_may_be_under_way_as_is_said() {
    assert_good(&vec![told(0, 10, get(), shows_nothing()); CONCURRENCY_MAX]);
    // Those that never returned do not count.
    assert_good(&vec![lost(0, put("a")); 10 * CONCURRENCY_MAX]);
}

#[test]
#[should_panic(expected = "under way at one time")]
fn more_operations_under_way_are_refused() {
    let _ = checker::check(&Key, &vec![told(0, 10, get(), shows_nothing()); CONCURRENCY_MAX + 1], STEPS_MAX);
}

#[test]
#[should_panic(expected = "returned before it was called")]
fn a_return_before_its_call_is_refused() {
    let _ = checker::check(&Key, &[told(10, 0, get(), shows_nothing())], STEPS_MAX);
}

const STEPS_MAX: u64 = 100_000;

#[track_caller]
fn assert_good(history: &[Recorded]) {
    if let Err(violation) = checker::check(&Key, history, STEPS_MAX) {
        panic!("{violation}: {history:#?}");
    }
}

#[track_caller]
fn assert_bad(history: &[Recorded]) {
    let verdict = checker::check(&Key, history, STEPS_MAX);
    assert!(matches!(verdict, Err(Violation::NotLinearizable(_))), "{verdict:?}: {history:#?}");
}

fn with<const COUNT: usize>(history: &[Recorded], more: [Recorded; COUNT]) -> Vec<Recorded> {
    history.iter().cloned().chain(more).collect()
}

fn told(called: u64, returned: u64, input: Command, outcome: Outcome) -> Recorded {
    Recorded { input, output: Some(outcome), called, returned: Some(returned) }
}

/// It was carried out, but what it was told is unknown.
fn unheard(called: u64, returned: u64, input: Command) -> Recorded {
    Recorded { input, output: None, called, returned: Some(returned) }
}

/// It never returned.
fn lost(called: u64, input: Command) -> Recorded {
    Recorded { input, output: None, called, returned: None }
}

fn get() -> Command {
    Command::single(Action::Get { key: KEY })
}

fn put(value: &'static str) -> Command {
    Command::single(Action::put(KEY, value))
}

fn delete() -> Command {
    Command::single(Action::Delete { key: KEY })
}

fn increment(by: i64) -> Command {
    Command::single(Action::Increment { key: KEY, by })
}

fn append(suffix: &'static str) -> Command {
    Command::single(Action::Append { key: KEY, suffix: suffix.into() })
}

fn expecting(expect: Expect, mut command: Command) -> Command {
    command.preconditions.insert(0, Precondition { key: KEY, expect });
    command
}

fn continuing(mut command: Command) -> Command {
    for operation in &mut command.operations {
        operation.on_error = OnError::Continue;
    }
    command
}

/// The operations of some commands in one.
fn several<const COUNT: usize>(commands: [Command; COUNT]) -> Command {
    let operations: Vec<Asked> = commands.into_iter().flat_map(|command| command.operations).collect();
    Command { operations, ..get() }
}

fn wrote(version: u64) -> Outcome {
    Outcome::Done(vec![OperationResult::Written { version }])
}

fn shows(value: &'static str, version: u64) -> Outcome {
    Outcome::Done(vec![OperationResult::Value(Some(versioned(value, version)))])
}

fn shows_nothing() -> Outcome {
    Outcome::Done(vec![OperationResult::Value(None)])
}

fn deleted(existed: bool) -> Outcome {
    Outcome::Done(vec![OperationResult::Deleted { existed }])
}

fn sum(value: i64, version: u64) -> Outcome {
    Outcome::Done(vec![OperationResult::Incremented { value, version }])
}

fn length(length: u64, version: u64) -> Outcome {
    Outcome::Done(vec![OperationResult::Appended { length, version }])
}

fn conflict(precondition: usize, version: Option<u64>) -> Outcome {
    Outcome::Conflict { precondition, version }
}

fn aborted(operation: usize, error: OperationError) -> Outcome {
    Outcome::Aborted { operation, error }
}

fn versioned(value: &'static str, version: u64) -> Versioned {
    Versioned { version, stamp: 0, expires: None, value: value.into() }
}
