//! Lives of processes that are cut off: how a child of a test is told what to do, and heard.
//!
//! A child is the test's own program, which runs one test alone. What it does, and what must hold afterwards, is for the tests.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use keevee_faults::{Plan, Unsynced};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How a child is told what to do.
const LIFE: &str = "KEEVEE_CRASH_POINTS_LIFE";
const SIGKILL: i32 = 9;

/// What this child is told; `None` in a process that is no child.
pub(crate) fn told<L: DeserializeOwned>() -> Option<L> {
    let life = std::env::var(LIFE).ok()?;
    Some(serde_json::from_str(&life).unwrap())
}

/// Has this child end at a point. `unsynced` chooses what its disk keeps: 0 for nothing, 1 for some, 2 for all.
pub(crate) fn arm(folder: PathBuf, cut_at: Option<u64>, unsynced: u8, seed: u64, lies: bool) {
    let unsynced = [Unsynced::Lost, Unsynced::Some, Unsynced::Kept][unsynced as usize];
    keevee_faults::arm(Plan { folder, cut_at, unsynced, seed, lies });
}

/// Runs a child to its end: one test, with its errors in a file. Each line that it says is handed on at once.
pub(crate) fn run(
    test: &str,
    life: &impl Serialize,
    errors: &Path,
    mut take: impl FnMut(String),
) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(LIFE, serde_json::to_string(life).unwrap())
        .stdout(Stdio::piped())
        .stderr(File::create(errors).unwrap())
        .spawn()
        .unwrap();
    BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap).for_each(&mut take);
    child.wait().unwrap()
}

/// True if it was cut off.
pub(crate) fn is_cut(status: ExitStatus) -> bool {
    status.signal() == Some(SIGKILL)
}
