//! What happened in a run, counted. A simulator proves nothing about what it never does: over many seeds each
//! of these must be seen.

use std::ops::AddAssign;

use serde::{Serialize, Serializer};

use crate::plan::EngineKind;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $counter:ident = $name:literal,)+) => {
        /// Something that a run may see.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[doc = $doc])+ $counter,)+
        }

        impl Counter {
            /// All of them.
            pub const ALL: &[Counter] = &[$(Counter::$counter,)+];

            /// How reports call it.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$counter => $name,)+ }
            }
        }
    };
}

counters! {
    /// A node began to lead.
    Elections = "elections",
    /// A leader quiesced its shard.
    Quiesced = "quiesced",
    /// A follower that was quiesced, or could not be, woke its leader.
    Wakes = "wakes",
    /// A leader proposed again what earlier ballots had left.
    Adoptions = "adoptions",
    /// A new leader filled an index at which no report that it had named a value.
    HoleFills = "hole fills",
    /// A node took the lead with a log that lacked chosen entries.
    LateLeaders = "leaders behind",
    /// A poll was refused.
    PollsRefused = "polls refused",
    /// A message below the promise was refused.
    Nacks = "nacks",
    /// A promise took more than one page.
    PromisePages = "promise pages",
    /// Leadership was handed over by request.
    TakeOvers = "takeovers",
    /// A follower that lacked entries which others had applied got them.
    CatchUps = "catch-ups",
    /// A follower that lacked entries which no log held any more began to fetch a snapshot.
    Fetches = "snapshots fetched",
    /// A chunk of a snapshot was sent.
    Chunks = "chunks",
    /// A replica took over a snapshot.
    TakenOver = "snapshots taken over",
    /// A member that lacked what no log held any more came back when nobody wrote.
    Returns = "returns to idle groups",
    /// A replica compared what its state holds with another one's, and found it the same.
    StatesCompared = "states compared",
    /// A shard had other members in the end.
    MembersChanged = "members changed",
    /// A process died while a configuration was on its way to its disk.
    CrashesInChanges = "crashes in changes",
    /// The network was cut when a configuration had reached a disk.
    CutsInChanges = "cuts in changes",
    /// A follower dropped entries that the leader did not have.
    ConflictsDropped = "conflicts dropped",
    /// A follower told that it lacks what an append follows.
    AppendConflicts = "append conflicts",
    /// Some node reached a majority, but lacked what those have: by Raft's rules nobody could lead.
    NobodyElectable = "nobody electable",
    /// Entries were sent while earlier ones were on their way.
    Pipelined = "appends pipelined",
    /// Entries were read back from a disk, not from memory.
    DiskReads = "disk reads",
    /// A log was truncated below what all had flushed.
    Truncations = "truncations",
    /// A process died.
    Crashes = "crashes",
    /// All processes died at once.
    CrashesOfAll = "crashes of all",
    /// A process died while a higher promise or an entry was on its way to its disk.
    CrashesInWrite = "crashes in a write",
    /// A process died in the middle of applying.
    CrashesInApply = "crashes in apply",
    /// A process started again and applied again what its state had lost.
    Replays = "replays",
    /// A crash lost writes that were not synced.
    LostWrites = "lost writes",
    /// A crash tore a write in two.
    TornWrites = "torn writes",
    /// A crash lost a promise on its way to the disk.
    LostPromises = "lost promises",
    /// A sync failed.
    FailedSyncs = "failed syncs",
    /// A write found no room.
    FullDisks = "full disks",
    /// A read failed while a node ran.
    FailedReads = "failed reads",
    /// A node could not start, since its disk could not be read or had no room.
    StartsRefused = "starts refused by disks",
    /// A bit on a disk changed.
    FlippedBits = "bits flipped",
    /// A write landed where another record was.
    Misdirected = "writes misdirected",
    /// A crash lost a file that was just being made.
    NamesLost = "names lost",
    /// A node found its disk damaged, and did not start.
    DamageFound = "damaged disks found",
    /// Such a node's place went to a new one.
    Replaced = "nodes replaced",
    /// A disk was slow.
    SlowDisks = "slow disks",
    /// A group elected while all its disks were slow.
    SlowElections = "slow elections",
    /// A disk stalled.
    Stalls = "stalls",
    /// A process paused.
    Pauses = "pauses",
    /// A wall clock jumped.
    ClockJumps = "clock jumps",
    /// The network was cut into parts that do not reach each other.
    Partitions = "partitions",
    /// The network was cut so that some nodes reach each other only through others.
    PartialPartitions = "partial partitions",
    /// Messages passed one way only.
    OneWayPartitions = "one-way partitions",
    /// Messages were lost for a time.
    Losses = "times of loss",
    /// Messages came late for a time.
    Delays = "times of delay",
    /// A message was lost, though its link was not cut.
    Lost = "messages lost",
    /// A message was lost on a link that was cut.
    CutOff = "messages cut off",
    /// A message was held back by a link that hung.
    Held = "messages held back",
    /// A message came twice.
    Duplicated = "messages doubled",
    /// A message overtook an earlier one.
    Reordered = "messages reordered",
    /// Connections were reset.
    Resets = "resets",
    /// A key that had expired was removed.
    ExpiredRemoved = "expired keys removed",
    /// A client let a key expire, or said anew when it does.
    Expiring = "expiries set",
    /// A read found nothing where a key had expired.
    FoundExpired = "expired keys read",
    /// A follower asked its leader to move shard time on.
    TimeAdvances = "time asked for",
    /// A leader said that by its clock nothing was due yet.
    TimesNotCome = "time not come",
    /// A node found its clock off.
    ClocksOff = "clocks off",
    /// An entry held several commands.
    Batches = "batched entries",
    /// A client read two keys at once.
    ReadsOfTwo = "reads of two keys",
    /// A client wrote two keys at once.
    WritesOfTwo = "writes of two keys",
    /// A leader's proposal lost its place to another's.
    Superseded = "superseded entries",
    /// A command went to the leader through another node.
    Forwards = "forwards",
    /// The same, through a node without a replica of the shard.
    ForwardsFromOutside = "forwards from outside",
    /// Such a node was told by one that refused who leads.
    HintsFollowed = "hints followed",
    /// A shard turned a command away that came by an old map.
    WrongShards = "wrong shards",
    /// Several shards had leaders on different nodes.
    LedApart = "shards led apart",
    /// A node tried a command again for its client.
    NodeRetries = "retries by nodes",
    /// A client sent a request again.
    ClientRetries = "retries by clients",
    /// A retry was answered from memory.
    Remembered = "answers remembered",
    /// A request id was refused: too old, or too far ahead.
    Expired = "expired ids",
    /// A request id was refused: it came with another payload before.
    Reused = "reused ids",
    /// A precondition failed.
    Conflicts = "conflicts",
    /// A read was served by a follower.
    FollowerReads = "follower reads",
    /// A client never learned what became of its request.
    Unknown = "unknown outcomes",
    /// Such a request took effect.
    UnknownEffects = "unknown, took effect",
    /// A request was refused: nothing happened.
    Refusals = "refusals",
    /// Replicas compared their chain hashes.
    HashesCompared = "hashes compared",
    /// Progress was demanded, and seen, while a fault lasted.
    CalmsJudged = "calms judged",
    /// The same, with two sides that did not reach each other.
    SplitCalms = "calms: split",
    /// The same, where some links were open one way only.
    OneWayCalms = "calms: one way",
    /// The same, with one link cut.
    LinkCalms = "calms: link",
    /// The same, with one node reached by all others and no link between those (quorum loss).
    HubCalms = "calms: hub",
    /// The same, where that node lacked entries and the leader was gone (constrained election).
    ConstrainedCalms = "calms: constrained",
    /// The same, where each node reached its neighbours only (chained).
    ChainCalms = "calms: chain",
    /// The same, with all disks slow.
    SlowCalms = "calms: slow disks",
    /// Progress was demanded, and seen, after everything had healed.
    HealingsJudged = "healings judged",
}

impl Counter {
    /// False for what an engine does not do.
    pub fn is_of(self, engine: EngineKind) -> bool {
        match self {
            Counter::Adoptions
            | Counter::HoleFills
            | Counter::LateLeaders
            | Counter::Nacks
            | Counter::PromisePages => engine == EngineKind::Paxos,
            Counter::ConflictsDropped
            | Counter::AppendConflicts
            | Counter::NobodyElectable
            | Counter::Pipelined => engine == EngineKind::Raft,
            _ => true,
        }
    }
}

/// A count of each [`Counter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage([u64; Counter::ALL.len()]);

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage([0; Counter::ALL.len()])
    }
}

impl Coverage {
    /// Counts one.
    pub fn note(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts several.
    pub fn add(&mut self, counter: Counter, count: u64) {
        self.0[counter as usize] += count;
    }

    /// How often it was seen.
    pub fn count(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// What was never seen, of what an engine does.
    pub fn missing(&self, engine: EngineKind) -> Vec<&'static str> {
        let is_unseen = |counter: &&Counter| counter.is_of(engine) && self.count(**counter) == 0;
        let unseen = Counter::ALL.iter().filter(is_unseen);
        unseen.map(|counter| counter.name()).collect()
    }
}

impl AddAssign<&Coverage> for Coverage {
    fn add_assign(&mut self, other: &Coverage) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, count)| *sum += count);
    }
}

impl Serialize for Coverage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Counter::ALL.iter().map(|counter| (counter.name(), self.count(*counter))))
    }
}
