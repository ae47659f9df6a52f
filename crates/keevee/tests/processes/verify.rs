//! `keevee verify` with every kind of fault, once each: what it finds on real nodes, and what it tells.

use std::process::Command;

use serde_json::Value;

use crate::program;

fn verify(arguments: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = Command::new(program());
    let output = command.arg("verify").args(["--output", "json"]).args(arguments).output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    (output.status.code(), report, errors)
}

fn every_fault_is_survived(engine: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("report.html");
    let page = page.to_str().expect("a path");
    let arguments =
        ["--consensus", engine, "--seed", "7", "--duration", "1s", "--rate", "1500", "--report", page];
    let (code, report, errors) = verify(&arguments);
    assert_eq!((code, &report["passed"]), (Some(0), &Value::Bool(true)), "{report:#}\n{errors}");
    assert_eq!(report["violations"].as_array().map(Vec::len), Some(0));
    let faults = report["faults"].as_object().expect("kinds of faults");
    assert_eq!(faults.len(), if keevee_shim::Shim::is_supported() { 21 } else { 13 }, "{faults:?}");
    for (kind, counts) in faults {
        assert!(counts["happened"].as_u64() > Some(0), "{kind} did not happen");
    }
    let checked = &report["checked"];
    assert!(
        checked["acknowledged_writes"].as_u64() > Some(0) && checked["replicas"].as_u64() >= Some(6),
        "{checked}"
    );
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(page.starts_with("<!doctype html>") && page.contains("passed"));
    assert!(!page.contains("http://") && !page.contains("<script"), "it needs nothing else");
}

#[test]
fn every_fault_is_survived_paxos() {
    every_fault_is_survived("paxos");
}

#[test]
fn every_fault_is_survived_raft() {
    every_fault_is_survived("raft");
}

#[test]
fn what_can_not_be_run_is_refused() {
    for arguments in
        [&["--nodes", "2"][..], &["--faults", "flood"], &["--duration", "soon"], &["--shards", "0"]]
    {
        let output = Command::new(program()).arg("verify").args(arguments).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
