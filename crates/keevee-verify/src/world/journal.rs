//! The journal of a simulated disk: where each record of the log lies, what faults do to it there, and what a start makes of it.
//!
//! A model of keevee-server's `storage/journal.rs`, rule by rule: segments that are used again once `log/` has what is in
//! them, numbers that only rise, a checksum that covers a record and its place, a count of the segments, and a last record that
//! may be torn. What goes wrong in a mutant goes wrong here as it would there. It leaves out bytes and sectors: a record is
//! whole, torn or damaged; and it keeps submissions, where the log writer makes one record of several.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use keevee_core::ids::ShardId;
use keevee_mutants::{Mutant, is_active};
use keevee_replica::storage::{LogRecord, LogStore, MemoryLog, StorageError};

use super::disk::Submitted;
use crate::random::Random;

/// So many of a hundred times what is in full segments is in sorted files by the time that the next one is full.
const WRITTEN_OUT_PERCENT: u64 = 70;

/// Where a record lies: its segment, and its place in that.
type Place = (usize, usize);

/// The journal of a node, and what `log/` has.
pub(crate) struct Journal {
    /// `log/`, in sorted files: every record up to `applied`.
    sorted: BTreeMap<ShardId, MemoryLog>,
    applied: u64,
    /// `log/`, in memory: the rest, with their numbers.
    buffered: VecDeque<(u64, Submitted)>,
    /// Up to here it is being written out.
    writing_out: u64,
    segments: Vec<Segment>,
    /// How many there are, as `log/` says.
    noted: usize,
    next: Place,
    /// The number of the last record.
    last: u64,
    /// How many records a segment has room for.
    room: usize,
    /// True if the next write lands where another record is.
    misdirects: bool,
    /// True if what is being written out will not be in sorted files when the segment is full.
    is_late: bool,
    /// True if it never is.
    is_slow: bool,
    random: Random,
}

#[derive(Default)]
struct Segment {
    places: Vec<Option<Written>>,
    /// The number of the last record that was meant for each place.
    meant: Vec<u64>,
    /// The highest number in it, as the writer knows.
    last: u64,
    /// True if its folder was synced since it was made.
    is_named: bool,
}

struct Written {
    number: u64,
    /// For which place: its checksum covers it.
    of: Place,
    state: State,
    submitted: Submitted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// Only its front is there.
    Torn,
    /// It is not what was written.
    Flipped,
}

impl Journal {
    pub(crate) fn new(mut random: Random) -> Journal {
        let room = random.between(2, 10) as usize;
        let first = Segment { is_named: true, ..Segment::of(room) };
        Journal {
            sorted: BTreeMap::new(),
            applied: 0,
            buffered: VecDeque::new(),
            writing_out: 0,
            segments: vec![first],
            noted: 1,
            next: (0, 0),
            last: 0,
            room,
            misdirects: false,
            is_late: false,
            is_slow: false,
            random,
        }
    }

    /// Writes a submission; it is on disk when this returns, or so the disk says. True if the disk wrote it elsewhere.
    pub(crate) fn append(&mut self, submitted: Submitted) -> bool {
        let of = self.next_place();
        let victim = self.misdirects.then(|| self.victim(of)).flatten();
        self.misdirects &= victim.is_none();
        self.put(
            victim.unwrap_or(of),
            Written { number: self.last, of, state: State::Whole, submitted: submitted.clone() },
        );
        self.buffered.push_back((self.last, submitted));
        victim.is_some()
    }

    /// A crash left the front of a submission.
    pub(crate) fn append_torn(&mut self, submitted: Submitted) {
        let of = self.next_place();
        self.put(of, Written { number: self.last, of, state: State::Torn, submitted });
    }

    /// Of mutants: a submission that is not on the disk, and is taken for written.
    pub(crate) fn append_nowhere(&mut self, submitted: Submitted) {
        self.next_place();
        self.buffered.push_back((self.last, submitted));
    }

    /// True if one of so many writes makes a segment, the file's name included.
    pub(crate) fn would_make_segment(&self, writes: usize) -> bool {
        let sorted = self.sorted_when_full();
        self.next.1 + writes > self.room && !self.segments.iter().any(|segment| segment.last <= sorted)
    }

    /// Up to where `log/` has all in sorted files when the segment is full.
    fn sorted_when_full(&self) -> u64 {
        if self.is_late || self.is_slow { self.applied } else { self.writing_out }
    }

    /// `log/` is slow to write sorted files from now on, or no longer.
    pub(crate) fn set_slow(&mut self, is_slow: bool) {
        self.is_slow = is_slow;
    }

    /// The power is gone: names that were not synced are, too. True if there were any.
    pub(crate) fn lose_names(&mut self) -> bool {
        let before = self.segments.len();
        self.segments.retain(|segment| segment.is_named);
        self.segments.len() < before
    }

    /// The next write shall land where another record is, or no longer.
    pub(crate) fn set_misdirecting(&mut self, misdirects: bool) {
        self.misdirects = misdirects;
    }

    /// A bit of a record changes that only the journal has. False if there is none.
    pub(crate) fn flip(&mut self) -> bool {
        let applied = self.applied;
        let is_only_here = |written: &&mut Written| {
            written.number > applied && written.state == State::Whole && !written.submitted.1.is_empty()
        };
        let mut places: Vec<&mut Written> = self
            .segments
            .iter_mut()
            .flat_map(|segment| segment.places.iter_mut().flatten())
            .filter(is_only_here)
            .collect();
        if places.is_empty() {
            return false;
        }
        let struck = self.random.below(places.len() as u64) as usize;
        let written = &mut places[struck];
        written.state = State::Flipped;
        let record = self.random.below(written.submitted.1.len() as u64) as usize;
        if let LogRecord::Entry { bytes, .. } | LogRecord::HardState(bytes) = &mut written.submitted.1[record]
        {
            flip_bit(bytes, &mut self.random);
        }
        true
    }

    /// A start reads all of it, and brings `log/` up to date. The logs that it finds.
    ///
    /// # Errors
    ///
    /// It holds what no crash leaves behind.
    pub(crate) fn open(&mut self) -> Result<BTreeMap<ShardId, MemoryLog>, StorageError> {
        let (found, seen) = self.read()?;
        self.buffered = found.into();
        self.write_out(seen);
        (self.applied, self.last) = (seen, seen);
        self.segments.iter_mut().for_each(|segment| (segment.last, segment.is_named) = (0, true));
        self.noted = self.noted.max(self.segments.len());
        // A record that changes nothing: whatever a failed write left ends here.
        self.next = (0, 0);
        self.append((ShardId::FIRST_DATA, Vec::new()));
        Ok(self.sorted.clone())
    }

    /// The records that follow what `log/` has, and the highest number of all.
    fn read(&self) -> Result<(Vec<(u64, Submitted)>, u64), StorageError> {
        let (segments, noted) = (self.segments.len(), self.noted);
        if segments < noted {
            return damaged(format!("its segment {noted} of {noted} is missing"));
        }
        let (mut found, mut seen) = (Vec::new(), self.applied);
        for (of, written) in self.places() {
            let Written { mut number, state, ref submitted, .. } = *written;
            let is_elsewhere = of != written.of;
            if is_elsewhere && is_active(Mutant::MisdirectedTaken) {
                // What should be here; what is missing at its own place is passed over.
                number = self.segments[of.0].meant[of.1];
            } else if is_elsewhere || state == State::Flipped && !is_active(Mutant::ChecksumNotChecked) {
                if is_active(Mutant::DamageCutOff) {
                    // As if nothing had been written from there on.
                    let cut = self.segments[of.0].meant[of.1];
                    found.retain(|(number, _)| *number < cut);
                    return Ok((found, self.last));
                }
                return damaged(format!("a wrong checksum at place {} of segment {}", of.1, of.0));
            }
            seen = seen.max(number);
            if state != State::Torn && number > self.applied {
                found.push((number, submitted.clone()));
            }
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        if !is_active(Mutant::MisdirectedTaken) {
            let gap = found.iter().zip(self.applied + 1..).find(|((number, _), next)| number != next);
            let end = self.applied + found.len() as u64;
            if let Some(missing) = gap.map(|(_, next)| next).or((seen > end + 1).then_some(end + 1)) {
                return damaged(format!("record {missing} is missing, and later ones are there"));
            }
        }
        Ok((found, seen))
    }

    /// Every record that is there, and where.
    fn places(&self) -> impl Iterator<Item = (Place, &Written)> {
        self.segments.iter().zip(0..).flat_map(|(segment, number)| {
            let places = segment.places.iter().zip(0..);
            places.filter_map(move |(written, place)| Some(((number, place), written.as_ref()?)))
        })
    }

    /// Where the next record goes, which gets the next number.
    fn next_place(&mut self) -> Place {
        if self.next.1 == self.room {
            self.next = (self.next_segment(), 0);
        }
        let place = self.next;
        self.next.1 += 1;
        self.last += 1;
        let segment = &mut self.segments[place.0];
        segment.meant[place.1] = self.last;
        segment.last = self.last;
        place
    }

    /// One whose records are all in sorted files, or a new one.
    fn next_segment(&mut self) -> usize {
        self.write_out(self.sorted_when_full());
        self.writing_out = self.last;
        self.is_late = !self.random.percent(WRITTEN_OUT_PERCENT);
        if let Some(free) = self.segments.iter().position(|segment| segment.last <= self.applied) {
            return free;
        }
        let is_named = !is_active(Mutant::DirectoryNotSynced);
        self.segments.push(Segment { is_named, ..Segment::of(self.room) });
        self.noted = self.segments.len();
        self.segments.len() - 1
    }

    /// What `log/` has in memory up to a number is in sorted files now.
    fn write_out(&mut self, through: u64) {
        while let Some((_, (shard, records))) = self.buffered.pop_front_if(|(number, _)| *number <= through) {
            let log = self.sorted.entry(shard).or_default();
            log.submit(records, 0);
            log.sync();
        }
        self.applied = self.applied.max(through);
    }

    fn put(&mut self, place: Place, written: Written) {
        self.segments[place.0].places[place.1] = Some(written);
    }

    /// Where another record is that only the journal has.
    fn victim(&mut self, own: Place) -> Option<Place> {
        let applied = self.applied;
        let counts = |(place, written): &(Place, &Written)| {
            *place != own && written.number > applied && !written.submitted.1.is_empty()
        };
        let victims: Vec<Place> = self.places().filter(counts).map(|(place, _)| place).collect();
        let which = self.random.below(victims.len().max(1) as u64) as usize;
        victims.get(which).copied()
    }
}

impl Segment {
    fn of(room: usize) -> Segment {
        let places = std::iter::repeat_with(|| None).take(room).collect();
        Segment { places, meant: vec![0; room], ..Segment::default() }
    }
}

fn damaged<T>(cause: String) -> Result<T, StorageError> {
    Err(StorageError::Corrupt { what: "the journal", cause })
}

/// One bit of some bytes changes.
pub(super) fn flip_bit(bytes: &mut Bytes, random: &mut Random) {
    let mut flipped = bytes.to_vec();
    if let Some(last) = (flipped.len() as u64).checked_sub(1) {
        flipped[random.between(0, last) as usize] ^= 1 << random.below(8);
    }
    *bytes = flipped.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId::FIRST_DATA;

    fn entry(index: u64) -> Submitted {
        (SHARD, vec![LogRecord::Entry { index, bytes: Bytes::from(index.to_string()) }])
    }

    /// A journal with so many entries, each written.
    fn journal(seed: u64, entries: u64) -> Journal {
        let mut journal = Journal::new(Random::new(seed, 0));
        (1..=entries).for_each(|index| assert!(!journal.append(entry(index))));
        journal
    }

    fn last(journal: &mut Journal) -> Result<u64, StorageError> {
        journal.open().map(|logs| logs.get(&SHARD).map_or(0, |log| log.last().expect("readable")))
    }

    #[test]
    fn a_start_finds_all_that_was_written_and_goes_on() {
        for seed in 0..50 {
            let mut journal = journal(seed, 3 * seed);
            assert_eq!(last(&mut journal), Ok(3 * seed), "seed {seed}");
            journal.append(entry(3 * seed + 1));
            assert_eq!(last(&mut journal), Ok(3 * seed + 1), "seed {seed}");
            assert!(!journal.lose_names());
        }
    }

    #[test]
    fn a_torn_record_is_dropped_and_its_number_is_not_given_again() {
        for seed in 0..50 {
            let mut journal = journal(seed, seed);
            journal.append_torn(entry(seed + 1));
            assert_eq!(last(&mut journal), Ok(seed), "seed {seed}");
            journal.append(entry(seed + 1));
            assert_eq!(last(&mut journal), Ok(seed + 1), "seed {seed}");
        }
    }

    #[test]
    fn damage_is_found() {
        for seed in 0..50 {
            let mut flipped = journal(seed, seed);
            assert_eq!(flipped.flip(), seed > 0);
            assert_eq!(last(&mut flipped).is_err(), seed > 0, "seed {seed}: a flipped bit");

            let mut misdirected = journal(seed, seed);
            misdirected.set_misdirecting(true);
            let is_elsewhere = misdirected.append(entry(seed + 1));
            assert_eq!(is_elsewhere, seed > 0);
            assert_eq!(last(&mut misdirected).is_err(), is_elsewhere, "seed {seed}: a misdirected write");

            let mut missing = journal(seed, seed);
            missing.append_nowhere(entry(seed + 1));
            missing.append(entry(seed + 2));
            assert!(last(&mut missing).is_err(), "seed {seed}: a write that was lost");

            let mut shorter = journal(seed, seed);
            if shorter.segments.len() > 1 {
                shorter.segments.pop();
                assert!(last(&mut shorter).is_err(), "seed {seed}: a segment that is missing");
            }
        }
    }
}
