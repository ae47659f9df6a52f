//! The kinds of errors, the same in every protocol: each tells the caller what to do next.

use std::fmt;

/// What went wrong, as far as a caller must know to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong; nothing happened.
    Invalid,
    /// The request is larger than the limits allow; nothing happened.
    TooLarge,
    /// The key is absent.
    NotFound,
    /// A precondition failed; nothing happened.
    Conflict,
    /// The request id came before with another payload; nothing happened.
    RequestReused,
    /// The request id is too old to know; nothing happened now.
    RequestExpired,
    /// Another node leads; only for callers that asked not to be forwarded.
    NotLeader,
    /// Another shard owns the key; only for callers that asked not to be forwarded.
    WrongShard,
    /// Nothing happened and nothing will: retry later.
    Unavailable,
    /// The command may have taken effect, or may yet: read, or retry under the same request id.
    OutcomeUnknown,
    /// The node stops.
    Fatal,
}

impl ErrorKind {
    /// Every kind, in the order of the documentation's table.
    pub const ALL: [ErrorKind; 11] = [
        ErrorKind::Invalid,
        ErrorKind::TooLarge,
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::RequestReused,
        ErrorKind::RequestExpired,
        ErrorKind::NotLeader,
        ErrorKind::WrongShard,
        ErrorKind::Unavailable,
        ErrorKind::OutcomeUnknown,
        ErrorKind::Fatal,
    ];

    /// The kind's name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Invalid => "invalid",
            ErrorKind::TooLarge => "too_large",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Conflict => "conflict",
            ErrorKind::RequestReused => "request_reused",
            ErrorKind::RequestExpired => "request_expired",
            ErrorKind::NotLeader => "not_leader",
            ErrorKind::WrongShard => "wrong_shard",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::OutcomeUnknown => "outcome_unknown",
            ErrorKind::Fatal => "fatal",
        }
    }

    /// The kind of this name, if there is one.
    pub fn from_name(name: &str) -> Option<ErrorKind> {
        ErrorKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
