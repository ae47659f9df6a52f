//! Bugs that are put back on purpose must be found: each on the seed that is recorded for it, by the rule that is
//! recorded.
//!
//! It leaves out how many seeds it takes to find them, which is what `keevee-verify mutants` measures.

use std::process::{Command, Output};

use keevee_mutants::Mutant;
use keevee_verify::plan::Plan;
use keevee_verify::seeds::Catch;
use keevee_verify::{Trace, seeds};

/// Runs change their course with the code.
const FIX: &str = "find and record the seeds anew, and see that all are caught:
  cargo run --release -p keevee-verify --features mutants -- mutants --record";

#[test]
fn every_mutant_is_caught_on_its_seed() {
    let catches = seeds::parse_catches(seeds::MUTANTS).expect("seeds/mutants.txt");
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        let name = mutant.name();
        if !catches.iter().any(|catch| catch.mutant == mutant) {
            missed.push(format!("{name} has no seed"));
        }
    }
    for Catch { engine, mutant, seed, oracle } in catches {
        let name = format!("{} ({})", mutant.name(), engine.name());
        let run = |mutant| keevee_verify::run(Plan::draw(seed).on(engine), mutant, Trace::silent()).violation;
        match run(Some(mutant)) {
            Some(violation) if violation.oracle == oracle => {
                println!("{name}: caught by \"{oracle}\" on seed {seed}");
            }
            Some(violation) => {
                let other = violation.oracle;
                missed.push(format!("{name} breaks \"{other}\" on seed {seed}, not \"{oracle}\""));
            }
            None => missed.push(format!("{name} is not caught on seed {seed}")),
        }
        if let Some(violation) = run(None) {
            missed.push(format!("seed {seed} breaks \"{}\" without a mutant", violation.oracle));
        }
    }
    assert!(missed.is_empty(), "{}\n{FIX}", missed.join("\n"));
}

#[test]
fn a_failure_is_still_one_when_it_is_shrunk() {
    let bug = Mutant::AcknowledgedBeforeSync.name();
    let seeds = ["--seeds", "5", "--fail-fast", "--output", "json"];
    let output = keevee_verify(&[&["run", "--mutant", bug][..], &seeds].concat());
    assert_eq!(output.status.code(), Some(1), "{bug} breaks a rule on one of the first seeds");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let failure = &report["failures"][0];
    let oracle = failure["violation"]["oracle"].as_str().expect("a violation");

    let shrunk = retyped(failure["shrink"].as_str().expect("a command line"));
    let text = String::from_utf8(shrunk.stdout).expect("text");
    let replay = text.lines().find_map(|line| line.strip_prefix("replay: ")).expect("what to type");
    let output = retyped(replay);
    assert_eq!(output.status.code(), Some(1), "{replay}");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains(oracle) && text.contains("VIOLATION"), "{text}");
}

/// Runs a command line that the program has printed.
fn retyped(command_line: &str) -> Output {
    let arguments: Vec<&str> = command_line.split(' ').skip(1).collect();
    keevee_verify(&arguments)
}

fn keevee_verify(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keevee-verify")).args(arguments).output().expect("the program")
}
