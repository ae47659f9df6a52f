//! Peer messages as they travel: the types generated from `proto/`, the path that each kind is posted to as
//! JSON, and the way from and to the engine's own types.
//!
//! A new kind of messages is a type in `peer.proto` that is named in the `oneof` of `peer_service.proto`, in
//! `kinds!` (where it is posted as JSON), and in both directions below. Reading never panics, whatever a peer
//! sent: it ends in a [`WireError`]. Sockets are not known here.

// By its path, so that the fuzz targets can read this file from elsewhere.
#[path = "wire/raft.rs"]
mod raft;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_paxos::{Ballot, Configuration, Entry, Message, QuorumSystem, Value};
use keevee_replica::{ChainHash, ScrubMessage, SnapshotChunk, SnapshotMessage};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Forward, ForwardReply, PeerMessage};

/// The generated types.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(super) mod proto {
    include!(concat!(env!("OUT_DIR"), "/keevee.peer.v1.rs"));
}

pub(super) use proto::Envelope;
pub(super) use proto::item::Item;
/// A message of any kind, as it travels.
pub(super) use proto::message::Kind;

/// The versions of the gRPC protocol that this node speaks.
pub(super) const VERSIONS: RangeInclusive<u32> = 1..=1;

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
        impl Kind {
            /// Where messages of this kind are posted.
            pub(super) fn path(&self) -> &'static str {
                match self {
                    $(Kind::$kind(_) => $path,)*
                }
            }

            /// The engine's own form.
            fn check(self) -> Result<PeerMessage, WireError> {
                match self {
                    $(Kind::$kind(message) => message.check(),)*
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
    Dropped "/paxos/dropped"
    ChainHash "/chain_hash"
    Raft "/raft"
    Quiesce "/quiesce"
    Wake "/wake"
    Alive "/alive"
    AdvanceTime "/advance_time"
    TimeNotCome "/time_not_come"
    SnapshotAsk "/snapshot/ask"
    SnapshotChunk "/snapshot/chunk"
    SnapshotGone "/snapshot/gone"
    ScrubBegin "/scrub/begin"
    ScrubContent "/scrub/content"
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
    let replies = replies.into_iter().map(write_reply).collect();
    Ok(serde_json::to_vec(&proto::ForwardReplies { replies })?)
}

/// Reads the answers to forwarded commands.
pub(super) fn read_replies(body: &[u8]) -> Result<Vec<ForwardReply>, WireError> {
    let replies: proto::ForwardReplies = serde_json::from_slice(body)?;
    replies.replies.into_iter().map(read_reply).collect()
}

/// The first item of either side: who speaks to whom, and how.
pub(super) fn handshake(envelope: Envelope) -> proto::Item {
    let (version_min, version_max) = VERSIONS.into_inner();
    item(Item::Handshake(proto::Handshake { version_min, version_max, envelope: Some(envelope) }))
}

/// Reads the first item: the versions spoken, and the envelope.
pub(super) fn read_handshake(
    first: Option<proto::Item>,
) -> Result<(RangeInclusive<u32>, Option<Envelope>), WireError> {
    match first.and_then(|first| first.item) {
        Some(Item::Handshake(proto::Handshake { version_min, version_max, envelope })) => {
            Ok((version_min..=version_max, envelope))
        }
        _ => Err(WireError::Missing("handshake")),
    }
}

/// An item of many shards' messages: neighbours of one shard share its number.
pub(super) fn batch(messages: Vec<(ShardId, PeerMessage)>) -> proto::Item {
    let mut shards: Vec<proto::ShardMessages> = Vec::new();
    let mut left = messages.len();
    for (shard, message) in messages {
        if shards.last().is_none_or(|last| last.shard != shard.0) {
            // Mostly all are of one shard.
            shards.push(proto::ShardMessages { shard: shard.0, messages: Vec::with_capacity(left) });
        }
        left -= 1;
        let message = proto::Message { kind: Some(Kind::from(message)) };
        shards.last_mut().expect("one was pushed").messages.push(message);
    }
    item(Item::Batch(proto::Batch { shards }))
}

/// Reads one shard's messages, and how many were of kinds that this version does not know.
pub(super) fn read_shard(
    messages: proto::ShardMessages,
) -> Result<(ShardId, Vec<PeerMessage>, usize), WireError> {
    let count = messages.messages.len();
    let known = messages.messages.into_iter().filter_map(|message| message.kind).filter(Kind::is_known);
    let read = known.map(Kind::check).collect::<Result<Vec<_>, _>>()?;
    let unknown = count - read.len();
    Ok((ShardId(messages.shard), read, unknown))
}

impl Kind {
    /// False for a kind of a kind that came later.
    fn is_known(&self) -> bool {
        !matches!(self, Kind::Raft(proto::Raft { kind: None }))
    }
}

/// An item with commands for a leader.
pub(super) fn forward_request(number: u64, forward: Forward) -> proto::Item {
    let time_left_micros = u64::try_from(forward.time_left.as_micros()).unwrap_or(u64::MAX);
    let (shard, commands) = (forward.shard.0, forward.commands);
    item(Item::Request(proto::ForwardRequest { number, shard, time_left_micros, commands }))
}

/// Reads commands for a leader.
pub(super) fn read_forward_request(request: proto::ForwardRequest) -> (u64, Forward) {
    let forward = Forward {
        shard: ShardId(request.shard),
        time_left: Duration::from_micros(request.time_left_micros),
        commands: request.commands,
    };
    (request.number, forward)
}

/// An item that answers a forward.
pub(super) fn forward_answer(number: u64, replies: Vec<ForwardReply>) -> proto::Item {
    let replies = replies.into_iter().map(write_reply).collect();
    item(Item::Answer(proto::ForwardAnswer { number, replies }))
}

/// Reads the answer to a forward.
pub(super) fn read_forward_answer(
    answer: proto::ForwardAnswer,
) -> (u64, Result<Vec<ForwardReply>, WireError>) {
    (answer.number, answer.replies.into_iter().map(read_reply).collect())
}

fn item(item: Item) -> proto::Item {
    proto::Item { item: Some(item) }
}

fn write_reply(reply: ForwardReply) -> proto::ForwardReply {
    match reply {
        ForwardReply::Outcome(outcome) => proto::ForwardReply { outcome: Some(outcome), error: None },
        ForwardReply::Error { kind, detail, leader } => {
            let (kind, leader) = (kind.name().to_owned(), leader.map(|leader| leader.0));
            let error = Some(proto::ForwardFailure { kind, detail, leader });
            proto::ForwardReply { outcome: None, error }
        }
    }
}

fn read_reply(reply: proto::ForwardReply) -> Result<ForwardReply, WireError> {
    match (reply.outcome, reply.error) {
        (Some(outcome), None) => Ok(ForwardReply::Outcome(outcome)),
        (None, Some(error)) => {
            let kind = ErrorKind::from_name(&error.kind).ok_or(WireError::Malformed("kind"))?;
            Ok(ForwardReply::Error { kind, detail: error.detail, leader: error.leader.map(NodeId) })
        }
        (None, None) => Err(WireError::Missing("outcome")),
        (Some(_), Some(_)) => Err(WireError::Malformed("error")),
    }
}

impl From<PeerMessage> for Kind {
    fn from(message: PeerMessage) -> Kind {
        match message {
            PeerMessage::Paxos(message) => Kind::from(message),
            PeerMessage::Raft(message) => Kind::from(message),
            PeerMessage::ChainHash(ChainHash { index, chain }) => {
                Kind::ChainHash(proto::ChainHash { index, chain: write_hash(chain) })
            }
            PeerMessage::Quiesce { index } => Kind::Quiesce(proto::Quiesce { index }),
            PeerMessage::Wake => Kind::Wake(proto::Wake {}),
            PeerMessage::Alive { boot, leads, wall_micros, short_of_room, map_epoch } => {
                Kind::Alive(proto::Alive { boot, leads, wall_micros, short_of_room, map_epoch })
            }
            PeerMessage::AdvanceTime { to } => Kind::AdvanceTime(proto::AdvanceTime { to }),
            PeerMessage::TimeNotCome { to } => Kind::TimeNotCome(proto::TimeNotCome { to }),
            PeerMessage::Snapshot(SnapshotMessage::Ask { snapshot, chunk }) => {
                Kind::SnapshotAsk(proto::SnapshotAsk { snapshot, chunk })
            }
            PeerMessage::Snapshot(SnapshotMessage::Chunk(chunk)) => Kind::SnapshotChunk(write_chunk(chunk)),
            PeerMessage::Snapshot(SnapshotMessage::Gone { snapshot }) => {
                Kind::SnapshotGone(proto::SnapshotGone { snapshot })
            }
            PeerMessage::Scrub(ScrubMessage::Begin { index }) => {
                Kind::ScrubBegin(proto::ScrubBegin { index })
            }
            PeerMessage::Scrub(ScrubMessage::Content { index, layout, digest }) => {
                let digest = write_hash(digest);
                Kind::ScrubContent(proto::ScrubContent { index, layout, digest })
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
            Message::Dropped { ballot, first } => {
                Kind::Dropped(proto::Dropped { ballot: write_ballot(ballot), first })
            }
        }
    }
}

fn write_chunk(chunk: SnapshotChunk) -> proto::SnapshotChunk {
    let SnapshotChunk { snapshot, number, index, layout, records, digest, mark } = chunk;
    let (keys, values) = records.into_iter().unzip();
    let digest = write_hash(digest);
    proto::SnapshotChunk { snapshot, number, index, layout, keys, values, digest, mark }
}

fn write_hash(hash: u128) -> String {
    format!("{hash:032x}")
}

fn read_hash(hash: &str, field: &'static str) -> Result<u128, WireError> {
    let is_hash = hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hash = is_hash.then(|| u128::from_str_radix(hash, 16).ok()).flatten();
    hash.ok_or(WireError::Malformed(field))
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
        let (data, noop, configuration) = match entry.value {
            Value::Data(data) => (Some(data), false, None),
            Value::Noop => (None, true, None),
            Value::Configuration(configuration) => (None, false, Some(write_configuration(*configuration))),
        };
        let ballot = write_ballot(entry.ballot);
        proto::Entry { index: entry.index, ballot, data, noop, configuration }
    };
    entries.into_iter().map(write).collect()
}

fn write_configuration(Configuration { quorum, learners }: Configuration) -> proto::Configuration {
    let (voters, next) = match quorum {
        QuorumSystem::Majority(voters) => (voters, BTreeSet::new()),
        QuorumSystem::Joint { old, new } => (old, new),
        QuorumSystem::Flexible { .. } => unreachable!("no log has quorums by count"),
    };
    let list = |nodes: BTreeSet<u64>| nodes.into_iter().collect();
    proto::Configuration { voters: list(voters), next: list(next), learners: list(learners) }
}

fn read_configuration(configuration: proto::Configuration) -> Result<Configuration, WireError> {
    let set = |nodes: Vec<u64>| -> BTreeSet<u64> { nodes.into_iter().collect() };
    let (old, new) = (set(configuration.voters), set(configuration.next));
    if old.is_empty() {
        return Err(WireError::Missing("voters"));
    }
    let quorum = if new.is_empty() { QuorumSystem::Majority(old) } else { QuorumSystem::Joint { old, new } };
    Ok(Configuration { quorum, learners: set(configuration.learners) })
}

fn read_entries(entries: Vec<proto::Entry>) -> Result<Vec<Entry>, WireError> {
    let read = |entry: proto::Entry| {
        let value = match (entry.data, entry.noop, entry.configuration) {
            (Some(data), false, None) => Value::Data(data),
            (None, true, None) => Value::Noop,
            (None, false, Some(configuration)) => {
                Value::Configuration(Box::new(read_configuration(configuration)?))
            }
            (None, false, None) => return Err(WireError::Missing("data")),
            (_, true, _) => return Err(WireError::Malformed("noop")),
            (Some(_), false, Some(_)) => return Err(WireError::Malformed("configuration")),
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
    Dropped { first } ballot: ballot;
}

impl Received for proto::ChainHash {
    fn check(self) -> Result<PeerMessage, WireError> {
        let chain = read_hash(&self.chain, "chain")?;
        Ok(PeerMessage::ChainHash(ChainHash { index: self.index, chain }))
    }
}

impl Received for proto::Quiesce {
    fn check(self) -> Result<PeerMessage, WireError> {
        Ok(PeerMessage::Quiesce { index: self.index })
    }
}

impl Received for proto::Wake {
    fn check(self) -> Result<PeerMessage, WireError> {
        Ok(PeerMessage::Wake)
    }
}

impl Received for proto::Alive {
    fn check(self) -> Result<PeerMessage, WireError> {
        let proto::Alive { boot, leads, wall_micros, short_of_room, map_epoch } = self;
        Ok(PeerMessage::Alive { boot, leads, wall_micros, short_of_room, map_epoch })
    }
}

impl Received for proto::TimeNotCome {
    fn check(self) -> Result<PeerMessage, WireError> {
        Ok(PeerMessage::TimeNotCome { to: self.to })
    }
}

impl Received for proto::SnapshotAsk {
    fn check(self) -> Result<PeerMessage, WireError> {
        Ok(PeerMessage::Snapshot(SnapshotMessage::Ask { snapshot: self.snapshot, chunk: self.chunk }))
    }
}

impl Received for proto::SnapshotChunk {
    fn check(self) -> Result<PeerMessage, WireError> {
        if self.keys.len() != self.values.len() {
            return Err(WireError::Malformed("values"));
        }
        let chunk = SnapshotChunk {
            snapshot: self.snapshot,
            number: self.number,
            index: self.index,
            layout: self.layout,
            records: self.keys.into_iter().zip(self.values).collect(),
            digest: read_hash(&self.digest, "digest")?,
            mark: self.mark,
        };
        Ok(PeerMessage::Snapshot(SnapshotMessage::Chunk(chunk)))
    }
}

impl Received for proto::SnapshotGone {
    fn check(self) -> Result<PeerMessage, WireError> {
        Ok(PeerMessage::Snapshot(SnapshotMessage::Gone { snapshot: self.snapshot }))
    }
}

impl Received for proto::ScrubBegin {
    fn check(self) -> Result<PeerMessage, WireError> {
        Ok(PeerMessage::Scrub(ScrubMessage::Begin { index: self.index }))
    }
}

impl Received for proto::ScrubContent {
    fn check(self) -> Result<PeerMessage, WireError> {
        let proto::ScrubContent { index, layout, digest } = self;
        let digest = read_hash(&digest, "digest")?;
        Ok(PeerMessage::Scrub(ScrubMessage::Content { index, layout, digest }))
    }
}

impl Received for proto::AdvanceTime {
    fn check(self) -> Result<PeerMessage, WireError> {
        Ok(PeerMessage::AdvanceTime { to: self.to })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;

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
        let rest = [
            PeerMessage::Quiesce { index: 6 },
            PeerMessage::Wake,
            PeerMessage::Alive {
                boot: u64::MAX,
                leads: 2,
                wall_micros: None,
                short_of_room: false,
                map_epoch: 0,
            },
        ];
        messages.into_iter().map(PeerMessage::Paxos).chain([chain]).chain(rest).collect()
    }

    /// Kinds and fields that came later.
    fn later_kinds() -> Vec<PeerMessage> {
        let alive = PeerMessage::Alive {
            boot: u64::MAX,
            leads: 2,
            wall_micros: Some(300),
            short_of_room: false,
            map_epoch: 0,
        };
        vec![alive, PeerMessage::AdvanceTime { to: 300 }, PeerMessage::TimeNotCome { to: 300 }]
    }

    /// About snapshots.
    fn snapshot_kinds() -> Vec<PeerMessage> {
        let record = |key: &'static str| (Bytes::from(key), Bytes::from_static(b"value"));
        let chunk = SnapshotChunk {
            snapshot: 7,
            number: 1,
            index: 300,
            layout: 3,
            records: vec![record("a"), record("b")],
            digest: 0xfeed,
            mark: None,
        };
        let last =
            SnapshotChunk { records: vec![], mark: Some(Bytes::from_static(b"mark")), ..chunk.clone() };
        let snapshots = [
            SnapshotMessage::Ask { snapshot: 7, chunk: 0 },
            SnapshotMessage::Chunk(chunk),
            SnapshotMessage::Chunk(last),
            SnapshotMessage::Gone { snapshot: 7 },
        ];
        let dropped = PeerMessage::Paxos(Message::Dropped { ballot: BALLOT, first: 300 });
        std::iter::once(dropped).chain(snapshots.map(PeerMessage::Snapshot)).collect()
    }

    /// About scrubs.
    fn scrub_kinds() -> Vec<PeerMessage> {
        let content = ScrubMessage::Content { index: 300, layout: 3, digest: 0xfeed };
        [ScrubMessage::Begin { index: 300 }, content].map(PeerMessage::Scrub).into()
    }

    /// With who takes part.
    fn member_kinds() -> Vec<PeerMessage> {
        let joint = QuorumSystem::Joint { old: [1, 2, 3].into(), new: [2, 3, 400].into() };
        let configurations = [
            Configuration { quorum: joint, learners: BTreeSet::new() },
            Configuration { quorum: QuorumSystem::majority([1, 2]), learners: [3].into() },
        ];
        let entry = |(index, configuration)| Entry {
            index,
            ballot: BALLOT,
            value: Value::Configuration(Box::new(configuration)),
        };
        let entries = (7..).zip(configurations).map(entry).collect();
        vec![PeerMessage::Paxos(Message::Accept { ballot: BALLOT, sent_at: 5, entries, chosen: 6 })]
    }

    #[test]
    fn every_kind_comes_back_from_its_path() {
        let later = later_kinds().into_iter().chain(snapshot_kinds()).chain(member_kinds());
        let later = later.chain(scrub_kinds());
        let later = later.chain([PeerMessage::Alive {
            boot: 1,
            leads: 0,
            wall_micros: None,
            short_of_room: true,
            map_epoch: 7,
        }]);
        for message in every_kind().into_iter().chain(later) {
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
            (
                "/paxos/accept",
                &entry(&format!(r#"{ballot},"configuration":{{"voters":[]}}"#)),
                "`voters` is missing",
            ),
            ("/paxos/accept", &entry(&format!(r#"{ballot},"data":"a!""#)), "nvalid symbol"),
            ("/paxos/accept", &entry(&format!(r#"{ballot},"data":[1]"#)), "base64"),
            ("/chain_hash", r#"{"index":1,"chain":"12"}"#, "`chain` is malformed"),
            ("/scrub/content", r#"{"index":1,"layout":3,"digest":"12"}"#, "`digest` is malformed"),
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

    /// Today's bytes of every item, as hexadecimal text: `name bytes` on each line.
    const ITEMS: &str = include_str!("wire/items_v1.txt");

    /// Every item that nodes send: a handshake, a batch of every kind of messages in two shards, forwards.
    fn every_item() -> Vec<(&'static str, proto::Item)> {
        let mut messages: Vec<_> = every_kind().into_iter().map(|message| (ShardId(1), message)).collect();
        let other = PeerMessage::Paxos(Message::Poll { poll: 2 });
        messages.push((ShardId(300), other));
        let forward = Forward {
            shard: ShardId(5),
            time_left: Duration::from_micros(1_234_567),
            commands: vec!["\u{0}one".into(), "".into()],
        };
        let error =
            ForwardReply::Error { kind: ErrorKind::NotLeader, detail: "node 3 leads".into(), leader: None };
        let batch_of_one =
            |messages: Vec<_>| batch(messages.into_iter().map(|message| (ShardId(1), message)).collect());
        vec![
            ("handshake", handshake(Envelope { shard: 0, ..envelope() })),
            ("batch", batch(messages)),
            ("later_batch", batch_of_one(later_kinds())),
            ("snapshot_batch", batch_of_one(snapshot_kinds())),
            ("member_batch", batch_of_one(member_kinds())),
            ("scrub_batch", batch_of_one(scrub_kinds())),
            ("forward_request", forward_request(7, forward)),
            ("forward_answer", forward_answer(7, vec![ForwardReply::Outcome("\u{1}".into()), error])),
        ]
    }

    fn hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn bytes_of(hexadecimal: &str) -> Vec<u8> {
        let digits: Vec<char> = hexadecimal.chars().collect();
        let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn items_have_the_bytes_that_they_always_had() {
        let items = every_item();
        let lines: Vec<(&str, &str)> = ITEMS.lines().filter_map(|line| line.split_once(' ')).collect();
        let written: Vec<_> =
            items.iter().map(|(name, item)| (*name, hexadecimal(&item.encode_to_vec()))).collect();
        let written: Vec<_> = written.iter().map(|(name, bytes)| (*name, bytes.as_str())).collect();
        assert_eq!(written, lines);
        for ((name, bytes), (_, item)) in lines.into_iter().zip(items) {
            assert_eq!(proto::Item::decode(bytes_of(bytes).as_slice()).unwrap(), item, "{name}");
        }
    }

    #[test]
    fn a_batch_brings_back_each_shards_messages() {
        let Some(Item::Batch(batch)) = every_item().remove(1).1.item else { panic!("a batch") };
        let read: Vec<_> = batch.shards.into_iter().map(|shard| read_shard(shard).unwrap()).collect();
        let other = vec![PeerMessage::Paxos(Message::Poll { poll: 2 })];
        assert_eq!(read, [(ShardId(1), every_kind(), 0), (ShardId(300), other, 0)]);
    }

    #[test]
    fn fields_items_and_kinds_of_later_versions_are_skipped() {
        // Field 1000 with the text `new`, and field 900 with the number 1.
        let later = [0xc2, 0x3e, 3, b'n', b'e', b'w', 0xa0, 0x38, 1];
        for (name, item) in every_item() {
            let mut bytes = item.encode_to_vec();
            bytes.extend(later);
            assert_eq!(proto::Item::decode(bytes.as_slice()).unwrap(), item, "{name}");
        }
        let item = proto::Item::decode(later.as_slice()).unwrap();
        assert_eq!(item, proto::Item { item: None });
        let mut envelope_bytes = envelope().encode_to_vec();
        envelope_bytes.extend(later);
        assert_eq!(Envelope::decode(envelope_bytes.as_slice()).unwrap(), envelope());

        let unknown = proto::Message::decode(later.as_slice()).unwrap();
        let known = proto::Message { kind: Some(Kind::from(Message::Poll { poll: 4 })) };
        let messages = proto::ShardMessages { shard: 1, messages: vec![unknown.clone(), known, unknown] };
        let poll = PeerMessage::Paxos(Message::Poll { poll: 4 });
        assert_eq!(read_shard(messages).unwrap(), (ShardId(1), vec![poll], 2));
    }

    #[test]
    fn what_does_not_make_sense_is_an_error() {
        let read = |kind| {
            let messages = vec![proto::Message { kind: Some(kind) }];
            read_shard(proto::ShardMessages { shard: 1, messages }).unwrap_err().to_string()
        };
        let prepare = proto::Prepare { ballot: None, from: 1 };
        assert!(read(Kind::Prepare(prepare)).contains("`ballot` is missing"));
        let ballot = write_ballot(BALLOT);
        let entry = proto::Entry { index: 1, ballot, data: None, noop: false, configuration: None };
        let accept =
            proto::Accept { ballot: write_ballot(BALLOT), sent_at: 1, entries: vec![entry], chosen: 0 };
        assert!(read(Kind::Accept(accept)).contains("`data` is missing"));
        let reply = proto::ForwardReply { outcome: None, error: None };
        let answer = proto::ForwardAnswer { number: 3, replies: vec![reply] };
        let (number, replies) = read_forward_answer(answer);
        assert!(number == 3 && matches!(replies, Err(WireError::Missing("outcome"))));
        for first in [None, Some(batch(Vec::new()))] {
            assert!(matches!(read_handshake(first), Err(WireError::Missing("handshake"))));
        }
    }

    #[test]
    fn payloads_are_not_copied_when_they_are_read() {
        let entry = Entry { index: 7, ballot: BALLOT, value: Value::Data(vec![7; 1000].into()) };
        let accept = Message::Accept { ballot: BALLOT, sent_at: 5, entries: vec![entry], chosen: 6 };
        let bytes = Bytes::from(batch(vec![(ShardId(1), PeerMessage::Paxos(accept))]).encode_to_vec());
        let Some(Item::Batch(mut read)) = proto::Item::decode(bytes.clone()).unwrap().item else {
            panic!("a batch")
        };
        let (_, messages, _) = read_shard(read.shards.remove(0)).unwrap();
        let [PeerMessage::Paxos(Message::Accept { entries, .. })] = messages.as_slice() else {
            panic!("{messages:?}")
        };
        let Value::Data(data) = &entries[0].value else { panic!("data") };
        assert!(bytes.as_ptr_range().contains(&data.as_ptr()));
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
        let error = |kind| ForwardReply::Error {
            kind,
            detail: format!("{kind}, in other words"),
            leader: (kind == ErrorKind::NotLeader).then_some(NodeId(3)),
        };
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
