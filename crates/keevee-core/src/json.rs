//! Keys, values and batches as JSON, the same over HTTP and on the command line.
//!
//! Keys and values are bytes. Those that are UTF-8 are strings (`"key"`, `"value"`); others are base64 under a name that
//! says so (`"key_base64"`, `"value_base64"`). Either may be given.
//!
//! ```json
//! {"preconditions": [{"key": "{order-7}state", "expect": "present"}, {"key": "{order-7}total", "expect": 3}],
//!  "operations": [{"action": "put", "key": "{order-7}state", "value": "paid"},
//!                 {"action": "increment", "key": "{order-7}payments", "by": 2, "continue_on_error": true},
//!                 {"action": "append", "key": "{order-7}log", "value": "paid\n"},
//!                 {"action": "get", "key": "{order-7}items"}, {"action": "delete", "key": "{order-7}draft"},
//!                 {"action": "put", "key": "{order-7}lock", "value": "me", "ttl_ms": 30000, "only": "if_absent"},
//!                 {"action": "set_expiry", "key": "{order-7}cart", "expires_ms": 1767225600000, "only": "if_later"},
//!                 {"action": "set_range", "key": "{order-7}flags", "offset": 4, "value": "x"}]}
//! ```
//!
//! A put, and `set_expiry`, say when the key is gone: `ttl_ms` after the write, at `expires_ms` since the Unix epoch, or with
//! `keep_expiry` as before. Without any of these the key stays.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess};
use serde::{Deserialize, Serialize};

use crate::command::{self, Action, Command, Expect, Expiry, ExpiryOnly, OnError, Only, OperationResult};

/// A key that a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
}

impl Entry {
    /// A key, its version and its value, and when it is gone, if ever.
    pub fn new(key: &[u8], version: u64, value: &[u8], expires_ms: Option<u64>) -> Entry {
        let ((key, key_base64), (value, value_base64)) = (forms(key), forms(value));
        Entry { key, key_base64, version, value, value_base64, expires_ms }
    }
}

/// Bytes as text and as base64: one of them.
fn forms(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// Conditions and operations that a shard applies as one.
#[derive(Clone, Debug, Deserialize)]
pub struct Batch(Object<Parts>);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    /// All must hold, or nothing happens.
    #[serde(default)]
    preconditions: Vec<Object<Precondition>>,
    operations: Vec<Object<Operation>>,
}

/// What is written as a JSON object, and as nothing else: serde would take an array for it, too, whose members are its
/// fields in the order of the source text.
#[derive(Clone, Debug)]
pub struct Object<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Object<T>, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: DeserializeOwned> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object with named fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Precondition {
    key: Option<String>,
    key_base64: Option<String>,
    expect: Expected,
}

/// `"absent"`, `"present"`, or a version.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "`expect` is \"absent\", \"present\" or a version")]
enum Expected {
    Word(Word),
    Version(u64),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Absent,
    Present,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    action: Name,
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    by: Option<i64>,
    offset: Option<u32>,
    ttl_ms: Option<u64>,
    expires_ms: Option<u64>,
    #[serde(default)]
    keep_expiry: bool,
    only: Option<Demand>,
    #[serde(default)]
    continue_on_error: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    Get,
    Put,
    Delete,
    Increment,
    Append,
    SetExpiry,
    SetRange,
}

/// What a put, or a change of its expiry, demands of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::enum_variant_names, reason = "as they are written")]
enum Demand {
    IfAbsent,
    IfPresent,
    IfNone,
    IfSome,
    IfLater,
    IfSooner,
    IfSomeAndSooner,
}

/// What is wrong with a batch that is of the right form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} {number}, from 0: {what}")]
pub struct BadBatch {
    place: &'static str,
    number: usize,
    what: &'static str,
}

impl Batch {
    /// The command that it stands for, without a request id.
    ///
    /// # Errors
    ///
    /// If a part has too much or too little.
    pub fn command(self) -> std::result::Result<Command, BadBatch> {
        let Batch(Object(Parts { preconditions, operations })) = self;
        let (preconditions, operations) = (preconditions.into_iter(), operations.into_iter());
        let bad = |place, number| move |what| BadBatch { place, number, what };
        let preconditions = preconditions.enumerate().map(|(number, Object(precondition))| {
            let Precondition { key, key_base64, expect } = precondition;
            let key = key_of(key, key_base64).map_err(bad("precondition", number))?;
            let expect = match expect {
                Expected::Word(Word::Absent) => Expect::Absent,
                Expected::Word(Word::Present) => Expect::Present,
                Expected::Version(version) => Expect::Version(version),
            };
            Ok(command::Precondition { key, expect })
        });
        let operations = operations
            .enumerate()
            .map(|(number, Object(operation))| operation.into_core().map_err(bad("operation", number)));
        Ok(Command {
            preconditions: preconditions.collect::<std::result::Result<_, _>>()?,
            operations: operations.collect::<std::result::Result<_, _>>()?,
            ..Command::single(Action::Get { key: Bytes::new() })
        })
    }
}

impl Operation {
    fn into_core(self) -> std::result::Result<command::Operation, &'static str> {
        let key = key_of(self.key, self.key_base64)?;
        let value = bytes(self.value, self.value_base64)?;
        if self.by.is_some() && self.action != Name::Increment {
            return Err("`by` is of `increment`");
        }
        if self.offset.is_some() && self.action != Name::SetRange {
            return Err("`offset` is of `set_range`");
        }
        let expires = expiry(self.ttl_ms, self.expires_ms, self.keep_expiry)?;
        if expires != Expiry::Never && !matches!(self.action, Name::Put | Name::SetExpiry) {
            return Err("an expiry is of `put` and `set_expiry`");
        }
        if self.only.is_some() && !matches!(self.action, Name::Put | Name::SetExpiry) {
            return Err("`only` is of `put` and `set_expiry`");
        }
        let action = match (self.action, value) {
            (Name::Put, Some(value)) => Action::Put { key, value, expires, only: only(self.only)? },
            (Name::Append, Some(suffix)) => Action::Append { key, suffix },
            (Name::SetRange, Some(bytes)) => {
                let offset = self.offset.ok_or("`offset` is missing")?;
                Action::SetRange { key, offset, bytes }
            }
            (Name::Put | Name::Append | Name::SetRange, None) => {
                return Err("`value` or `value_base64` is missing");
            }
            (_, Some(_)) => return Err("`value` is of `put`, `append` and `set_range`"),
            (Name::SetExpiry, None) => Action::SetExpiry { key, expires, only: expiry_only(self.only)? },
            (Name::Get, None) => Action::Get { key },
            (Name::Delete, None) => Action::Delete { key },
            (Name::Increment, None) => Action::Increment { key, by: self.by.unwrap_or(1) },
        };
        let on_error = if self.continue_on_error { OnError::Continue } else { OnError::Abort };
        Ok(command::Operation { action, on_error })
    }
}

fn expiry(
    ttl_ms: Option<u64>,
    expires_ms: Option<u64>,
    keep: bool,
) -> std::result::Result<Expiry, &'static str> {
    match (ttl_ms, expires_ms, keep) {
        (None, None, false) => Ok(Expiry::Never),
        (Some(span), None, false) => Ok(Expiry::After(span.saturating_mul(1_000))),
        (None, Some(time), false) => Ok(Expiry::At(time.saturating_mul(1_000))),
        (None, None, true) => Ok(Expiry::Keep),
        _ => Err("of `ttl_ms`, `expires_ms` and `keep_expiry` there may be one"),
    }
}

fn only(demand: Option<Demand>) -> std::result::Result<Only, &'static str> {
    match demand {
        None => Ok(Only::Always),
        Some(Demand::IfAbsent) => Ok(Only::IfAbsent),
        Some(Demand::IfPresent) => Ok(Only::IfPresent),
        Some(_) => Err("`only` of a put is \"if_absent\" or \"if_present\""),
    }
}

fn expiry_only(demand: Option<Demand>) -> std::result::Result<ExpiryOnly, &'static str> {
    match demand {
        None => Ok(ExpiryOnly::Always),
        Some(Demand::IfNone) => Ok(ExpiryOnly::IfNone),
        Some(Demand::IfSome) => Ok(ExpiryOnly::IfSome),
        Some(Demand::IfLater) => Ok(ExpiryOnly::IfLater),
        Some(Demand::IfSooner) => Ok(ExpiryOnly::IfSooner),
        Some(Demand::IfSomeAndSooner) => Ok(ExpiryOnly::IfSomeAndSooner),
        Some(_) => Err(
            "`only` of `set_expiry` is \"if_none\", \"if_some\", \"if_later\", \"if_sooner\" or \"if_some_and_sooner\"",
        ),
    }
}

fn key_of(text: Option<String>, base64: Option<String>) -> std::result::Result<Bytes, &'static str> {
    bytes(text, base64)?.ok_or("`key` or `key_base64` is missing")
}

fn bytes(text: Option<String>, base64: Option<String>) -> std::result::Result<Option<Bytes>, &'static str> {
    match (text, base64) {
        (Some(_), Some(_)) => Err("something is given twice, as text and as base64"),
        (None, Some(base64)) => {
            let decoded = STANDARD.decode(base64).map_err(|_| "something called base64 is none")?;
            Ok(Some(decoded.into()))
        }
        (text, None) => Ok(text.map(Bytes::from)),
    }
}

/// What one operation did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Result {
    /// Of a get: whether the key holds a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<bool>,
    /// Of a delete: whether the key held a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<bool>,
    /// The version that the key has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Of a get: what the key holds, if it is UTF-8. Of an increment: the sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Held>,
    /// Of a get: what the key holds, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// Of an append, or of a write into the value: the length that it has now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Of a get: when the key is gone, in milliseconds since the Unix epoch, if it ever is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Of a put or a change of its expiry: the key was not as it demanded, and nothing was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<bool>,
    /// Of an operation that failed alone: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A value or a sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Held {
    /// A value.
    Text(String),
    /// A sum.
    Number(i64),
}

impl From<OperationResult> for Result {
    fn from(result: OperationResult) -> Result {
        let nothing = Result::default();
        match result {
            OperationResult::Value(None) => Result { found: Some(false), ..nothing },
            OperationResult::Value(Some(held)) => {
                let (value, value_base64) = forms(&held.value);
                let value = value.map(Held::Text);
                let (version, expires_ms) = (Some(held.version), held.expires_unix_ms());
                Result { found: Some(true), version, value, value_base64, expires_ms, ..nothing }
            }
            OperationResult::Written { version } => Result { version: Some(version), ..nothing },
            OperationResult::Deleted { existed } => Result { deleted: Some(existed), ..nothing },
            OperationResult::Incremented { value, version } => {
                Result { value: Some(Held::Number(value)), version: Some(version), ..nothing }
            }
            OperationResult::Appended { length, version } => {
                Result { length: Some(length), version: Some(version), ..nothing }
            }
            OperationResult::Skipped => Result { skipped: Some(true), ..nothing },
            OperationResult::RemovedExpired { .. } => unreachable!("no client can ask for it"),
            OperationResult::Failed(error) => Result { error: Some(error.to_string()), ..nothing },
            OperationResult::Scanned { .. } | OperationResult::DeletedRange { .. } => {
                unreachable!("a batch has no ranges")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{OperationError, Versioned};

    fn command(json: &str) -> Command {
        serde_json::from_str::<Batch>(json).unwrap().command().unwrap()
    }

    fn refusal(json: &str) -> String {
        match serde_json::from_str::<Batch>(json) {
            Ok(batch) => batch.command().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_batch_is_read() {
        let read = command(
            r#"{"preconditions": [{"key": "a", "expect": "absent"}, {"key": "b", "expect": "present"},
                                  {"key_base64": "/w==", "expect": 3}],
                "operations": [{"action": "get", "key": "g"}, {"action": "put", "key": "p", "value": "v"},
                               {"action": "put", "key": "p", "value_base64": "/wA="},
                               {"action": "delete", "key": "d"}, {"action": "increment", "key": "i"},
                               {"action": "increment", "key": "i", "by": -7, "continue_on_error": true},
                               {"action": "append", "key": "x", "value": ""},
                               {"action": "put", "key": "p", "value": "v", "ttl_ms": 3, "only": "if_absent"},
                               {"action": "put", "key": "p", "value": "v", "keep_expiry": true},
                               {"action": "set_expiry", "key": "e", "expires_ms": 4, "only": "if_later"},
                               {"action": "set_expiry", "key": "e"},
                               {"action": "set_range", "key": "r", "offset": 5, "value": "v"}]}"#,
        );
        let expects = read.preconditions.iter().map(|one| one.expect);
        assert!(expects.eq([Expect::Absent, Expect::Present, Expect::Version(3)]));
        assert_eq!(read.preconditions[2].key, &[0xff][..]);
        let actions = [
            Action::Get { key: "g".into() },
            Action::put("p", "v"),
            Action::put("p", Bytes::from_static(&[0xff, 0])),
            Action::Delete { key: "d".into() },
            Action::Increment { key: "i".into(), by: 1 },
            Action::Increment { key: "i".into(), by: -7 },
            Action::Append { key: "x".into(), suffix: Bytes::new() },
            Action::Put {
                key: "p".into(),
                value: "v".into(),
                expires: Expiry::After(3_000),
                only: Only::IfAbsent,
            },
            Action::Put { key: "p".into(), value: "v".into(), expires: Expiry::Keep, only: Only::Always },
            Action::SetExpiry { key: "e".into(), expires: Expiry::At(4_000), only: ExpiryOnly::IfLater },
            Action::SetExpiry { key: "e".into(), expires: Expiry::Never, only: ExpiryOnly::Always },
            Action::SetRange { key: "r".into(), offset: 5, bytes: "v".into() },
        ];
        assert!(read.operations.iter().map(|operation| operation.action.clone()).eq(actions));
        let continues = |operation: &command::Operation| operation.on_error == OnError::Continue;
        assert_eq!(read.operations.iter().position(continues), Some(5));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, named) in [
            (r#"{}"#, "`operations`"),
            (r#"{"operations": [{"action": "put", "key": "k", "valu": "v"}]}"#, "`valu`"),
            (r#"{"operations": [{"action": "scan", "key": "k"}]}"#, "`scan`"),
            (
                r#"{"operations": [{"action": "get", "key": "k"}, {"action": "get"}]}"#,
                "operation 1, from 0: `key`",
            ),
            (r#"{"operations": [{"action": "put", "key": "k"}]}"#, "`value` or"),
            (r#"{"operations": [{"action": "get", "key": "k", "value": "v"}]}"#, "`value` is of"),
            (r#"{"operations": [{"action": "delete", "key": "k", "by": 1}]}"#, "`by`"),
            (r#"{"operations": [{"action": "get", "key": "k", "ttl_ms": 1}]}"#, "an expiry is of"),
            (r#"{"operations": [{"action": "get", "key": "k", "only": "if_none"}]}"#, "`only` is of"),
            (r#"{"operations": [{"action": "get", "key": "k", "offset": 1}]}"#, "`offset` is of"),
            (r#"{"operations": [{"action": "set_range", "key": "k", "value": "v"}]}"#, "`offset` is missing"),
            (
                r#"{"operations": [{"action": "put", "key": "k", "value": "", "only": "if_later"}]}"#,
                "`only` of a put",
            ),
            (
                r#"{"operations": [{"action": "set_expiry", "key": "k", "only": "if_absent"}]}"#,
                "`only` of `set_expiry`",
            ),
            (
                r#"{"operations": [{"action": "set_expiry", "key": "k", "ttl_ms": 1, "expires_ms": 1}]}"#,
                "there may be one",
            ),
            (r#"{"operations": [{"action": "get", "key": "k", "key_base64": "aw=="}]}"#, "twice"),
            (r#"{"operations": [{"action": "get", "key_base64": "?"}]}"#, "base64"),
            (r#"{"preconditions": [{"key": "k", "expect": "there"}], "operations": []}"#, "`expect` is"),
            (r#"{"preconditions": [{"expect": 3}], "operations": []}"#, "precondition 0, from 0: `key`"),
            (r#"[[], []]"#, "an object with named fields"),
            (
                r#"{"operations": [["put", "k", null, "v", null, null, false]]}"#,
                "an object with named fields",
            ),
            (r#"{"preconditions": [["k", null, 3]], "operations": []}"#, "an object with named fields"),
        ] {
            let refusal = refusal(json);
            assert!(refusal.contains(named), "{json}: {refusal}");
        }
    }

    #[test]
    fn results_and_entries_are_written_plainly() {
        let held = |value| Versioned { version: 3, stamp: 1, expires: None, value };
        for (result, json) in [
            (OperationResult::Value(None), r#"{"found":false}"#),
            (OperationResult::Value(Some(held("v".into()))), r#"{"found":true,"version":3,"value":"v"}"#),
            (
                OperationResult::Value(Some(held(Bytes::from_static(&[0xff])))),
                r#"{"found":true,"version":3,"value_base64":"/w=="}"#,
            ),
            (
                OperationResult::Value(Some(Versioned { expires: Some(1_001), ..held("v".into()) })),
                r#"{"found":true,"version":3,"value":"v","expires_ms":2}"#,
            ),
            (OperationResult::Skipped, r#"{"skipped":true}"#),
            (OperationResult::Written { version: 4 }, r#"{"version":4}"#),
            (OperationResult::Deleted { existed: true }, r#"{"deleted":true}"#),
            (OperationResult::Incremented { value: -7, version: 5 }, r#"{"version":5,"value":-7}"#),
            (OperationResult::Appended { length: 9, version: 6 }, r#"{"version":6,"length":9}"#),
        ] {
            assert_eq!(serde_json::to_string(&Result::from(result)).unwrap(), json);
        }
        let failed = Result::from(OperationResult::Failed(OperationError::NotAnInteger));
        assert!(serde_json::to_string(&failed).unwrap().starts_with(r#"{"error":"the value is not"#));
        let entry = serde_json::to_string(&Entry::new(b"k", 3, &[0xff], Some(4))).unwrap();
        assert_eq!(entry, r#"{"key":"k","version":3,"value_base64":"/w==","expires_ms":4}"#);
        let entry = serde_json::to_string(&Entry::new(&[0xff], 3, b"v", None)).unwrap();
        assert_eq!(entry, r#"{"key_base64":"/w==","version":3,"value":"v"}"#);
    }
}
