//! The load generator: connections that keep so many requests under way (a closed loop), or send them at a fixed rate
//! (an open one, [`schedule`]).
//!
//! It shares the machine with the nodes that it measures, so what it does for a request is little: one thread
//! (or a few) with all connections, requests written and answers read without a library (but for HTTP/2), one histogram
//! for each kind of operation and thread. In a closed loop a slow answer delays the requests after it, and their wait is
//! not in the figures; in an open loop it is.

mod connection;
pub(crate) mod grpc;
pub(crate) mod http;
mod report;
pub(crate) mod resp;
mod schedule;
pub(crate) mod wire;
mod worker;
mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

pub(crate) use report::{Latencies, Report};
pub(crate) use workload::{Distribution, Extent, KEY_DIGITS, Protocol, Workload};

use crate::load::report::{Rate, Tally};
use crate::load::schedule::Schedule;
use crate::load::worker::{Phase, Plan, Worker};

/// The text of a key's number, as the connections write it into their requests.
pub(crate) fn key(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:0KEY_DIGITS$}")
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

    /// True if none is left to take.
    fn is_spent(&self) -> bool {
        self.budget.load(Ordering::Relaxed) == 0
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
    let start = Instant::now();
    let begin = start + workload.warm_up(phase);
    let rate = workload.rate.filter(|_| phase == Phase::Measure);
    let schedule = rate.map(|rate| Arc::new(Schedule::new(start, rate)));
    let (workload, progress) = (workload.clone(), progress.clone());
    let plan = Plan { workload, progress, phase, begin, schedule };
    let tally = thread::scope(|scope| {
        if let Some(schedule) = &plan.schedule {
            let end = match plan.workload.extent {
                Extent::Time(time) => Some(begin + time),
                Extent::Operations(_) => None,
            };
            let progress = &plan.progress;
            scope.spawn(move || schedule.pace(operations, end, || progress.stop.load(Ordering::Relaxed)));
        }
        let threads: Vec<_> = (0..plan.workload.threads)
            .map(|thread| {
                let plan = plan.clone();
                scope.spawn(move || thread_of_load(&plan, thread))
            })
            .collect();
        let mut tally = Tally::default();
        for thread in threads {
            match thread.join() {
                Ok(part) => tally.add(&part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        // Threads that all failed leave it to nobody else.
        plan.schedule.iter().for_each(|schedule| schedule.close());
        tally
    });
    let rate = plan.schedule.zip(rate);
    let rate = rate.map(|(schedule, per_second)| Rate { per_second, unsent: schedule.unsent() });
    Report::new(tally, begin, rate)
}

/// One thread and its share of the connections.
fn thread_of_load(plan: &Plan, thread: usize) -> Tally {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Tally::failed(&format!("no event loop: {error}")),
    };
    let local = tokio::task::LocalSet::new();
    let tally = Tally::shared();
    let _in_runtime = runtime.enter();
    for number in (thread..plan.workload.connections).step_by(plan.workload.threads) {
        local.spawn_local(Worker::new(number, plan.clone(), tally.clone()).run());
    }
    runtime.block_on(local);
    tally.take()
}
