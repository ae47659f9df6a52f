//! What one key of keevee may answer, stated anew and without [`keevee_core::apply`]: a mistake there must
//! not be repeated here.
//!
//! **Versions.** All keys of a shard draw the versions of their writes from one counter, and a client is not
//! told all of them. Of one key it is known only that each mutation has a larger version than the one
//! before. So a state says of the latest version what is known ([`Version`]): an answer that names it
//! settles it, and an answer that contradicts it is impossible.
//!
//! **Unknown outcomes.** A command of unknown outcome takes effect if its preconditions can hold, with
//! versions that nobody knows. Whether `Expect::Version(v)` holds may not be known: the version is only
//! known to be above some number. It then counts as holding, which settles the version as `v`. Nothing is
//! lost: a command that never returned need not take effect at all, and one that returned may also have
//! found another version ([`Model::idle`]). Nothing is allowed too much: each of the two is what the
//! store would do in some of the states that were possible, and that the other version is not `v` is not
//! forgotten ([`KeyState::ruled_out`]).
//!
//! **Expiry.** When a value expires is not modelled: one that can may be gone at any moment, once and for good. An answer
//! that is possible only if it is gone says so. That none goes early is another rule's affair.
//!
//! It leaves out stamps, request ids (who counts an answer once for many attempts is the recorder of the
//! history), and commands that name more than one key.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use keevee_core::command::{
    Action, Command, Expect, Expiry, ExpiryOnly, OnError, Only, OperationError, OperationResult, Outcome,
    Versioned,
};

use super::Model;

/// The largest value that an append may make, in bytes.
const VALUE_BYTES_MAX: usize = 8 << 20;

/// The model of a key that is absent at first. Every command of a history names this key only.
///
/// # Examples
///
/// ```
/// use keevee_core::command::{Action, Command, OperationResult, Outcome};
/// use keevee_verify::checker::{Operation, check, key::Key};
///
/// let put = |value: &'static str, version, called, returned| Operation {
///     input: Command::single(Action::put("color", value)),
///     output: Some(Outcome::Done(vec![OperationResult::Written { version }])),
///     called,
///     returned: Some(returned),
/// };
/// assert!(check(&Key, &[put("green", 1, 10, 20), put("blue", 2, 15, 30)], 1_000).is_ok());
/// // The second write returned a smaller version, though it was called after the first returned.
/// assert!(check(&Key, &[put("green", 2, 10, 20), put("blue", 1, 25, 30)], 1_000).is_err());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Key;

/// A key: what it holds, and what is known of the version of its latest mutation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyState {
    /// The value, if there is one.
    pub value: Option<Bytes>,
    /// The version of the latest mutation: the value's, if there is one, else that of its removal.
    pub version: Version,
    /// What the version is known not to be, though it is above its bound: a command that expected this one
    /// was carried out and did not find it.
    pub ruled_out: BTreeSet<u64>,
    /// True if the value has an expiry: it may be gone at any moment, and then for good.
    pub can_expire: bool,
}

/// What is known of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// It is this.
    Exactly(u64),
    /// It is some number larger than this.
    Above(u64),
}

impl Model for Key {
    type State = KeyState;
    type Input = Command;
    type Output = Outcome;

    fn initial(&self) -> KeyState {
        KeyState { value: None, version: Version::Exactly(0), ruled_out: BTreeSet::new(), can_expire: false }
    }

    fn step(&self, state: &KeyState, command: &Command, outcome: Option<&Outcome>) -> Option<KeyState> {
        // What is possible while the value is there says nothing of whether it is; what is not says that it is gone.
        step(state, command, outcome).or_else(|| step(&state.expired()?, command, outcome))
    }

    fn idle(&self, state: &KeyState, command: &Command) -> Option<KeyState> {
        if let Some(expired) = state.expired() {
            return Some(carry_out(&expired, command));
        }
        let mut expected = state.clone();
        if !expected.meet_all(command) || expected.version == state.version {
            return None;
        }
        let mut other = state.clone();
        if let Version::Exactly(version) = expected.version {
            other.ruled_out.insert(version);
        }
        Some(other)
    }

    fn is_neutral(&self, command: &Command, outcome: Option<&Outcome>) -> bool {
        command.is_read_only() || !matches!(outcome, None | Some(Outcome::Done(_)))
    }

    /// By the smallest version that the command expected or was told, as the versions of a key only grow. A write
    /// comes before the reads of what it wrote.
    fn place(&self, command: &Command, outcome: &Outcome) -> Option<u64> {
        let write = |version: u64| version.saturating_mul(2);
        let read = |version: u64| write(version).saturating_add(1);
        let expected = command.preconditions.iter().filter_map(|one| match one.expect {
            Expect::Version(version) => Some(read(version)),
            Expect::Absent | Expect::Present => None,
        });
        let told = |result: &OperationResult| match result {
            OperationResult::Written { version }
            | OperationResult::Incremented { version, .. }
            | OperationResult::Appended { version, .. } => Some(write(*version)),
            OperationResult::Value(value) => value.as_ref().map(|value| read(value.version)),
            OperationResult::Deleted { .. }
            | OperationResult::Skipped
            | OperationResult::RemovedExpired { .. }
            | OperationResult::Scanned { .. }
            | OperationResult::DeletedRange { .. }
            | OperationResult::Failed(_) => None,
        };
        match outcome {
            Outcome::Done(results) => expected.chain(results.iter().filter_map(told)).min(),
            Outcome::Conflict { version, .. } => version.map(read),
            _ => None,
        }
    }
}

/// What becomes of a key that has not expired.
fn step(state: &KeyState, command: &Command, outcome: Option<&Outcome>) -> Option<KeyState> {
    match outcome {
        None => Some(carry_out(state, command)),
        Some(Outcome::Done(results)) => {
            let mut after = state.clone();
            let holds = after.meet_all(command);
            (holds && after.run(command, results)).then_some(after)
        }
        Some(Outcome::Conflict { precondition, version }) => {
            conflict(state, command, *precondition, *version)
        }
        Some(Outcome::Aborted { operation, error }) => abort(state, command, *operation, *error),
        Some(
            Outcome::WrongShard
            | Outcome::RequestReused
            | Outcome::RequestExpired
            | Outcome::RequestMemoryFull,
        ) => Some(state.clone()),
    }
}

/// The state after a command of unknown outcome that was carried out.
fn carry_out(state: &KeyState, command: &Command) -> KeyState {
    let mut after = state.clone();
    if !after.meet_all(command) {
        return state.clone();
    }
    for operation in &command.operations {
        if after.perform(&operation.action).is_err() && operation.on_error == OnError::Abort {
            return state.clone();
        }
    }
    after
}

fn conflict(state: &KeyState, command: &Command, violated: usize, version: Option<u64>) -> Option<KeyState> {
    let mut after = state.clone();
    let is_told = match version {
        Some(version) => after.meet(Expect::Version(version)),
        None => after.value.is_none(),
    };
    let (held, rest) = command.preconditions.split_at_checked(violated)?;
    let is_so =
        is_told && held.iter().all(|one| after.meet(one.expect)) && !after.clone().meet(rest.first()?.expect);
    is_so.then_some(after)
}

fn abort(state: &KeyState, command: &Command, failed: usize, error: OperationError) -> Option<KeyState> {
    let mut before = state.clone();
    if !before.meet_all(command) {
        return None;
    }
    let mut after = before.clone();
    let (earlier, rest) = command.operations.split_at_checked(failed)?;
    for operation in earlier {
        if after.perform(&operation.action).is_err() && operation.on_error == OnError::Abort {
            return None;
        }
    }
    let last = rest.first()?;
    let is_so = last.on_error == OnError::Abort && after.perform(&last.action) == Err(error);
    is_so.then_some(before)
}

impl KeyState {
    /// True if all preconditions can hold, and then they do: the version is what they say.
    fn meet_all(&mut self, command: &Command) -> bool {
        command.preconditions.iter().all(|one| self.meet(one.expect))
    }

    fn meet(&mut self, expect: Expect) -> bool {
        match expect {
            Expect::Absent => self.value.is_none(),
            Expect::Present => self.value.is_some(),
            Expect::Version(version) => self.value.is_some() && self.settle(version),
        }
    }

    /// True if the latest version can be this, and then it is.
    fn settle(&mut self, version: u64) -> bool {
        let can_be = match self.version {
            Version::Exactly(known) => known == version,
            Version::Above(bound) => version > bound && !self.ruled_out.contains(&version),
        };
        if can_be {
            self.version = Version::Exactly(version);
            self.ruled_out.clear();
        }
        can_be
    }

    /// The smallest that the latest version can be.
    fn version_min(&self) -> u64 {
        match self.version {
            Version::Exactly(version) => version,
            Version::Above(bound) => {
                let mut above = bound.saturating_add(1)..=u64::MAX;
                above.find(|version| !self.ruled_out.contains(version)).unwrap_or(u64::MAX)
            }
        }
    }

    /// Carries out all operations; false if one of them can't have its result.
    fn run(&mut self, command: &Command, results: &[OperationResult]) -> bool {
        command.operations.len() == results.len()
            && command.operations.iter().zip(results).all(|(operation, result)| {
                match (self.perform(&operation.action), result) {
                    (Ok(Effect::Read), OperationResult::Value(value)) => self.shows(value.as_ref()),
                    (Ok(Effect::Written), OperationResult::Written { version }) => self.written(*version),
                    (Ok(Effect::Skipped), OperationResult::Skipped) => true,
                    (Ok(Effect::Deleted(existed)), OperationResult::Deleted { existed: told }) => {
                        existed == *told
                    }
                    (Ok(Effect::Incremented(sum)), OperationResult::Incremented { value, version }) => {
                        sum == *value && self.written(*version)
                    }
                    (Ok(Effect::Appended(now)), OperationResult::Appended { length, version }) => {
                        now == *length && self.written(*version)
                    }
                    (Err(error), OperationResult::Failed(told)) => {
                        operation.on_error == OnError::Continue && error == *told
                    }
                    _ => false,
                }
            })
    }

    fn shows(&mut self, told: Option<&Versioned>) -> bool {
        match told {
            Some(told) => self.value.as_ref() == Some(&told.value) && self.settle(told.version),
            None => self.value.is_none(),
        }
    }

    /// True if the mutation made last can have this version, and then it has.
    fn written(&mut self, version: u64) -> bool {
        self.settle(version)
    }

    /// Carries out one action with a version that is not known yet; if it fails, it has done nothing.
    fn perform(&mut self, action: &Action) -> Result<Effect, OperationError> {
        match action {
            Action::Scan { .. } | Action::DeleteRange { .. } => unreachable!("histories are of one key"),
            Action::SetRange { .. } | Action::RemoveExpired { .. } => {
                unreachable!("no client of a simulated cluster does this")
            }
            Action::Get { .. } => Ok(Effect::Read),
            Action::Put { only: Only::IfAbsent, .. } if self.value.is_some() => Ok(Effect::Skipped),
            Action::Put { only: Only::IfPresent, .. } if self.value.is_none() => Ok(Effect::Skipped),
            Action::Put { value, expires, .. } => {
                self.mutate(Some(value.clone()));
                self.can_expire = self.would_expire(*expires);
                Ok(Effect::Written)
            }
            Action::SetExpiry { expires, only, .. } => {
                assert_eq!(*only, ExpiryOnly::Always, "the model does not know when a value expires");
                if self.value.is_none() {
                    return Ok(Effect::Skipped);
                }
                self.mutate(self.value.clone());
                self.can_expire = self.would_expire(*expires);
                Ok(Effect::Written)
            }
            Action::Delete { .. } => {
                let existed = self.value.is_some();
                if existed {
                    self.mutate(None);
                }
                Ok(Effect::Deleted(existed))
            }
            Action::Increment { by, .. } => {
                let number = self.value.as_ref().map_or(Some(0), integer);
                let number = number.ok_or(OperationError::NotAnInteger)?;
                let sum = number.checked_add(*by).ok_or(OperationError::Overflow)?;
                self.mutate(Some(sum.to_string().into()));
                Ok(Effect::Incremented(sum))
            }
            Action::Append { suffix, .. } => {
                let value = self.value.as_ref().map_or(&[][..], Bytes::as_ref);
                let length = value.len() + suffix.len();
                if length > VALUE_BYTES_MAX {
                    return Err(OperationError::ValueTooLarge);
                }
                let mut joined = BytesMut::with_capacity(length);
                joined.extend_from_slice(value);
                joined.extend_from_slice(suffix);
                self.mutate(Some(joined.freeze()));
                Ok(Effect::Appended(length as u64))
            }
        }
    }

    fn mutate(&mut self, value: Option<Bytes>) {
        self.version = Version::Above(self.version_min());
        self.ruled_out.clear();
        self.can_expire &= value.is_some();
        self.value = value;
    }

    /// The same after the value has expired, if it can.
    fn expired(&self) -> Option<KeyState> {
        self.can_expire.then(|| KeyState { value: None, can_expire: false, ..self.clone() })
    }

    fn would_expire(&self, expires: Expiry) -> bool {
        match expires {
            Expiry::Never => false,
            Expiry::Keep => self.can_expire,
            Expiry::At(_) | Expiry::After(_) => true,
        }
    }
}

/// What an action did, but for the version that it used.
#[derive(Debug, PartialEq, Eq)]
enum Effect {
    Read,
    Written,
    Skipped,
    Deleted(bool),
    Incremented(i64),
    Appended(u64),
}

/// Decimal text: digits, after a `-` or nothing.
fn integer(text: &Bytes) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    text.parse().ok().filter(|number: &i64| number.to_string() == text)
}
