//! Mutants: historical bugs of stores like this one, put back on purpose, one at a time.
//!
//! A simulator that finds nothing proves little until it is shown to find what is there. So each bug of this
//! list has its place in the code, where [`is_active`] asks for it. Without the feature `enabled` the answer is
//! a constant `false`, and nothing of the mutants is compiled in. With it, a thread runs the mutant that it
//! was given by `activate`.
//!
//! It leaves out the bugs themselves: each lives beside the correct code that it stands in for.

/// A bug, put back on purpose. Each is told by what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A read joins a round whose index was fixed before the read came, and misses the writes acknowledged
    /// in between.
    StaleReadRound,
    /// A new leader serves reads at the chosen index it had as a follower, and misses what the leader before
    /// it acknowledged last.
    BarrierSkipped,
    /// A new leader takes its no-op for applied once its own acceptor has accepted it, and serves reads before it
    /// knows of what the leader before it acknowledged last.
    BarrierNotApplied,
    /// An acceptance is told before it is on disk, so that a crash takes back what others rely on.
    AcknowledgedBeforeSync,
    /// A promise is told before it is on disk, so that after a crash the node accepts what it had promised not to.
    PromisedBeforeSync,
    /// What is read back after a crash is taken for whole although the crash cut it in half, so that a replica
    /// goes on from a state that never was.
    TornBatchKept,
    /// A crash between two writes leaves the applied index of an entry without the values of that entry, which
    /// is never applied again.
    AppliedIndexApart,
    /// A flush that begins while writes go on puts the applied index of the last one on disk without its values.
    FlushLosesValues,
    /// Among the acknowledgements of a quorum the highest counts instead of the lowest, so that an entry that one
    /// node accepted is taken for chosen.
    ChosenWithoutQuorum,
    /// A candidate adopts what was reported last instead of what was accepted at the highest ballot, and
    /// replaces a value that is chosen.
    LatestReportAdopted,
    /// An acceptor cuts its log after the last entry of a message that comes late or twice, and loses entries
    /// that it has acknowledged.
    DuplicateTruncates,
    /// A node that was the last to stand for leader, as far as it knows, refuses the polls of others, so that two
    /// of that kind never elect a leader while a third node is down.
    PollDeadlock,
    /// A node that hears no leader raises its ballot without a poll, so that one that is cut off in part keeps
    /// deposing a leader that works.
    PrepareWithoutPoll,
    /// A node grants every poll, even while it hears a connected leader, so that whoever misses the leader
    /// deposes it.
    PollAlwaysGranted,
    /// A retry is executed although its request id is remembered, so that one request takes effect twice.
    RetryExecutedTwice,
    /// A node that a command was forwarded to hands it on to the leader that it knows instead of refusing, so that
    /// commands go round in circles while leadership moves.
    ForwardedAgain,
    /// A quiesced follower does not notice that its leader's node has fallen silent, so that nobody looks for another
    /// leader.
    SilenceNotNoticed,
    /// A process draws its election timeout once: nodes that drew about the same stand in each other's way again
    /// and again, and one that drew too short a time for its disk never makes it.
    TimeoutDrawnOnce,
    /// A leader whose disk no longer writes goes on sending heartbeats, so that nothing is chosen and nobody
    /// else takes over.
    StalledLeaderStays,
    /// A retry in the same entry as its first attempt is executed too: the memory of request ids learns of an
    /// entry's requests when the entry is done.
    MemoryMissesEntry,
    /// A proposal that is not known to be chosen in time is refused as if nothing had happened.
    UnknownToldRefused,
    /// An entry is stamped with the clock of the node that applies it, so that replicas diverge in silence.
    OwnClockApplied,
    /// An acknowledgement of an earlier ballot counts at a later one, for entries that the follower does not
    /// hold.
    AcknowledgementAcrossBallots,
    /// A follower takes for chosen what it accepted at an older ballot, where the value that is chosen may be
    /// another one.
    LearnedAtOlderBallot,
    /// A node that restarts takes everything in its log for chosen, and applies what may never be.
    RestartTakesAllForChosen,
    /// A new leader proposes its own in the places of values that were adopted and that may be chosen.
    AdoptedNotReproposed,
    /// A follower takes an entry that it holds from an earlier ballot for the one that is sent at the same index.
    ConflictNotReplaced,
    /// Writes of one entry share a version, so that a compare-and-set passes over a value that it never saw.
    VersionsEqualInEntry,
    /// A read goes by the clock of the node that serves it, so that a key that is gone on one node is there again on
    /// another.
    ExpiryByOwnClock,
    /// Each replica removes what is due by its own clock, so that replicas diverge.
    RemovalNotInLog,
    /// A removal takes keys, too, that are due a second later.
    RemovedTooEarly,
    /// A chunk of a snapshot that is lost on the way begins the whole snapshot anew, so that over a bad link it never
    /// ends.
    SnapshotFromTheStart,
    /// What an acceptor holds behind a snapshot's index is dropped with what is before it, though it was accepted and may
    /// be chosen.
    AcceptedBehindSnapshotDropped,
    /// A replica goes on while a snapshot is put in force: what it is told meanwhile is of the log that the snapshot replaces.
    InstallRacesApply,
    /// A log that disagrees with a snapshot is kept behind it, so that what was never chosen counts as what follows the snapshot.
    SuffixKeptBehindSnapshot,
    /// A leader whose log is empty has nothing to send, and does not tell whoever lacks what it dropped that only a snapshot helps.
    EmptyLogSilent,
    /// A change goes to the new members in one step, and a leader counts by them as soon as they are in its log: majorities
    /// of the old and of the new ones need not meet.
    JointSkipped,
    /// A configuration that was not known to be chosen before a crash is an entry like others after it: the replica goes by
    /// the one before.
    ConfigurationForgotten,
    /// A damaged record in the middle of the log is taken for a torn end, so that it and all behind it are dropped in silence.
    DamageCutOff,
    /// What a disk changed by itself is taken for what was written, and told to others.
    ChecksumNotChecked,
    /// A record is taken for the one that belongs where it lies, and a place without one is passed over, so that a write that landed
    /// elsewhere takes away two.
    MisdirectedTaken,
    /// The folder is not synced when the log makes a file, so that a crash takes the file's name, and with it what was acknowledged.
    DirectoryNotSynced,
    /// A sync that fails is tried again, and succeeds without having anything to write: what the first one lost is acknowledged.
    FailedSyncRetried,
    /// A write that finds no room is passed over, and the node goes on once there is some: the log has a hole.
    FullDiskAcknowledged,
    /// A log that can't be read at a start is taken for one that is not there yet, so that the node begins anew.
    ReadErrorTakenForEmpty,
    /// A node that finds its folder damaged begins anew under its old identity, and votes without what it promised and accepted.
    DamagedFolderFormatted,
    /// What is chosen is applied before the own log has it on disk, so that a crash leaves a state ahead of its log.
    AppliedBeforeSync,
    /// A leader sends what it proposes itself, and leaves a follower at an older ballot with what it lacks from before.
    LaggardLeftBehind,
    /// A leader that wakes from a pause takes the refusals of those that have another one for answers, and serves reads.
    RefusalCounted,
}

/// True if the code is to go wrong in this way on this thread.
#[cfg(not(feature = "enabled"))]
#[inline(always)]
pub const fn is_active(_mutant: Mutant) -> bool {
    false
}

#[cfg(feature = "enabled")]
pub use active::{activate, is_active};

#[cfg(feature = "enabled")]
mod active {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// True if the code is to go wrong in this way on this thread.
    #[inline]
    pub fn is_active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// Chooses the mutant of this thread in place of the one before; `None` is correct code, and the start.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }
}

/// What is said of a mutant.
struct About {
    name: &'static str,
    bug: &'static str,
    summary: &'static str,
    seen_in: &'static str,
}

impl Mutant {
    /// Every mutant, in the order of the enum.
    pub const ALL: [Mutant; 49] = [
        Mutant::StaleReadRound,
        Mutant::BarrierSkipped,
        Mutant::BarrierNotApplied,
        Mutant::AcknowledgedBeforeSync,
        Mutant::PromisedBeforeSync,
        Mutant::TornBatchKept,
        Mutant::AppliedIndexApart,
        Mutant::FlushLosesValues,
        Mutant::ChosenWithoutQuorum,
        Mutant::LatestReportAdopted,
        Mutant::DuplicateTruncates,
        Mutant::PollDeadlock,
        Mutant::PrepareWithoutPoll,
        Mutant::PollAlwaysGranted,
        Mutant::RetryExecutedTwice,
        Mutant::ForwardedAgain,
        Mutant::SilenceNotNoticed,
        Mutant::TimeoutDrawnOnce,
        Mutant::StalledLeaderStays,
        Mutant::MemoryMissesEntry,
        Mutant::UnknownToldRefused,
        Mutant::OwnClockApplied,
        Mutant::AcknowledgementAcrossBallots,
        Mutant::LearnedAtOlderBallot,
        Mutant::RestartTakesAllForChosen,
        Mutant::AdoptedNotReproposed,
        Mutant::ConflictNotReplaced,
        Mutant::VersionsEqualInEntry,
        Mutant::ExpiryByOwnClock,
        Mutant::RemovalNotInLog,
        Mutant::RemovedTooEarly,
        Mutant::SnapshotFromTheStart,
        Mutant::AcceptedBehindSnapshotDropped,
        Mutant::InstallRacesApply,
        Mutant::SuffixKeptBehindSnapshot,
        Mutant::EmptyLogSilent,
        Mutant::JointSkipped,
        Mutant::ConfigurationForgotten,
        Mutant::DamageCutOff,
        Mutant::ChecksumNotChecked,
        Mutant::MisdirectedTaken,
        Mutant::DirectoryNotSynced,
        Mutant::FailedSyncRetried,
        Mutant::FullDiskAcknowledged,
        Mutant::ReadErrorTakenForEmpty,
        Mutant::DamagedFolderFormatted,
        Mutant::AppliedBeforeSync,
        Mutant::LaggardLeftBehind,
        Mutant::RefusalCounted,
    ];

    /// The mutant's name on a command line, like `stale-read-round`.
    pub fn name(self) -> &'static str {
        self.about().name
    }

    /// The mutant of this name, if there is one.
    pub fn from_name(name: &str) -> Option<Mutant> {
        Mutant::ALL.into_iter().find(|mutant| mutant.name() == name)
    }

    /// Its place in the catalogue of bugs: a number for one that was reported, `P` and a number for one that
    /// the protocol invites, `K` and a number for one that the store around it invites.
    pub fn bug(self) -> &'static str {
        self.about().bug
    }

    /// What the code does wrong, in one line.
    pub fn summary(self) -> &'static str {
        self.about().summary
    }

    /// Where it was seen: issues or commits of other stores, or `no other store yet` if no report of it is known.
    pub fn seen_in(self) -> &'static str {
        self.about().seen_in
    }

    fn about(self) -> About {
        let about = |name, bug, seen_in, summary| About { name, bug, summary, seen_in };
        match self {
            Mutant::StaleReadRound => {
                about("stale-read-round", "1", "etcd#20418", "reads join the read round that is open")
            }
            Mutant::BarrierSkipped => about(
                "barrier-skipped",
                "3",
                "tikv#9208, etcd#3879",
                "a new leader starts read rounds without waiting for its no-op",
            ),
            Mutant::BarrierNotApplied => about(
                "barrier-not-applied",
                "P6",
                "no other store yet",
                "a new leader starts read rounds once its no-op is on its own disk",
            ),
            Mutant::AcknowledgedBeforeSync => about(
                "acknowledged-before-sync",
                "6",
                "etcd#14370",
                "acceptances are sent before the fsync that they wait for",
            ),
            Mutant::PromisedBeforeSync => about(
                "promised-before-sync",
                "P8",
                "no other store yet",
                "promises are sent before the fsync that they wait for",
            ),
            Mutant::TornBatchKept => about(
                "torn-batch-kept",
                "K1",
                "logs without checksums",
                "a write that a crash cut in half is read back as if it were whole",
            ),
            Mutant::AppliedIndexApart => about(
                "applied-index-apart",
                "10",
                "etcd#13766",
                "the applied index is written before the values of its entry, not with them",
            ),
            Mutant::FlushLosesValues => about(
                "flush-loses-values",
                "11",
                "tikv#12618",
                "a flush under writes saves the last applied index without the values of its entry",
            ),
            Mutant::ChosenWithoutQuorum => about(
                "chosen-without-quorum",
                "16",
                "openraft#1802",
                "the highest acknowledgement of a quorum counts as chosen, not the lowest",
            ),
            Mutant::LatestReportAdopted => about(
                "latest-report-adopted",
                "17",
                "omnipaxos 974b7ff",
                "a candidate keeps the value reported last, not the one of the highest ballot",
            ),
            Mutant::DuplicateTruncates => about(
                "duplicate-truncates",
                "18",
                "openraft 9540c904",
                "an accept ends the log at its last entry, even if it comes late or twice",
            ),
            Mutant::PollDeadlock => about(
                "poll-deadlock",
                "21",
                "etcd#8243, etcd#8501",
                "a node that holds a promise to itself refuses the polls of others",
            ),
            Mutant::PrepareWithoutPoll => about(
                "prepare-without-poll",
                "22",
                "Cloudflare 2020",
                "a follower whose time is up starts phase 1 without a poll",
            ),
            Mutant::PollAlwaysGranted => about(
                "poll-always-granted",
                "P5",
                "no other store yet",
                "a poll is granted in spite of a leader that is connected",
            ),
            Mutant::RetryExecutedTwice => about(
                "retry-executed-twice",
                "23",
                "Jepsen's report on jetcd",
                "the memory of request ids is not asked before a command is executed",
            ),
            Mutant::ForwardedAgain => about(
                "forwarded-again",
                "24",
                "redisraft#13",
                "a follower forwards what was forwarded to it instead of refusing",
            ),
            Mutant::SilenceNotNoticed => about(
                "silence-not-noticed",
                "Q",
                "no other store yet",
                "a node that is silent wakes none of the shards that it leads",
            ),
            Mutant::TimeoutDrawnOnce => about(
                "timeout-drawn-once",
                "26",
                "fluree/db#1845, openraft#1838",
                "election timeouts are not drawn anew: every wait of a process is the same",
            ),
            Mutant::StalledLeaderStays => about(
                "stalled-leader-stays",
                "28",
                "etcd#13527",
                "a node whose disk is stalled leads on, and stands for leader",
            ),
            Mutant::MemoryMissesEntry => about(
                "memory-misses-entry",
                "K2",
                "no other store yet",
                "the memory of request ids is not asked about the entry at hand",
            ),
            Mutant::UnknownToldRefused => about(
                "unknown-told-refused",
                "K3",
                "Jepsen's report on etcd 3.4.3",
                "a proposal not chosen in time is answered `unavailable`, not `outcome unknown`",
            ),
            Mutant::OwnClockApplied => about(
                "own-clock-applied",
                "29",
                "etcd#13766, etcd#14139",
                "an entry is applied with the stamp of this node's own clock, if that is later",
            ),
            Mutant::AcknowledgementAcrossBallots => about(
                "acknowledgement-across-ballots",
                "P1",
                "no other store yet",
                "a leader counts acknowledgements without comparing their ballots",
            ),
            Mutant::LearnedAtOlderBallot => about(
                "learned-at-older-ballot",
                "P2",
                "no other store yet",
                "a follower marks chosen what it accepted at any ballot",
            ),
            Mutant::RestartTakesAllForChosen => about(
                "restart-takes-all-for-chosen",
                "P3",
                "no other store yet",
                "a replica that starts takes its whole log for chosen",
            ),
            Mutant::AdoptedNotReproposed => about(
                "adopted-not-reproposed",
                "P4",
                "no other store yet",
                "what was adopted above the chosen index is forgotten, and its places are used anew",
            ),
            Mutant::ConflictNotReplaced => about(
                "conflict-not-replaced",
                "P9",
                "no other store yet",
                "an accept does not replace what is held at an index from an earlier ballot",
            ),
            Mutant::VersionsEqualInEntry => about(
                "versions-equal-in-entry",
                "P7",
                "no other store yet",
                "all writes of one entry get the same version",
            ),
            Mutant::ExpiryByOwnClock => about(
                "expiry-by-own-clock",
                "E1",
                "no other store yet",
                "a read shows what is gone by this node's clock, not by shard time",
            ),
            Mutant::RemovalNotInLog => about(
                "removal-not-in-log",
                "E2",
                "no other store yet",
                "every replica removes what is due by its own clock, without an entry",
            ),
            Mutant::RemovedTooEarly => about(
                "removed-too-early",
                "E3",
                "no other store yet",
                "a removal takes keys that are due within a second, too",
            ),
            Mutant::SnapshotFromTheStart => about(
                "snapshot-from-the-start",
                "27",
                "openraft#808, openraft#1719",
                "a chunk that does not come begins the snapshot anew",
            ),
            Mutant::AcceptedBehindSnapshotDropped => about(
                "accepted-behind-snapshot-dropped",
                "P10",
                "no other store yet",
                "a snapshot empties the log, also of what was accepted behind it",
            ),
            Mutant::InstallRacesApply => about(
                "install-races-apply",
                "13",
                "openraft eed681d5",
                "a replica is not deaf while a snapshot is put in force",
            ),
            Mutant::SuffixKeptBehindSnapshot => about(
                "suffix-kept-behind-snapshot",
                "14",
                "hashicorp/raft#697",
                "a log is kept behind a snapshot whether it holds the snapshot's last entry or not",
            ),
            Mutant::EmptyLogSilent => about(
                "empty-log-silent",
                "15",
                "openraft#1828",
                "a leader whose log is empty tells nobody that a snapshot is needed",
            ),
            Mutant::JointSkipped => about(
                "joint-skipped",
                "19",
                "raft-dev 2015, redisraft#17, nats-server#7545",
                "members change in one step, and a leader counts by the new ones at once",
            ),
            Mutant::ConfigurationForgotten => about(
                "configuration-forgotten",
                "20",
                "camunda#57389",
                "a start looks for members only in what is known to be chosen, not in the rest of the log",
            ),
            Mutant::DamageCutOff => about(
                "damage-cut-off",
                "12",
                "nats-server#7549",
                "a damaged record of the log is taken for the torn end: it and all behind it are dropped",
            ),
            Mutant::ChecksumNotChecked => about(
                "checksum-not-checked",
                "K4",
                "Ganesan and others 2017",
                "what is read from the disk is taken for what was written",
            ),
            Mutant::MisdirectedTaken => about(
                "misdirected-taken",
                "K5",
                "no other store yet",
                "a record counts wherever it lies, and one that is missing is passed over",
            ),
            Mutant::DirectoryNotSynced => about(
                "directory-not-synced",
                "7",
                "etcd#6368, cockroach#114411, rocksdb#5287",
                "the folder is not synced when the log makes a file",
            ),
            Mutant::FailedSyncRetried => about(
                "failed-sync-retried",
                "8",
                "cockroach#37102",
                "a failed sync is tried again, and the second one counts for what the first had to write",
            ),
            Mutant::FullDiskAcknowledged => about(
                "full-disk-acknowledged",
                "9",
                "cockroach#32631",
                "a write that finds no room is acknowledged, and later ones go on behind it",
            ),
            Mutant::ReadErrorTakenForEmpty => about(
                "read-error-taken-for-empty",
                "K6",
                "no other store yet",
                "a log that can't be read at a start is taken for an empty one",
            ),
            Mutant::DamagedFolderFormatted => about(
                "damaged-folder-formatted",
                "K7",
                "no other store yet",
                "a node that finds its folder damaged begins anew under its old identity",
            ),
            Mutant::AppliedBeforeSync => about(
                "applied-before-sync",
                "P11",
                "no other store yet",
                "what is chosen is applied before this node's own disk has it",
            ),
            Mutant::LaggardLeftBehind => about(
                "laggard-left-behind",
                "P12",
                "no other store yet",
                "a leader sends a follower nothing from before its own ballot",
            ),
            Mutant::RefusalCounted => about(
                "refusal-counted",
                "P13",
                "no other store yet",
                "a follower's refusal counts as its answer, and the leader goes on",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_lists_the_enum_in_order() {
        for (position, mutant) in Mutant::ALL.into_iter().enumerate() {
            assert_eq!(mutant as usize, position, "{mutant:?}");
        }
    }

    #[test]
    fn names_and_bugs_are_unique() {
        let names: BTreeSet<&str> = Mutant::ALL.into_iter().map(Mutant::name).collect();
        let bugs: BTreeSet<&str> = Mutant::ALL.into_iter().map(Mutant::bug).collect();
        assert_eq!((names.len(), bugs.len()), (Mutant::ALL.len(), Mutant::ALL.len()));
    }

    #[test]
    fn a_mutant_is_found_by_its_name_only() {
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::from_name(mutant.name()), Some(mutant));
        }
        assert_eq!(Mutant::from_name("StaleReadRound"), None);
    }

    #[test]
    fn names_are_kebab_case_and_texts_are_one_line() {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter == '-';
        for mutant in Mutant::ALL {
            assert!(mutant.name().chars().all(plain), "{}", mutant.name());
            for text in [mutant.bug(), mutant.summary(), mutant.seen_in()] {
                assert!(!text.is_empty() && !text.contains('\n'), "{mutant:?}: {text}");
            }
        }
    }

    #[test]
    #[cfg(not(feature = "enabled"))]
    fn without_the_feature_none_is_active() {
        assert!(!Mutant::ALL.into_iter().any(is_active));
    }

    #[test]
    #[cfg(feature = "enabled")]
    fn a_thread_runs_the_mutant_that_it_was_given() {
        assert!(!Mutant::ALL.into_iter().any(is_active));
        activate(Some(Mutant::PollDeadlock));
        let active: Vec<Mutant> = Mutant::ALL.into_iter().filter(|mutant| is_active(*mutant)).collect();
        assert_eq!(active, [Mutant::PollDeadlock]);
        let elsewhere = std::thread::spawn(|| is_active(Mutant::PollDeadlock));
        assert_eq!(elsewhere.join().ok(), Some(false));
        activate(None);
        assert!(!is_active(Mutant::PollDeadlock));
    }
}
