//! The log as openraft writes and reads it, over a [`LogStore`].
//!
//! Votes, entries and drops go through the one queue of the log store, so that they reach the disk in the order in
//! which openraft wanted them. What openraft waits for is told by [`SharedLog::persisted`]: an append's flush
//! callback, or the end of `save_vote`. The committed index is saved with whatever is written next: after a crash
//! the leader tells it anew. Only where it makes other members the chosen ones it is written at once.
//!
//! Configurations are entries too. The hard state lists all that the log holds, and is written with whatever changes that, so
//! that the one in force at any index is known without reading the log.
//!
//! openraft hands out committed entries before they are on this node's disk. They wait here
//! ([`SharedLog::take_chosen`]) until they are: what is applied and then lost with the log would be lost for good.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use keevee_core::ids::{Incarnation, NodeId};
use keevee_mutants::{self as mutants, Mutant};
use keevee_replica::Members;
use keevee_replica::storage::{LogRecord, LogStore, StorageError};
use openraft::alias::{LogIdOf, OneshotSenderOf, VoteOf};
use openraft::async_runtime::oneshot::OneshotSender;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, LogState, RaftLogReader};

use crate::message::{Configured, LogEntry, LogId, Payload, Vote};
use crate::records::{self, HardState, Mark};
use crate::types::{Entry, FIRST, Types, our_entry, our_vote, ours, their_entry, their_vote, theirs};

/// Whom a replica has voted for in a term in which it can vote no more. No node has this number.
const NOBODY: u64 = 0;

/// A log, shared by the engine and openraft's tasks. All of them run on one thread.
pub(crate) struct SharedLog<L>(Arc<Mutex<Log<L>>>);

impl<L> Clone for SharedLog<L> {
    fn clone(&self) -> SharedLog<L> {
        SharedLog(Arc::clone(&self.0))
    }
}

/// Invariants: `recent` holds consecutive entries and ends with `last`, if it holds any; `synced` is below any
/// index that a write under way changes; `state.configurations` are in order, and none is behind `last`.
struct Log<L> {
    store: L,
    state: HardState,
    /// The first members; none if this replica joined later.
    first: Option<Configured>,
    /// True if `state` says more than what was submitted.
    is_state_ahead: bool,
    last: Option<LogId>,
    /// The end of the log, so that replication and apply need not read what was just written.
    recent: VecDeque<Entry>,
    recent_bytes: usize,
    recent_bytes_max: usize,
    page_bytes_max: usize,
    token: u64,
    writing: VecDeque<Writing>,
    /// Every entry up to here is on disk.
    synced: u64,
    /// Own proposals that were appended: their tag and index.
    appended: Vec<(u64, u64)>,
    /// Committed, in order, and not handed out.
    chosen: VecDeque<(u64, Option<Bytes>)>,
    /// Nobody needs the log up to here: every member has flushed it, or a snapshot would bring it.
    droppable: Option<LogId>,
    failed: Option<StorageError>,
}

/// A submission on its way to the disk.
struct Writing {
    token: u64,
    /// The last index that it wrote and nothing submitted later removed.
    last: u64,
    has_entries: bool,
    waiter: Waiter,
}

/// What the log says of the members.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The last configuration, which decides whether it is chosen or not (Ongaro 2014, section 4.1).
    pub(crate) last: Option<Configured>,
    /// The last one that is known to be chosen.
    pub(crate) chosen: Option<Configured>,
}

enum Waiter {
    Nobody,
    Append(IOFlushed<Types>),
    Vote(OneshotSenderOf<Types, ()>),
}

impl<L: LogStore> SharedLog<L> {
    /// The log as a process finds it. A new one is given its first entry, the first voters, unless there are none: then it
    /// is that of a replica which joins others, and has all from them.
    pub(crate) fn open(
        store: L,
        applied: u64,
        voters: &BTreeSet<u64>,
        page_bytes_max: usize,
        recent_bytes_max: usize,
    ) -> Result<SharedLog<L>, StorageError> {
        let state = match store.hard_state()? {
            Some(bytes) => records::decode_hard_state(bytes)?,
            None => HardState::default(),
        };
        let first = state.purged.map_or(0, |purged| purged.index + 1);
        let last = store.last()?;
        // What the log has of the first members counts more than what this replica is told: they may have changed since.
        let stored = if first == 0 { store.read(0, 0, usize::MAX)? } else { Vec::new() };
        let stored = stored.into_iter().find(|(index, _)| *index == 0);
        let stored = stored.map(|(index, bytes)| records::decode_entry(index, bytes)).transpose()?;
        let first_members = match stored.map(|entry| entry.payload) {
            Some(Payload::Members(members)) => Some(members),
            _ => (!voters.is_empty()).then(|| Members::of_voters(voters.iter().copied().map(NodeId))),
        };
        let mut log = Log {
            store,
            is_state_ahead: false,
            first: first_members.map(|members| Configured { id: FIRST, members }),
            last: state.purged,
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_bytes_max,
            page_bytes_max,
            token: 0,
            writing: VecDeque::new(),
            synced: 0,
            appended: Vec::new(),
            chosen: VecDeque::new(),
            droppable: state.purged,
            failed: None,
            state,
        };
        // What is applied needs no second look, but for the place of the last of it.
        let mut next = first.max(applied);
        while next <= last {
            let page = log.read(next, last, page_bytes_max)?;
            next += page.len() as u64;
            if page.is_empty() {
                // The check that follows says what that means.
                break;
            }
            page.into_iter().for_each(|entry| log.remember(their_entry(entry)));
        }
        log.check_restored(applied)?;
        if applied > 0 {
            let applied = log.id_at(applied)?;
            log.state.committed = log.state.committed.max(Some(applied));
        }
        if mutants::is_active(Mutant::ConfigurationForgotten) {
            let committed = log.committed_index();
            log.state.configurations.retain(|one| one.id.index <= committed);
        }
        match log.first.clone().filter(|_| log.last.is_none()) {
            Some(Configured { id, members }) => {
                let members = LogEntry { id, payload: Payload::Members(members) };
                log.write_entries(vec![their_entry(members)], Waiter::Nobody);
            }
            None => log.synced = last,
        }
        Ok(SharedLog(Arc::new(Mutex::new(log))))
    }

    /// Everything up to this token is on disk.
    pub(crate) fn persisted(&self, token: u64) {
        let mut log = self.lock();
        log.store.persisted(token);
        while let Some(writing) = log.writing.pop_front_if(|writing| writing.token <= token) {
            log.synced = log.synced.max(writing.last);
            match writing.waiter {
                Waiter::Nobody => {}
                Waiter::Append(flushed) => flushed.io_completed(Ok(())),
                // Whoever waited may be gone: openraft has stopped.
                Waiter::Vote(done) => drop(done.send(())),
            }
        }
    }

    /// Entries are committed: hands them to the engine once they are on disk.
    pub(crate) fn choose(&self, index: u64, payload: Option<Bytes>) {
        self.lock().chosen.push_back((index, payload));
    }

    /// What is committed and on disk.
    pub(crate) fn take_chosen(&self) -> Vec<(u64, Option<Bytes>)> {
        let mut log = self.lock();
        let synced = log.synced;
        std::iter::from_fn(|| log.chosen.pop_front_if(|(index, _)| *index <= synced)).collect()
    }

    /// Where a proposal stands, if it was appended.
    pub(crate) fn take_appended(&self, tag: u64) -> Option<u64> {
        let appended = std::mem::take(&mut self.lock().appended);
        assert!(
            appended.iter().all(|(own, _)| *own == tag),
            "openraft appends a proposal when it is made, or never: {appended:?} is not {tag}"
        );
        appended.first().map(|(_, index)| *index)
    }

    /// Submissions of entries that are not on disk.
    pub(crate) fn unsynced(&self) -> usize {
        self.lock().writing.iter().filter(|writing| writing.has_entries).count()
    }

    /// The token of the oldest submission that is not on disk, and whether it has entries.
    pub(crate) fn oldest_write(&self) -> Option<(u64, bool)> {
        self.lock().writing.front().map(|writing| (writing.token, writing.has_entries))
    }

    /// True while openraft waits for the disk, and so takes nothing else in.
    pub(crate) fn is_saving_vote(&self) -> bool {
        self.lock().writing.iter().any(|writing| matches!(writing.waiter, Waiter::Vote(_)))
    }

    /// What this replica voted for.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.lock().state.vote
    }

    /// How far it knows entries to be committed, and how far the log was dropped.
    pub(crate) fn committed_and_purged(&self) -> (Option<LogId>, Option<LogId>) {
        let log = self.lock();
        (log.state.committed, log.state.purged)
    }

    /// The configuration in force at an index.
    pub(crate) fn members_at(&self, index: u64) -> Option<Configured> {
        self.lock().members_at(index).cloned()
    }

    /// Brings what is known of the members up to date: whether the last configuration is another now, and whether the last
    /// chosen one is.
    pub(crate) fn follow_members(&self, known: &mut Known) -> (bool, bool) {
        let log = self.lock();
        let follow = |known: &mut Option<Configured>, found: Option<&Configured>| {
            let id = |one: &Configured| one.id;
            let is_other = found.map(id) != known.as_ref().map(id);
            if is_other {
                *known = found.cloned();
            }
            is_other
        };
        (follow(&mut known.last, log.members_at(u64::MAX)), follow(&mut known.chosen, log.chosen_members()))
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        self.lock().last
    }

    /// The place of the entry at an index, or of the end of what was dropped.
    pub(crate) fn id_at(&self, index: u64) -> Result<LogId, StorageError> {
        let mut log = self.lock();
        log.id_at(index).inspect_err(|error| drop(log.fail(error.clone())))
    }

    /// True if a snapshot brings something new, and nothing of a term that this replica has not voted in: it may come from a
    /// follower of a later leader, and a log must not be ahead of the vote.
    pub(crate) fn may_adopt(&self, mark: &Mark) -> bool {
        let log = self.lock();
        let is_new = log.state.committed.is_none_or(|committed| committed.index < mark.id.index);
        let has_members = mark.configured.is_some() || log.first.is_some();
        is_new && has_members && log.state.vote.is_some_and(|vote| mark.id.term <= vote.term)
    }

    /// True if the log of a replica that has lost its state goes on from a snapshot.
    pub(crate) fn may_restore(&self, mark: &Mark) -> bool {
        let log = self.lock();
        let has_members = mark.configured.is_some() || log.first.is_some();
        has_members && log.state.purged.is_none_or(|purged| mark.id.index >= purged.index)
    }

    /// Puts a snapshot in the place of the log up to its index: the write's token. Nothing must be written in between that
    /// and a new start. If more is known to be committed, the log stays as it is: it goes on from there. Else what follows is kept
    /// if the entry there is the snapshot's (Raft, section 7): then all of it may be what a leader has counted, and otherwise none of it.
    pub(crate) fn adopt_snapshot(&self, mark: Mark, incarnation: Incarnation) -> Result<u64, StorageError> {
        let Mark { id, configured } = mark;
        let mut log = self.lock();
        if log.state.committed.is_some_and(|committed| id.index <= committed.index) {
            log.submit(vec![LogRecord::Incarnation(incarnation)], 0, false, Waiter::Nobody);
            return Ok(log.token);
        }
        // Who has lost its state hears of no election. In that term another was elected without its vote, and none is left.
        let term = log.state.vote.map_or(0, |vote| vote.term);
        if id.term > term {
            log.state.vote = Some(Vote { term: id.term, node: NOBODY, committed: false });
        }
        let reaches = log.last.is_some_and(|last| last.index >= id.index);
        let agrees =
            reaches && (log.id_at(id.index)? == id || mutants::is_active(Mutant::SuffixKeptBehindSnapshot));
        let configured = configured.or_else(|| log.first.clone());
        log.state.configurations.retain(|later| agrees && later.id.index > id.index);
        log.state.configurations.splice(0..0, configured);
        log.state.purged = Some(id);
        log.state.committed = log.state.committed.max(Some(id));
        let mut records = vec![
            LogRecord::HardState(records::encode_hard_state(&log.state)),
            LogRecord::DropBelow(id.index + 1),
        ];
        records.extend((!agrees).then_some(LogRecord::DropFrom(id.index + 1)));
        records.push(LogRecord::Incarnation(incarnation));
        log.submit(records, 0, false, Waiter::Nobody);
        Ok(log.token)
    }

    pub(crate) fn bytes(&self) -> Result<u64, StorageError> {
        self.lock().store.bytes()
    }

    /// How far the log may be dropped.
    pub(crate) fn droppable(&self) -> Option<LogId> {
        self.lock().droppable
    }

    pub(crate) fn set_droppable(&self, id: LogId) {
        self.lock().droppable = Some(id);
    }

    pub(crate) fn failed(&self) -> Option<StorageError> {
        self.lock().failed.clone()
    }

    #[cfg(test)]
    pub(crate) fn with_store<T>(&self, look: impl FnOnce(&mut L) -> T) -> T {
        look(&mut self.lock().store)
    }

    fn lock(&self) -> MutexGuard<'_, Log<L>> {
        // A panic while it is held ends the replica.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<L: LogStore> Log<L> {
    /// A log that can't be what this node wrote must not vote.
    fn check_restored(&self, applied: u64) -> Result<(), StorageError> {
        let corrupt = |cause: String| Err(StorageError::Corrupt { what: "the log", cause });
        let end = self.last.map_or(0, |last| last.index);
        // One that joins votes before it has an entry.
        let vote = self.state.vote.filter(|_| self.first.is_none());
        let has_lost_all = self.last.is_none() && self.state != HardState { vote, ..HardState::default() };
        if end < applied || has_lost_all {
            return corrupt(format!("the state is at index {applied}, the log ends at {end}"));
        }
        if let Some(purged) = self.state.purged.filter(|purged| purged.index > applied) {
            return corrupt(format!("it starts after index {}, the state is at {applied}", purged.index));
        }
        if let Some(committed) = self.state.committed.filter(|committed| committed.index > end) {
            return corrupt(format!("index {} is marked committed and missing", committed.index));
        }
        let behind = self.state.configurations.last().filter(|last| last.id.index > end);
        if let Some(Configured { id, .. }) = behind {
            return corrupt(format!("index {} holds members and is missing", id.index));
        }
        // Terms never fall along a log: what follows is of a leader that the snapshot's had replaced.
        let replaced =
            self.last.filter(|last| self.state.purged.is_some_and(|purged| last.term < purged.term));
        if let Some(last) = replaced {
            return corrupt(format!(
                "index {} is of term {}, below where the log begins",
                last.index, last.term
            ));
        }
        let term = self.state.vote.map_or(0, |vote| vote.term);
        match self.last.filter(|last| last.term > term) {
            Some(last) => corrupt(format!("index {} is above the vote in term {term}", last.index)),
            None => Ok(()),
        }
    }

    fn members_at(&self, index: u64) -> Option<&Configured> {
        let is_old = |one: &&Configured| one.id.index <= index;
        self.state.configurations.iter().rfind(is_old).or(self.first.as_ref())
    }

    /// The first members need no quorum to be chosen.
    fn chosen_members(&self) -> Option<&Configured> {
        self.members_at(self.committed_index())
    }

    fn committed_index(&self) -> u64 {
        self.state.committed.map_or(0, |committed| committed.index)
    }

    fn id_at(&self, index: u64) -> Result<LogId, StorageError> {
        if let Some(purged) = self.state.purged.filter(|purged| purged.index == index) {
            return Ok(purged);
        }
        let corrupt =
            || StorageError::Corrupt { what: "the log", cause: format!("index {index} is missing") };
        self.read(index, index, usize::MAX)?.first().map(|entry| entry.id).ok_or_else(corrupt)
    }

    /// Entries from an index on, without a hole; one at least if there is any, then no more than so many bytes.
    fn read(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<LogEntry>, StorageError> {
        let stored = self.store.read(from, to, bytes_max)?;
        let decode = |(index, bytes)| records::decode_entry(index, bytes);
        let entries: Vec<LogEntry> = stored.into_iter().map(decode).collect::<Result<_, _>>()?;
        match (from..).zip(&entries).find(|(index, entry)| entry.id.index != *index) {
            Some((index, _)) => {
                Err(StorageError::Corrupt { what: "the log", cause: format!("index {index} is missing") })
            }
            None => Ok(entries),
        }
    }

    /// The entries from `start` to before `end` that there are; one at least, then no more than so many bytes.
    fn page(&mut self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, io::Error> {
        let first_recent = self.recent.front().map_or(u64::MAX, |entry| entry.log_id.index);
        if start < first_recent {
            let to = end.min(first_recent).saturating_sub(1);
            let entries = self.read(start, to, bytes_max);
            let theirs = |entries: Vec<LogEntry>| entries.into_iter().map(their_entry).collect();
            return entries.map(theirs).map_err(|error| self.fail(error));
        }
        let mut bytes_left = bytes_max;
        let skipped = (start - first_recent) as usize;
        let mut page = Vec::new();
        for entry in self.recent.iter().skip(skipped).take_while(|entry| entry.log_id.index < end) {
            let size = entry_bytes(entry);
            if size > bytes_left && !page.is_empty() {
                break;
            }
            bytes_left = bytes_left.saturating_sub(size);
            page.push(entry.clone());
        }
        Ok(page)
    }

    fn remember(&mut self, entry: Entry) {
        self.last = Some(ours(&entry.log_id));
        self.recent_bytes += entry_bytes(&entry);
        self.recent.push_back(entry);
        while self.recent_bytes > self.recent_bytes_max
            && self.recent.len() > 1
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_bytes -= entry_bytes(&oldest);
        }
    }

    /// Forgets the copies of entries from an index on.
    fn forget_from(&mut self, index: u64) {
        while let Some(entry) = self.recent.pop_back_if(|entry| entry.log_id.index >= index) {
            self.recent_bytes -= entry_bytes(&entry);
        }
    }

    fn write_entries(&mut self, entries: Vec<Entry>, waiter: Waiter) {
        let mut records = Vec::with_capacity(entries.len() + 1);
        for entry in entries {
            let index = entry.log_id.index;
            if let EntryPayload::Normal(proposal) = &entry.payload
                && proposal.tag > 0
            {
                self.appended.push((proposal.tag, index));
            }
            let ours = our_entry(&entry);
            records.push(LogRecord::Entry { index, bytes: records::encode_entry(&ours) });
            self.remember(entry);
            self.note_members(ours);
        }
        if std::mem::take(&mut self.is_state_ahead) {
            records.push(LogRecord::HardState(records::encode_hard_state(&self.state)));
        }
        let last = self.last.map_or(0, |last| last.index);
        self.submit(records, last, true, waiter);
    }

    /// Notes a configuration, to be written with its entry.
    fn note_members(&mut self, entry: LogEntry) {
        let Payload::Members(members) = entry.payload else { return };
        let configured = Configured { id: entry.id, members };
        if self.first.as_ref() != Some(&configured) {
            self.state.configurations.push(configured);
            self.is_state_ahead = true;
        }
    }

    fn write_state(&mut self, before: Option<LogRecord>, waiter: Waiter) {
        self.is_state_ahead = false;
        let state = LogRecord::HardState(records::encode_hard_state(&self.state));
        self.submit(before.into_iter().chain([state]).collect(), 0, false, waiter);
    }

    fn submit(&mut self, records: Vec<LogRecord>, last: u64, has_entries: bool, waiter: Waiter) {
        self.token += 1;
        self.store.submit(records, self.token);
        self.writing.push_back(Writing { token: self.token, last, has_entries, waiter });
    }

    fn fail(&mut self, error: StorageError) -> io::Error {
        let told = io::Error::other(error.to_string());
        self.failed.get_or_insert(error);
        told
    }
}

/// What an entry counts for in memory.
fn entry_bytes(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.payload.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    64 + payload
}

impl<L: LogStore + Send + 'static> RaftLogReader<Types> for SharedLog<L> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let mut log = self.lock();
        let mut entries = log.page(start, end, usize::MAX)?;
        // The first part was on disk, the rest is in memory.
        if let Some(last) = entries.last().map(|entry| entry.log_id.index)
            && last + 1 < end
        {
            entries.extend(log.page(last + 1, end, usize::MAX)?);
        }
        if mutants::is_active(Mutant::ConfigurationForgotten) && log.token == 0 {
            // Nothing has been written since the start: this is openraft's look for the members.
            let committed = log.committed_index();
            let unchosen = entries.iter_mut().filter(|entry| entry.log_id.index > committed);
            let members = unchosen.filter(|entry| matches!(entry.payload, EntryPayload::Membership(_)));
            members.for_each(|entry| entry.payload = EntryPayload::Blank);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut log = self.lock();
        let bytes_max = log.page_bytes_max;
        log.page(start, end, bytes_max)
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.lock().state.vote.map(their_vote))
    }
}

impl<L: LogStore + Send + 'static> RaftLogStorage<Types> for SharedLog<L> {
    type LogReader = SharedLog<L>;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let log = self.lock();
        let last_purged_log_id = log.state.purged.map(theirs);
        Ok(LogState { last_purged_log_id, last_log_id: log.last.map(theirs) })
    }

    async fn get_log_reader(&mut self) -> SharedLog<L> {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> Result<(), io::Error> {
        let (done, saved) = Types::oneshot();
        {
            let mut log = self.lock();
            log.state.vote = Some(our_vote(vote));
            log.write_state(None, Waiter::Vote(done));
        }
        saved.await.map_err(|_| io::Error::other("the log failed"))
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let mut log = self.lock();
        let known = log.chosen_members().map(|chosen| chosen.id);
        log.state.committed = committed.as_ref().map(ours);
        if log.chosen_members().map(|chosen| chosen.id) == known {
            log.is_state_ahead = true;
        } else {
            // Nothing may be written for long, and a replica must not go back to who took part before.
            log.write_state(None, Waiter::Nobody);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<Types>>, io::Error> {
        Ok(self.lock().state.committed.map(theirs))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries = entries.into_iter().collect();
        self.lock().write_entries(entries, Waiter::Append(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> Result<(), io::Error> {
        let mut log = self.lock();
        let last = last.as_ref().map(ours);
        let from = last.map_or(0, |last| last.index + 1);
        let end = from.saturating_sub(1);
        log.forget_from(from);
        log.last = last;
        log.synced = log.synced.min(end);
        log.writing.iter_mut().for_each(|writing| writing.last = writing.last.min(end));
        let known = log.state.configurations.len();
        log.state.configurations.retain(|one| one.id.index < from);
        if log.state.configurations.len() < known {
            // Together, so that no configuration is listed that the log does not hold.
            log.write_state(Some(LogRecord::DropFrom(from)), Waiter::Nobody);
        } else {
            log.submit(vec![LogRecord::DropFrom(from)], 0, false, Waiter::Nobody);
        }
        Ok(())
    }

    async fn purge(&mut self, id: LogIdOf<Types>) -> Result<(), io::Error> {
        let mut log = self.lock();
        let id = ours(&id);
        log.state.purged = log.state.purged.max(Some(id));
        let in_force = log.members_at(id.index).cloned();
        log.state.configurations.retain(|one| one.id.index > id.index);
        log.state.configurations.splice(0..0, in_force);
        while log.recent.front().is_some_and(|entry| entry.log_id.index <= id.index)
            && let Some(entry) = log.recent.pop_front()
        {
            log.recent_bytes -= entry_bytes(&entry);
        }
        // Together, so that the log never starts where its mark does not say.
        log.write_state(Some(LogRecord::DropBelow(id.index + 1)), Waiter::Nobody);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use keevee_replica::storage::MemoryLog;

    use super::*;

    const NOBODY: BTreeSet<u64> = BTreeSet::new();

    fn id(term: u64, index: u64) -> LogId {
        LogId { term, index }
    }

    fn mark(id: LogId) -> Mark {
        Mark { id, configured: None }
    }

    fn voters(nodes: &[u64]) -> Members {
        Members::of_voters(nodes.iter().copied().map(NodeId))
    }

    fn open(store: MemoryLog, applied: u64) -> SharedLog<MemoryLog> {
        SharedLog::open(store, applied, &BTreeSet::from([1]), 1_000, 1_000).expect("a good log")
    }

    /// The log as a crash leaves it, once all that was submitted so far is on disk.
    fn crashed(log: &SharedLog<MemoryLog>) -> MemoryLog {
        log.with_store(|store| {
            store.sync();
            store.crashed()
        })
    }

    fn append(log: &SharedLog<MemoryLog>, id: LogId, payload: Payload) {
        log.lock().write_entries(vec![their_entry(LogEntry { id, payload })], Waiter::Nobody);
    }

    fn truncate_after(log: &SharedLog<MemoryLog>, last: LogId) {
        let done = log.clone().truncate_after(Some(theirs(last))).now_or_never();
        done.expect("it waits for nothing").expect("memory does not fail");
    }

    fn purge(log: &SharedLog<MemoryLog>, id: LogId) {
        let done = log.clone().purge(theirs(id)).now_or_never();
        done.expect("it waits for nothing").expect("memory does not fail");
    }

    /// A log of entries 1 to 6, of terms 1 and 2, of a replica that has voted in term 2 and knows entry 1 to be chosen.
    fn log() -> SharedLog<MemoryLog> {
        let log = open(MemoryLog::default(), 0);
        {
            let mut log = log.lock();
            log.state.vote = Some(Vote { term: 2, node: 1, committed: true });
            log.state.committed = Some(id(1, 1));
            log.is_state_ahead = true;
        }
        (1..=6).for_each(|index| append(&log, id(if index < 4 { 1 } else { 2 }, index), Payload::Blank));
        open(crashed(&log), 1)
    }

    /// The same with others: from entry 7 on node 2 is one, from 9 on it votes.
    fn changed_log() -> SharedLog<MemoryLog> {
        let log = log();
        append(&log, id(2, 7), Payload::Members(with_learner()));
        append(&log, id(2, 8), Payload::Blank);
        append(&log, id(2, 9), Payload::Members(voters(&[1, 2])));
        log
    }

    fn with_learner() -> Members {
        Members { learners: [NodeId(2)].into(), ..voters(&[1]) }
    }

    fn members_at(log: &SharedLog<MemoryLog>, index: u64) -> Option<Members> {
        log.members_at(index).map(|one| one.members)
    }

    /// What a start finds once a snapshot was taken over: the last entry's place, and the indexes of all.
    fn adopted(snapshot: LogId) -> (Option<LogId>, Vec<u64>) {
        let log = log();
        assert!(log.may_adopt(&mark(snapshot)));
        log.adopt_snapshot(mark(snapshot), Incarnation(1)).expect("a good log");
        let store = crashed(&log);
        assert_eq!(store.incarnation(), Ok(Incarnation(1)));
        let entries = store.read(0, 100, usize::MAX).expect("memory does not fail");
        (open(store, snapshot.index).last(), entries.into_iter().map(|(index, _)| index).collect())
    }

    #[test]
    fn what_follows_a_snapshot_stays_if_the_entry_there_is_the_same() {
        assert_eq!(adopted(id(2, 4)), (Some(id(2, 6)), vec![5, 6]));
        assert_eq!(adopted(id(2, 6)), (Some(id(2, 6)), vec![]));
    }

    #[test]
    fn nothing_follows_a_snapshot_if_the_entry_there_is_another() {
        // hashicorp/raft#697 kept it.
        assert_eq!(adopted(id(2, 3)), (Some(id(2, 3)), vec![]));
        assert_eq!(adopted(id(2, 9)), (Some(id(2, 9)), vec![]));
    }

    #[test]
    fn a_snapshot_of_a_later_term_than_the_vote_is_not_taken_over() {
        let may_adopt = |id| log().may_adopt(&mark(id));
        assert!(!may_adopt(id(3, 9)), "a start would refuse a log that is ahead of its vote");
        assert!(!may_adopt(id(1, 1)), "it brings nothing new");
    }

    #[test]
    fn a_start_knows_the_members_at_any_index_wherever_they_stand() {
        // camunda#57389 forgot those that were not committed.
        for applied in [1, 7, 8, 9] {
            let log = open(crashed(&changed_log()), applied);
            assert_eq!(members_at(&log, 6), Some(voters(&[1])), "the first");
            assert_eq!(members_at(&log, 8), Some(with_learner()));
            assert_eq!(members_at(&log, u64::MAX), Some(voters(&[1, 2])));
            let mut known = Known::default();
            assert_eq!(log.follow_members(&mut known), (true, true));
            let chosen = members_at(&log, applied);
            assert_eq!(known.chosen.map(|one| one.members), chosen, "what is applied is chosen");
            assert_eq!(known.last.map(|one| one.id), Some(id(2, 9)));
        }
    }

    #[test]
    fn members_outlast_the_entries_that_named_them() {
        let log = changed_log();
        purge(&log, id(2, 8));
        let log = open(crashed(&log), 8);
        assert_eq!(members_at(&log, 8), Some(with_learner()));
        assert_eq!(members_at(&log, 9), Some(voters(&[1, 2])));
        purge(&log, id(2, 9));
        let log = open(crashed(&log), 9);
        assert_eq!(members_at(&log, 9), Some(voters(&[1, 2])));
        assert_eq!(log.lock().state.configurations.len(), 1, "those before count no more");
    }

    #[test]
    fn members_go_with_the_entry_that_named_them() {
        let log = changed_log();
        let whole = crashed(&log);
        truncate_after(&log, id(2, 8));
        assert_eq!(members_at(&log, u64::MAX), Some(with_learner()));
        append(&log, id(2, 9), Payload::Blank);
        // A crash before that is on disk.
        assert_eq!(members_at(&open(whole, 1), u64::MAX), Some(voters(&[1, 2])));
        let log = open(crashed(&log), 1);
        assert_eq!(members_at(&log, u64::MAX), Some(with_learner()));
        truncate_after(&log, id(2, 6));
        assert_eq!(members_at(&open(crashed(&log), 1), u64::MAX), Some(voters(&[1])));
    }

    #[test]
    fn a_snapshot_brings_its_members() {
        let joint = Members { next: Some([NodeId(3)].into()), ..voters(&[1, 2]) };
        let brought = |id| Configured { id, members: joint.clone() };
        let adopt = |id, configured| {
            let log = changed_log();
            log.adopt_snapshot(Mark { id, configured }, Incarnation(1)).expect("a good log");
            open(crashed(&log), id.index)
        };
        let later = adopt(id(2, 20), Some(brought(id(2, 12))));
        assert_eq!(later.members_at(u64::MAX), Some(brought(id(2, 12))));
        let same = adopt(id(2, 8), Some(Configured { id: id(2, 7), members: with_learner() }));
        assert_eq!(
            (members_at(&same, 8), members_at(&same, 9)),
            (Some(with_learner()), Some(voters(&[1, 2])))
        );
        let other = adopt(id(1, 8), Some(brought(id(1, 8))));
        assert_eq!(members_at(&other, u64::MAX), Some(joint), "what followed was not chosen");
        let of_old = adopt(id(2, 20), None);
        assert_eq!(members_at(&of_old, u64::MAX), Some(voters(&[1])));
    }

    #[test]
    fn a_replica_that_joins_starts_with_nothing_and_keeps_what_it_is_given() {
        let open = |store, applied| SharedLog::open(store, applied, &NOBODY, 1_000, 1_000);
        let log = open(MemoryLog::default(), 0).expect("a new log");
        assert_eq!((log.last(), log.members_at(u64::MAX)), (None, None));
        assert!(!log.may_adopt(&mark(id(2, 9))), "it has no vote");
        {
            let mut log = log.lock();
            log.state.vote = Some(Vote { term: 2, node: 1, committed: true });
            log.write_state(None, Waiter::Nobody);
        }
        assert!(!log.may_adopt(&mark(id(2, 9))), "nobody tells it of members");
        let log = open(crashed(&log), 0).expect("it has voted, and has no entry");
        append(&log, FIRST, Payload::Members(voters(&[1])));
        let log = open(crashed(&log), 0).expect("a good log");
        assert_eq!(members_at(&log, 0), Some(voters(&[1])));

        let mut known = Known::default();
        assert_eq!(log.follow_members(&mut known), (true, true), "the first members need no vote");
        let members = Some(Configured { id: id(2, 7), members: with_learner() });
        log.adopt_snapshot(Mark { id: id(2, 9), configured: members }, Incarnation(1)).expect("a good log");
        let log = open(crashed(&log), 9).expect("a good log");
        assert_eq!(members_at(&log, 9), Some(with_learner()));
    }

    #[test]
    fn a_log_that_has_lost_the_entry_of_its_members_is_refused() {
        let mut store = crashed(&changed_log());
        store.submit(vec![LogRecord::DropFrom(9)], 100);
        assert!(SharedLog::open(store, 1, &BTreeSet::from([1]), 1_000, 1_000).is_err());
    }
}
