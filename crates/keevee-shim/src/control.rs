//! The file by which faults are set and counted: words of eight bytes, in the machine's order.
//!
//! The lib writes it, the preloaded object maps it; both are built from this file, which therefore knows nothing else.
//! Each word has one writer, but for the flips, which the lib arms and the object takes.

/// Where the control file is, told to the process.
pub(crate) const CONTROL_VARIABLE: &str = "KEEVEE_SHIM_CONTROL";
/// The folder whose files are touched, as `realpath` has it.
pub(crate) const FOLDER_VARIABLE: &str = "KEEVEE_SHIM_FOLDER";

/// Words of the file.
pub(crate) const WORDS: usize = 64;

/// Which faults are set: one bit for each kind.
pub(crate) const ACTIVE: usize = 0;
/// How long a sync takes, in microseconds.
pub(crate) const STALL_MICROS: usize = 1;
/// What is added to the wall clock, in microseconds, signed.
pub(crate) const CLOCK_MICROS: usize = 2;
/// Chooses the bit that is flipped.
pub(crate) const SEED: usize = 3;
/// The last bytes of the names of files in which a bit may be flipped; zeros match anything.
pub(crate) const ENDING: usize = 4;
/// How many bytes the file system says are free.
pub(crate) const ROOM_BYTES: usize = 5;
/// The process that mapped the file last; written by the object.
pub(crate) const PROCESS: usize = 6;
/// How often unsynced writes began to be remembered: what was remembered before is of no use.
pub(crate) const ROUND: usize = 7;
/// Flips in what is written that are still to be made.
pub(crate) const FLIPS_WRITTEN: usize = 8;
/// Flips in what is read that are still to be made.
pub(crate) const FLIPS_READ: usize = 9;
/// From here on: how often each kind happened; written by the object.
pub(crate) const COUNTS: usize = 16;

/// A kind of fault: a bit of [`ACTIVE`], and a word from [`COUNTS`] on.
pub(crate) type Kind = usize;
pub(crate) const FAIL_SYNC: Kind = 0;
pub(crate) const STALL_SYNC: Kind = 1;
pub(crate) const FULL: Kind = 2;
pub(crate) const LOW_ROOM: Kind = 3;
pub(crate) const FAIL_WRITES: Kind = 4;
pub(crate) const FAIL_READS: Kind = 5;
pub(crate) const FLIP_WRITTEN: Kind = 6;
pub(crate) const FLIP_READ: Kind = 7;
pub(crate) const CLOCK: Kind = 8;
pub(crate) const UNDO: Kind = 9;

/// The bit of a kind.
pub(crate) const fn bit(kind: Kind) -> u64 {
    1 << kind
}

/// What follows the control file's name, for the folder of what can be undone.
pub(crate) const UNDO_FOLDER: &str = ".undo";
/// A record of a write that is not synced: where it began, how long it was, how long the file was before, and how many
/// bytes of what was there follow.
pub(crate) const UNDO_WORDS: usize = 4;
