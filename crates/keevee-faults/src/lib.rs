//! Faults of disks, for tests: the process is cut off at a chosen write, sync or rename, and what it had not synced
//! by then is lost, as by a power failure.
//!
//! A program that links this crate and calls [`arm`] has its calls to the C library's file functions taken by
//! `calls.rs`: those of Rust's standard library, and RocksDB's. Each that changes something below the armed folder is a
//! *point*, counted from 1. What a point changes is remembered (`disk.rs`) until a sync of the file, or of the folder
//! that names it, makes it durable. At the chosen point the rest is taken back and the process kills itself.
//!
//! Not here: errors and stalls of a disk; writes through a mapping; and what an earlier process left without a sync,
//! which counts as durable. `writev` and `copy_file_range` end the process with a message when they touch the armed folder;
//! other functions that change files must not be used there. Room that is set aside
//! (`fallocate`) changes nothing that is read.
#![cfg(target_os = "linux")]
#![expect(unsafe_code, reason = "it stands in for functions of the C library")]

mod calls;
mod disk;

use std::path::PathBuf;

pub use disk::Unsynced;

/// Where a process ends, and what its disk keeps.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is below it counts. It must exist.
    pub folder: PathBuf,
    /// The point at which the process ends, from 1; `None` counts only.
    pub cut_at: Option<u64>,
    /// What becomes of what is not synced then.
    pub unsynced: Unsynced,
    /// Seeds what is chosen.
    pub seed: u64,
    /// True for a disk that syncs nothing, and says that it does.
    pub lies: bool,
}

/// Takes over the process's file functions. Call it once, before anything opens a file below the folder.
///
/// # Panics
///
/// If it is called twice, or the folder does not exist.
pub fn arm(plan: Plan) {
    calls::arm(plan);
}

/// How many points have passed.
pub fn points() -> u64 {
    calls::points()
}
