//! What a command that failed leaves behind: a text for people and an exit code for scripts.

use std::fmt;
use std::io;

use keevee_client::{EndpointError, ErrorKind};
use keevee_cluster::{ClusterError, ConfigError};

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code, as `keevee --help` lists them.
    pub(crate) code: u8,
    message: String,
}

impl Failure {
    /// A failure that has no exit code of its own.
    pub(crate) fn other(message: impl fmt::Display) -> Failure {
        Failure { code: 1, message: message.to_string() }
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl fmt::Display) -> Failure {
        Failure { code: 2, message: message.to_string() }
    }

    /// What a node or the client says went wrong.
    pub(crate) fn of_kind(kind: ErrorKind, message: impl fmt::Display) -> Failure {
        let (code, fix) = match kind {
            ErrorKind::NotFound => (3, ""),
            ErrorKind::Conflict => (4, "; look again and decide anew"),
            ErrorKind::Unavailable | ErrorKind::NotLeader | ErrorKind::WrongShard => {
                (5, "; is the cluster running? `keevee cluster start`, or name its nodes with --endpoint")
            }
            ErrorKind::OutcomeUnknown => (6, "; look whether it happened"),
            ErrorKind::Fatal => (1, "; that node has stopped: see its log"),
            ErrorKind::RequestExpired => (2, "; is this machine's clock right?"),
            ErrorKind::RequestReused => (2, "; use a new --request-id"),
            ErrorKind::Invalid | ErrorKind::TooLarge => (2, ""),
        };
        Failure { code, message: format!("{message}{fix}") }
    }

    /// There is no such key.
    pub(crate) fn absent(key: &str) -> Failure {
        Failure { code: 3, message: format!("not_found: {key:?} holds no value") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl From<keevee_client::Error> for Failure {
    fn from(error: keevee_client::Error) -> Failure {
        Failure::of_kind(error.kind, error)
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Failure {
        Failure::other(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::usage(error)
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Failure {
        Failure::usage(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::other(error)
    }
}
