//! How one replica gets the state of another: in chunks, for which it asks one at a time.
//!
//! Whoever needs a snapshot sets the pace. It asks for a chunk, again if none comes, and for the next one no sooner than
//! its rate allows. So a lost message or a broken connection costs a chunk and never what came before it, a slow link is
//! slow and nothing else, and whoever sends needs no clock but to know when nobody asks any more. Each chunk says by a
//! digest what all before it were: what was damaged or mixed up on the way is seen at once.
//!
//! It leaves out what is in the records ([`SnapshotSource`]), who needs a snapshot (the engines), and what happens once
//! one is there (`shard/snapshots.rs`).

use std::time::Duration;

use bytes::Bytes;
use keevee_core::digest::Digest;
use keevee_core::ids::NodeId;
use keevee_mutants::{self as mutants, Mutant};

use crate::storage::{Intake, SnapshotRecord, SnapshotSource, SnapshotTarget, StorageError, record_bytes};

/// How long a chunk is waited for at least before it is asked for again: longer each time, up to the second, so that a slow
/// link is not filled with what is on its way already.
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// So many times as long as the last chunk took the next one may take.
const SLOWER_MAX: u32 = 4;
/// How long a chunk is waited for before whoever should send it is given up…
const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);
/// …and so many times the wait for a chunk if somebody else has a snapshot.
const GIVEN_UP_IF_OTHERS: u32 = 2;
/// How far a receiver that was held up may be ahead of its rate to make up for it.
const CATCH_UP: Duration = Duration::from_millis(100);
/// How long a snapshot is kept for somebody who neither asks for more nor catches up…
const KEPT_FOR: Duration = Duration::from_secs(30);
/// …and where another replica leads, by whose log the receiver catches up, once all of it was sent.
const KEPT_FOR_AT_FOLLOWERS: Duration = Duration::from_secs(2);
/// A receiver that was just sent a chunk is not sent another snapshot: it is a late request of another life.
const RENEWED_AFTER: Duration = Duration::from_secs(1);

/// What replicas say to each other about snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotMessage {
    /// Send me this chunk.
    Ask {
        /// A number of the asker's: with chunk 0 it stands for a new snapshot.
        snapshot: u64,
        /// Counted from 0.
        chunk: u64,
    },
    /// A chunk that was asked for.
    Chunk(SnapshotChunk),
    /// That snapshot is not here any more.
    Gone {
        /// As it was asked for.
        snapshot: u64,
    },
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// As it was asked for.
    pub snapshot: u64,
    /// Counted from 0.
    pub number: u64,
    /// The applied index of the state.
    pub index: u64,
    /// How the records look: [`SnapshotSource::LAYOUT`].
    pub layout: u32,
    /// The records: none in the last chunk alone.
    pub records: Vec<SnapshotRecord>,
    /// Over all other fields but the first, and the digest of the chunk before.
    pub digest: u128,
    /// In the last chunk: what the receiver's log begins behind ([`Engine::snapshot_mark`](crate::Engine::snapshot_mark)).
    pub mark: Option<Bytes>,
}

impl SnapshotChunk {
    /// The digest of this chunk behind another: 128-bit xxh3 over that one's and all fields but the first.
    fn digest_behind(&self, before: u128) -> u128 {
        let mut digest = Digest::new();
        digest.wide(before);
        digest.number(self.number);
        digest.number(self.index);
        digest.number(self.layout.into());
        for (key, value) in &self.records {
            digest.bytes(key);
            digest.bytes(value);
        }
        self.mark.iter().for_each(|mark| digest.bytes(mark));
        digest.finish()
    }
}

/// A snapshot on its way to another replica.
pub(crate) struct Sending<S> {
    /// None once all of it was read.
    source: Option<S>,
    mark: Bytes,
    chunk_bytes: usize,
    /// The chunk sent last.
    last: SnapshotChunk,
    progress_at: Duration,
    /// What the receiver acknowledged of the log, as far as is known here.
    acknowledged: u64,
    /// True if that was as much as is in the snapshot when it asked: it wants the state alone, and what it acknowledges says nothing
    /// of what it still needs.
    has_log: bool,
    /// The end of the log when the last chunk had been sent: who has so much has caught up.
    goal: Option<u64>,
}

/// What is sent to whoever asked for a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Chunk(SnapshotChunk),
    /// Nothing: it asked again for what it was sent.
    Ignored,
    Gone,
}

impl<S: SnapshotSource> Sending<S> {
    /// A snapshot of the state at an applied index: its first chunk is there at once. The receiver is known to have acknowledged
    /// so much of the log.
    pub(crate) fn new(
        now: Duration,
        snapshot: u64,
        index: u64,
        acknowledged: u64,
        mark: Bytes,
        source: S,
        chunk_bytes: usize,
    ) -> Result<Sending<S>, StorageError> {
        let (layout, records) = (S::LAYOUT, Vec::new());
        let last = SnapshotChunk { snapshot, number: 0, index, layout, records, digest: 0, mark: None };
        let source = Some(source);
        let has_log = acknowledged >= index;
        let mut sending =
            Sending { source, mark, chunk_bytes, last, progress_at: now, acknowledged, has_log, goal: None };
        sending.read(0)?;
        Ok(sending)
    }

    pub(crate) fn snapshot(&self) -> u64 {
        self.last.snapshot
    }

    /// The chunk that was sent last.
    pub(crate) fn last(&self) -> SnapshotChunk {
        self.last.clone()
    }

    /// True while its receiver seems to want this one, and no other.
    pub(crate) fn is_under_way(&self, now: Duration) -> bool {
        self.source.is_some() && now < self.progress_at + RENEWED_AFTER
    }

    /// The chunk of a number: the last one again, or the one behind it; no other is there any more.
    pub(crate) fn answer(&mut self, now: Duration, number: u64) -> Result<Answer, StorageError> {
        if number < self.last.number {
            return Ok(Answer::Ignored);
        }
        if number > self.last.number {
            if number > self.last.number + 1 || self.source.is_none() {
                return Ok(Answer::Gone);
            }
            self.read(number)?;
            self.progress_at = now;
        }
        Ok(Answer::Chunk(self.last()))
    }

    fn read(&mut self, number: u64) -> Result<(), StorageError> {
        let Some(source) = &mut self.source else { return Ok(()) };
        let records = source.read(self.chunk_bytes)?;
        let mark = records.is_empty().then(|| self.mark.clone());
        if mark.is_some() {
            // It may hold much of the disk.
            self.source = None;
        }
        let mut chunk = SnapshotChunk { number, records, mark, ..self.last.clone() };
        chunk.digest = chunk.digest_behind(self.last.digest);
        self.last = chunk;
        Ok(())
    }

    /// What the log must keep for the receiver, who goes on behind this index once it has the snapshot.
    pub(crate) fn needs_behind(&self) -> u64 {
        self.last.index.max(self.acknowledged)
    }

    /// Notes what the receiver acknowledges of the log, if this replica leads. False once nobody needs this any more:
    /// it has caught up, or has not been heard of for long.
    pub(crate) fn is_needed(&mut self, now: Duration, acknowledged: Option<u64>, last: u64) -> bool {
        let is_sent = self.source.is_none();
        let Some(acknowledged) = acknowledged.filter(|_| !self.has_log) else {
            let kept_for = if is_sent { KEPT_FOR_AT_FOLLOWERS } else { KEPT_FOR };
            return now < self.progress_at + kept_for;
        };
        if !is_sent {
            // Another replica's snapshot, or the log, may have brought as much.
            return acknowledged < self.last.index && now < self.progress_at + KEPT_FOR;
        }
        if acknowledged > self.acknowledged {
            (self.acknowledged, self.progress_at) = (acknowledged, now);
        }
        let has_caught_up = acknowledged >= *self.goal.get_or_insert(last);
        !has_caught_up && now < self.progress_at + KEPT_FOR
    }
}

/// A snapshot on its way here.
pub(crate) struct Receiving<T> {
    pub(crate) from: NodeId,
    pub(crate) snapshot: u64,
    pub(crate) target: T,
    /// Of which its state is, once a chunk has told.
    index: Option<u64>,
    /// Of the last chunk.
    mark: Option<Bytes>,
    /// The chunk that is asked for, and the digest of the one before.
    next: u64,
    digest: u128,
    /// The key of the last record.
    last_key: Bytes,
    /// When the next chunk may be asked for, by the rate.
    due_at: Duration,
    /// Since when it is waited for, and when it was asked for last.
    asked: Option<(Duration, Duration)>,
    /// How long a chunk may take, and how long this one may until it is asked for again.
    usual: Duration,
    patience: Duration,
}

/// What a chunk brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is not the one that was asked for.
    Nothing,
    /// It is taken in.
    Taken,
    /// It does not follow on the ones before it, or can't be understood.
    Unfit,
}

impl<T: SnapshotTarget> Receiving<T> {
    pub(crate) fn new(now: Duration, from: NodeId, snapshot: u64, target: T) -> Receiving<T> {
        Receiving {
            from,
            snapshot,
            target,
            index: None,
            mark: None,
            next: 0,
            digest: 0,
            last_key: Bytes::new(),
            due_at: now,
            asked: None,
            usual: PATIENCE,
            patience: PATIENCE,
        }
    }

    /// Takes in a chunk, of records as this store keeps them.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        layout: u32,
        bytes_per_second: u64,
        chunk: SnapshotChunk,
    ) -> Progress {
        if chunk.snapshot != self.snapshot || chunk.number != self.next || self.mark.is_some() {
            return Progress::Nothing;
        }
        let mut keys = chunk.records.iter().map(|(key, _)| key);
        let is_ascending = keys.try_fold(&self.last_key, |last, key| (last < key).then_some(key)).is_some();
        let is_same = self.index.is_none_or(|index| index == chunk.index) && chunk.layout == layout;
        let is_whole = chunk.records.is_empty() == chunk.mark.is_some();
        if !is_ascending || !is_same || !is_whole || chunk.digest_behind(self.digest) != chunk.digest {
            return Progress::Unfit;
        }
        let bytes = record_bytes(&chunk.records);
        if let Some((_, last)) = self.asked.take() {
            // What was lost before says nothing of how slow the link is.
            self.usual = (SLOWER_MAX * now.saturating_sub(last)).clamp(PATIENCE, PATIENCE_MAX);
        }
        (self.patience, self.index) = (self.usual, Some(chunk.index));
        (self.next, self.digest) = (chunk.number + 1, chunk.digest);
        if let Some((key, _)) = chunk.records.last() {
            self.last_key = key.clone();
        }
        let span = Duration::from_secs(1).mul_f64(bytes as f64 / bytes_per_second as f64);
        self.due_at = self.due_at.max(now.saturating_sub(CATCH_UP)) + span;
        if chunk.mark.is_some() {
            self.target.end();
        } else {
            self.target.write(chunk.records);
        }
        self.mark = chunk.mark;
        Progress::Taken
    }

    /// The chunk to ask for now, if any.
    pub(crate) fn ask(&mut self, now: Duration) -> Option<SnapshotMessage> {
        if self.mark.is_some() {
            return None;
        }
        match self.asked {
            Some((_, last)) if now < last + self.patience => return None,
            Some((since, _)) => {
                self.asked = Some((since, now));
                self.patience = (2 * self.patience).min(PATIENCE_MAX);
                if mutants::is_active(Mutant::SnapshotFromTheStart) {
                    self.next = 0;
                }
            }
            None if now < self.due_at || self.target.progress() == Intake::Busy => return None,
            None => self.asked = Some((now, now)),
        }
        Some(SnapshotMessage::Ask { snapshot: self.snapshot, chunk: self.next })
    }

    /// True once whoever should send seems to be gone. Somebody may have offered a snapshot meanwhile.
    pub(crate) fn is_given_up(&self, now: Duration, offered_by: Option<NodeId>) -> bool {
        let has_others = offered_by.is_some_and(|by| by != self.from);
        let limit = if has_others { GIVEN_UP_IF_OTHERS * self.usual } else { GIVEN_UP_AFTER };
        self.asked.is_some_and(|(since, _)| now > since + limit)
    }

    /// The applied index of its state, once a chunk has told.
    pub(crate) fn index(&self) -> Option<u64> {
        self.index
    }

    /// The index, and what the log begins behind, once the last chunk has come.
    pub(crate) fn end(&self) -> Option<(u64, Bytes)> {
        self.index.zip(self.mark.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    const LAYOUT: u32 = 7;
    const FAST: u64 = u64::MAX;
    const FROM: NodeId = NodeId(2);

    /// Two records to a chunk.
    struct Source(Vec<SnapshotRecord>);

    impl SnapshotSource for Source {
        const LAYOUT: u32 = LAYOUT;

        fn read(&mut self, _: usize) -> Result<Vec<SnapshotRecord>, StorageError> {
            let rest = self.0.split_off(self.0.len().min(2));
            Ok(mem::replace(&mut self.0, rest))
        }
    }

    #[derive(Default)]
    struct Target {
        records: Vec<SnapshotRecord>,
        has_ended: bool,
    }

    impl SnapshotTarget for Target {
        fn write(&mut self, records: Vec<SnapshotRecord>) {
            self.records.extend(records);
        }

        fn end(&mut self) {
            self.has_ended = true;
        }

        fn progress(&mut self) -> Intake {
            Intake::Ready
        }
    }

    fn records() -> Vec<SnapshotRecord> {
        ["a", "b", "c", "d", "e"].map(|key| (key.into(), "value".into())).into()
    }

    fn sending() -> Sending<Source> {
        Sending::new(Duration::ZERO, 9, 100, 0, "mark".into(), Source(records()), 1).expect("no disk")
    }

    fn receiving() -> Receiving<Target> {
        Receiving::new(Duration::ZERO, FROM, 9, Target::default())
    }

    fn answer(sending: &mut Sending<Source>, number: u64) -> Answer {
        sending.answer(Duration::ZERO, number).expect("no disk")
    }

    fn chunk(sending: &mut Sending<Source>, number: u64) -> SnapshotChunk {
        match answer(sending, number) {
            Answer::Chunk(chunk) => chunk,
            other => panic!("{other:?} for chunk {number}"),
        }
    }

    fn take(receiving: &mut Receiving<Target>, chunk: SnapshotChunk) -> Progress {
        receiving.take(Duration::ZERO, LAYOUT, FAST, chunk)
    }

    #[test]
    fn all_records_come_in_chunks_and_the_mark_comes_last() {
        let (mut sending, mut receiving) = (sending(), receiving());
        for number in 0..3 {
            assert_eq!(take(&mut receiving, chunk(&mut sending, number)), Progress::Taken);
            assert_eq!(receiving.end(), None);
        }
        let last = chunk(&mut sending, 3);
        assert!(last.records.is_empty());
        assert_eq!(take(&mut receiving, last), Progress::Taken);
        assert_eq!(receiving.end(), Some((100, "mark".into())));
        assert_eq!((receiving.target.records, receiving.target.has_ended), (records(), true));
        assert_eq!(answer(&mut sending, 4), Answer::Gone);
    }

    #[test]
    fn the_last_chunk_is_sent_again_and_no_earlier_one() {
        let mut sending = sending();
        let first = chunk(&mut sending, 0);
        assert_eq!(chunk(&mut sending, 0), first);
        let second = chunk(&mut sending, 1);
        assert_eq!(chunk(&mut sending, 1), second);
        assert_eq!(answer(&mut sending, 0), Answer::Ignored, "it came late");
        assert_eq!(answer(&mut sending, 3), Answer::Gone, "none is left out");
    }

    #[test]
    fn a_chunk_that_comes_again_or_late_is_nothing_new() {
        let (mut sending, mut receiving) = (sending(), receiving());
        let first = chunk(&mut sending, 0);
        assert_eq!(take(&mut receiving, first.clone()), Progress::Taken);
        assert_eq!(take(&mut receiving, first.clone()), Progress::Nothing);
        let of_another = SnapshotChunk { snapshot: 8, number: 1, ..first };
        assert_eq!(take(&mut receiving, of_another), Progress::Nothing);
        assert_eq!(receiving.target.records.len(), 2);
    }

    #[test]
    fn what_does_not_follow_on_what_came_is_not_taken() {
        let good = chunk(&mut sending(), 0);
        let signed = |chunk: SnapshotChunk| SnapshotChunk { digest: chunk.digest_behind(0), ..chunk };
        let mut swapped = good.records.clone();
        swapped.reverse();
        let damaged = vec![("a".into(), "valua".into()), good.records[1].clone()];
        let unfit = [
            signed(SnapshotChunk { layout: LAYOUT + 1, ..good.clone() }),
            SnapshotChunk { digest: good.digest + 1, ..good.clone() },
            SnapshotChunk { index: 101, ..good.clone() },
            SnapshotChunk { records: damaged, ..good.clone() },
            signed(SnapshotChunk { records: swapped, ..good.clone() }),
            signed(SnapshotChunk { mark: Some("mark".into()), ..good.clone() }),
            signed(SnapshotChunk { records: Vec::new(), ..good }),
        ];
        for chunk in unfit {
            let mut receiving = receiving();
            assert_eq!(take(&mut receiving, chunk.clone()), Progress::Unfit, "{chunk:?}");
            assert!(receiving.target.records.is_empty());
        }
    }

    #[test]
    fn a_chunk_is_asked_for_when_the_rate_allows_and_ever_more_patiently_when_none_comes() {
        let (mut sending, mut receiving) = (sending(), receiving());
        let ask = |chunk| Some(SnapshotMessage::Ask { snapshot: 9, chunk });
        let at = Duration::from_millis;
        for (moment, asked) in [(0, ask(0)), (499, None), (500, ask(0)), (1_499, None), (1_500, ask(0))] {
            assert_eq!(receiving.ask(at(moment)), asked, "at {moment} ms");
        }
        // Twelve bytes at twelve bytes per second, of which a tenth may be made up for.
        let first = chunk(&mut sending, 0);
        assert_eq!(receiving.take(at(1_600), LAYOUT, 12, first), Progress::Taken);
        assert_eq!(receiving.ask(at(2_499)), None);
        assert_eq!(receiving.ask(at(2_500)), ask(1));
        // It takes 300 ms: the next may take four times as long.
        let second = chunk(&mut sending, 1);
        assert_eq!(receiving.take(at(2_800), LAYOUT, FAST, second), Progress::Taken);
        assert_eq!(receiving.ask(at(2_800)), ask(2));
        assert_eq!(receiving.ask(at(3_999)), None);
        assert_eq!(receiving.ask(at(4_000)), ask(2));
    }

    #[test]
    fn who_does_not_answer_is_given_up_sooner_if_there_are_others() {
        let given_up_at = |offered_by| {
            let mut receiving = receiving();
            receiving.ask(Duration::ZERO);
            (0..).find(|second| receiving.is_given_up(Duration::from_secs(*second), offered_by))
        };
        assert_eq!(given_up_at(Some(NodeId(3))), Some(2));
        assert_eq!(given_up_at(Some(FROM)), Some(61));
        assert_eq!(given_up_at(None), Some(61));
    }

    #[test]
    fn a_snapshot_is_kept_until_its_receiver_has_caught_up_or_is_gone() {
        let (mut sending, at) = (sending(), Duration::from_secs);
        assert!(sending.is_needed(at(29), Some(0), 200));
        assert!(!sending.is_needed(at(30), Some(0), 200));
        assert!(sending.is_needed(at(29), None, 200), "not all of it was sent");
        assert!(!sending.is_needed(at(29), Some(100), 200), "the receiver has as much by other means");
        (1..=3).for_each(|number| drop(chunk(&mut sending, number)));
        assert!(sending.is_needed(at(1), None, 200));
        assert!(!sending.is_needed(at(2), None, 200), "by another's log");
        // It has it, and goes on.
        assert!(sending.is_needed(at(31), Some(150), 200));
        assert_eq!(sending.needs_behind(), 150);
        assert!(sending.is_needed(at(60), Some(150), 300));
        assert!(!sending.is_needed(at(60), Some(200), 300), "as much as there was when all was sent");
    }
}
