//! Errors as `application/problem+json` (RFC 9457), with the `kind` that every protocol shares.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use keevee_core::command::{OperationError, OperationResult, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::limits::Invalid;

use crate::cut::CutFailure;
use crate::map_keeper::MapError;
use crate::node::{ExecuteError, Hint};

/// Told to callers of a node that can't serve now, unless something better is known.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// A request that was not carried out, or of which nobody can say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status of the response: mostly that of `kind`.
    pub status: StatusCode,
    /// What the caller may do next.
    pub kind: ErrorKind,
    /// For people.
    pub detail: String,
    /// The version that the key has, where a precondition failed and the key holds a value.
    pub version: Option<u64>,
    /// A shard's clock, in microseconds since the Unix epoch, where a cut was asked for that does not fit it.
    pub clock: Option<u64>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// The methods that the path has, where the one used is not among them.
    pub allow: Option<&'static str>,
    /// Where to go instead.
    pub hint: Option<Box<Hint>>,
}

#[derive(serde::Serialize)]
struct ProblemJson<'a> {
    /// No page describes a problem any further: RFC 9457 then wants this, and the status' own title.
    r#type: &'static str,
    title: &'static str,
    status: u16,
    kind: &'static str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a Hint>,
}

impl Problem {
    /// With the status that belongs to the kind.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Problem {
        let retry_after = (kind == ErrorKind::Unavailable).then_some(RETRY_AFTER_DEFAULT);
        Problem {
            status: status(kind),
            kind,
            detail: detail.into(),
            version: None,
            clock: None,
            retry_after,
            allow: None,
            hint: None,
        }
    }

    /// The request is wrong.
    pub fn invalid(detail: impl Into<String>) -> Problem {
        Problem::new(ErrorKind::Invalid, detail)
    }

    /// With another status than the kind's own.
    pub fn with_status(self, status: StatusCode) -> Problem {
        Problem { status, ..self }
    }

    /// The path exists, but not with this method.
    pub fn method_not_allowed(allow: &'static str) -> Problem {
        let problem = Problem::invalid(format!("this path takes {allow}"));
        Problem { allow: Some(allow), ..problem.with_status(StatusCode::METHOD_NOT_ALLOWED) }
    }

    /// A precondition failed, and this is what the key has instead.
    pub(crate) fn conflict(version: Option<u64>) -> Problem {
        let detail = match version {
            Some(version) => format!("the key has version {version}"),
            None => "the key is absent".to_owned(),
        };
        Problem { version, ..Problem::new(ErrorKind::Conflict, detail) }
    }

    /// An answer to something else than was asked: only a fault of this program gets here.
    pub(crate) fn unexpected(result: &dyn std::fmt::Debug) -> Problem {
        tracing::error!("an operation came back with another's result");
        tracing::debug!(?result, "the result");
        Problem::new(
            ErrorKind::OutcomeUnknown,
            "the answer does not fit the request: this is a fault of the server",
        )
    }
}

/// What the operations of a command did, or why none did anything: the same in every protocol.
pub(crate) fn results(outcome: Outcome) -> Result<Vec<OperationResult>, Problem> {
    let refused = |kind, detail: &str| Err(Problem::new(kind, detail));
    match outcome {
        Outcome::Done(results) => Ok(results),
        Outcome::Conflict { version, .. } => Err(Problem::conflict(version)),
        Outcome::Aborted { error, .. } => Err(error.into()),
        Outcome::WrongShard => refused(ErrorKind::WrongShard, "another shard owns the key"),
        Outcome::RequestReused => {
            refused(ErrorKind::RequestReused, "the idempotency key came before, with another request")
        }
        Outcome::RequestExpired => {
            refused(ErrorKind::RequestExpired, "the idempotency key's time is outside what is remembered")
        }
        Outcome::RequestMemoryFull => {
            refused(ErrorKind::Unavailable, "too many recent idempotency keys are remembered")
        }
    }
}

/// Which part of a command failed, in words.
pub(crate) fn failed_part(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Conflict { precondition, .. } => Some(format!("precondition {precondition}, from 0")),
        Outcome::Aborted { operation, .. } => Some(format!("operation {operation}, from 0")),
        _ => None,
    }
}

/// The result of a command's only operation.
pub(crate) fn only_result(mut results: Vec<OperationResult>) -> Result<OperationResult, Problem> {
    match results.pop() {
        Some(OperationResult::Failed(error)) if results.is_empty() => Err(error.into()),
        Some(result) if results.is_empty() => Ok(result),
        last => Err(Problem::unexpected(&(results, last))),
    }
}

impl From<OperationError> for Problem {
    fn from(error: OperationError) -> Problem {
        let kind = match error {
            OperationError::ValueTooLarge | OperationError::AnswerTooLarge => ErrorKind::TooLarge,
            OperationError::NotAnInteger | OperationError::Overflow => ErrorKind::Invalid,
        };
        Problem::new(kind, error.to_string())
    }
}

impl From<ExecuteError> for Problem {
    fn from(error: ExecuteError) -> Problem {
        let problem = Problem::new(error.kind, error.detail);
        let retry_after = error.retry_after.or(problem.retry_after);
        Problem { retry_after, hint: error.hint, ..problem }
    }
}

impl From<MapError> for Problem {
    fn from(error: MapError) -> Problem {
        let problem = Problem::new(error.kind(), error.to_string());
        match error {
            // Of two changes at once; a change of a key gets 412, as it named the version itself.
            MapError::Raced => problem.with_status(StatusCode::CONFLICT),
            _ => problem,
        }
    }
}

impl From<CutFailure> for Problem {
    fn from(failure: CutFailure) -> Problem {
        match failure {
            CutFailure::Refused(error) => error.into(),
            CutFailure::Time { kind, detail, clock } => {
                Problem { clock: Some(clock), ..Problem::new(kind, detail) }
            }
        }
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Problem {
        let is_too_large = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
        let kind = if is_too_large { ErrorKind::TooLarge } else { ErrorKind::Invalid };
        Problem::new(kind, rejection.body_text())
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Problem {
        Problem::new(invalid.kind(), invalid.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let json = ProblemJson {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            kind: self.kind.name(),
            detail: &self.detail,
            version: self.version,
            clock: self.clock,
            hint: self.hint.as_deref(),
        };
        // Strings and numbers only: this can't fail.
        let body = serde_json::to_vec(&json).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(retry_after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_seconds(retry_after)));
        }
        if let Some(allow) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// Whole seconds, and never "at once".
pub(crate) fn retry_after_seconds(retry_after: Duration) -> u64 {
    retry_after.as_millis().div_ceil(1000).clamp(1, 3600) as u64
}

/// The one mapping from kinds to statuses.
pub fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::PRECONDITION_FAILED,
        ErrorKind::RequestReused => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::RequestExpired => StatusCode::GONE,
        ErrorKind::NotLeader | ErrorKind::WrongShard => StatusCode::MISDIRECTED_REQUEST,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Fatal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
