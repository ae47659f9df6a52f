//! The simulation as every change must pass it: so many seeds that everything a run can see is seen.
//!
//! It leaves out hunting for more, which is what `keevee-verify run` is for.

use std::ops::{ControlFlow, Range};
use std::thread;
use std::time::{Duration, Instant};

use keevee_verify::coverage::Coverage;
use keevee_verify::plan::{EngineKind, FAULTS_MIN, Plan, SECOND};
use keevee_verify::{Report, Trace, seeds};

/// What a seed must go through to count.
const VIRTUAL_MICROS_MIN: u64 = 60 * SECOND;

#[test]
fn a_thousand_seeds_break_no_rule_and_see_everything() {
    hold(EngineKind::Paxos, 1..1_001);
}

#[test]
fn three_hundred_seeds_on_raft_break_no_rule_and_see_everything() {
    hold(EngineKind::Raft, 1..301);
}

fn hold(engine: EngineKind, seeds: Range<u64>) {
    let count = seeds.end - seeds.start;
    let (mut events, mut checked_operations, mut virtual_micros) = (0, 0, 0);
    let mut running = Duration::ZERO;
    let (mut coverage, mut broken) = (Coverage::default(), Vec::new());
    let begin = Instant::now();
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    seeds::in_order(
        seeds,
        jobs,
        |seed| simulate(engine, seed),
        |report| {
            let seed = report.plan.seed;
            let faults = report.plan.faults.iter().filter(|fault| fault.lasts > 0).count();
            assert!(faults >= FAULTS_MIN, "seed {seed} has {faults} faults");
            events += report.events;
            running += report.took;
            checked_operations += report.checked_operations;
            virtual_micros += report.virtual_micros;
            coverage += &report.coverage;
            match told(&report) {
                Some(violation) => broken.push(violation),
                None => assert!(report.virtual_micros >= VIRTUAL_MICROS_MIN, "seed {seed} ends early"),
            }
            ControlFlow::Continue(())
        },
    );
    let took = begin.elapsed().as_secs_f64();
    println!("{count} seeds in {took:.1} s on {jobs} threads");
    println!("{events} events: {:.0} each second and core", events as f64 / running.as_secs_f64());
    println!("{checked_operations} operations checked to be linearizable");
    let ratio = virtual_micros as f64 / 1e6 / running.as_secs_f64();
    println!("virtual time: {ratio:.0} times as fast as real time on each core");
    assert!(broken.is_empty(), "{} seeds broke a rule:\n{}", broken.len(), broken.join("\n"));
    let missing = coverage.missing(engine);
    assert!(missing.is_empty(), "never seen: {}", missing.join(", "));
}

#[test]
fn seeds_that_once_found_a_bug_break_no_rule() {
    let regressions = seeds::parse_regressions(seeds::REGRESSIONS).expect("seeds/regressions.txt");
    for regression in regressions {
        let violation = told(&simulate(regression.engine, regression.seed));
        assert!(violation.is_none(), "{} is back? {violation:?}", regression.bug);
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    let on = |engine| (1..11).map(move |seed| (engine, seed));
    for (engine, seed) in on(EngineKind::Paxos).chain(on(EngineKind::Raft)) {
        let first = simulate(engine, seed);
        let second = thread::spawn(move || simulate(engine, seed)).join().expect("the second run");
        let outcome = |report: &Report| (report.trace_hash, report.events, report.violation.clone());
        assert_eq!(outcome(&first), outcome(&second), "seed {seed} differs on {}", engine.name());
    }
}

fn simulate(engine: EngineKind, seed: u64) -> Report {
    keevee_verify::run(Plan::draw(seed).on(engine), None, Trace::silent())
}

/// What is wrong, how to see it again, and all that the seed drew.
fn told(report: &Report) -> Option<String> {
    let seed = report.plan.seed;
    let violation = report.violation.as_ref()?;
    let engine = report.plan.engine.name();
    let replay =
        format!("cargo run --release -p keevee-verify -- replay --engine {engine} --seed {seed} --trace");
    Some(format!("seed {seed} broke \"{}\": {}\n{replay}\n{}", violation.oracle, violation.what, report.plan))
}
