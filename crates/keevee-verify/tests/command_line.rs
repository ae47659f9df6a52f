//! The command line as people and scripts meet it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Runs the program: exit code, standard output, standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = program().args(arguments).output().expect("the program");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_keevee-verify"))
}

#[test]
fn every_command_shows_examples() {
    for command in [&["run"][..], &["replay"], &["shrink"], &["meta"], &["mutants"], &[]] {
        let (code, stdout, _) = run(&[command, &["--help"]].concat());
        assert_eq!(code, 0);
        assert!(stdout.contains("Examples:\n"), "keevee-verify {} --help", command.join(" "));
    }
}

#[test]
fn a_replay_prints_the_same_hash_each_time() {
    let first = run(&["replay", "--seed", "7"]);
    assert!(first.1.lines().any(|line| line.starts_with("hash ")), "{first:?}");
    let again = run(&["replay", "--seed", "7"]);
    assert_eq!((again.0, &again.1), (first.0, &first.1));
    assert!(again.2.contains("times as fast as real time"), "{}", again.2);
    let cut = ["replay", "--seed", "7", "--without", "1-3", "--clients", "2,3", "--faulty-micros", "5000000"];
    let (code, stdout, stderr) = run(&cut);
    assert_eq!(code, 0, "{stderr}");
    assert!(!stdout.contains("fault   3") && stdout.contains("fault   4"), "{stdout}");
    assert!(!first.1.ends_with(stdout.lines().last().expect("a hash")), "{stdout}");
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let report = |jobs| {
        let (code, stdout, stderr) = run(&["run", "--seeds", "6", "--jobs", jobs, "--output", "json"]);
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str::<Value>(&stdout).expect("JSON")
    };
    let (alone, together) = (report("1"), report("3"));
    assert_eq!(alone["seeds"], 6, "{alone}");
    assert!(alone["events"].as_u64().is_some_and(|events| events > 0), "{alone}");
    for part in ["failures", "events", "requests", "coverage", "missing"] {
        assert_eq!(alone[part], together[part], "{part}");
    }
    let (code, stdout, stderr) = run(&["meta", "--seeds", "2"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn a_wrong_command_line_is_refused_with_a_fix() {
    for (arguments, fix) in [
        (&["replay", "--seed", "12a"][..], "a seed is a whole number"),
        (&["run", "--seeds", "9", "--from", "18446744073709551615"], "start lower"),
        (&["run", "--jobs", "0"], "from 1 to 1024"),
        (&["replay", "--seed", "1", "--without", "3;7"], "3,7,9-12"),
        (&["replay", "--seed", "1", "--clients", "1,999"], "it draws 1-"),
    ] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {stdout}");
        assert!(stderr.contains(fix), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_seed_that_breaks_no_rule_is_not_shrunk() {
    let (code, stdout, stderr) = run(&["shrink", "--seed", "1"]);
    assert_eq!(
        (code, stdout.as_str()),
        (0, "seed 1 breaks no rule: there is nothing to shrink\n"),
        "{stderr}"
    );
}

#[test]
#[cfg(not(feature = "mutants"))]
fn a_program_without_the_mutants_says_how_to_build_one() {
    for arguments in [&["mutants"][..], &["run", "--mutant", "stale-read-round"]] {
        let (code, _, stderr) = run(arguments);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("cargo build --release -p keevee-verify --features mutants"), "{stderr}");
    }
}

#[test]
fn a_trace_ends_quietly_when_nobody_reads_on() {
    let mut child = program()
        .args(["replay", "--seed", "1", "--trace"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a first line");
    assert!(line.starts_with("seed 1:"), "{line}");
    drop(output);
    let code = child.wait().expect("it ends").code();
    let mut complaints = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut complaints).expect("text");
    assert_eq!((code, complaints.as_str()), (Some(4), ""));
}
