//! On files that RocksDB itself has written.

use std::fs;

use rocksdb::WriteBatch;
use tempfile::TempDir;

use super::*;
use crate::storage::{Database, options};

/// A database with one write-ahead file that holds a write of each given size, closed as by a crash: the
/// folder is a copy of the live one.
fn image(sizes: &[usize]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let live = folder.path().join("live");
    let database = Database::open(&options::log(true), &live).unwrap();
    for (number, size) in sizes.iter().enumerate() {
        let mut batch = WriteBatch::default();
        batch.put(number.to_be_bytes(), vec![b'v'; *size]);
        database.write_opt(batch, &options::synced()).unwrap();
    }
    let copy = folder.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(&live).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    (folder, copy)
}

fn file_with(folder: &Path, part: &str) -> PathBuf {
    let mut paths = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    paths.find(|path| path.file_name().unwrap().to_str().unwrap().contains(part)).unwrap()
}

fn is_corrupt(folder: &Path) -> bool {
    matches!(check(folder), Err(Damage::Corrupt { .. }))
}

/// How many writes RocksDB finds; `None` if it refuses.
fn writes_found(folder: &Path) -> Option<usize> {
    let database = Database::open(&options::log(false), folder).ok()?;
    Some(database.iterator(rocksdb::IteratorMode::Start).count())
}

#[test]
fn the_checksum_is_crc_32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn whole_files_pass() {
    for sizes in [&[][..], &[0], &[10, 200, 3], &[100_000, 5, 32 * 1024 - 30, 40_000, 7]] {
        let (_folder, copy) = image(sizes);
        check(&copy).unwrap();
        assert_eq!(writes_found(&copy), Some(sizes.len()));
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let (_folder, copy) = image(&[10, 20, 30]);
    for part in [".log", "MANIFEST"] {
        let path = file_with(&copy, part);
        let whole = fs::read(&path).unwrap();
        assert!(whole.len() > 80);
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            assert!(is_corrupt(&copy), "bit {bit} of {}", path.display());
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn flipped_bits_are_found_in_every_block() {
    let (_folder, copy) = image(&[100_000, 5, 40_000, 7]);
    let path = file_with(&copy, ".log");
    let whole = fs::read(&path).unwrap();
    // Every header of a record that starts a block, and some bytes within each.
    let starts = (0..whole.len()).step_by(BLOCK);
    for at in starts.flat_map(|start| (start..start + HEADER).chain([start + 100, start + 5000])) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        fs::write(&path, &flipped).unwrap();
        assert!(is_corrupt(&copy), "byte {at}");
    }
}

#[test]
fn a_torn_last_write_passes_and_is_dropped() {
    let (_folder, copy) = image(&[10, 20, 30]);
    let path = file_with(&copy, ".log");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        check(&copy).unwrap();
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(writes_found(&copy), Some(2));
}

#[test]
fn zeros_pass_behind_the_end_only() {
    let (_folder, copy) = image(&[10, 20, 30]);
    let path = file_with(&copy, ".log");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [whole.as_slice(), &[0; 70_000]].concat()).unwrap();
    check(&copy).unwrap();
    let mut hole = whole.clone();
    let second = record_size(&whole).unwrap();
    let third = second + record_size(&whole[second..]).unwrap();
    hole[second..third].fill(0);
    fs::write(&path, &hole).unwrap();
    assert!(is_corrupt(&copy));
    fs::write(&path, [vec![0; BLOCK], whole].concat()).unwrap();
    assert!(is_corrupt(&copy));
}

#[test]
fn missing_files_are_named() {
    for (part, name) in [(".log", "write-ahead"), ("MANIFEST", "manifest"), ("CURRENT", "CURRENT")] {
        let (_folder, copy) = image(&[10]);
        fs::remove_file(file_with(&copy, part)).unwrap();
        let damage = check(&copy).unwrap_err();
        assert!(damage.to_string().contains(name), "{damage}");
    }
}

#[test]
fn rocksdb_alone_would_lose_synced_writes_in_silence() {
    let (_folder, copy) = image(&[10, 20, 30]);
    let path = file_with(&copy, ".log");
    let mut bytes = fs::read(&path).unwrap();
    let second = record_size(&bytes).unwrap();
    bytes[second + 5] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
    assert!(is_corrupt(&copy));
    // Should this fail one day, the check may have become needless.
    assert_eq!(writes_found(&copy), Some(1));
}
