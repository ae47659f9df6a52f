//! Several operations that happen as one.

use bytes::Bytes;
use keevee_core::command::{Expect, Expiry, ExpiryOnly, Only, OperationError};
use keevee_core::kv::{self, operation, operation_result};

use crate::answer::{Error, Value};
use crate::client::wire_condition;

/// Conditions and operations that a shard applies as one: all conditions hold and all operations happen, or
/// nothing does. All keys must be in one shard: give them the same hash tag, as in `{order-7}items` and
/// `{order-7}total`.
///
/// ```
/// # use keevee_client::{Batch, Expect};
/// let batch = Batch::new()
///     .only_if("{order-7}state", Expect::Version(3))
///     .put("{order-7}state", "paid")
///     .increment("{order-7}payments", 1)
///     .get("{order-7}items");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "it does nothing until it is given to Client::execute"]
pub struct Batch {
    pub(crate) conditions: Vec<kv::Precondition>,
    pub(crate) operations: Vec<kv::Operation>,
}

/// What one operation of a [`Batch`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// Of a get: what the key holds.
    Value(Option<Value>),
    /// Of a put or a change of its expiry.
    Written {
        /// The version that the key has now.
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
    Incremented(Counter),
    /// Of an append, or of a write into the value.
    Appended(Appended),
    /// It failed and did nothing, and the batch went on ([`Batch::or_go_on`]).
    Failed(OperationError),
}

/// What an increment made of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The sum.
    pub value: i64,
    /// The version that the key has now.
    pub version: u64,
}

/// What an append made of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// How many bytes the key holds now.
    pub length: u64,
    /// The version that the key has now.
    pub version: u64,
}

impl Batch {
    /// One that does nothing yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Nothing happens unless this holds of the key when the batch begins ([`crate::ErrorKind::Conflict`]).
    pub fn only_if(mut self, key: impl Into<Bytes>, expect: Expect) -> Batch {
        let condition = Some(wire_condition(expect));
        self.conditions.push(kv::Precondition { key: key.into(), condition });
        self
    }

    /// Reads a key, as the operations before leave it.
    pub fn get(self, key: impl Into<Bytes>) -> Batch {
        self.and(operation::Action::Get(kv::Get { key: key.into() }))
    }

    /// Sets a key.
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Batch {
        self.and(operation::Action::Put(kv::Put { key: key.into(), value: value.into() }))
    }

    /// Sets a key, if it is as `only` says ([`OperationResult::Skipped`] if not), and says when it is gone. The servers
    /// count whole milliseconds here.
    pub fn put_with(
        self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        expires: Expiry,
        only: Only,
    ) -> Batch {
        if (expires, only) == (Expiry::Never, Only::Always) {
            return self.put(key, value);
        }
        let (key, value, only) = (key.into(), value.into(), kv::Only::from(only).into());
        self.and(operation::Action::PutWith(kv::PutWith { key, value, expiry: expires.into(), only }))
    }

    /// Says anew when a key is gone, if it is there and as `only` says ([`OperationResult::Skipped`] if not).
    pub fn set_expiry(self, key: impl Into<Bytes>, expires: Expiry, only: ExpiryOnly) -> Batch {
        let (key, only) = (key.into(), kv::ExpiryOnly::from(only).into());
        self.and(operation::Action::SetExpiry(kv::SetExpiry { key, expiry: expires.into(), only }))
    }

    /// Writes bytes over those of the value from an offset on; zeros fill what lies between.
    pub fn set_range(self, key: impl Into<Bytes>, offset: u32, bytes: impl Into<Bytes>) -> Batch {
        let (key, bytes) = (key.into(), bytes.into());
        self.and(operation::Action::SetRange(kv::SetRange { key, offset, bytes }))
    }

    /// Removes a key if it is there.
    pub fn delete(self, key: impl Into<Bytes>) -> Batch {
        self.and(operation::Action::Delete(kv::Delete { key: key.into() }))
    }

    /// Adds to a 64-bit integer that is kept as decimal text; an absent key counts as 0.
    pub fn increment(self, key: impl Into<Bytes>, by: i64) -> Batch {
        self.and(operation::Action::Increment(kv::Increment { key: key.into(), by }))
    }

    /// Appends bytes; an absent key counts as empty.
    pub fn append(self, key: impl Into<Bytes>, suffix: impl Into<Bytes>) -> Batch {
        self.and(operation::Action::Append(kv::Append { key: key.into(), suffix: suffix.into() }))
    }

    /// If the last operation so far fails, the others happen nevertheless, and its result is
    /// [`OperationResult::Failed`]. Otherwise nothing of the batch happens.
    pub fn or_go_on(mut self) -> Batch {
        if let Some(last) = self.operations.last_mut() {
            last.continue_on_error = true;
        }
        self
    }

    fn and(mut self, action: operation::Action) -> Batch {
        self.operations.push(kv::Operation { action: Some(action), continue_on_error: false });
        self
    }

    /// Every key that it names.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Bytes> {
        let conditions = self.conditions.iter().map(|condition| condition.key.clone());
        conditions.chain(self.operations.iter().filter_map(|operation| match operation.action.as_ref()? {
            operation::Action::Get(kv::Get { key })
            | operation::Action::Put(kv::Put { key, .. })
            | operation::Action::Delete(kv::Delete { key })
            | operation::Action::Increment(kv::Increment { key, .. })
            | operation::Action::Append(kv::Append { key, .. })
            | operation::Action::PutWith(kv::PutWith { key, .. })
            | operation::Action::SetExpiry(kv::SetExpiry { key, .. })
            | operation::Action::SetRange(kv::SetRange { key, .. }) => Some(key.clone()),
            // A batch has none of these.
            operation::Action::Scan(_) | operation::Action::DeleteRange(_) => None,
        }))
    }

    pub(crate) fn is_read_only(&self) -> bool {
        let reads = |operation: &kv::Operation| matches!(operation.action, Some(operation::Action::Get(_)));
        self.operations.iter().all(reads)
    }
}

impl TryFrom<kv::OperationResult> for OperationResult {
    type Error = Error;

    fn try_from(result: kv::OperationResult) -> Result<OperationResult, Error> {
        use operation_result::Result;
        let unknown = || Error::unreadable("a result is of a kind that this version does not know");
        Ok(match result.result.ok_or_else(unknown)? {
            Result::Value(kv::Value { value, version, expires_unix_ms: expires_ms }) => {
                OperationResult::Value(value.map(|bytes| Value { version, bytes, expires_ms }))
            }
            Result::Written(kv::Written { version }) => OperationResult::Written { version },
            Result::Deleted(kv::Deleted { existed }) => OperationResult::Deleted { existed },
            Result::Incremented(kv::Incremented { value, version }) => {
                OperationResult::Incremented(Counter { value, version })
            }
            Result::Appended(kv::Appended { length, version }) => {
                OperationResult::Appended(Appended { length, version })
            }
            Result::Scanned(_) | Result::DeletedRange(_) => {
                return Err(Error::unreadable("a result is of a range, and none was asked for"));
            }
            Result::Skipped(kv::Nothing {}) => OperationResult::Skipped,
            Result::Failed(error) => OperationResult::Failed(failure(error).ok_or_else(unknown)?),
        })
    }
}

/// Why an operation failed; `None` if this version does not know.
pub(crate) fn failure(error: i32) -> Option<OperationError> {
    match kv::OperationError::try_from(error).ok()? {
        kv::OperationError::NotAnInteger => Some(OperationError::NotAnInteger),
        kv::OperationError::Overflow => Some(OperationError::Overflow),
        kv::OperationError::ValueTooLarge => Some(OperationError::ValueTooLarge),
        kv::OperationError::AnswerTooLarge => Some(OperationError::AnswerTooLarge),
        kv::OperationError::Unspecified => None,
    }
}
