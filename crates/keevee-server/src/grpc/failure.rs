//! Errors as gRPC has them: a status, and in the trailers the `kind` that every protocol shares.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use keevee_core::command::{OperationResult, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::kv::{self, Error, NoCommand, OperationError};
use keevee_core::limits::Invalid;
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::http::problem::{self, Problem};
use crate::node::{ExecuteError, Hint};

/// The kind's name.
const KIND: &str = "keevee-kind";
/// All that is known, as an encoded [`Error`].
const ERROR: &str = "keevee-error-bin";
/// As HTTP's header.
const RETRY_AFTER: &str = "retry-after";

/// A request that was not carried out, or of which nobody can say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    /// What the caller may do next.
    pub(crate) kind: ErrorKind,
    /// The status of a unary call: mostly that of `kind`.
    code: Code,
    /// What a response on a stream says.
    pub(crate) error: Error,
}

impl Failure {
    /// The protocol has it, this server does not.
    pub(crate) fn unimplemented(detail: &str) -> Failure {
        Failure { code: Code::Unimplemented, ..Problem::invalid(detail).into() }
    }

    /// As the end of a call.
    pub(crate) fn status(&self) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(KIND, MetadataValue::from_static(self.kind.name()));
        metadata.insert_bin(ERROR, MetadataValue::from_bytes(&self.error.encode_to_vec()));
        if let Some(milliseconds) = self.error.retry_after_ms {
            let seconds = problem::retry_after_seconds(Duration::from_millis(milliseconds));
            metadata.insert(RETRY_AFTER, MetadataValue::from(seconds));
        }
        Status::with_metadata(self.code, self.error.detail.as_str(), metadata)
    }

    /// As the end of a stream that has begun.
    pub(crate) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        // It percent-encodes what a header can't hold, so that nothing is left to fail.
        let _ = self.status().add_header(&mut trailers);
        trailers
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.status().into_http::<Body>()
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        let milliseconds = |duration: Duration| duration.as_millis() as u64;
        let error = Error {
            kind: keevee_core::kv::ErrorKind::from(problem.kind).into(),
            detail: problem.detail,
            version: problem.version,
            retry_after_ms: problem.retry_after.map(milliseconds),
            hint: problem.hint.map(|hint| Box::new(written(*hint))),
            ..Error::default()
        };
        Failure { kind: problem.kind, code: code(problem.kind), error }
    }
}

fn written(hint: Hint) -> kv::Hint {
    let Hint { shard, epoch, leader, address } = hint;
    kv::Hint { shard, epoch, leader: leader.unwrap_or_default(), address: address.unwrap_or_default() }
}

impl From<ExecuteError> for Failure {
    fn from(error: ExecuteError) -> Failure {
        Problem::from(error).into()
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Failure {
        Problem::from(invalid).into()
    }
}

impl From<NoCommand> for Failure {
    fn from(error: NoCommand) -> Failure {
        Problem::invalid(error.to_string()).into()
    }
}

/// What the operations of a command did; or why none did anything, and which part of the command it was.
pub(super) fn results(outcome: Outcome) -> Result<Vec<OperationResult>, Failure> {
    let mut part = Error::default();
    match outcome {
        Outcome::Conflict { precondition, .. } => part.precondition = Some(precondition as u64),
        Outcome::Aborted { operation, error } => {
            part.operation = Some(operation as u64);
            part.operation_error = OperationError::from(error).into();
        }
        _ => {}
    }
    problem::results(outcome).map_err(|problem| {
        let failure = Failure::from(problem);
        let Error { precondition, operation, operation_error, .. } = part;
        Failure { error: Error { precondition, operation, operation_error, ..failure.error }, ..failure }
    })
}

/// The one mapping from kinds to status codes.
///
/// gRPC says what a client may do by itself at each code, and these hold: `UNAVAILABLE` may be repeated,
/// `ABORTED` is a test-and-set to be begun anew, and after `DEADLINE_EXCEEDED` a write may have happened, which
/// a client's own deadline means too.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::TooLarge => Code::ResourceExhausted,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::RequestReused => Code::AlreadyExists,
        ErrorKind::RequestExpired => Code::OutOfRange,
        ErrorKind::NotLeader | ErrorKind::WrongShard => Code::FailedPrecondition,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::OutcomeUnknown => Code::DeadlineExceeded,
        ErrorKind::Fatal => Code::Internal,
    }
}
