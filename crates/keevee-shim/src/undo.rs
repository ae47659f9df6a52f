//! Writes that were not synced, and taking them back.
//!
//! The preloaded object writes one file for each file that has such writes, named `<process>-<round>-<inode>`, and removes it
//! when that file is synced. A record is [`UNDO_WORDS`] words and what was there before. The last may be cut short by the
//! end of the process: then its write was never made.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::control::UNDO_WORDS;

struct Write {
    at: u64,
    length: u64,
    size_before: u64,
    old: Vec<u8>,
}

/// Makes the folder, and removes what is in it.
pub(crate) fn clear(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => fs::create_dir(folder),
    }
}

/// Takes back what files with this prefix hold, of files below `data`. How many writes that were.
pub(crate) fn take_back(undo: &Path, prefix: &str, data: &Path) -> io::Result<u64> {
    let mut paths = HashMap::new();
    find(data, &mut paths)?;
    let mut count = 0;
    for file in fs::read_dir(undo)? {
        let file = file?;
        let name = file.file_name();
        let inode =
            name.to_str().and_then(|name| name.strip_prefix(prefix)).and_then(|inode| inode.parse().ok());
        // A file that is not there any more was removed while it was open.
        let Some(path) = inode.and_then(|inode: u64| paths.get(&inode)) else { continue };
        let writes = read(&file.path())?;
        let damaged = OpenOptions::new().write(true).open(path)?;
        for write in writes.iter().rev() {
            take_back_one(&damaged, write)?;
        }
        count += writes.len() as u64;
    }
    Ok(count)
}

fn find(folder: &Path, paths: &mut HashMap<u64, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_dir() {
            find(&entry.path(), paths)?;
        } else if found.is_file() {
            paths.insert(found.ino(), entry.path());
        }
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<Write>> {
    let mut file = File::open(path)?;
    let mut writes = Vec::new();
    loop {
        let mut header = [0; UNDO_WORDS * 8];
        let mut old = Vec::new();
        let mut record = || -> io::Result<Write> {
            file.read_exact(&mut header)?;
            let (words, _) = header.as_chunks::<8>();
            let [at, length, size_before, kept] = [0, 1, 2, 3].map(|word| u64::from_ne_bytes(words[word]));
            old.resize(usize::try_from(kept).map_err(io::Error::other)?, 0);
            file.read_exact(&mut old)?;
            Ok(Write { at, length, size_before, old: std::mem::take(&mut old) })
        };
        match record() {
            Ok(write) => writes.push(write),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(writes),
            Err(error) => return Err(error),
        }
    }
}

fn take_back_one(file: &File, write: &Write) -> io::Result<()> {
    let Write { at, length, size_before, old } = write;
    file.write_all_at(old, *at)?;
    if at + length > *size_before {
        file.set_len(*size_before)?;
    }
    Ok(())
}
