//! What the disk of a node has left.
//!
//! A node takes no more well before its disk is full: a write that finds no room stops it, since nobody knows what of it
//! is on the disk. What is taken already, and what RocksDB writes anew to bring it in order, needs room as well. It leaves out what
//! follows for leaders (the executor).

use std::io;
use std::path::{Path, PathBuf};

/// What is free below a folder, and whether that is enough.
#[derive(Debug)]
pub(crate) struct Room {
    folder: PathBuf,
    free_min: u64,
    free: Option<u64>,
    is_short: bool,
}

impl Room {
    /// Of the file system that a folder is on: less than `free_min` bytes are too little.
    pub(crate) fn new(folder: &Path, free_min: u64) -> Room {
        Room { folder: folder.to_owned(), free_min, free: None, is_short: false }
    }

    /// Looks again, and tells in the log what has changed.
    pub(crate) fn look(&mut self) {
        match free_bytes(&self.folder) {
            Ok(free) => self.note(free),
            // It stays what it was.
            Err(error) => tracing::debug!(%error, "how much room the disk has left is not known"),
        }
    }

    fn note(&mut self, free: u64) {
        self.free = Some(free);
        // Else it would change with each file that comes and goes.
        let enough = if self.is_short { self.free_min + self.free_min / 4 } else { self.free_min };
        let is_short = free < enough;
        if is_short == self.is_short {
            return;
        }
        self.is_short = is_short;
        if is_short {
            tracing::warn!(
                free,
                min = self.free_min,
                "the disk is nearly full: this node leads no shard if others can, and takes only reads and removals; make \
                 room, or give the node a larger disk"
            );
        } else {
            tracing::info!(free, "the disk has room again");
        }
    }

    /// Bytes that are free, if that is known.
    pub(crate) fn free(&self) -> Option<u64> {
        self.free
    }

    /// True if that is too little.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the standard library does not tell it")]
fn free_bytes(folder: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: an all-zero `statvfs` is a valid value, the path ends with a zero, and the call fills the value in.
    let (found, failed) = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        let failed = libc::statvfs(path.as_ptr(), &mut found) != 0;
        (found, failed)
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(found.f_bavail * found.f_frsize) }
}

#[cfg(not(target_os = "linux"))]
fn free_bytes(_: &Path) -> io::Result<u64> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_short_until_there_is_more_than_enough() {
        let mut room = Room::new(Path::new("."), 100);
        room.note(100);
        assert!(!room.is_short());
        room.note(99);
        assert!(room.is_short());
        room.note(124);
        assert!(room.is_short(), "a little more is not enough");
        room.note(125);
        assert!(!room.is_short());
        let mut unlimited = Room::new(Path::new("."), 0);
        unlimited.note(0);
        assert!(!unlimited.is_short());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_tells_what_is_free() {
        let mut room = Room::new(Path::new("."), 0);
        room.look();
        assert!(room.free().is_some_and(|free| free > 0));
    }
}
