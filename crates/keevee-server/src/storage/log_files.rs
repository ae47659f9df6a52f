//! Looks for damage in RocksDB's log-structured files (write-ahead log and manifest) before RocksDB
//! opens them.
//!
//! RocksDB takes what ends early for a torn last write. But a flipped bit in a length makes records
//! "end early" too, and zeros where a sector was lost are skipped: both drop synced records in silence.
//! This check tells them apart by one fact: each synced write was complete before the next began. So a
//! torn write has nothing behind it, and damage shows as a valid record, or any byte, behind a bad one.
//!
//! The file system may write the pages of one large write in any order. If a crash left a later page of the
//! last write and not an earlier one, that looks like damage, and the database refuses to open: a node too
//! many to replace, never a synced record too few.
//!
//! The layout (stable since LevelDB): blocks of 32 KiB hold records `[masked CRC-32C of type and payload
//! u32 LE][payload length u16 LE][type u8][payload]`; a record never spans blocks, a longer write is cut
//! into a first, middle and last one; fewer than 7 bytes at the end of a block are left empty.
//!
//! Not here: sorted files (their blocks have checksums that RocksDB verifies at each read), and what the
//! records say.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const BLOCK: usize = 32 * 1024;
const HEADER: usize = 7;
/// Full, first, middle, last: the options in use write no other type.
const TYPES: std::ops::RangeInclusive<u8> = 1..=4;

/// Why a database may not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    /// The file could not be read.
    #[error("reading {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A file that every database has is not there.
    #[error("{what} is missing")]
    Missing { what: &'static str },
    /// The file holds what no crash leaves behind.
    #[error("{what} at byte {offset} of {}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: &'static str },
}

/// Checks the manifest and the write-ahead files of the database in a folder.
pub(super) fn check(database: &Path) -> Result<(), Damage> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Damage::Io { path, source }
    };
    let current = database.join("CURRENT");
    let manifest = match std::fs::read_to_string(&current) {
        Ok(name) => database.join(name.trim_end()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Damage::Missing { what: "its CURRENT file" });
        }
        Err(error) => return Err(failed(&current)(error)),
    };
    if !manifest.is_file() {
        return Err(Damage::Missing { what: "its manifest" });
    }
    check_file(&manifest)?;
    let mut logs = 0;
    for file in std::fs::read_dir(database).map_err(failed(database))? {
        let path = file.map_err(failed(database))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            check_file(&path)?;
            logs += 1;
        }
    }
    // RocksDB always has one open, and takes a database without any for one that was just flushed.
    if logs == 0 { Err(Damage::Missing { what: "its write-ahead log" }) } else { Ok(()) }
}

/// Checks one file, block by block.
fn check_file(path: &Path) -> Result<(), Damage> {
    let failed = |source| Damage::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut checker = Checker::default();
    let mut block = Vec::with_capacity(BLOCK);
    let mut start = 0;
    while start < length {
        block.clear();
        file.by_ref().take(BLOCK as u64).read_to_end(&mut block).map_err(failed)?;
        let is_last = start + BLOCK as u64 >= length;
        checker.check_block(&block, is_last).map_err(|(offset, what)| Damage::Corrupt {
            path: path.to_owned(),
            offset: start + offset as u64,
            what,
        })?;
        start += BLOCK as u64;
    }
    Ok(())
}

/// Where in a block, and what is wrong there.
type Finding = (usize, &'static str);

#[derive(Default)]
struct Checker {
    /// The records ended, in this block or before: only zeros may follow.
    ended: bool,
}

impl Checker {
    fn check_block(&mut self, block: &[u8], is_last: bool) -> Result<(), Finding> {
        let mut at = 0;
        while block.len() - at >= HEADER {
            let rest = &block[at..];
            if self.ended || rest[..HEADER] == [0; HEADER] {
                // Space that was allocated and never written; behind it nothing was written either.
                self.ended = true;
                let is_empty = rest.iter().all(|byte| *byte == 0);
                return if is_empty { Ok(()) } else { Err((at, "a hole in front of later records")) };
            }
            let Some(size) = record_size(rest) else {
                return if is_last { check_torn(rest, at) } else { Err((at, "a bad length")) };
            };
            check_record(&rest[..size], at)?;
            at += size;
        }
        // A few bytes at the end are the empty end of a block, or of a torn header.
        Ok(())
    }
}

/// The size of the record at the front, with its header; `None` if it does not end in these bytes.
fn record_size(bytes: &[u8]) -> Option<usize> {
    let size = HEADER + usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    (size <= bytes.len()).then_some(size)
}

fn check_record(record: &[u8], at: usize) -> Result<(), Finding> {
    if !has_valid_checksum(record) {
        return Err((at, "a wrong checksum"));
    }
    // RocksDB would take some of these for the end of the file.
    if TYPES.contains(&record[6]) { Ok(()) } else { Err((at, "an unknown type of record")) }
}

/// The file ends before the record at the front does: a torn last write, unless the record is whole but
/// for its length, or another one follows.
fn check_torn(rest: &[u8], at: usize) -> Result<(), Finding> {
    if has_valid_checksum(rest) {
        return Err((at, "a bad length"));
    }
    for start in 1..=rest.len().saturating_sub(HEADER) {
        let later = &rest[start..];
        let Some(size) = record_size(later).filter(|_| TYPES.contains(&later[6])) else { continue };
        if has_valid_checksum(&later[..size]) {
            return Err((at, "a bad length in front of later records"));
        }
    }
    Ok(())
}

fn has_valid_checksum(record: &[u8]) -> bool {
    let stored = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
    // The mask keeps checksums of checksums apart.
    let masked = crc32c(&record[6..]).rotate_right(15).wrapping_add(0xa282_ead8);
    stored == masked
}

const CRC32C_TABLE: [u32; 256] = crc32c_table();

/// CRC-32C (Castagnoli): polynomial 0x1EDC6F41, reflected.
const fn crc32c_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc32c(bytes: &[u8]) -> u32 {
    let next = |crc: u32, byte: &u8| (crc >> 8) ^ CRC32C_TABLE[(crc as u8 ^ byte) as usize];
    !bytes.iter().fold(!0, next)
}

#[cfg(test)]
mod tests;
