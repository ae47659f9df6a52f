//! What a disk has not made durable yet, and taking it back.
//!
//! The model is the strictest that POSIX allows, but for order: bytes of a file are durable once the file was synced,
//! names once their folder was, and of what was not synced a prefix of each file's writes, and of all changes of names,
//! may have reached the disk. A write to a file that was opened with `O_DSYNC` is durable when it returns, and while it is under
//! way any of its sectors may be.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What becomes of what is not synced when the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// All of it is kept: the process was killed, the machine goes on.
    Kept,
    /// None of it is kept.
    Lost,
    /// Some of it is kept, as the seed chooses.
    Some,
}

/// Tells files apart: device and number.
pub(crate) type Inode = (u64, u64);

/// A write that is not durable.
struct Write {
    at: u64,
    /// What was there before, as far as the file went.
    old: Vec<u8>,
    length: usize,
    size_before: u64,
}

/// A file of which some writes are not durable.
struct Dirty {
    /// Also after its name is gone.
    file: File,
    writes: Vec<Write>,
}

/// A change of a name that is not durable.
enum Naming {
    Made(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<PathBuf> },
    Removed { path: PathBuf, kept: PathBuf },
    RemovedFolder(PathBuf),
}

impl Naming {
    fn folder(&self) -> Option<&Path> {
        match self {
            Naming::Made(path)
            | Naming::Renamed { to: path, .. }
            | Naming::Removed { path, .. }
            | Naming::RemovedFolder(path) => path.parent(),
        }
    }
}

pub(crate) struct Disk {
    unsynced: Unsynced,
    lies: bool,
    random: StdRng,
    /// Beside the folder: names that were removed, until that is durable.
    attic: PathBuf,
    kept: u64,
    dirty: HashMap<Inode, Dirty>,
    namings: Vec<Naming>,
}

impl Disk {
    pub(crate) fn new(folder: &Path, unsynced: Unsynced, lies: bool, seed: u64) -> io::Result<Disk> {
        let mut attic = folder.as_os_str().to_owned();
        attic.push(".attic");
        let attic = PathBuf::from(attic);
        // What an earlier process left there is gone for good by now.
        match fs::remove_dir_all(&attic) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&attic)?,
        }
        let random = StdRng::seed_from_u64(seed);
        Ok(Disk { unsynced, lies, random, attic, kept: 0, dirty: HashMap::new(), namings: Vec::new() })
    }

    /// Bytes are about to be written over, or cut off.
    pub(crate) fn before_write(
        &mut self,
        inode: Inode,
        fd: i32,
        at: u64,
        length: usize,
        is_durable: bool,
    ) -> io::Result<()> {
        if is_durable && !self.lies {
            assert!(
                !self.dirty.contains_key(&inode),
                "a durable write over one that is not would be taken back with it"
            );
            return Ok(());
        }
        let dirty = match self.dirty.entry(inode) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            // The descriptor may be for writing only, or for whole pages.
            std::collections::hash_map::Entry::Vacant(new) => {
                let file = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{fd}"))?;
                new.insert(Dirty { file, writes: Vec::new() })
            }
        };
        let size_before = dirty.file.metadata()?.len();
        let mut old = vec![0; length.min(size_before.saturating_sub(at) as usize)];
        dirty.file.read_exact_at(&mut old, at)?;
        dirty.writes.push(Write { at, old, length, size_before });
        Ok(())
    }

    /// A file is as short as `length` from now on, or as long.
    pub(crate) fn before_truncate(
        &mut self,
        inode: Inode,
        fd: i32,
        length: u64,
        size: u64,
    ) -> io::Result<()> {
        let (from, to) = (length.min(size), length.max(size));
        self.before_write(inode, fd, from, (to - from) as usize, false)
    }

    pub(crate) fn synced(&mut self, inode: Inode) {
        if !self.lies {
            self.dirty.remove(&inode);
        }
    }

    pub(crate) fn synced_folder(&mut self, folder: &Path) {
        if self.lies {
            return;
        }
        // What was done before in a folder that is gone for good is gone with it.
        let mut gone: Vec<PathBuf> = Vec::new();
        for naming in std::mem::take(&mut self.namings).into_iter().rev() {
            let place = naming.folder().unwrap_or(Path::new(""));
            let is_gone = gone.iter().any(|gone| place.starts_with(gone));
            if place != folder && !is_gone {
                self.namings.push(naming);
                continue;
            }
            match naming {
                Naming::RemovedFolder(path) => gone.push(path),
                Naming::Removed { kept, .. } | Naming::Renamed { replaced: Some(kept), .. } => {
                    // What stays there costs room, nothing else.
                    let _ = fs::remove_file(kept);
                }
                Naming::Made(_) | Naming::Renamed { .. } => {}
            }
        }
        self.namings.reverse();
    }

    pub(crate) fn made(&mut self, path: PathBuf) {
        self.namings.push(Naming::Made(path));
    }

    /// Keeps a file that a removal or a rename is about to take the name from.
    pub(crate) fn keep(&mut self, path: &Path) -> io::Result<PathBuf> {
        self.kept += 1;
        let kept = self.attic.join(self.kept.to_string());
        fs::hard_link(path, &kept)?;
        Ok(kept)
    }

    pub(crate) fn removed(&mut self, path: PathBuf, kept: PathBuf) {
        self.namings.push(Naming::Removed { path, kept });
    }

    /// It was empty.
    pub(crate) fn removed_folder(&mut self, path: PathBuf) {
        self.namings.push(Naming::RemovedFolder(path));
    }

    pub(crate) fn renamed(&mut self, from: PathBuf, to: PathBuf, replaced: Option<PathBuf>) {
        self.namings.push(Naming::Renamed { from, to, replaced });
    }

    /// The part of a write under way that reaches the disk with the process's end: runs of its bytes.
    pub(crate) fn torn(&mut self, length: usize, is_durable: bool) -> Vec<(usize, usize)> {
        if self.unsynced == Unsynced::Kept {
            return Vec::new();
        }
        if is_durable {
            let sectors = (0..length).step_by(SECTOR);
            return sectors
                .filter(|_| self.random.random_bool(0.5))
                .map(|at| (at, SECTOR.min(length - at)))
                .collect();
        }
        vec![(0, self.random.random_range(0..=length))]
    }

    /// Leaves of what is not durable what the plan says.
    pub(crate) fn fail(&mut self) -> io::Result<()> {
        if self.unsynced == Unsynced::Kept {
            return Ok(());
        }
        let mut dirty: Vec<(Inode, Dirty)> = self.dirty.drain().collect();
        dirty.sort_by_key(|(inode, _)| *inode);
        for (_, Dirty { file, writes }) in dirty {
            let kept = self.kept_of(writes.len());
            for write in writes.iter().skip(kept).rev() {
                take_back(&file, write)?;
            }
        }
        let kept = self.kept_of(self.namings.len());
        for naming in self.namings.drain(..).skip(kept).rev() {
            match naming {
                Naming::Made(path) if path.is_dir() => fs::remove_dir_all(path)?,
                // It may have been removed since, and that is durable.
                Naming::Made(path) if !path.exists() => {}
                Naming::Made(path) => fs::remove_file(path)?,
                Naming::Renamed { from, to, replaced } => {
                    fs::rename(&to, from)?;
                    replaced.map_or(Ok(()), |replaced| fs::rename(replaced, to))?;
                }
                Naming::Removed { path, kept } => fs::rename(kept, path)?,
                Naming::RemovedFolder(path) => fs::create_dir(path)?,
            }
        }
        Ok(())
    }

    fn kept_of(&mut self, count: usize) -> usize {
        if self.unsynced == Unsynced::Some { self.random.random_range(0..=count) } else { 0 }
    }
}

fn take_back(file: &File, write: &Write) -> io::Result<()> {
    let Write { at, old, length, size_before } = write;
    file.write_all_at(old, *at)?;
    let added = (at + *length as u64).min(file.metadata()?.len());
    if added > *size_before {
        return file.set_len(*size_before);
    }
    Ok(())
}

/// What a descriptor stands for: a file, with its size, or a folder.
pub(crate) enum Node {
    File { inode: Inode, size: u64 },
    Folder,
    Other,
}

pub(crate) fn node_of(fd: i32) -> Node {
    // SAFETY: an all-zero `stat` is a valid value, and `fstat` fills it in.
    let (stat, failed) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let failed = libc::fstat(fd, &mut stat) != 0;
        (stat, failed)
    };
    match stat.st_mode & libc::S_IFMT {
        _ if failed => Node::Other,
        libc::S_IFREG => Node::File { inode: (stat.st_dev, stat.st_ino), size: stat.st_size as u64 },
        libc::S_IFDIR => Node::Folder,
        _ => Node::Other,
    }
}

/// The path of an open file or folder.
pub(crate) fn path_of(fd: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

/// Writes runs of bytes past whatever the descriptor was opened for.
pub(crate) fn write_runs(fd: i32, bytes: &[u8], at: u64, runs: &[(usize, usize)]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}"))?;
    debug_assert!(file.as_raw_fd() != fd);
    runs.iter()
        .try_for_each(|(from, length)| file.write_all_at(&bytes[*from..from + length], at + *from as u64))
}
