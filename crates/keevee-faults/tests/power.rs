//! What a disk keeps of a few writes, cut at each of them.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use keevee_faults::{Plan, Unsynced};
use tempfile::TempDir;

const FOLDER: &str = "KEEVEE_FAULTS_FOLDER";
const CUT_AT: &str = "KEEVEE_FAULTS_CUT_AT";
const UNSYNCED: &str = "KEEVEE_FAULTS_UNSYNCED";
const LIES: &str = "KEEVEE_FAULTS_LIES";
const POINTS: u64 = 19;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn a_child_that_writes() {
    let folder = variable(FOLDER);
    if folder.is_empty() {
        return;
    }
    let folder = Path::new(&folder);
    let unsynced = match variable(UNSYNCED).as_str() {
        "kept" => Unsynced::Kept,
        "some" => Unsynced::Some,
        _ => Unsynced::Lost,
    };
    let cut_at = variable(CUT_AT).parse().ok();
    let lies = variable(LIES) == "true";
    keevee_faults::arm(Plan { folder: folder.to_owned(), cut_at, unsynced, seed: 7, lies });
    let sync_folder = || File::open(folder).unwrap().sync_all().unwrap();
    let mut a = File::create(folder.join("a")).unwrap(); // 1
    a.write_all(b"one").unwrap(); // 2
    a.sync_all().unwrap(); // 3
    sync_folder(); // 4
    a.write_all_at(b"two!", 0).unwrap(); // 5
    fs::write(folder.join("b"), "bbb").unwrap(); // 6 and 7
    fs::rename(folder.join("b"), folder.join("c")).unwrap(); // 8
    a.sync_data().unwrap(); // 9
    let durable = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(folder.join("a")).unwrap();
    durable.write_all_at(b"T", 0).unwrap(); // 10
    fs::remove_file(folder.join("c")).unwrap(); // 11
    a.set_len(2).unwrap(); // 12
    let inner = folder.join("inner");
    fs::create_dir(&inner).unwrap(); // 13
    fs::hard_link(folder.join("a"), inner.join("a")).unwrap(); // 14
    File::open(&inner).unwrap().sync_all().unwrap(); // 15
    sync_folder(); // 16
    fs::remove_dir_all(&inner).unwrap(); // 17 and 18
    sync_folder(); // 19
    assert_eq!(keevee_faults::points(), POINTS);
}

/// What is there after a cut at a point.
fn left(cut_at: u64, unsynced: &str, lies: bool) -> BTreeMap<String, String> {
    let temp = TempDir::new().unwrap();
    let folder = temp.path().join("armed");
    fs::create_dir(&folder).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_that_writes", "--ignored", "--nocapture"])
        .env(FOLDER, &folder)
        .env(CUT_AT, cut_at.to_string())
        .env(UNSYNCED, unsynced)
        .env(LIES, lies.to_string())
        .status()
        .unwrap();
    let is_cut = status.signal() == Some(libc::SIGKILL);
    assert_eq!(is_cut, cut_at <= POINTS, "{status:?}");
    let mut found = files_in(&folder);
    if folder.join("inner").exists() {
        let inner = files_in(&folder.join("inner"));
        found.extend(inner.into_iter().map(|(name, holds)| (format!("inner/{name}"), holds)));
    }
    found
}

fn files_in(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect()
}

fn files<const N: usize>(files: [(&str, &str); N]) -> BTreeMap<String, String> {
    files.map(|(name, holds)| (name.to_owned(), holds.to_owned())).into()
}

#[test]
fn what_is_not_synced_is_lost() {
    for cut_at in 1..=4 {
        assert_eq!(left(cut_at, "lost", false), files([]), "{cut_at}: no name before the folder is synced");
    }
    for cut_at in 5..=9 {
        assert_eq!(left(cut_at, "lost", false), files([("a", "one")]), "{cut_at}");
    }
    let torn = left(10, "lost", false);
    assert!(torn == files([("a", "two!")]) || torn == files([("a", "Two!")]), "{torn:?}");
    assert_eq!(left(11, "lost", false), files([("a", "Two!")]), "written durably");
    assert_eq!(left(12, "lost", false), files([("a", "Two!")]));
}

#[test]
fn a_killed_process_loses_nothing_that_it_wrote() {
    assert_eq!(left(1, "kept", false), files([]));
    assert_eq!(left(3, "kept", false), files([("a", "one")]));
    assert_eq!(left(8, "kept", false), files([("a", "two!"), ("b", "bbb")]));
    assert_eq!(left(12, "kept", false), files([("a", "Two!")]));
    assert_eq!(left(17, "kept", false), files([("a", "Tw"), ("inner/a", "Tw")]));
    assert_eq!(left(20, "kept", false), files([("a", "Tw")]), "it ran to its end");
}

#[test]
fn a_removal_that_is_not_synced_may_be_undone() {
    // One of the seeds' choices: a prefix of all changes of names.
    let left = left(12, "some", false);
    assert_eq!(left["a"], "Two!", "what is synced stays, whatever is chosen");
    assert!(left.len() <= 2 && left.keys().all(|name| ["a", "b", "c"].contains(&name.as_str())), "{left:?}");
}

#[test]
fn a_folder_and_a_link_last_once_the_folder_above_is_synced_and_go_likewise() {
    for cut_at in 13..=16 {
        assert_eq!(left(cut_at, "lost", false), files([("a", "Two!")]), "{cut_at}");
    }
    for cut_at in 17..=19 {
        assert_eq!(left(cut_at, "lost", false), files([("a", "Two!"), ("inner/a", "Two!")]), "{cut_at}");
    }
}

#[test]
fn a_disk_that_lies_loses_what_was_synced() {
    assert_eq!(left(12, "lost", true), files([]));
}
