//! One seed, run from its first event to its verdict.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::{Duration, Instant};

use keevee_mutants::Mutant;

use crate::coverage::Coverage;
use crate::plan::Plan;
use crate::world::{Trace, Violation, World};

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plan that was run.
    pub plan: Plan,
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// Events carried out.
    pub events: u64,
    /// How long it took, by the real clock, on one core.
    pub took: Duration,
    /// How long the run took, in microseconds of virtual time.
    pub virtual_micros: u64,
    /// Requests of clients.
    pub requests: u64,
    /// Operations checked for linearizability.
    pub checked_operations: u64,
    /// How long that took, by the real clock.
    pub checking: Duration,
    /// What was seen.
    pub coverage: Coverage,
    /// Equal for equal runs.
    pub trace_hash: u64,
}

/// Runs a plan, with a mutant if the program holds them, and writes its trace if that is asked for.
pub fn run(plan: Plan, mutant: Option<Mutant>, trace: Trace) -> Report {
    let begin = Instant::now();
    activate(mutant);
    keep_panics_quiet();
    let mut world = World::new(plan.clone(), trace);
    // An assertion of the replica's own is an oracle too. The world is not used after a panic but for its counters.
    IS_RUNNING.set(true);
    let ended = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    IS_RUNNING.set(false);
    activate(None);
    let ended = ended.unwrap_or_else(|_| world.end_by_panic(LAST_PANIC.take()));
    Report {
        plan,
        violation: ended.violation,
        events: ended.events,
        took: begin.elapsed(),
        virtual_micros: ended.virtual_micros,
        requests: ended.requests,
        checked_operations: ended.checked.operations,
        checking: ended.checked.took,
        coverage: world.coverage.clone(),
        trace_hash: world.trace.hash(),
    }
}

#[cfg(feature = "mutants")]
fn activate(mutant: Option<Mutant>) {
    keevee_mutants::activate(mutant);
}

#[cfg(not(feature = "mutants"))]
fn activate(mutant: Option<Mutant>) {
    assert!(mutant.is_none(), "built without the mutants: build with `--features mutants`");
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static IS_RUNNING: RefCell<bool> = const { RefCell::new(false) };
}

/// A panic within a run is a finding, to be reported like any other; all others are printed as usual.
fn keep_panics_quiet() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IS_RUNNING.with(|running| *running.borrow()) {
                LAST_PANIC.set(info.to_string());
            } else {
                usual(info);
            }
        }));
    });
}
