//! What a client may ask, and what it is told.
//!
//! Every request is a [`Command`]: preconditions, then operations, applied as one. A plain put is a
//! command of one operation; a compare-and-set is a precondition and a put.

use bytes::Bytes;

use crate::ids::Namespace;
use crate::range::KeyRange;
use crate::requests::RequestId;

/// One client request: applied as a whole at one point of the shard's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The keyspace that all keys below belong to.
    pub namespace: Namespace,
    /// Makes the command take effect at most once, however often it is sent.
    pub request_id: Option<RequestId>,
    /// All must hold, or nothing happens ([`Outcome::Conflict`]).
    pub preconditions: Vec<Precondition>,
    /// Carried out in order; each sees the effects of those before it.
    pub operations: Vec<Operation>,
    /// Bytes of values that its gets may return together, for who has no room for more; never more than
    /// [`crate::apply::ANSWER_BYTES_MAX_APPLY`]. A get that finds more fails ([`OperationError::AnswerTooLarge`]).
    pub answer_bytes_max: Option<u32>,
}

impl Command {
    /// A command of one operation in the default namespace, unconditional, without a request id.
    pub fn single(action: Action) -> Command {
        Command {
            namespace: Namespace::DEFAULT,
            request_id: None,
            preconditions: Vec::new(),
            operations: vec![Operation { action, on_error: OnError::Abort }],
            answer_bytes_max: None,
        }
    }

    /// True if it changes nothing whatever the state: it needs no place in the log.
    pub fn is_read_only(&self) -> bool {
        self.operations.iter().all(|operation| operation.action.is_read())
    }

    /// True if it may leave more in the store than it found, by more than the few bytes of a removal or an expiry.
    pub fn takes_room(&self) -> bool {
        self.operations.iter().any(|operation| operation.action.takes_room())
    }

    /// Every key that the command names, preconditions first.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let conditions = self.preconditions.iter().map(|condition| &condition.key);
        conditions.chain(self.operations.iter().filter_map(|operation| operation.action.key()))
    }

    /// Bytes that it makes of values when it is applied, and that are not in it.
    pub fn bytes_made(&self) -> usize {
        let of_one = |operation: &Operation| match operation.action {
            Action::SetRange { offset, .. } => offset as usize,
            _ => 0,
        };
        self.operations.iter().map(of_one).fold(0, usize::saturating_add)
    }

    /// True if it asks for a range of keys: then it does not say by itself which shard it is for.
    pub fn has_range(&self) -> bool {
        self.operations.iter().any(|operation| operation.action.range().is_some())
    }
}

/// What must hold of one key before the operations run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// The key looked at.
    pub key: Bytes,
    /// What must hold of it.
    pub expect: Expect,
}

/// The state that a [`Precondition`] demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key holds no value.
    Absent,
    /// The key holds a value, of any version.
    Present,
    /// The key holds a value of exactly this version.
    Version(u64),
}

/// An action, and what becomes of the command if the action fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What to do.
    pub action: Action,
    /// What an error of it means for the command.
    pub on_error: OnError,
}

/// What an operation's error means for the rest of its command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Nothing of the command happens ([`Outcome::Aborted`]).
    #[default]
    Abort,
    /// Only this operation does nothing; its result is the error.
    Continue,
}

/// What one operation does to one key, or to a range of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads the key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Sets the key, if it is as `only` says.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// When it is gone.
        expires: Expiry,
        /// Otherwise nothing is done ([`OperationResult::Skipped`]).
        only: Only,
    },
    /// Removes the key if it is there.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Says anew when a key is gone; a time that has come removes it. Nothing is done if the key is absent, or not as
    /// `only` says ([`OperationResult::Skipped`]).
    SetExpiry {
        /// The key.
        key: Bytes,
        /// When it is gone.
        expires: Expiry,
        /// Otherwise nothing is done.
        only: ExpiryOnly,
    },
    /// Adds to a decimal integer (absent counts as 0); the value is kept as decimal text, and its expiry is kept.
    Increment {
        /// The key.
        key: Bytes,
        /// What to add; may be negative.
        by: i64,
    },
    /// Appends bytes (absent counts as empty); the expiry is kept.
    Append {
        /// The key.
        key: Bytes,
        /// The bytes to append.
        suffix: Bytes,
    },
    /// Writes bytes over those of the value from an offset on (absent counts as empty; zeros fill what lies between);
    /// the expiry is kept. No bytes change nothing.
    SetRange {
        /// The key.
        key: Bytes,
        /// Where the first byte goes.
        offset: u32,
        /// The bytes to write.
        bytes: Bytes,
    },
    /// Reads the first keys of a range that the shard holds.
    Scan {
        /// Which keys.
        range: KeyRange,
        /// How many at most; never more than [`crate::range::SCAN_KEYS_MAX`].
        limit: u32,
        /// How many bytes of keys and values at most; never more than [`crate::range::SCAN_BYTES_MAX`], and with that
        /// many one larger key is shown, too.
        bytes_max: u32,
    },
    /// Removes the first keys of a range that the shard holds, up to
    /// [`crate::range::DELETE_RANGE_BYTES_MAX`] bytes of them.
    DeleteRange {
        /// Which keys.
        range: KeyRange,
        /// How many at most; never more than [`crate::range::DELETE_RANGE_KEYS_MAX`].
        limit: u32,
    },
    /// Removes keys that are gone already, those first that have been for longest. A leader's own: no client may send
    /// it, and none can tell whether it has happened.
    RemoveExpired {
        /// How many at most; never more than [`crate::range::REMOVE_EXPIRED_KEYS_MAX`].
        limit: u32,
    },
}

/// When a key is gone. Time is shard time ([`crate::apply`]), in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expiry {
    /// Never, whatever was said before.
    #[default]
    Never,
    /// As was said before; never, if the key was absent.
    Keep,
    /// From this time on.
    At(u64),
    /// So many microseconds after the shard time at which it is applied.
    After(u64),
}

/// What a put demands of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Only {
    /// Nothing.
    #[default]
    Always,
    /// That it is absent.
    IfAbsent,
    /// That it is there.
    IfPresent,
}

/// What a change of its expiry demands of a key that is there. No expiry counts as the latest of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpiryOnly {
    /// Nothing.
    #[default]
    Always,
    /// That it has no expiry.
    IfNone,
    /// That it has one.
    IfSome,
    /// That the new one is later.
    IfLater,
    /// That the new one is sooner.
    IfSooner,
    /// That it has one, and that the new one is sooner.
    IfSomeAndSooner,
}

impl Action {
    /// Sets the key, whatever it holds, to a value that stays.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Action {
        let (key, value) = (key.into(), value.into());
        Action::Put { key, value, expires: Expiry::Never, only: Only::Always }
    }

    /// True if it changes nothing, whatever the state.
    pub fn is_read(&self) -> bool {
        matches!(self, Action::Get { .. } | Action::Scan { .. })
    }

    /// True if it may leave more in the store than it found. A removal does not, and neither does an expiry.
    pub fn takes_room(&self) -> bool {
        match self {
            Action::Put { .. }
            | Action::Increment { .. }
            | Action::Append { .. }
            | Action::SetRange { .. } => true,
            Action::Get { .. }
            | Action::Delete { .. }
            | Action::SetExpiry { .. }
            | Action::Scan { .. }
            | Action::DeleteRange { .. }
            | Action::RemoveExpired { .. } => false,
        }
    }

    /// The one key that the action touches, if it does not touch a range.
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Action::Get { key }
            | Action::Put { key, .. }
            | Action::Delete { key }
            | Action::SetExpiry { key, .. }
            | Action::Increment { key, .. }
            | Action::Append { key, .. }
            | Action::SetRange { key, .. } => Some(key),
            Action::Scan { .. } | Action::DeleteRange { .. } | Action::RemoveExpired { .. } => None,
        }
    }

    /// The range that the action touches, if it does not touch one key.
    pub fn range(&self) -> Option<&KeyRange> {
        match self {
            Action::Scan { range, .. } | Action::DeleteRange { range, .. } => Some(range),
            _ => None,
        }
    }
}

/// What became of a command. All but [`Outcome::Done`] mean that nothing happened and nothing will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect; one result for each operation, in order.
    Done(Vec<OperationResult>),
    /// A precondition did not hold.
    Conflict {
        /// Which precondition, from 0.
        precondition: usize,
        /// The version that the key has, if it holds a value.
        version: Option<u64>,
    },
    /// An operation that aborts its command failed.
    Aborted {
        /// Which operation, from 0.
        operation: usize,
        /// Why it failed.
        error: OperationError,
    },
    /// This shard does not own a slot that the command touches: route again.
    WrongShard,
    /// The request id came before with another payload.
    RequestReused,
    /// The request id is too old, or too far in the future, to be remembered.
    RequestExpired,
    /// The memory of request ids is full of recent ones: retry later.
    RequestMemoryFull,
}

/// What one operation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// Of a get: what the key holds.
    Value(Option<Versioned>),
    /// Of a put or a change of its expiry: the version that the key has now, or would have if it were not gone at once.
    Written {
        /// The shard's mutation counter at this write.
        version: u64,
    },
    /// Of a put or a change of its expiry: the key was not as it demanded, and nothing was done.
    Skipped,
    /// Of a delete.
    Deleted {
        /// True if the key held a value.
        existed: bool,
    },
    /// Of an increment.
    Incremented {
        /// The sum.
        value: i64,
        /// The version that the key has now.
        version: u64,
    },
    /// Of an append, or of a write into the value.
    Appended {
        /// The length in bytes that the value has now.
        length: u64,
        /// The version that the key has now; 0 if it is absent, since no bytes were to be written.
        version: u64,
    },
    /// Of a scan.
    Scanned {
        /// The keys, in order; at least one if the first that there is fits.
        keys: Vec<ScannedKey>,
        /// The first key of the range that is not among them, if there are more.
        next: Option<Bytes>,
    },
    /// Of a delete of a range.
    DeletedRange {
        /// How many keys were removed; at least one if there was any.
        deleted: u64,
        /// The first key of the range that is left, if there are more.
        next: Option<Bytes>,
    },
    /// Of a removal of keys that are gone.
    RemovedExpired {
        /// How many keys were removed.
        removed: u64,
    },
    /// The operation failed and did nothing ([`OnError::Continue`]).
    Failed(OperationError),
}

/// A key that a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedKey {
    /// The key.
    pub key: Bytes,
    /// What it holds.
    pub value: Versioned,
}

impl ScannedKey {
    /// What it counts against a limit in bytes.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.value.len()
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// The value to increment is not decimal text of a 64-bit signed integer.
    #[error("the value is not a 64-bit integer in decimal text")]
    NotAnInteger,
    /// The sum does not fit a 64-bit signed integer.
    #[error("the sum does not fit a 64-bit integer")]
    Overflow,
    /// The value would grow past the largest size that `apply` allows.
    #[error("the value would grow past the largest size allowed")]
    ValueTooLarge,
    /// The command has read as many bytes as its answer may hold.
    #[error("the values read by the command make too large an answer: read fewer keys at once")]
    AnswerTooLarge,
}

/// A value and what is known of its last write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The shard's mutation counter at the write.
    pub version: u64,
    /// The shard time of the write, in microseconds since the Unix epoch.
    pub stamp: u64,
    /// The shard time from which on the key is gone, in microseconds since the Unix epoch, if it ever is.
    pub expires: Option<u64>,
    /// The value's bytes.
    pub value: Bytes,
}

impl Versioned {
    /// True if the key is gone at this shard time, whether or not it was removed.
    pub fn is_gone(&self, shard_time: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= shard_time)
    }

    /// The expiry as clients are told it: in milliseconds, rounded up.
    pub fn expires_unix_ms(&self) -> Option<u64> {
        self.expires.map(|micros| micros.div_ceil(1_000))
    }
}
