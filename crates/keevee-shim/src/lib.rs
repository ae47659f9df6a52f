//! Disk and clock faults for a process that runs: of real nodes with a real RocksDB.
//!
//! [`Shim::install`] writes a shared object, which this crate carries, to a folder. A process that is started with
//! [`Disk::environment`] preloads it, and its calls of the C library pass there; [`Disk::set`] and [`Disk::heal`]
//! steer it from outside while it runs, and [`Disk::injected`] counts what really happened. Only files below one folder are touched.
//! The process need not be built for it. While no fault is set, a call costs a look at a word of memory.
//!
//! A process must be linked to glibc dynamically; elsewhere than on Linux [`Shim::install`] says that it can't be done.
//! Not here: cuts at a chosen write, and names that were not synced (`keevee-faults`, which tests link); who sets faults and
//! when.

mod control;
mod undo;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::{
    ACTIVE, CLOCK, CLOCK_MICROS, CONTROL_VARIABLE, COUNTS, ENDING, FAIL_READS, FAIL_SYNC, FAIL_WRITES,
    FLIP_READ, FLIP_WRITTEN, FLIPS_READ, FLIPS_WRITTEN, FOLDER_VARIABLE, FULL, Kind, LOW_ROOM, PROCESS,
    ROOM_BYTES, ROUND, SEED, STALL_MICROS, STALL_SYNC, UNDO, UNDO_FOLDER, WORDS, bit,
};

/// What is preloaded; empty where that can't be done.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keevee-shim.so"));

const PRELOAD_VARIABLE: &str = "LD_PRELOAD";

/// The object that processes preload, in a file.
#[derive(Clone, Debug)]
pub struct Shim {
    path: PathBuf,
}

impl Shim {
    /// True where it can be done: on Linux with glibc.
    pub fn is_supported() -> bool {
        !OBJECT.is_empty()
    }

    /// Writes the object into a folder, which must exist.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] elsewhere than on Linux with glibc; [`io::ErrorKind::InvalidInput`] if the folder's path
    /// has a space or a colon, at which the loader would cut it; or what the file system said.
    pub fn install(folder: &Path) -> io::Result<Shim> {
        if !Shim::is_supported() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "disk faults need Linux with glibc"));
        }
        let path = folder.canonicalize()?.join("keevee-shim.so");
        if path.as_os_str().as_bytes().iter().any(|byte| b" :".contains(byte)) {
            return Err(invalid("the loader takes no path with a space or a colon"));
        }
        // Processes may have an earlier one mapped.
        let draft = path.with_extension(format!("so.{}", std::process::id()));
        fs::write(&draft, OBJECT)?;
        fs::rename(&draft, &path)?;
        Ok(Shim { path })
    }
}

/// What a disk, or the clock, does wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Each sync fails, and each write that is one (`O_DSYNC`), and nothing of the latter is written.
    FailSync,
    /// Each sync, and each write that is one, takes so much longer, or until it is healed.
    StallSync(Duration),
    /// No file grows, none is made, and no room is free. What is written in place is.
    Full,
    /// The file system says that so many bytes are free. There is more.
    LowRoom(u64),
    /// Writes fail.
    FailWrites,
    /// Reads fail, but for those of streams, whose errors would look like the end of the file.
    FailReads,
    /// The next write to a file whose name ends so, in at most eight bytes, writes one bit wrong.
    FlipWritten {
        /// For example `.segment`; empty for any file.
        ending: &'static str,
        /// Chooses the bit: the same seed, the same part of the bytes.
        seed: u64,
    },
    /// The next read of a file whose name ends so, in at most eight bytes, has one bit wrong.
    FlipRead {
        /// For example `.sst`; empty for any file.
        ending: &'static str,
        /// Chooses the bit: the same seed, the same part of the bytes.
        seed: u64,
    },
    /// The wall clock is off by so many microseconds. The monotonic clock is right.
    ClockOffset(i64),
    /// What is not synced is lost with the process, once [`Disk::drop_unsynced`] is called after its end. What was
    /// written before this was set counts as synced.
    DropUnsynced,
}

/// How often each fault really happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Syncs that failed.
    pub failed_syncs: u64,
    /// Syncs that took longer.
    pub stalled_syncs: u64,
    /// Writes and files that had no room.
    pub refused_full: u64,
    /// Answers that little room is left, or none.
    pub told_low: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// Bits written wrong.
    pub flipped_written: u64,
    /// Bits read wrong.
    pub flipped_read: u64,
    /// Looks at a clock that was off.
    pub clock_reads: u64,
    /// Writes that were remembered, since they were not synced yet.
    pub remembered: u64,
}

/// The disk below one folder, as one process at a time sees it.
#[derive(Debug)]
pub struct Disk {
    object: PathBuf,
    folder: PathBuf,
    control_path: PathBuf,
    control: File,
}

impl Disk {
    /// Makes the file by which the disk is steered. The folder must exist, and the file must not be below it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if the file is below the folder, or what the file system said.
    pub fn new(shim: &Shim, control: &Path, folder: &Path) -> io::Result<Disk> {
        let folder = folder.canonicalize()?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(control)?;
        let control_path = control.canonicalize()?;
        if control_path.starts_with(&folder) {
            return Err(invalid("the control file must be outside of the folder that it is for"));
        }
        file.set_len(WORDS as u64 * 8)?;
        let disk = Disk { object: shim.path.clone(), folder, control_path, control: file };
        undo::clear(&disk.undo_folder())?;
        Ok(disk)
    }

    /// What a process must be started with: variables and their values.
    pub fn environment(&self) -> Vec<(String, String)> {
        let preload = match std::env::var(PRELOAD_VARIABLE) {
            Ok(others) if !others.is_empty() => format!("{}:{others}", self.object.display()),
            _ => self.object.display().to_string(),
        };
        let text = |path: &Path| path.display().to_string();
        vec![
            (PRELOAD_VARIABLE.to_owned(), preload),
            (CONTROL_VARIABLE.to_owned(), text(&self.control_path)),
            (FOLDER_VARIABLE.to_owned(), text(&self.folder)),
        ]
    }

    /// Sets a fault, beside those that are set. A process that is started later has it from its first call on.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] if an ending is too long, or what the file system said.
    pub fn set(&self, fault: Fault) -> io::Result<()> {
        let kind = match fault {
            Fault::FailSync => FAIL_SYNC,
            Fault::StallSync(time) => {
                self.write(STALL_MICROS, u64::try_from(time.as_micros()).unwrap_or(u64::MAX))?;
                STALL_SYNC
            }
            Fault::Full => FULL,
            Fault::LowRoom(bytes) => {
                self.write(ROOM_BYTES, bytes)?;
                LOW_ROOM
            }
            Fault::FailWrites => FAIL_WRITES,
            Fault::FailReads => FAIL_READS,
            Fault::FlipWritten { ending, seed } => {
                self.prepare_flip(FLIPS_WRITTEN, ending, seed)?;
                FLIP_WRITTEN
            }
            Fault::FlipRead { ending, seed } => {
                self.prepare_flip(FLIPS_READ, ending, seed)?;
                FLIP_READ
            }
            Fault::ClockOffset(micros) => {
                self.write(CLOCK_MICROS, micros.cast_unsigned())?;
                CLOCK
            }
            Fault::DropUnsynced => {
                // What a call under way remembers for the round before is nobody's any more.
                self.write(ROUND, self.read(ROUND)? + 1)?;
                UNDO
            }
        };
        // Last: what the fault needs to know is there.
        self.write(ACTIVE, self.read(ACTIVE)? | bit(kind))
    }

    /// Ends all faults. Bits that were written wrong stay so.
    pub fn heal(&self) -> io::Result<()> {
        self.write(ACTIVE, 0)
    }

    /// How often faults really happened, since the disk was made.
    pub fn injected(&self) -> io::Result<Injected> {
        let count = |kind: Kind| self.read(COUNTS + kind);
        Ok(Injected {
            failed_syncs: count(FAIL_SYNC)?,
            stalled_syncs: count(STALL_SYNC)?,
            refused_full: count(FULL)?,
            told_low: count(LOW_ROOM)?,
            failed_writes: count(FAIL_WRITES)?,
            failed_reads: count(FAIL_READS)?,
            flipped_written: count(FLIP_WRITTEN)?,
            flipped_read: count(FLIP_READ)?,
            clock_reads: count(CLOCK)?,
            remembered: count(UNDO)?,
        })
    }

    /// Takes back what a process that has ended had not synced, if [`Fault::DropUnsynced`] is set: call it between its
    /// `kill -9` and the next start. How many writes were taken back. Names of files are not: they count as synced at once.
    pub fn drop_unsynced(&self) -> io::Result<u64> {
        let is_set = self.read(ACTIVE)? & bit(UNDO) != 0;
        let prefix = format!("{}-{}-", self.read(PROCESS)?, self.read(ROUND)?);
        let taken_back =
            if is_set { undo::take_back(&self.undo_folder(), &prefix, &self.folder)? } else { 0 };
        undo::clear(&self.undo_folder())?;
        Ok(taken_back)
    }

    fn undo_folder(&self) -> PathBuf {
        let mut path = self.control_path.clone().into_os_string();
        path.push(UNDO_FOLDER);
        path.into()
    }

    fn prepare_flip(&self, flips: usize, ending: &str, seed: u64) -> io::Result<()> {
        let mut bytes = [0; 8];
        let place =
            bytes.get_mut(..ending.len()).ok_or_else(|| invalid("an ending has at most eight bytes"))?;
        place.copy_from_slice(ending.as_bytes());
        self.write(ENDING, u64::from_ne_bytes(bytes))?;
        self.write(SEED, seed)?;
        self.write(flips, 1)
    }

    fn write(&self, word: usize, value: u64) -> io::Result<()> {
        self.control.write_all_at(&value.to_ne_bytes(), word as u64 * 8)
    }

    fn read(&self, word: usize) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, word as u64 * 8)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
