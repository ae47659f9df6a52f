//! On real files and a real `log/`. A crash is a copy of the folder of a live journal.

use std::collections::{BTreeMap, BTreeSet};

use rocksdb::IteratorMode;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

/// Small, so that a test fills many.
const SEGMENT: u64 = 64 << 10;
const STORE: StoreId = StoreId(Uuid::from_u128(7));

struct Folder {
    _temp: TempDir,
    path: PathBuf,
}

impl Folder {
    fn new() -> Folder {
        let temp = TempDir::new().unwrap();
        let path = temp.path().join("live");
        fs::create_dir(&path).unwrap();
        drop(Database::open(&options::log(true), path.join("log")).unwrap());
        Journal::create(&path.join("journal")).unwrap();
        Folder { _temp: temp, path }
    }

    /// What a crash at this moment leaves.
    fn crashed(&self) -> Folder {
        // RocksDB writes and removes files on its own: the image is of one moment if they are the same before and after.
        loop {
            let (before, temp) = (self.files(), TempDir::new().unwrap());
            let copied = before.keys().try_for_each(|name| {
                let to = temp.path().join(name);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(self.path.join(name), to).map(|_| ())
            });
            if copied.is_ok() && self.files() == before {
                return Folder { path: temp.path().to_owned(), _temp: temp };
            }
        }
    }

    /// Names and lengths of all files.
    fn files(&self) -> BTreeMap<PathBuf, u64> {
        let files = ["log", "journal"].into_iter().flat_map(|part| {
            let files = fs::read_dir(self.path.join(part)).unwrap().map(Result::unwrap);
            files.filter_map(move |file| {
                // One that is gone by now is seen to be so the next time.
                Some((Path::new(part).join(file.file_name()), file.metadata().ok()?.len()))
            })
        });
        files.collect()
    }

    fn open_as(&self, store: StoreId) -> Result<Journal, JournalError> {
        let log = Database::open(&options::log(false), self.path.join("log")).unwrap();
        Journal::open_with(&self.path.join("journal"), store, Arc::new(log), SEGMENT)
    }

    fn open(&self) -> Journal {
        self.open_as(STORE).unwrap()
    }

    fn damage(&self) -> String {
        match self.open_as(STORE) {
            Err(JournalError::Damaged(cause)) => cause,
            Err(other) => panic!("{other}"),
            Ok(journal) => panic!("it opens, with {} as its last record", journal.last),
        }
    }

    fn segment(&self, number: u32) -> PathBuf {
        segment_path(&self.path.join("journal"), number)
    }
}

impl Journal {
    /// Puts a value of so many bytes under a key.
    fn put(&mut self, key: u64, bytes: usize) {
        let mut batch = WriteBatch::default();
        batch.put(key.to_be_bytes(), vec![key as u8; bytes]);
        self.write_synced(batch).unwrap();
    }

    fn keys(&self) -> Vec<u64> {
        let entries = self.log.iterator(IteratorMode::Start).map(Result::unwrap);
        entries.filter_map(|(key, _)| key.as_ref().try_into().ok().map(u64::from_be_bytes)).collect()
    }
}

/// Zeros the sectors, as if they had not been written.
fn unwrite(file: &Path, sectors: impl IntoIterator<Item = u64>) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    for sector in sectors {
        file.write_all_at(&[0; SECTOR], sector * SECTOR as u64).unwrap();
    }
}

#[test]
fn what_was_written_is_there_after_a_crash_and_after_the_next() {
    let live = Folder::new();
    let mut journal = live.open();
    for (key, bytes) in [(1, 0), (2, 100), (3, 20_000), (4, 492), (5, 3 * SEGMENT as usize), (6, 1)] {
        journal.put(key, bytes);
    }
    let crashed = live.crashed();
    let mut reopened = crashed.open();
    assert_eq!(reopened.keys(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(reopened.log.get(3_u64.to_be_bytes()).unwrap().unwrap(), [3; 20_000]);
    reopened.put(7, 10);
    let again = crashed.crashed().open();
    assert_eq!(again.keys(), [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_stop_without_a_crash_leaves_nothing_to_replay() {
    let live = Folder::new();
    let mut journal = live.open();
    (1..=3).for_each(|key| journal.put(key, 10));
    drop(journal);
    let journal = live.open();
    // And the record of the first open.
    assert_eq!(read_journaled(&journal.log, &options::persisted()), Ok(4));
    assert_eq!(journal.keys(), [1, 2, 3]);
}

#[test]
fn segments_are_used_again_and_nothing_is_lost_at_any_point() {
    let live = Folder::new();
    let mut journal = live.open();
    let mut used = BTreeSet::new();
    for key in 1..=400 {
        journal.put(key, 3000);
        used.insert((journal.current, journal.offset));
        if key % 40 == 0 {
            assert_eq!(live.crashed().open().keys(), (1..=key).collect::<Vec<_>>());
        }
    }
    let (segments, places) = (journal.segments.len(), used.len());
    assert!(places < 400, "no place in {segments} segments was used twice");
}

#[test]
fn of_each_use_of_a_segment_is_told_once_that_it_is_nearly_full() {
    let live = Folder::new();
    let mut journal = live.open();
    let mut told = Vec::new();
    for key in 1..=100 {
        journal.put(key, 3000);
        if journal.writes_out_soon() {
            assert!(journal.offset >= SEGMENT / 100 * NEARLY_FULL_PERCENT && journal.offset < SEGMENT);
            told.push(key);
        }
    }
    // The first record is that of the open; sixteen fit.
    assert_eq!(told, [11, 27, 43, 59, 75, 91]);
}

/// Every subset of the sectors of the last write may have reached the disk.
#[test]
fn a_torn_last_record_is_dropped_whatever_is_left_of_it() {
    let live = Folder::new();
    let mut journal = live.open();
    journal.put(1, 100);
    journal.put(2, 3800);
    let place = 16..24_u64;
    for written in 0..=255_u32 {
        let torn = live.crashed();
        unwrite(&torn.segment(1), place.clone().filter(|sector| written >> (sector - 16) & 1 == 0));
        let mut reopened = torn.open();
        let expected: &[u64] = if written == 255 { &[1, 2] } else { &[1] };
        assert_eq!(reopened.keys(), expected, "{written:b}");
        if written % 37 == 0 {
            // The next ones go over its remains, and are torn themselves.
            reopened.put(3, 10);
            reopened.put(4, 3800);
            let torn = torn.crashed();
            unwrite(&torn.segment(1), [17]);
            assert_eq!(torn.open().keys(), [expected, &[3]].concat(), "{written:b}");
        }
    }
}

#[test]
fn a_record_torn_over_an_older_one_is_dropped() {
    let live = Folder::new();
    let mut journal = live.open();
    journal.put(1, 3800);
    drop(journal);
    let before = fs::read(live.segment(1)).unwrap();
    let mut journal = live.open();
    journal.put(2, 3800);
    for kept in 8..16_u64 {
        let torn = live.crashed();
        let file = OpenOptions::new().write(true).open(torn.segment(1)).unwrap();
        let old = kept as usize * SECTOR;
        file.write_all_at(&before[old..old + SECTOR], old as u64).unwrap();
        assert_eq!(torn.open().keys(), [1], "{kept}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_damage() {
    let live = Folder::new();
    let mut journal = live.open();
    (1..=3).for_each(|key| journal.put(key, 3000));
    let crashed = live.crashed();
    let file = OpenOptions::new().read(true).write(true).open(crashed.segment(1)).unwrap();
    for at in (0..4 * ALIGNED as u64).step_by(97) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        let cause = crashed.damage();
        assert!(cause.contains("checksum"), "{at}: {cause}");
        file.write_all_at(&byte, at).unwrap();
    }
    assert_eq!(crashed.open().keys(), [1, 2, 3]);
}

#[test]
fn a_hole_in_front_of_later_records_is_damage() {
    let live = Folder::new();
    let mut journal = live.open();
    (1..=3).for_each(|key| journal.put(key, 3000));
    for sector in 0..24 {
        let crashed = live.crashed();
        unwrite(&crashed.segment(1), [sector]);
        assert!(crashed.damage().contains("missing"), "{sector}");
    }
    // Of the one before the last, all; the last is left with one sector.
    let crashed = live.crashed();
    unwrite(&crashed.segment(1), 16..31);
    assert!(crashed.damage().contains("record 3 is missing"));
}

#[test]
fn a_sector_in_another_place_or_of_another_folder_is_damage() {
    let live = Folder::new();
    let mut journal = live.open();
    (1..=2).for_each(|key| journal.put(key, 3000));
    let crashed = live.crashed();
    let mut bytes = fs::read(crashed.segment(1)).unwrap();
    bytes.copy_within(..SECTOR, SECTOR);
    fs::write(crashed.segment(1), bytes).unwrap();
    assert!(crashed.damage().contains("checksum"));
    let other = live.crashed().open_as(StoreId(Uuid::from_u128(8)));
    assert!(matches!(other, Err(JournalError::Damaged(_))));
}

#[test]
fn a_missing_or_older_journal_is_damage() {
    let live = Folder::new();
    let mut journal = live.open();
    (1..=40).for_each(|key| journal.put(key, 3000));
    let segments = journal.segments.len() as u32;
    assert!(segments > 1);
    for number in 1..=segments {
        let crashed = live.crashed();
        fs::remove_file(crashed.segment(number)).unwrap();
        assert!(crashed.damage().contains("is missing"));
    }
    drop(journal);
    let emptied = live.crashed();
    (1..=segments).for_each(|number| fs::write(emptied.segment(number), b"").unwrap());
    assert!(emptied.damage().contains("it ends at record 0, and had record 41"));
}

/// Also while `log/` has nothing of what was in it: in the first life, and with segments that are used for the second time.
#[test]
fn an_emptied_segment_is_damage() {
    let live = Folder::new();
    let mut journal = live.open();
    for key in 1..=400 {
        journal.put(key, 3000);
        if key % 20 != 1 {
            continue;
        }
        for is_cut in [true, false] {
            let crashed = live.crashed();
            let segment = crashed.segment(journal.current as u32 + 1);
            let length = if is_cut { 0 } else { fs::metadata(&segment).unwrap().len() };
            fs::write(&segment, vec![0; length as usize]).unwrap();
            let cause = crashed.damage();
            assert!(cause.contains("it ends at") || cause.contains("is missing"), "{key}: {cause}");
        }
    }
}

/// Cut or zeroed behind any sector, also in the middle of the last record: no crash takes what was settled.
#[test]
fn a_journal_that_ends_before_what_was_settled_is_damage() {
    let live = Folder::new();
    let mut journal = live.open();
    (1..=4).for_each(|key| journal.put(key, 9000));
    journal.settle().unwrap();
    let (whole, settled) = (fs::read(live.segment(1)).unwrap(), journal.last);
    for sectors in (0..journal.offset / SECTOR as u64).step_by(5) {
        for is_cut in [true, false] {
            let crashed = live.crashed();
            let mut bytes = whole[..(sectors as usize * SECTOR)].to_vec();
            if !is_cut {
                bytes.resize(whole.len(), 0);
            }
            fs::write(crashed.segment(1), bytes).unwrap();
            let cause = crashed.damage();
            assert!(cause.contains(&format!("and had record {settled}")), "{sectors} sectors: {cause}");
        }
    }
    journal.put(5, 3000);
    let crashed = live.crashed();
    fs::write(crashed.segment(1), whole).unwrap();
    assert_eq!(
        crashed.open().keys(),
        (1..=4).collect::<Vec<_>>(),
        "what was not settled may be a torn write"
    );
}

/// `log/` knows how many segments there are from its write-ahead file alone, until that is written out.
#[test]
fn a_segment_with_records_of_which_the_log_does_not_know_is_damage() {
    let live = Folder::new();
    let mut journal = live.open();
    let mut key = 0;
    while journal.segments.len() < 2 || journal.offset == 0 {
        key += 1;
        journal.put(key, 3000);
    }
    let crashed = live.crashed();
    let mut emptied = 0;
    for path in crashed.files().into_keys() {
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::write(crashed.path.join(path), "").unwrap();
            emptied += 1;
        }
    }
    assert_eq!(emptied, 1);
    let cause = crashed.damage();
    assert!(cause.contains("records in 2.segment, of which log/ does not know"), "{cause}");
}

#[test]
fn a_segment_that_a_crash_left_unused_is_taken() {
    let live = Folder::new();
    let mut journal = live.open();
    journal.put(1, 3000);
    create_segment(&live.path.join("journal"), 2).unwrap();
    let crashed = live.crashed();
    let mut journal = crashed.open();
    assert_eq!(journal.segments.len(), 1);
    (2..=40).for_each(|key| journal.put(key, 3000));
    assert_eq!(crashed.crashed().open().keys(), (1..=40).collect::<Vec<_>>());
}

/// A record on disk, as version 3 of the format writes it.
#[test]
fn a_record_lies_in_sectors_as_in_version_3() {
    let shape = RecordShape::of(500);
    assert_eq!((shape.sectors(), shape.bytes()), (8, 4096));
    assert_eq!(RecordShape::of(8 * 492 - 4).sectors(), 8);
    assert_eq!(RecordShape::of(8 * 492 - 3).sectors(), 16);
    let record: Vec<u8> = (0..500).map(|at| at as u8).collect();
    let seed = sector::segment_seed(STORE, 1);
    let mut bytes = vec![0; ALIGNED];
    shape.encode(&record, 0x0102, seed, &mut bytes);
    assert_eq!(bytes[..8], [0, 0, 0x01, 0xf4, 0, 1, 2, 3]);
    assert_eq!(bytes[492..504], [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0]);
    assert_eq!(bytes[512], record[488]);
    assert_eq!(bytes[512 + 492..512 + 504], [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1]);
    assert_eq!(bytes[504..512], [87, 69, 35, 85, 35, 204, 40, 169]);
    assert_eq!(shape.decode(&bytes), record);
}
