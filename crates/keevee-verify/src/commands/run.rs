//! `keevee-verify run`: many seeds, and whether all held.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use keevee_mutants::Mutant;
use keevee_verify::coverage::{Counter, Coverage};
use keevee_verify::plan::{EngineKind, Plan};
use keevee_verify::{Report, Trace, Violation, seeds};
use serde::Serialize;

use super::{Failure, ManySeeds, OneRun, Output, count_seeds, parse_mutant, print, progress_bar, verdict};

/// Run many seeds and tell which of them break a rule.
///
/// Results come in the order of the seeds, whatever the threads do. Over 200 seeds or more, everything
/// that a run can see must be seen at least once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee-verify run --seeds 1000
  keevee-verify run --seeds 300 --engine raft
  keevee-verify run --from 1000000 --seeds 300000 --fail-fast
  keevee-verify run --seeds 200 --output json
  keevee-verify run --seeds 100 --mutant stale-read-round

Of a failure all drawn parameters are printed, and what to type to replay and to shrink it.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    many: ManySeeds,
    /// Put this bug back for all runs
    #[arg(long, value_name = "NAME", value_parser = parse_mutant)]
    mutant: Option<Mutant>,
    /// End at the first seed that breaks a rule
    #[arg(long)]
    fail_fast: bool,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Over fewer seeds, something may well not happen.
const COVERAGE_SEEDS_MIN: u64 = 200;

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let range = arguments.many.range()?;
    let length = range.end - range.start;
    let bar = progress_bar("seeds", length, "{prefix} {bar:40} {pos}/{len} {per_sec} {eta} left {msg}");
    let mut tally = Tally::default();
    let begin = Instant::now();
    let engine = arguments.many.engine;
    let work = |seed| keevee_verify::run(Plan::draw(seed).on(engine), arguments.mutant, Trace::silent());
    seeds::in_order(range.clone(), arguments.many.jobs, work, |report| {
        tally.add(&report);
        bar.inc(1);
        if report.violation.is_none() {
            return ControlFlow::Continue(());
        }
        tell(report, arguments, &mut tally, &bar);
        if arguments.fail_fast { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let summary = Summary::new(range.start, engine, tally, begin.elapsed());
    match arguments.output {
        Output::Text => print(&summary.to_string()),
        Output::Json => {
            let document =
                serde_json::to_string(&summary).map_err(|error| Failure::Other(error.to_string()))?;
            print(&format!("{document}\n"));
        }
    }
    summary.judge()
}

/// Prints a failure as soon as it is its turn: a night is long.
fn tell(report: Report, arguments: &Arguments, tally: &mut Tally, bar: &ProgressBar) {
    let one = OneRun { seed: report.plan.seed, engine: report.plan.engine, mutant: arguments.mutant };
    let (replay, shrink) = (one.command_line("replay"), one.command_line("shrink"));
    if arguments.output == Output::Text {
        let (seed, verdict, plan) = (one.seed, verdict(&report), &report.plan);
        let text = format!("seed {seed}: {verdict}\n{plan}replay: {replay} --trace\nshrink: {shrink}\n\n");
        bar.suspend(|| print(&text));
    }
    let Report { plan, violation, .. } = report;
    tally.failures.push(Found { seed: one.seed, violation, replay, shrink, plan });
    bar.set_message(format!("{} broke a rule", tally.failures.len()));
}

/// A seed that breaks a rule.
#[derive(Debug, Serialize)]
struct Found {
    seed: u64,
    violation: Option<Violation>,
    replay: String,
    shrink: String,
    plan: Plan,
}

/// Sums over the runs.
#[derive(Debug, Default)]
struct Tally {
    seeds: u64,
    failures: Vec<Found>,
    events: u64,
    requests: u64,
    checked_operations: u64,
    virtual_micros: u64,
    /// Over all threads.
    running: Duration,
    /// Of that: whether histories are linearizable.
    checking: Duration,
    coverage: Coverage,
}

impl Tally {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.events += report.events;
        self.requests += report.requests;
        self.virtual_micros += report.virtual_micros;
        self.running += report.took;
        self.checked_operations += report.checked_operations;
        self.checking += report.checking;
        self.coverage += &report.coverage;
    }
}

/// The figures of all runs.
#[derive(Debug, Serialize)]
struct Summary {
    engine: EngineKind,
    from: u64,
    seeds: u64,
    failures: Vec<Found>,
    seconds: f64,
    seeds_per_hour: f64,
    events: u64,
    events_per_second_and_core: f64,
    requests: u64,
    checked_operations: u64,
    checked_operations_per_second_and_core: f64,
    /// Of one core: over the time that its runs took.
    virtual_seconds_per_second_and_core: f64,
    coverage: Coverage,
    /// What was never seen.
    missing: Vec<&'static str>,
}

impl Summary {
    fn new(from: u64, engine: EngineKind, tally: Tally, took: Duration) -> Summary {
        let per_second = |count: f64, time: Duration| (count / time.as_secs_f64().max(1e-6)).round();
        Summary {
            engine,
            from,
            seeds: tally.seeds,
            seconds: (took.as_secs_f64() * 1_000.0).round() / 1_000.0,
            seeds_per_hour: per_second(tally.seeds as f64 * 3_600.0, took),
            events: tally.events,
            events_per_second_and_core: per_second(tally.events as f64, tally.running),
            requests: tally.requests,
            checked_operations: tally.checked_operations,
            checked_operations_per_second_and_core: per_second(
                tally.checked_operations as f64,
                tally.checking,
            ),
            virtual_seconds_per_second_and_core: per_second(tally.virtual_micros as f64 / 1e6, tally.running),
            missing: tally.coverage.missing(engine),
            failures: tally.failures,
            coverage: tally.coverage,
        }
    }

    fn judge(&self) -> Result<(), Failure> {
        if !self.failures.is_empty() {
            let text = format!("{} of {} broke a rule", self.failures.len(), count_seeds(self.seeds));
            return Err(Failure::Broken(text));
        }
        if self.missing.is_empty() {
            return Ok(());
        }
        let text = format!("never seen over {}: {}", count_seeds(self.seeds), self.missing.join(", "));
        if self.seeds >= COVERAGE_SEEDS_MIN {
            return Err(Failure::Unseen(text));
        }
        eprintln!("warning: {text}; from {COVERAGE_SEEDS_MIN} seeds on this is a failure");
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rates are whole numbers, however they are held.
        let Summary { engine, from, seeds, seconds, seeds_per_hour, events, requests, .. } = self;
        let count = count_seeds(*seeds);
        writeln!(
            formatter,
            "{count} on {} from {from} on in {seconds:.1} s: {seeds_per_hour} each hour",
            engine.name()
        )?;
        writeln!(formatter, "{} broke a rule", self.failures.len())?;
        writeln!(formatter, "{events} events: {} each second and core", self.events_per_second_and_core)?;
        let (checked, rate) = (self.checked_operations, self.checked_operations_per_second_and_core);
        writeln!(formatter, "{requests} requests of clients")?;
        writeln!(formatter, "{checked} operations checked to be linearizable: {rate} each second and core")?;
        let rate = self.virtual_seconds_per_second_and_core;
        writeln!(formatter, "virtual time passed {rate} times as fast as real time on each core")?;
        writeln!(formatter, "seen:")?;
        let counters: Vec<Counter> =
            Counter::ALL.iter().copied().filter(|counter| counter.is_of(*engine)).collect();
        for row in counters.chunks(3) {
            for counter in row {
                write!(formatter, "  {:<22}{:>11}", counter.name(), self.coverage.count(*counter))?;
            }
            writeln!(formatter)?;
        }
        Ok(())
    }
}
