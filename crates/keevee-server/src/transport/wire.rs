//! Peer messages as they travel: the types generated from `proto/peer.proto`, the path that each kind
//! is posted to, and the way from and to the engine's own types.
//!
//! Reading never panics, whatever a peer sent: it ends in a [`WireError`]. Sockets are not known here.

use std::time::Duration;

use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use keevee_paxos::{Ballot, Entry, Message, Value};
use keevee_replica::ChainHash;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Forward, ForwardReply, PeerMessage};

/// The generated types.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(super) mod proto {
    include!(concat!(env!("OUT_DIR"), "/keevee.peer.v1.rs"));
}

pub(super) use proto::Envelope;

/// The first post of a lane: who I am.
pub(super) const HELLO_PATH: &str = "/hello";
/// Commands for a leader.
pub(super) const FORWARD_PATH: &str = "/forward";

/// True of every path of the peer protocol.
pub(crate) fn is_peer_path(path: &str) -> bool {
    path == HELLO_PATH || path == FORWARD_PATH || is_message_path(path)
}

/// Why something from a peer can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// No such kind of messages.
    #[error("there is no kind of messages at {0}: the peer may run another version")]
    UnknownKind(String),
    /// Not the JSON of the kind.
    #[error("the body is not the JSON of this kind: {0}")]
    Json(#[from] serde_json::Error),
    /// A part that must be there is not.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A part does not make sense.
    #[error("the field `{0}` is malformed")]
    Malformed(&'static str),
}

/// A batch of one kind's messages about one shard, as it is written.
#[derive(Serialize)]
struct PostOut<'a> {
    envelope: &'a Envelope,
    messages: &'a [Kind],
}

/// The same as it is read.
#[derive(Deserialize)]
struct PostIn<M> {
    envelope: Envelope,
    messages: Vec<M>,
}

/// A message as it was received, on its way to the engine's own type.
trait Received: DeserializeOwned {
    fn check(self) -> Result<PeerMessage, WireError>;
}

macro_rules! kinds {
    ($($kind:ident $path:literal)*) => {
        /// A message of any kind, as it is written.
        #[derive(Debug, Serialize)]
        #[serde(untagged)]
        pub(super) enum Kind {
            $($kind(proto::$kind),)*
        }

        impl Kind {
            /// Where messages of this kind are posted.
            pub(super) fn path(&self) -> &'static str {
                match self {
                    $(Kind::$kind(_) => $path,)*
                }
            }
        }

        /// True if messages of some kind are posted there.
        fn is_message_path(path: &str) -> bool {
            matches!(path, $($path)|*)
        }

        /// Reads a post of messages.
        pub(super) fn read_messages(
            path: &str,
            body: &[u8],
        ) -> Result<(Envelope, Vec<PeerMessage>), WireError> {
            match path {
                $($path => read_kind::<proto::$kind>(body),)*
                other => Err(WireError::UnknownKind(other.to_owned())),
            }
        }
    };
}

kinds! {
    Heartbeat "/heartbeat"
    HeartbeatReply "/heartbeat/reply"
    Poll "/paxos/poll"
    PollReply "/paxos/poll/reply"
    Prepare "/paxos/prepare"
    Promise "/paxos/promise"
    Accept "/paxos/accept"
    Accepted "/paxos/accepted"
    Chosen "/paxos/chosen"
    Refused "/paxos/refused"
    ReadIndex "/paxos/read_index"
    ReadIndexReply "/paxos/read_index/reply"
    TakeOver "/paxos/take_over"
    ChainHash "/chain_hash"
}

fn read_kind<M: Received>(body: &[u8]) -> Result<(Envelope, Vec<PeerMessage>), WireError> {
    let post: PostIn<M> = serde_json::from_slice(body)?;
    let messages = post.messages.into_iter().map(M::check).collect::<Result<_, _>>()?;
    Ok((post.envelope, messages))
}

/// Writes a post of messages, all of one kind.
pub(super) fn write_messages(envelope: &Envelope, messages: &[Kind]) -> Result<Vec<u8>, WireError> {
    Ok(serde_json::to_vec(&PostOut { envelope, messages })?)
}

/// Writes the first post of a lane.
pub(super) fn write_hello(envelope: &Envelope) -> Result<Vec<u8>, WireError> {
    Ok(serde_json::to_vec(&proto::Hello { envelope: Some(envelope.clone()) })?)
}

/// Reads the first post of a lane.
pub(super) fn read_hello(body: &[u8]) -> Result<Envelope, WireError> {
    serde_json::from_slice::<proto::Hello>(body)?.envelope.ok_or(WireError::Missing("envelope"))
}

/// Writes commands for a leader.
pub(super) fn write_forward(envelope: Envelope, forward: Forward) -> Result<Vec<u8>, WireError> {
    let time_left_micros = u64::try_from(forward.time_left.as_micros()).unwrap_or(u64::MAX);
    let envelope = Some(Envelope { shard: forward.shard.0, ..envelope });
    Ok(serde_json::to_vec(&proto::Forward { envelope, time_left_micros, commands: forward.commands })?)
}

/// Reads commands for a leader.
pub(super) fn read_forward(body: &[u8]) -> Result<(Envelope, Forward), WireError> {
    let forward: proto::Forward = serde_json::from_slice(body)?;
    let envelope = forward.envelope.ok_or(WireError::Missing("envelope"))?;
    let forward = Forward {
        shard: ShardId(envelope.shard),
        time_left: Duration::from_micros(forward.time_left_micros),
        commands: forward.commands,
    };
    Ok((envelope, forward))
}

/// Writes the answers to forwarded commands.
pub(super) fn write_replies(replies: Vec<ForwardReply>) -> Result<Vec<u8>, WireError> {
    let replies = replies.into_iter().map(|reply| match reply {
        ForwardReply::Outcome(outcome) => proto::ForwardReply { outcome: Some(outcome), error: None },
        ForwardReply::Error { kind, detail } => {
            let error = Some(proto::ForwardFailure { kind: kind.name().to_owned(), detail });
            proto::ForwardReply { outcome: None, error }
        }
    });
    Ok(serde_json::to_vec(&proto::ForwardReplies { replies: replies.collect() })?)
}

/// Reads the answers to forwarded commands.
pub(super) fn read_replies(body: &[u8]) -> Result<Vec<ForwardReply>, WireError> {
    let replies: proto::ForwardReplies = serde_json::from_slice(body)?;
    let read = |reply: proto::ForwardReply| match (reply.outcome, reply.error) {
        (Some(outcome), None) => Ok(ForwardReply::Outcome(outcome)),
        (None, Some(error)) => {
            let kind = ErrorKind::from_name(&error.kind).ok_or(WireError::Malformed("kind"))?;
            Ok(ForwardReply::Error { kind, detail: error.detail })
        }
        (None, None) => Err(WireError::Missing("outcome")),
        (Some(_), Some(_)) => Err(WireError::Malformed("error")),
    };
    replies.replies.into_iter().map(read).collect()
}

impl From<PeerMessage> for Kind {
    fn from(message: PeerMessage) -> Kind {
        match message {
            PeerMessage::Paxos(message) => Kind::from(message),
            PeerMessage::ChainHash(ChainHash { index, chain }) => {
                Kind::ChainHash(proto::ChainHash { index, chain: format!("{chain:032x}") })
            }
        }
    }
}

impl From<Message> for Kind {
    fn from(message: Message) -> Kind {
        match message {
            Message::Poll { poll } => Kind::Poll(proto::Poll { poll }),
            Message::PollReply { poll, granted } => Kind::PollReply(proto::PollReply { poll, granted }),
            Message::Prepare { ballot, from } => {
                Kind::Prepare(proto::Prepare { ballot: write_ballot(ballot), from })
            }
            Message::Promise { ballot, from, entries, next, chosen, first } => {
                let (ballot, entries) = (write_ballot(ballot), write_entries(entries));
                Kind::Promise(proto::Promise { ballot, from, entries, next, chosen, first })
            }
            Message::Accept { ballot, sent_at, entries, chosen } => {
                let (ballot, entries) = (write_ballot(ballot), write_entries(entries));
                Kind::Accept(proto::Accept { ballot, sent_at, entries, chosen })
            }
            Message::Accepted { ballot, sent_at, through, chosen } => {
                Kind::Accepted(proto::Accepted { ballot: write_ballot(ballot), sent_at, through, chosen })
            }
            Message::Heartbeat { ballot, sent_at, chosen, connected, flushed } => {
                let ballot = write_ballot(ballot);
                Kind::Heartbeat(proto::Heartbeat { ballot, sent_at, chosen, connected, flushed })
            }
            Message::HeartbeatReply { ballot, sent_at, through, chosen, flushed } => {
                let ballot = write_ballot(ballot);
                Kind::HeartbeatReply(proto::HeartbeatReply { ballot, sent_at, through, chosen, flushed })
            }
            Message::Chosen { ballot, chosen } => {
                Kind::Chosen(proto::Chosen { ballot: write_ballot(ballot), chosen })
            }
            Message::Refused { ballot, promised } => Kind::Refused(proto::Refused {
                ballot: write_ballot(ballot),
                promised: write_ballot(promised),
            }),
            Message::ReadIndex { request } => Kind::ReadIndex(proto::ReadIndex { request }),
            Message::ReadIndexReply { request, ballot, index } => {
                Kind::ReadIndexReply(proto::ReadIndexReply { request, ballot: write_ballot(ballot), index })
            }
            Message::TakeOver { ballot } => Kind::TakeOver(proto::TakeOver { ballot: write_ballot(ballot) }),
        }
    }
}

fn write_ballot(ballot: Ballot) -> Option<proto::Ballot> {
    Some(proto::Ballot { round: ballot.round, node: ballot.node })
}

fn read_ballot(ballot: Option<proto::Ballot>, field: &'static str) -> Result<Ballot, WireError> {
    let ballot = ballot.ok_or(WireError::Missing(field))?;
    Ok(Ballot { round: ballot.round, node: ballot.node })
}

fn write_entries(entries: Vec<Entry>) -> Vec<proto::Entry> {
    let write = |entry: Entry| {
        let (data, noop) = match entry.value {
            Value::Data(data) => (Some(data), false),
            Value::Noop => (None, true),
        };
        proto::Entry { index: entry.index, ballot: write_ballot(entry.ballot), data, noop }
    };
    entries.into_iter().map(write).collect()
}

fn read_entries(entries: Vec<proto::Entry>) -> Result<Vec<Entry>, WireError> {
    let read = |entry: proto::Entry| {
        let value = match (entry.data, entry.noop) {
            (Some(data), false) => Value::Data(data),
            (None, true) => Value::Noop,
            (None, false) => return Err(WireError::Missing("data")),
            (Some(_), true) => return Err(WireError::Malformed("noop")),
        };
        Ok(Entry { index: entry.index, ballot: read_ballot(entry.ballot, "ballot")?, value })
    };
    entries.into_iter().map(read).collect()
}

/// How a received type becomes an engine's message: every field by its name, then those that need care.
macro_rules! received {
    ($($kind:ident { $($plain:ident),* } $($field:ident: $read:expr),*;)*) => {$(
        impl Received for proto::$kind {
            fn check(self) -> Result<PeerMessage, WireError> {
                $(let $field = $read(self.$field)?;)*
                Ok(PeerMessage::Paxos(Message::$kind { $($plain: self.$plain,)* $($field),* }))
            }
        }
    )*};
}

fn ballot(ballot: Option<proto::Ballot>) -> Result<Ballot, WireError> {
    read_ballot(ballot, "ballot")
}

fn promised(ballot: Option<proto::Ballot>) -> Result<Ballot, WireError> {
    read_ballot(ballot, "promised")
}

received! {
    Poll { poll };
    PollReply { poll, granted };
    Prepare { from } ballot: ballot;
    Promise { from, next, chosen, first } ballot: ballot, entries: read_entries;
    Accept { sent_at, chosen } ballot: ballot, entries: read_entries;
    Accepted { sent_at, through, chosen } ballot: ballot;
    Heartbeat { sent_at, chosen, connected, flushed } ballot: ballot;
    HeartbeatReply { sent_at, through, chosen, flushed } ballot: ballot;
    Chosen { chosen } ballot: ballot;
    Refused { } ballot: ballot, promised: promised;
    ReadIndex { request };
    ReadIndexReply { request, index } ballot: ballot;
    TakeOver { } ballot: ballot;
}

impl Received for proto::ChainHash {
    fn check(self) -> Result<PeerMessage, WireError> {
        let malformed = || WireError::Malformed("chain");
        if self.chain.len() != 32 || !self.chain.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        let chain = u128::from_str_radix(&self.chain, 16).map_err(|_| malformed())?;
        Ok(PeerMessage::ChainHash(ChainHash { index: self.index, chain }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BALLOT: Ballot = Ballot { round: 3, node: 2 };

    fn envelope() -> Envelope {
        Envelope {
            cluster_id: "blue".into(),
            from_node: 2,
            from_store: "store-2".into(),
            to_store: "store-1".into(),
            shard: 1,
        }
    }

    fn every_kind() -> Vec<PeerMessage> {
        let ballot = BALLOT;
        let entry = |index, value| Entry { index, ballot, value };
        let data = |bytes: &[u8]| Value::Data(bytes.to_vec().into());
        let entries = vec![entry(7, data(b"\x00\xff?>")), entry(8, data(b"")), entry(9, Value::Noop)];
        let (sent_at, chosen, through, flushed) = (u64::MAX, 6, 9, 5);
        let next = Some(10);
        let messages = [
            Message::Poll { poll: 1 },
            Message::PollReply { poll: 1, granted: true },
            Message::Prepare { ballot, from: 7 },
            Message::Promise { ballot, from: 7, entries: entries.clone(), next, chosen, first: 1 },
            Message::Promise { ballot, from: 7, entries: vec![], next: None, chosen, first: 1 },
            Message::Accept { ballot, sent_at, entries, chosen },
            Message::Accepted { ballot, sent_at, through, chosen },
            Message::Heartbeat { ballot, sent_at, chosen, connected: true, flushed },
            Message::HeartbeatReply { ballot, sent_at, through, chosen, flushed },
            Message::Chosen { ballot, chosen },
            Message::Refused { ballot, promised: Ballot { round: 4, node: 1 } },
            Message::ReadIndex { request: 1 },
            Message::ReadIndexReply { request: 1, ballot, index: 6 },
            Message::TakeOver { ballot },
        ];
        let chain = PeerMessage::ChainHash(ChainHash { index: 6, chain: 0xfeed });
        messages.into_iter().map(PeerMessage::Paxos).chain([chain]).collect()
    }

    #[test]
    fn every_kind_comes_back_from_its_path() {
        for message in every_kind() {
            let kind = Kind::from(message.clone());
            let path = kind.path();
            assert!(is_message_path(path));
            let body = write_messages(&envelope(), &[kind]).unwrap();
            assert_eq!(read_messages(path, &body).unwrap(), (envelope(), vec![message]), "{path}");
        }
    }

    #[test]
    fn messages_are_readable() {
        let entries = vec![
            Entry { index: 7, ballot: BALLOT, value: Value::Data("hello".into()) },
            Entry { index: 8, ballot: BALLOT, value: Value::Noop },
        ];
        let accept = Message::Accept { ballot: BALLOT, sent_at: 5, entries, chosen: 6 };
        let body = write_messages(&envelope(), &[Kind::from(accept)]).unwrap();
        let expected = concat!(
            r#"{"envelope":{"cluster_id":"blue","from_node":2,"from_store":"store-2","#,
            r#""to_store":"store-1","shard":1},"messages":[{"ballot":{"round":3,"node":2},"sent_at":5,"#,
            r#""entries":[{"index":7,"ballot":{"round":3,"node":2},"data":"aGVsbG8="},"#,
            r#"{"index":8,"ballot":{"round":3,"node":2},"noop":true}],"chosen":6}]}"#,
        );
        assert_eq!(String::from_utf8(body).unwrap(), expected);
    }

    #[test]
    fn every_malformed_message_is_an_error() {
        let envelope = serde_json::to_string(&envelope()).unwrap();
        let error = |path: &str, message: &str| {
            let body = format!("{{\"envelope\":{envelope},\"messages\":[{message}]}}");
            read_messages(path, body.as_bytes()).unwrap_err().to_string()
        };
        let entry = |fields: &str| {
            let ballot = r#""ballot":{"round":1,"node":1}"#;
            format!(r#"{{{ballot},"sent_at":1,"chosen":1,"entries":[{{"index":1,{fields}}}]}}"#)
        };
        let ballot = r#""ballot":{"round":1,"node":1}"#;
        for (path, message, named) in [
            ("/paxos/unheard_of", "{}", "/paxos/unheard_of"),
            ("/paxos/poll", "{}", "poll"),
            ("/paxos/poll", r#"{"poll":-1}"#, "invalid value"),
            ("/paxos/poll", r#"{"poll":1.5}"#, "invalid type"),
            ("/paxos/prepare", r#"{"from":1}"#, "`ballot` is missing"),
            ("/paxos/prepare", r#"{"from":1,"ballot":{"round":1}}"#, "node"),
            ("/paxos/refused", &format!("{{{ballot}}}"), "`promised` is missing"),
            ("/paxos/accept", &entry(r#""data":"""#), "`ballot` is missing"),
            ("/paxos/accept", &entry(ballot), "`data` is missing"),
            ("/paxos/accept", &entry(&format!(r#"{ballot},"data":"","noop":true"#)), "`noop` is malformed"),
            ("/paxos/accept", &entry(&format!(r#"{ballot},"data":"a!""#)), "nvalid symbol"),
            ("/paxos/accept", &entry(&format!(r#"{ballot},"data":[1]"#)), "base64"),
            ("/chain_hash", r#"{"index":1,"chain":"12"}"#, "`chain` is malformed"),
            ("/chain_hash", r#"{"index":1,"chain":"+1111111111111111111111111111111"}"#, "`chain`"),
        ] {
            let error = error(path, message);
            assert!(error.contains(named), "{path} {message}: {error}");
        }
        for body in ["", "[]", "{}", "null", "{\"messages\":[]}", "\u{0}"] {
            assert!(read_messages("/heartbeat", body.as_bytes()).is_err(), "{body}");
            assert!(read_hello(body.as_bytes()).is_err(), "{body}");
            assert!(read_forward(body.as_bytes()).is_err(), "{body}");
            assert!(read_replies(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let body = format!(
            r#"{{"envelope":{},"priority":1,"messages":[{{"poll":4,"mood":"good"}}]}}"#,
            serde_json::to_string(&envelope()).unwrap()
        );
        let (_, messages) = read_messages("/paxos/poll", body.as_bytes()).unwrap();
        assert_eq!(messages, [PeerMessage::Paxos(Message::Poll { poll: 4 })]);
    }

    #[test]
    fn forwards_and_replies_come_back() {
        let forward = Forward {
            shard: ShardId(5),
            time_left: Duration::from_micros(1_234_567),
            commands: vec!["\u{0}one".into(), "".into()],
        };
        let body = write_forward(envelope(), forward.clone()).unwrap();
        let (found_envelope, found) = read_forward(&body).unwrap();
        assert_eq!(found_envelope, Envelope { shard: 5, ..envelope() });
        assert_eq!((found.shard, found.time_left), (forward.shard, forward.time_left));
        assert_eq!(found.commands, forward.commands);

        let mut replies = vec![ForwardReply::Outcome("\u{1}".into()), ForwardReply::Outcome("".into())];
        let error = |kind| ForwardReply::Error { kind, detail: format!("{kind}, in other words") };
        replies.extend(ErrorKind::ALL.map(error));
        assert_eq!(read_replies(&write_replies(replies.clone()).unwrap()).unwrap(), replies);
    }

    #[test]
    fn malformed_replies_are_errors() {
        for (reply, named) in [
            ("{}", "`outcome` is missing"),
            (r#"{"outcome":"","error":{"kind":"invalid","detail":""}}"#, "`error` is malformed"),
            (r#"{"error":{"kind":"tired","detail":""}}"#, "`kind` is malformed"),
        ] {
            let error = read_replies(format!("{{\"replies\":[{reply}]}}").as_bytes()).unwrap_err();
            assert!(error.to_string().contains(named), "{reply}: {error}");
        }
    }
}
