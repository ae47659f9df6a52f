//! Scrubs: the replicas of a shard compare what lies in their states, not only what they applied.
//!
//! The leader names the index of an entry that it proposes, and tells the others before the entry itself. Whoever applies the
//! entry at that index takes a view of its state, which the caller reads through in its own time, and tells all members the
//! digest. States are functions of the log, so all views of one index hold the same, whatever became of the leader. A replica
//! whose state differs from what a majority of the voters has is damaged.
//!
//! A scrub is a try: who is away, behind, or busy with an earlier one is left out, and whatever is lost is not sent again. It
//! leaves out when one is due, and at which rate it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use keevee_core::digest::Digest;
use keevee_core::ids::NodeId;

use super::{Failure, ReplicaMessage, Shard};
use crate::engine::Engine;
use crate::members::Members;
use crate::request::Now;
use crate::storage::{SnapshotSource, StateStore, StorageError, record_bytes};

/// How many comparisons are kept open for replicas that read more slowly.
const OPEN_MAX: usize = 8;

/// What replicas say to each other about scrubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubMessage {
    /// The receiver shall look at its state as it is right behind this entry.
    Begin {
        /// The entry's index.
        index: u64,
    },
    /// What the sender's state holds there.
    Content {
        /// The entry's index.
        index: u64,
        /// How the sender's records look: only digests of one layout can be compared.
        layout: u32,
        /// Of all records, in order.
        digest: u128,
    },
}

/// A view of the state at one index, to be read through.
pub struct Scrub<S> {
    index: u64,
    source: S,
    digest: Digest,
    content: Content,
}

/// What a state holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Of all records, in order.
    pub digest: u128,
    /// How many there are.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

impl<S: SnapshotSource> Scrub<S> {
    fn new(index: u64, source: S) -> Scrub<S> {
        Scrub { index, source, digest: Digest::new(), content: Content::default() }
    }

    /// The index that it is of.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Reads on, about so many bytes: how many there were, or what the state holds in all once it is at the end.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the state can't be read: tell the replica, by [`Shard::scrubbed`].
    pub fn read(&mut self, bytes_max: usize) -> Result<ScrubProgress, StorageError> {
        let page = self.source.read(bytes_max)?;
        for (key, value) in &page {
            self.digest.bytes(key);
            self.digest.bytes(value);
        }
        if page.is_empty() {
            return Ok(ScrubProgress::Done(Content { digest: self.digest.finish(), ..self.content }));
        }
        let bytes = record_bytes(&page);
        self.content.records += page.len() as u64;
        self.content.bytes += bytes as u64;
        Ok(ScrubProgress::Page(bytes))
    }
}

/// How far the reading of a [`Scrub`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubProgress {
    /// So many bytes were read.
    Page(usize),
    /// All was read.
    Done(Content),
}

/// What came of the last scrub that this replica took part in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubStatus {
    /// The index at which states were compared.
    pub index: u64,
    /// When this replica had read its own, in microseconds since the Unix epoch.
    pub ended: u64,
    /// What it holds.
    pub content: Content,
    /// Members whose states hold the same, this one among them.
    pub agree: BTreeSet<NodeId>,
    /// Members whose states do not. Of those in neither nothing is known, or not yet.
    pub differ: BTreeSet<NodeId>,
}

/// Another replica's state that differs from this one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The index at which they were compared.
    pub index: u64,
    /// The other node.
    pub node: NodeId,
    /// True if most voters are known to have what this replica has: the other one is damaged.
    pub is_outvoted: bool,
}

/// The scrubs of a shard.
pub(super) struct Scrubs<S> {
    /// This replica leads, and is to name an index.
    is_asked: bool,
    /// A view is to be taken once this is applied.
    next: Option<u64>,
    /// A view that nobody has taken over to read it.
    taken: Option<Scrub<S>>,
    /// The index of the view that is taken, and not read to its end.
    reading: Option<u64>,
    /// What members have, by index.
    open: BTreeMap<u64, BTreeMap<NodeId, u128>>,
    last: Option<(u64, u64, Content)>,
    differences: Vec<Difference>,
}

impl<S> Default for Scrubs<S> {
    fn default() -> Scrubs<S> {
        let (open, differences) = (BTreeMap::new(), Vec::new());
        Scrubs { is_asked: false, next: None, taken: None, reading: None, open, last: None, differences }
    }
}

impl<S> Scrubs<S> {
    /// True while an index is to be named.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// There is no leader here to name one.
    pub(super) fn turn_away(&mut self) {
        self.is_asked = false;
    }

    /// Ends what is under way.
    pub(super) fn give_way(&mut self) {
        (self.is_asked, self.next, self.taken, self.reading) = (false, None, None, None);
        self.open.clear();
    }

    /// Notes what a member has. True if another member's differs from `own`'s, and most voters have the same as that one.
    fn note(&mut self, own: NodeId, members: &Members, from: NodeId, index: u64, digest: u128) -> bool {
        self.open.entry(index).or_default().insert(from, digest);
        while self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
        let Some(votes) = self.open.get(&index) else { return false };
        let Some(of_own) = votes.get(&own) else { return false };
        let has_quorum = |digest: &u128| members.is_quorum(|node| votes.get(&node) == Some(digest));
        let is_outvoted = has_quorum(of_own);
        let is_new = |node: &NodeId| from == own || *node == from;
        let others = votes.iter().filter(|(node, digest)| *digest != of_own && is_new(node));
        self.differences.extend(others.map(|(node, _)| Difference { index, node: *node, is_outvoted }));
        votes.values().any(|digest| digest != of_own && has_quorum(digest))
    }

    fn status(&self) -> Option<ScrubStatus> {
        let (index, ended, content) = self.last?;
        let votes = self.open.get(&index).into_iter().flatten();
        let (agree, differ): (Vec<_>, Vec<_>) = votes.partition(|(_, digest)| **digest == content.digest);
        let nodes = |votes: Vec<(&NodeId, _)>| votes.into_iter().map(|(node, _)| *node).collect();
        Some(ScrubStatus { index, ended, content, agree: nodes(agree), differ: nodes(differ) })
    }
}

impl<E: Engine, S: StateStore> Shard<E, S> {
    /// Begins a scrub, if this replica leads and none is under way here. Call [`Shard::advance`] afterwards, and
    /// [`Shard::take_scrub`] after each of its calls. True if it begins; a change of leadership may end it at once.
    pub fn scrub(&mut self, now: Duration) -> bool {
        let leads = !self.snapshots.is_deaf() && self.engine.leader() == Some(self.own());
        if !leads || self.has_scrub() {
            return false;
        }
        self.wake(now);
        self.scrubs.is_asked = true;
        true
    }

    /// True while a scrub is under way that this replica began, or takes part in.
    pub fn has_scrub(&self) -> bool {
        let is_proposed = self.scrubs.next.is_some_and(|index| self.proposed.contains_key(&index));
        self.scrubs.is_asked || is_proposed || self.scrubs.reading.is_some()
    }

    /// A view that is to be read through; [`Shard::scrubbed`] takes what comes of it.
    pub fn take_scrub(&mut self) -> Option<Scrub<S::Source>> {
        self.scrubs.taken.take()
    }

    /// True while what comes of a view of this index is of use: else it need not be read any further.
    pub fn is_scrubbing(&self, index: u64) -> bool {
        self.scrubs.reading == Some(index)
    }

    /// A view was read through. Call [`Shard::advance`] afterwards.
    ///
    /// # Errors
    ///
    /// [`Failure`] if the state could not be read, or is damaged.
    pub fn scrubbed(
        &mut self,
        now: Now,
        index: u64,
        read: Result<Content, StorageError>,
    ) -> Result<(), Failure> {
        if !self.is_scrubbing(index) {
            return Ok(());
        }
        self.scrubs.reading = None;
        let content = read.map_err(StorageError::of_state)?;
        self.scrubs.last = Some((index, now.wall_micros, content));
        let told = ScrubMessage::Content { index, layout: S::Source::LAYOUT, digest: content.digest };
        self.tell_scrub(told);
        self.compare_content(self.own(), index, content.digest)
    }

    /// Replicas found since the last call whose states differ from this one's.
    pub fn take_differences(&mut self) -> Vec<Difference> {
        mem::take(&mut self.scrubs.differences)
    }

    /// What came of the last scrub; `None` if there was none since the replica was opened.
    pub(super) fn scrub_status(&self) -> Option<ScrubStatus> {
        self.scrubs.status()
    }

    /// An entry was proposed at an index, and none of its messages has left yet.
    pub(super) fn begin_scrub(&mut self, index: u64) {
        if mem::take(&mut self.scrubs.is_asked) {
            self.scrubs.next = Some(index);
            self.tell_scrub(ScrubMessage::Begin { index });
        }
    }

    fn tell_scrub(&mut self, message: ScrubMessage) {
        let told = self.hashes.others().map(|node| (node, ReplicaMessage::Scrub(message)));
        self.effects.send.extend(told);
    }

    /// An entry is applied, and written to the state.
    pub(super) fn take_scrub_view(&mut self, index: u64) {
        if self.scrubs.next.take_if(|next| *next <= index) != Some(index) {
            return;
        }
        // What this replica itself needs of its storage shows at its next step.
        if let Ok(source) = self.state.snapshot() {
            self.scrubs.reading = Some(index);
            self.scrubs.taken = Some(Scrub::new(index, source));
        }
    }

    pub(super) fn receive_scrub(&mut self, from: NodeId, message: ScrubMessage) -> Result<(), Failure> {
        if !self.hashes.others().any(|member| member == from) {
            return Ok(());
        }
        match message {
            // One that is read to its end is of more use than two that are not.
            ScrubMessage::Begin { index } => {
                if self.scrubs.reading.is_none() && index > self.meta.applied {
                    self.scrubs.next = Some(index);
                }
                Ok(())
            }
            ScrubMessage::Content { index, layout, digest } if layout == S::Source::LAYOUT => {
                self.compare_content(from, index, digest)
            }
            ScrubMessage::Content { .. } => Ok(()),
        }
    }

    fn compare_content(&mut self, from: NodeId, index: u64, digest: u128) -> Result<(), Failure> {
        let own = self.own();
        if self.scrubs.note(own, &self.members, from, index, digest) {
            return Err(damaged(index));
        }
        Ok(())
    }
}

/// This replica's state is damaged: what to do about it is in one place, with whoever meets the failure.
fn damaged(index: u64) -> Failure {
    let cause =
        format!("a scrub at index {index} found that it holds something else than that of a majority");
    StorageError::Damaged { what: "the state", cause }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId(1);

    fn members() -> Members {
        Members { learners: [NodeId(4)].into(), ..Members::of_voters((1..=3).map(NodeId)) }
    }

    /// Notes digests of one index in this order: whether the replica is damaged, after each.
    fn noted(scrubs: &mut Scrubs<()>, votes: &[(u64, u128)]) -> Vec<bool> {
        let note = |(node, digest): &(u64, u128)| scrubs.note(OWN, &members(), NodeId(*node), 9, *digest);
        votes.iter().map(note).collect()
    }

    #[test]
    fn who_differs_from_most_voters_is_damaged() {
        for votes in [[(1, 7), (2, 8), (3, 8)], [(2, 8), (3, 8), (1, 7)]] {
            assert_eq!(noted(&mut Scrubs::default(), &votes), [false, false, true]);
        }
    }

    #[test]
    fn who_differs_from_one_says_so_and_goes_on() {
        let mut scrubs = Scrubs::default();
        assert_eq!(noted(&mut scrubs, &[(1, 7), (2, 8), (3, 7)]), [false; 3]);
        let difference = Difference { index: 9, node: NodeId(2), is_outvoted: false };
        assert_eq!(mem::take(&mut scrubs.differences), [difference]);
        let mut scrubs = Scrubs::default();
        assert_eq!(noted(&mut scrubs, &[(2, 8), (3, 7), (1, 7)]), [false; 3]);
        assert_eq!(scrubs.differences, [Difference { is_outvoted: true, ..difference }]);
    }

    #[test]
    fn learners_decide_nothing_and_may_be_damaged() {
        assert_eq!(noted(&mut Scrubs::default(), &[(1, 7), (2, 8), (4, 8)]), [false; 3]);
        let mut scrubs = Scrubs::default();
        assert_eq!(noted(&mut scrubs, &[(2, 8), (3, 8)]), [false; 2]);
        assert!(scrubs.note(NodeId(4), &members(), NodeId(4), 9, 7));
    }

    #[test]
    fn where_all_differ_nobody_is_damaged() {
        let mut scrubs = Scrubs::default();
        assert_eq!(noted(&mut scrubs, &[(1, 7), (2, 8), (3, 9)]), [false; 3]);
        assert_eq!(scrubs.differences.len(), 2);
    }

    #[test]
    fn digests_of_indexes_that_nobody_reads_any_more_go() {
        let mut scrubs: Scrubs<()> = Scrubs::default();
        (0..100).for_each(|index| assert!(!scrubs.note(OWN, &members(), NodeId(2), index, 8)));
        assert_eq!(scrubs.open.len(), OPEN_MAX);
    }
}
