//! The load generator: a closed loop of connections, each with one request under way.
//!
//! It shares the machine with the nodes that it measures, so what it does for a request is little: one thread
//! (or a few) with all connections, requests written and answers read by [`wire`] without an HTTP
//! library, one histogram for each kind of operation and thread. It leaves out open loops: with as many
//! requests under way as connections, a slow answer delays the requests after it, and their wait is not in the figures.

mod report;
pub(crate) mod wire;
mod worker;
mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

pub(crate) use report::{Latencies, Report};
pub(crate) use workload::{Distribution, Extent, Workload};

use crate::load::report::Tally;
use crate::load::worker::{Phase, Worker};

/// The text of a key's number, as the connections write it into their requests.
pub(crate) fn key(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:010}")
}

/// What the load's threads and who watches them share.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Operations done, without warm-up.
    pub(crate) done: AtomicU64,
    /// Operations that may still be started, where their number is given.
    budget: AtomicU64,
    /// Set to end it early.
    pub(crate) stop: AtomicBool,
}

impl Progress {
    /// Takes one operation from the budget; false if none is left.
    fn take(&self) -> bool {
        let taken =
            self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        taken.is_ok()
    }
}

/// Puts every key once, so that reads find something. Returns the errors by kind.
pub(crate) fn fill(workload: &Arc<Workload>, progress: &Arc<Progress>) -> Report {
    run_phase(workload, progress, Phase::Fill)
}

/// Carries out the workload. Blocks until it is done; `progress` tells how far it is.
pub(crate) fn run(workload: &Arc<Workload>, progress: &Arc<Progress>) -> Report {
    run_phase(workload, progress, Phase::Measure)
}

fn run_phase(workload: &Arc<Workload>, progress: &Arc<Progress>, phase: Phase) -> Report {
    let operations = match (phase, workload.extent) {
        (Phase::Fill, _) => workload.keys,
        (Phase::Measure, Extent::Operations(count)) => count,
        (Phase::Measure, Extent::Time(_)) => u64::MAX,
    };
    progress.budget.store(operations, Ordering::Relaxed);
    progress.done.store(0, Ordering::Relaxed);
    let begin = Instant::now() + workload.warm_up(phase);
    let threads: Vec<_> = (0..workload.threads)
        .map(|thread| {
            let (workload, progress) = (workload.clone(), progress.clone());
            thread::spawn(move || thread_of_load(&workload, &progress, phase, thread, begin))
        })
        .collect();
    let mut tally = Tally::default();
    for thread in threads {
        match thread.join() {
            Ok(part) => tally.add(&part),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Report::new(tally, begin)
}

/// One thread and its share of the connections.
fn thread_of_load(
    workload: &Arc<Workload>,
    progress: &Arc<Progress>,
    phase: Phase,
    thread: usize,
    begin: Instant,
) -> Tally {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Tally::failed(&format!("no event loop: {error}")),
    };
    let local = tokio::task::LocalSet::new();
    let tally = Tally::shared();
    for number in (thread..workload.connections).step_by(workload.threads) {
        let worker = Worker::new(number, workload.clone(), progress.clone(), tally.clone(), phase, begin);
        local.spawn_local(worker.run());
    }
    runtime.block_on(local);
    tally.take()
}
