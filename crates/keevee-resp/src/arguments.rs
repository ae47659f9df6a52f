//! Arguments: numbers, options, times; and what is told about wrong ones, in Redis's words.

use bytes::Bytes;
use keevee_core::command::Expiry;

use crate::parser;

/// Why a request is no call: an error reply, and nothing happens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// There is no such command.
    #[error("ERR unknown command '{name}', with args beginning with: {arguments}")]
    UnknownCommand {
        /// As it was sent.
        name: String,
        /// The first arguments.
        arguments: String,
    },
    /// There is no such subcommand.
    #[error("ERR unknown subcommand '{subcommand}'. Try {command} HELP.")]
    UnknownSubcommand {
        /// The command, in capitals.
        command: &'static str,
        /// As it was sent.
        subcommand: String,
    },
    /// Too few arguments, or too many.
    #[error("ERR wrong number of arguments for '{0}' command")]
    Count(String),
    /// Options contradict each other, or there are none of that name.
    #[error("ERR syntax error")]
    Syntax,
    /// No number of 64 bits.
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    /// A time that is not one.
    #[error("ERR invalid expire time in '{0}' command")]
    ExpireTime(&'static str),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl ArgumentError {
    /// With the code that has no other.
    pub(crate) fn other(text: impl std::fmt::Display) -> ArgumentError {
        ArgumentError::Other(format!("ERR {text}"))
    }
}

/// A number.
pub(crate) fn integer(argument: &Bytes) -> Result<i64, ArgumentError> {
    parser::integer(argument).ok_or(ArgumentError::NotAnInteger)
}

/// True if the argument is this word, in whatever case.
pub(crate) fn is(argument: &Bytes, word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

/// As text for an error or a log: short, and without what would break a line.
pub(crate) fn shown(argument: &[u8], bytes_max: usize) -> String {
    String::from_utf8_lossy(&argument[..argument.len().min(bytes_max)]).into_owned()
}

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeUnit {
    Seconds,
    Milliseconds,
}

impl TimeUnit {
    pub(crate) fn micros(self) -> u64 {
        match self {
            TimeUnit::Seconds => 1_000_000,
            TimeUnit::Milliseconds => 1_000,
        }
    }
}

/// From when a time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeBase {
    Now,
    UnixEpoch,
}

/// The option names of a time, as SET and GETEX have them.
pub(crate) fn time_option(argument: &Bytes) -> Option<(TimeUnit, TimeBase)> {
    let options = [
        ("EX", TimeUnit::Seconds, TimeBase::Now),
        ("PX", TimeUnit::Milliseconds, TimeBase::Now),
        ("EXAT", TimeUnit::Seconds, TimeBase::UnixEpoch),
        ("PXAT", TimeUnit::Milliseconds, TimeBase::UnixEpoch),
    ];
    options.into_iter().find(|(name, ..)| is(argument, name)).map(|(_, unit, base)| (unit, base))
}

/// An expiry; one that has come already is the beginning of time.
pub(crate) fn expiry(
    argument: &Bytes,
    (unit, base): (TimeUnit, TimeBase),
    command: &'static str,
) -> Result<Expiry, ArgumentError> {
    let number = integer(argument)?;
    // So it is with Redis, too: what it can't count in milliseconds is refused, even if that was long ago.
    if unit == TimeUnit::Seconds && number < i64::MIN / 1_000 {
        return Err(ArgumentError::ExpireTime(command));
    }
    let Ok(number) = u64::try_from(number) else { return Ok(Expiry::At(0)) };
    // Redis counts milliseconds in 63 bits, the store microseconds in 64: what it can't hold is refused as what Redis
    // can't.
    let micros = number.checked_mul(unit.micros()).filter(|micros| *micros <= TIME_MAX);
    let micros = micros.ok_or(ArgumentError::ExpireTime(command))?;
    Ok(match base {
        TimeBase::Now if micros == 0 => Expiry::At(0),
        TimeBase::Now => Expiry::After(micros),
        TimeBase::UnixEpoch => Expiry::At(micros),
    })
}

/// Leaves room for what shard time is added to it.
const TIME_MAX: u64 = u64::MAX / 2;

/// As [`expiry`], of a command that wants a time to come or at least after the epoch.
pub(crate) fn positive_expiry(
    argument: &Bytes,
    time: (TimeUnit, TimeBase),
    command: &'static str,
) -> Result<Expiry, ArgumentError> {
    if integer(argument)? <= 0 {
        return Err(ArgumentError::ExpireTime(command));
    }
    expiry(argument, time, command)
}
