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
//!                 {"action": "get", "key": "{order-7}items"}, {"action": "delete", "key": "{order-7}draft"}]}
//! ```

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess};
use serde::{Deserialize, Serialize};

use crate::command::{self, Action, Command, Expect, OnError, OperationResult};

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
}

impl Entry {
    /// A key, its version and its value.
    pub fn new(key: &[u8], version: u64, value: &[u8]) -> Entry {
        let ((key, key_base64), (value, value_base64)) = (forms(key), forms(value));
        Entry { key, key_base64, version, value, value_base64 }
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
    #[serde(default)]
    continue_on_error: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Get,
    Put,
    Delete,
    Increment,
    Append,
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
        let action = match (self.action, value) {
            (Name::Put, Some(value)) => Action::Put { key, value },
            (Name::Append, Some(suffix)) => Action::Append { key, suffix },
            (Name::Put | Name::Append, None) => return Err("`value` or `value_base64` is missing"),
            (_, Some(_)) => return Err("`value` is of `put` and `append`"),
            (Name::Get, None) => Action::Get { key },
            (Name::Delete, None) => Action::Delete { key },
            (Name::Increment, None) => Action::Increment { key, by: self.by.unwrap_or(1) },
        };
        let on_error = if self.continue_on_error { OnError::Continue } else { OnError::Abort };
        Ok(command::Operation { action, on_error })
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
    /// Of an append: the length that the value has now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
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
                Result { found: Some(true), version: Some(held.version), value, value_base64, ..nothing }
            }
            OperationResult::Written { version } => Result { version: Some(version), ..nothing },
            OperationResult::Deleted { existed } => Result { deleted: Some(existed), ..nothing },
            OperationResult::Incremented { value, version } => {
                Result { value: Some(Held::Number(value)), version: Some(version), ..nothing }
            }
            OperationResult::Appended { length, version } => {
                Result { length: Some(length), version: Some(version), ..nothing }
            }
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
                               {"action": "append", "key": "x", "value": ""}]}"#,
        );
        let expects = read.preconditions.iter().map(|one| one.expect);
        assert!(expects.eq([Expect::Absent, Expect::Present, Expect::Version(3)]));
        assert_eq!(read.preconditions[2].key, &[0xff][..]);
        let actions = [
            Action::Get { key: "g".into() },
            Action::Put { key: "p".into(), value: "v".into() },
            Action::Put { key: "p".into(), value: Bytes::from_static(&[0xff, 0]) },
            Action::Delete { key: "d".into() },
            Action::Increment { key: "i".into(), by: 1 },
            Action::Increment { key: "i".into(), by: -7 },
            Action::Append { key: "x".into(), suffix: Bytes::new() },
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
        let held = |value| Versioned { version: 3, stamp: 1, value };
        for (result, json) in [
            (OperationResult::Value(None), r#"{"found":false}"#),
            (OperationResult::Value(Some(held("v".into()))), r#"{"found":true,"version":3,"value":"v"}"#),
            (
                OperationResult::Value(Some(held(Bytes::from_static(&[0xff])))),
                r#"{"found":true,"version":3,"value_base64":"/w=="}"#,
            ),
            (OperationResult::Written { version: 4 }, r#"{"version":4}"#),
            (OperationResult::Deleted { existed: true }, r#"{"deleted":true}"#),
            (OperationResult::Incremented { value: -7, version: 5 }, r#"{"version":5,"value":-7}"#),
            (OperationResult::Appended { length: 9, version: 6 }, r#"{"version":6,"length":9}"#),
        ] {
            assert_eq!(serde_json::to_string(&Result::from(result)).unwrap(), json);
        }
        let failed = Result::from(OperationResult::Failed(OperationError::NotAnInteger));
        assert!(serde_json::to_string(&failed).unwrap().starts_with(r#"{"error":"the value is not"#));
        let entry = serde_json::to_string(&Entry::new(b"k", 3, &[0xff])).unwrap();
        assert_eq!(entry, r#"{"key":"k","version":3,"value_base64":"/w=="}"#);
        let entry = serde_json::to_string(&Entry::new(&[0xff], 3, b"v")).unwrap();
        assert_eq!(entry, r#"{"key_base64":"/w==","version":3,"value":"v"}"#);
    }
}
