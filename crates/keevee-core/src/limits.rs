//! How large a command may be, checked once where it enters the cluster.
//!
//! `apply` does not check these again: they are settings, which may differ between nodes, while `apply`
//! must decide alike everywhere. Its own bound is [`crate::apply::VALUE_BYTES_MAX_APPLY`].

use crate::command::{Action, Command};
use crate::error::ErrorKind;

/// The largest that a command and its parts may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one key.
    pub key_bytes_max: usize,
    /// Bytes of one value, or of one suffix to append.
    pub value_bytes_max: usize,
    /// Operations of one command.
    pub operations_max: usize,
    /// Preconditions of one command.
    pub preconditions_max: usize,
    /// Bytes of all keys and values of one command.
    pub command_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            key_bytes_max: 4096,
            value_bytes_max: 8 << 20,
            operations_max: 1024,
            preconditions_max: 1024,
            command_bytes_max: 16 << 20,
        }
    }
}

/// Why a command is refused before anything happens: correct it, sending it again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A command must do something.
    #[error("the command has no operations: give it at least one")]
    NoOperations,
    /// What a range does to a shard is bounded by being a command of its own.
    #[error(
        "a scan or a delete of a range is a command of its own: without preconditions and other operations"
    )]
    RangeNotAlone,
    /// Nothing could ever come of it.
    #[error("the limit of a scan or a delete of a range is 0: ask for one key at least")]
    NoKeys,
    /// A leader's own.
    #[error("expired keys are removed by the shard's leader: a client need not, and may not, ask for it")]
    NotForClients,
    /// A key must have at least one byte.
    #[error("a key is empty: a key has at least one byte")]
    EmptyKey,
    /// A key is longer than the limit.
    #[error("a key has {bytes} bytes, more than the {max} allowed")]
    KeyTooLong {
        /// The key's length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A value is larger than the limit.
    #[error("a value has {bytes} bytes, more than the {max} allowed")]
    ValueTooLarge {
        /// The value's length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too many operations for one command.
    #[error("the command has {count} operations, more than the {max} allowed: split it")]
    TooManyOperations {
        /// How many there are.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// Too many preconditions for one command.
    #[error("the command has {count} preconditions, more than the {max} allowed")]
    TooManyPreconditions {
        /// How many there are.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The command as a whole is larger than the limit.
    #[error("the command's keys and values have {bytes} bytes, more than the {max} allowed: split it")]
    CommandTooLarge {
        /// The sum of the lengths.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

impl Invalid {
    /// The kind of error that the caller is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Invalid::NoOperations
            | Invalid::EmptyKey
            | Invalid::RangeNotAlone
            | Invalid::NoKeys
            | Invalid::NotForClients => ErrorKind::Invalid,
            _ => ErrorKind::TooLarge,
        }
    }
}

impl Command {
    /// Checks the command against the limits; whoever takes commands from clients calls this first.
    pub fn validate(&self, limits: &Limits) -> Result<(), Invalid> {
        if self.operations.is_empty() {
            return Err(Invalid::NoOperations);
        }
        let (count, max) = (self.operations.len(), limits.operations_max);
        if count > max {
            return Err(Invalid::TooManyOperations { count, max });
        }
        let (count, max) = (self.preconditions.len(), limits.preconditions_max);
        if count > max {
            return Err(Invalid::TooManyPreconditions { count, max });
        }
        if self.operations.iter().any(|one| matches!(one.action, Action::RemoveExpired { .. })) {
            return Err(Invalid::NotForClients);
        }
        if self.has_range() {
            return self.validate_range(limits);
        }
        // No sum overflows: values are checked one by one first, and there are few of them.
        let mut total = 0;
        for key in self.keys() {
            total += check_key(key.len(), limits)?;
        }
        for operation in &self.operations {
            total += check_value(value_bytes(&operation.action), limits)?;
        }
        let max = limits.command_bytes_max;
        if total > max {
            return Err(Invalid::CommandTooLarge { bytes: total, max });
        }
        Ok(())
    }

    fn validate_range(&self, limits: &Limits) -> Result<(), Invalid> {
        let [operation] = &self.operations[..] else { return Err(Invalid::RangeNotAlone) };
        if !self.preconditions.is_empty() {
            return Err(Invalid::RangeNotAlone);
        }
        let (Action::Scan { range, limit, .. } | Action::DeleteRange { range, limit }) = &operation.action
        else {
            return Ok(());
        };
        if *limit == 0 {
            return Err(Invalid::NoKeys);
        }
        // Its ends need not be keys: empty is before all of them.
        let max = limits.key_bytes_max;
        let too_long =
            [Some(&range.start), range.end.as_ref()].into_iter().flatten().find(|key| key.len() > max);
        too_long.map_or(Ok(()), |key| Err(Invalid::KeyTooLong { bytes: key.len(), max }))
    }
}

fn check_key(bytes: usize, limits: &Limits) -> Result<usize, Invalid> {
    let max = limits.key_bytes_max;
    match bytes {
        0 => Err(Invalid::EmptyKey),
        bytes if bytes > max => Err(Invalid::KeyTooLong { bytes, max }),
        bytes => Ok(bytes),
    }
}

fn check_value(bytes: usize, limits: &Limits) -> Result<usize, Invalid> {
    let max = limits.value_bytes_max;
    if bytes > max { Err(Invalid::ValueTooLarge { bytes, max }) } else { Ok(bytes) }
}

fn value_bytes(action: &Action) -> usize {
    match action {
        Action::Put { value, .. } => value.len(),
        Action::Append { suffix, .. } => suffix.len(),
        // The zeros before the bytes are written too.
        Action::SetRange { offset, bytes, .. } => (*offset as usize).saturating_add(bytes.len()),
        Action::Get { .. }
        | Action::Delete { .. }
        | Action::SetExpiry { .. }
        | Action::RemoveExpired { .. }
        | Action::Increment { .. }
        | Action::Scan { .. }
        | Action::DeleteRange { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::command::{Expect, OnError, Operation, Precondition};

    fn put(key: &'static str, value_bytes: usize) -> Action {
        Action::put(key, vec![0; value_bytes])
    }

    fn small() -> Limits {
        Limits {
            key_bytes_max: 4,
            value_bytes_max: 8,
            operations_max: 2,
            preconditions_max: 1,
            command_bytes_max: 20,
        }
    }

    fn command(actions: Vec<Action>) -> Command {
        let mut command = Command::single(Action::Get { key: "k".into() });
        let operation = |action| Operation { action, on_error: OnError::Abort };
        command.operations = actions.into_iter().map(operation).collect();
        command
    }

    #[test]
    fn a_command_at_the_limits_is_valid() {
        assert_eq!(command(vec![put("four", 8), put("four", 4)]).validate(&small()), Ok(()));
        assert_eq!(Command::single(put("k", 0)).validate(&Limits::default()), Ok(()));
    }

    #[test]
    fn a_command_past_a_limit_is_refused_with_the_limit() {
        let refusal = |command: Command| command.validate(&small()).unwrap_err();
        assert_eq!(refusal(command(vec![])), Invalid::NoOperations);
        assert_eq!(refusal(command(vec![put("", 1)])), Invalid::EmptyKey);
        assert_eq!(refusal(command(vec![put("fives", 1)])), Invalid::KeyTooLong { bytes: 5, max: 4 });
        assert_eq!(refusal(command(vec![put("k", 9)])), Invalid::ValueTooLarge { bytes: 9, max: 8 });
        assert_eq!(
            refusal(command(vec![put("k", 1), put("k", 1), put("k", 1)])),
            Invalid::TooManyOperations { count: 3, max: 2 }
        );
        assert_eq!(
            refusal(command(vec![put("four", 8), put("four", 5)])),
            Invalid::CommandTooLarge { bytes: 21, max: 20 }
        );
    }

    #[test]
    fn a_range_is_a_command_of_its_own() {
        use crate::range::KeyRange;
        let scan = |start: &'static str, limit| {
            let range = KeyRange { start: start.into(), end: Some(Bytes::from("z")) };
            Action::Scan { range, limit, bytes_max: 1 }
        };
        let delete = |end| {
            let range = KeyRange { start: Bytes::new(), end };
            Action::DeleteRange { range, limit: 1 }
        };
        assert_eq!(command(vec![scan("", 1)]).validate(&small()), Ok(()));
        assert_eq!(command(vec![delete(None)]).validate(&small()), Ok(()));
        let refusal = |command: Command| command.validate(&small()).unwrap_err();
        assert_eq!(refusal(command(vec![scan("a", 1), put("k", 1)])), Invalid::RangeNotAlone);
        assert_eq!(refusal(command(vec![delete(None), delete(None)])), Invalid::RangeNotAlone);
        let preconditions = vec![Precondition { key: "k".into(), expect: Expect::Absent }];
        let conditional = Command { preconditions, ..command(vec![delete(None)]) };
        assert_eq!(refusal(conditional), Invalid::RangeNotAlone);
        assert_eq!(refusal(command(vec![scan("a", 0)])), Invalid::NoKeys);
        let too_long = Invalid::KeyTooLong { bytes: 5, max: 4 };
        assert_eq!(refusal(command(vec![scan("fives", 1)])), too_long);
        assert_eq!(refusal(command(vec![delete(Some("fives".into()))])), too_long);
    }

    #[test]
    fn preconditions_and_suffixes_count_too() {
        let mut bad = Command::single(put("k", 1));
        let condition = |key| Precondition { key, expect: Expect::Absent };
        bad.preconditions = vec![condition(Bytes::new())];
        assert_eq!(bad.validate(&small()), Err(Invalid::EmptyKey));
        bad.preconditions = vec![condition("a".into()), condition("b".into())];
        let refusal = bad.validate(&small()).unwrap_err();
        assert_eq!(refusal, Invalid::TooManyPreconditions { count: 2, max: 1 });
        let append = Action::Append { key: "k".into(), suffix: vec![0; 9].into() };
        let refusal = Command::single(append).validate(&small()).unwrap_err();
        assert_eq!(refusal.kind(), ErrorKind::TooLarge);
    }
}
