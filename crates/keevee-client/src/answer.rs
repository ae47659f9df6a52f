//! What a node answered, as Rust values: errors, values, the state of nodes.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use keevee_core::command::OperationError;
use keevee_core::error::ErrorKind;
use keevee_core::kv;
use serde::{Deserialize, Serialize};

use crate::batch;

/// Why a call has no result. [`Error::kind`] tells what is known; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Error {
    /// What is known, and so what to do next.
    pub kind: ErrorKind,
    /// What happened.
    pub detail: String,
    /// When to try again, if the node said so.
    pub retry_after: Option<Duration>,
    /// Of a conflict: the version that the key has, if it holds a value and the node said so.
    pub version: Option<u64>,
    /// Of a batch's conflict: which of its conditions did not hold, from 0.
    pub condition: Option<usize>,
    /// Of a batch, an increment or an append that did nothing because an operation failed: which, and why.
    pub failed: Option<FailedOperation>,
    /// Of a delete of a range that stopped before its end: how many keys it is known to have removed.
    pub deleted: Option<u64>,
}

/// An operation that failed, and with it all of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedOperation {
    /// Its place in the batch, from 0.
    pub operation: usize,
    /// Why it failed.
    pub error: OperationError,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Error {
        let detail = detail.into();
        let (version, condition, failed, deleted) = (None, None, None, None);
        Error { kind, detail, retry_after: None, version, condition, failed, deleted }
    }

    /// A success that can't be read: what was asked for happened, but we can't say what came of it.
    pub(crate) fn unreadable(why: &str) -> Error {
        let detail = format!("the node's answer can't be read: {why}; is this a keevee node?");
        Error::new(ErrorKind::OutcomeUnknown, detail)
    }

    /// What a node said of one request. A kind that this version does not know says nothing.
    pub(crate) fn from_wire(error: kv::Error) -> Error {
        let known = ErrorKind::ALL.into_iter().find(|kind| kv::ErrorKind::from(*kind) == error.kind());
        let why = batch::failure(error.operation_error);
        let place = |number: u64| usize::try_from(number).ok();
        let failed = error.operation.and_then(place).zip(why);
        Error {
            kind: known.unwrap_or(ErrorKind::OutcomeUnknown),
            detail: error.detail,
            retry_after: error.retry_after_ms.map(Duration::from_millis),
            version: error.version,
            condition: error.precondition.and_then(place),
            failed: failed.map(|(operation, error)| FailedOperation { operation, error }),
            deleted: None,
        }
    }
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The shard's mutation counter at the last write of the key: pass it to a conditional write.
    pub version: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// When the key is gone by the servers' clocks, in milliseconds since the Unix epoch, if it ever is.
    pub expires_ms: Option<u64>,
}

/// One shard's replica on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The shard.
    pub shard: u32,
    /// The consensus engine's name.
    pub engine: String,
    /// `leader`, `candidate` or `follower`; `rebuilding` while its state was lost and is fetched from another node.
    pub role: String,
    /// The leader's node id, if known.
    pub leader: Option<u64>,
    /// The highest ballot promised.
    pub ballot: String,
    /// The last index in the log.
    pub last: u64,
    /// Everything up to here is chosen.
    pub chosen: u64,
    /// Everything up to here is applied.
    pub applied: u64,
    /// The chain hash at `applied`, in hexadecimal.
    pub chain: String,
    /// True while nobody asks the shard anything: its replicas say nothing to each other.
    #[serde(default)]
    pub quiesced: bool,
    /// The last scrub that the replica took part in, since it was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubStatus>,
}

impl ShardStatus {
    /// True while the replica has no state of its own to answer from.
    pub fn is_rebuilding(&self) -> bool {
        self.role == "rebuilding"
    }
}

/// What came of a comparison of a shard's replicas: of what their states held at one index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// The index.
    pub index: u64,
    /// When the replica had read its own state, in milliseconds since the Unix epoch.
    pub ended_unix_ms: u64,
    /// How many records it held.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nodes whose states held the same, this one among them.
    pub agree: Vec<u64>,
    /// Nodes whose states did not. Of those in neither nothing is known.
    pub differ: Vec<u64>,
}

/// A node and its shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The cluster.
    pub cluster_id: String,
    /// The node.
    pub node_id: u64,
    /// The version of its program.
    pub version: String,
    /// True while its clock differs from most others', and it therefore leads no shard.
    #[serde(default)]
    pub clock_off: bool,
    /// True while its disk is nearly full, so that it leads no shard if others can.
    #[serde(default)]
    pub disk_low: bool,
    /// Each shard that has a replica there.
    pub shards: Vec<ShardStatus>,
}

/// A node as another one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The node.
    pub id: u64,
    /// Its public address.
    pub http: String,
    /// Its address for peers.
    pub peer: String,
    /// Its address for clients that speak the Redis protocol, if it listens for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resp: Option<String>,
    /// True if it answers.
    pub reachable: bool,
    /// True if it was drained: it gets no replicas until it is added again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drained: bool,
    /// How many entries it is behind the leader, as far as the asked node knows.
    pub lag: Option<u64>,
}

/// One complete HTTP response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

#[derive(Deserialize)]
struct Problem {
    kind: String,
    #[serde(default)]
    detail: String,
    version: Option<u64>,
}

#[derive(Deserialize)]
struct Written {
    version: u64,
}

impl Answer {
    /// The answer itself if it reports success, else what it says went wrong.
    pub(crate) fn success(self) -> Result<Answer, Error> {
        if self.status.is_success() { Ok(self) } else { Err(self.error()) }
    }

    fn error(&self) -> Error {
        let retry_after = self.header(header::RETRY_AFTER).and_then(|text| text.parse().ok());
        let mut error = match serde_json::from_slice::<Problem>(&self.body) {
            Ok(problem) => {
                let kind = ErrorKind::from_name(&problem.kind);
                let mut error = Error::new(kind.unwrap_or(self.kind_of_status()), problem.detail);
                error.version = problem.version;
                error
            }
            Err(_) => Error::new(
                self.kind_of_status(),
                format!("an answer that is not keevee's: HTTP status {}", self.status.as_u16()),
            ),
        };
        error.retry_after = retry_after.map(Duration::from_secs);
        error
    }

    /// For answers without a kind that we know (from a proxy, or a newer node): the cautious one.
    fn kind_of_status(&self) -> ErrorKind {
        match self.status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::PRECONDITION_FAILED => ErrorKind::Conflict,
            StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::TooLarge,
            status if status.is_client_error() => ErrorKind::Invalid,
            _ => ErrorKind::OutcomeUnknown,
        }
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Reads the answer to a get.
    pub(crate) fn into_value(self) -> Result<Value, Error> {
        let version = self.header(header::ETAG).and_then(parse_etag);
        match version {
            Some(version) => Ok(Value { version, bytes: self.body, expires_ms: None }),
            None => Err(Error::unreadable("it has no ETag with a version")),
        }
    }

    /// Reads the answer to a put: the version.
    pub(crate) fn version(&self) -> Result<u64, Error> {
        self.json::<Written>().map(|written| written.version)
    }

    pub(crate) fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::unreadable(&error.to_string()))
    }
}

fn parse_etag(text: &str) -> Option<u64> {
    text.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn problems_carry_their_kind() {
        let body = r#"{"kind":"conflict","detail":"version 3 is not 2","version":3,"status":412}"#;
        let error = answer(412, body).success().expect_err("a refusal");
        assert_eq!((error.kind, error.version), (ErrorKind::Conflict, Some(3)));
        assert_eq!(error.to_string(), "conflict: version 3 is not 2");
    }

    #[test]
    fn answers_of_others_are_read_with_caution() {
        for (status, kind) in [
            (502, ErrorKind::OutcomeUnknown),
            (503, ErrorKind::OutcomeUnknown),
            (302, ErrorKind::OutcomeUnknown),
            (404, ErrorKind::NotFound),
            (401, ErrorKind::Invalid),
        ] {
            let error = answer(status, "<html>").success().expect_err("no success");
            assert_eq!(error.kind, kind, "status {status}");
        }
    }

    #[test]
    fn versions_are_read_from_etags() {
        assert_eq!(parse_etag("\"17\""), Some(17));
        for text in ["17", "W/\"17\"", "\"x\"", "\"", ""] {
            assert_eq!(parse_etag(text), None, "{text}");
        }
    }
}
