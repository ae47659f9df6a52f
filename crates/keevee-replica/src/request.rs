//! What a shard is asked, when, within which bounds, and what it answers.

use std::fmt;
use std::time::Duration;

use keevee_core::command::{Command, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::ids::NodeId;

/// The time, as the caller's clocks tell it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since any origin that stays the same; does not go back.
    pub monotonic: Duration,
    /// The wall clock, in microseconds since the Unix epoch.
    pub wall_micros: u64,
}

/// Whether the disks have room for what a leader is asked to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// They have.
    #[default]
    Enough,
    /// Its own has not, and leadership is on its way to a node that has: what takes room waits for that one.
    Elsewhere,
    /// No majority has: what takes room is refused. Reads go on, and so do removals, which make room.
    Short,
}

/// A command to carry out.
#[derive(Clone, Debug)]
pub struct Request {
    /// Comes back in the [`Reply`].
    pub ticket: u64,
    /// What to do.
    pub command: Command,
    /// When no answer is of use any more, on the monotonic clock.
    pub deadline: Duration,
    /// Of a read: serve this replica's own applied state, however old.
    pub stale: bool,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's ticket.
    pub ticket: u64,
    /// What became of it.
    pub result: Result<Outcome, Refusal>,
}

/// Why a command has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This replica does not lead; nothing happened. Perhaps this one does.
    NotLeader(Option<NodeId>),
    /// Nothing happened, and nothing will.
    Unavailable(&'static str),
    /// It was proposed; it may take effect, even later.
    OutcomeUnknown(&'static str),
}

impl Refusal {
    /// What the caller may do next.
    pub fn kind(self) -> ErrorKind {
        match self {
            Refusal::NotLeader(_) => ErrorKind::NotLeader,
            Refusal::Unavailable(_) => ErrorKind::Unavailable,
            Refusal::OutcomeUnknown(_) => ErrorKind::OutcomeUnknown,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotLeader(Some(leader)) => write!(formatter, "node {leader} leads now"),
            Refusal::NotLeader(None) => formatter.write_str("leadership is changing"),
            Refusal::Unavailable(why) | Refusal::OutcomeUnknown(why) => formatter.write_str(why),
        }
    }
}

/// What a shard takes in at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Commands waiting to be proposed, and as many reads.
    pub waiting_commands_max: usize,
    /// Bytes of the commands waiting to be proposed.
    pub waiting_bytes_max: usize,
    /// Bytes of one entry, unless one command is larger.
    pub entry_bytes_max: usize,
    /// Entries on their way to this node's disk before the next one is cut.
    pub unsynced_entries_max: usize,
    /// Entries proposed here and not known to be chosen before the next one is cut.
    pub unchosen_entries_max: usize,
    /// Bytes of them, likewise.
    pub unchosen_bytes_max: usize,
    /// Bytes of the log that are kept for members that lack some of it.
    pub log_bytes_max: u64,
    /// How fast a snapshot is fetched, in bytes per second.
    pub snapshot_bytes_per_second: u64,
    /// Bytes of records in one chunk of a snapshot, unless one is larger.
    pub snapshot_chunk_bytes: usize,
}

impl Bounds {
    /// As [`Bounds::default`].
    pub(crate) const DEFAULT: Bounds = Bounds {
        waiting_commands_max: 65_536,
        waiting_bytes_max: 64 << 20,
        entry_bytes_max: 1 << 20,
        unsynced_entries_max: 1,
        unchosen_entries_max: 64,
        unchosen_bytes_max: 64 << 20,
        log_bytes_max: 512 << 20,
        snapshot_bytes_per_second: 8 << 20,
        snapshot_chunk_bytes: 256 << 10,
    };
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds::DEFAULT
    }
}
