//! Every key and record of both databases. Numbers and layouts here are persisted: never renumber, never
//! reuse; a change of any of them is a new [`FORMAT_VERSION`].
//!
//! All integers are big-endian, so that keys sort as their numbers do. Entries and hard state are the
//! engines' own bytes; the insides of meta and request records are `keevee_core::codec`'s.

use bytes::Bytes;
use keevee_core::apply::ShardMeta;
use keevee_core::codec::{self, DecodeError};
use keevee_core::command::Versioned;
use keevee_core::ids::{Incarnation, Namespace, NodeId, ShardId, StoreId};
use keevee_core::range::{KeyRange, Place};
use keevee_core::requests::{RequestId, RequestRecord};
use keevee_core::shard_map::Consensus;
use keevee_core::slots::SlotSet;
use keevee_replica::storage::StorageError;
use uuid::Uuid;

/// The version of all layouts in this file. Written into both databases when a folder is formatted and
/// compared at every open.
pub const FORMAT_VERSION: u32 = 3;

/// Stands where a shard's number stands in keys that belong to the node; no shard has this number.
const NODE_PREFIX: u32 = u32::MAX;

/// Kinds of keys of the node itself: `[FF FF FF FF][kind u8]`, the same in both databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NodeKind {
    /// An [`Identity`]; in `log/` and in `data/`.
    Identity = 1,
    /// The [`FirstMember`]s; in `log/` only.
    FirstMembers = 2,
    /// The newest shard map that the node has taken in, `keevee_core::shard_map::codec`; in `log/` only.
    ShardMap = 3,
    /// `[sequence u64]`: which record of the journal was the last that `log/` took in; in `log/` only.
    Journaled = 4,
    /// `[count u64]`: how many segments the journal has, if more than one; in `log/` only.
    Segments = 5,
    /// `[sequence u64]`: a record that the journal had on the disk, the first of a segment's use; in `log/` only.
    Reached = 6,
}

/// Kinds of keys of a shard in `log/`: `[shard u32][kind u8]`, then what each kind adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LogKind {
    /// No more key. Value: the engine's hard state.
    HardState = 1,
    /// `[index u64]`. Value: the engine's entry.
    Entry = 2,
    /// No more key. Value: `[index u64]`; entries below it were removed on purpose.
    Trimmed = 3,
    /// No more key. Value: `[incarnation u32]`, which incarnation of the shard's state is in force: changed together with
    /// the log when a snapshot is taken over. Absent means incarnation 0.
    Incarnation = 4,
    /// No more key. Value: `[u8]`, which engine writes the shard's entries and hard state.
    Engine = 5,
}

/// Kinds of keys of a shard in `data/`: `[shard u32][incarnation u32][kind u8][namespace u32]`, then what
/// each kind adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DataKind {
    /// Namespace 0, no more key. Value: the shard's meta.
    Meta = 1,
    /// `[user key]`. Value: `[version u64][stamp u64][expiry u64][value]`; expiry 0: never.
    Value = 2,
    /// Namespace 0, `[time u64][id kind u8][id u128]`: in the order in which they are forgotten. Value:
    /// the request's record.
    Request = 3,
    /// Reserved: intents of cross-shard transactions.
    Intent = 4,
    /// Reserved: the retained change log behind watches.
    Change = 5,
    /// Reserved: how far a snapshot was received or sent.
    SnapshotMark = 6,
    /// Namespace 0, no more key. Value: the slots that the shard owns.
    Owned = 7,
    /// Namespace 0, `[expiry u64][namespace u32][user key]`: the keys that expire, in the order in which they do. No
    /// value.
    Expiry = 8,
}

/// Kinds of request ids within a [`DataKind::Request`] key.
const REQUEST_TIMED: u8 = 1;
const REQUEST_FREE: u8 = 2;

/// Whose folder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: Uuid,
    /// The node of the cluster.
    pub node_id: NodeId,
    /// The folder.
    pub store_id: StoreId,
}

/// A voter of the first configuration.
pub type FirstMember = (NodeId, StoreId);

/// The key of a record of the node, in either database.
pub fn node_key(kind: NodeKind) -> [u8; 5] {
    kinded(NODE_PREFIX, kind as u8)
}

/// The key of a shard's hard state in `log/`.
pub fn hard_state_key(shard: ShardId) -> [u8; 5] {
    kinded(shard.0, LogKind::HardState as u8)
}

/// The key of the mark below which a shard's entries were removed on purpose, in `log/`.
pub fn trimmed_key(shard: ShardId) -> [u8; 5] {
    kinded(shard.0, LogKind::Trimmed as u8)
}

/// The key of the mark that says which engine a shard has, in `log/`.
pub fn engine_key(shard: ShardId) -> [u8; 5] {
    kinded(shard.0, LogKind::Engine as u8)
}

/// An engine as [`LogKind::Engine`] keeps it.
pub fn encode_engine(consensus: Consensus) -> [u8; 1] {
    match consensus {
        Consensus::Paxos => [1],
        Consensus::Raft => [2],
    }
}

/// Reads what [`encode_engine`] wrote.
pub fn decode_engine(bytes: &[u8]) -> Result<Consensus, StorageError> {
    match bytes {
        [1] => Ok(Consensus::Paxos),
        [2] => Ok(Consensus::Raft),
        other => Err(corrupt("a shard's engine", format!("{other:?}; a newer keevee may know it"))),
    }
}

/// The key of the mark that says which incarnation of a shard's state is in force, in `log/`.
pub fn incarnation_key(shard: ShardId) -> [u8; 5] {
    kinded(shard.0, LogKind::Incarnation as u8)
}

/// The shard that a key of `log/` is of; `None` of the node's own keys.
pub fn shard_of(key: &[u8]) -> Option<ShardId> {
    let shard = u32::from_be_bytes(*key.first_chunk()?);
    (shard != u32::MAX).then_some(ShardId(shard))
}

/// A mark as [`LogKind::Incarnation`] keeps it.
pub fn encode_incarnation(incarnation: Incarnation) -> [u8; 4] {
    incarnation.0.to_be_bytes()
}

/// Reads what [`encode_incarnation`] wrote.
pub fn decode_incarnation(bytes: &[u8]) -> Result<Incarnation, StorageError> {
    let number = bytes.try_into().map(u32::from_be_bytes).map(Incarnation);
    number.map_err(|_| corrupt("an incarnation", format!("{} bytes instead of 4", bytes.len())))
}

/// The incarnation in force, by the mark that is kept of it: the first one if there is none.
pub fn incarnation_in_force(mark: Option<impl AsRef<[u8]>>) -> Result<Incarnation, StorageError> {
    mark.map_or(Ok(Incarnation(0)), |bytes| decode_incarnation(bytes.as_ref()))
}

/// Below which index entries were removed on purpose, by the mark that is kept of it: 0 if there is none.
pub fn trimmed_below(mark: Option<impl AsRef<[u8]>>) -> Result<u64, StorageError> {
    mark.map_or(Ok(0), |bytes| decode_index(bytes.as_ref()))
}

/// The key of an entry in `log/`.
pub fn entry_key(shard: ShardId, index: u64) -> [u8; 13] {
    let mut key = [0; 13];
    key[..5].copy_from_slice(&kinded(shard.0, LogKind::Entry as u8));
    key[5..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The first key behind all of a shard's entries in `log/`.
pub fn entries_end(shard: ShardId) -> [u8; 5] {
    kinded(shard.0, LogKind::Entry as u8 + 1)
}

/// The index in a key made by [`entry_key`].
pub fn entry_index(key: &[u8]) -> Result<u64, StorageError> {
    let index = key.get(5..).and_then(|index| index.try_into().ok()).map(u64::from_be_bytes);
    index.ok_or_else(|| corrupt("an entry's key", format!("{} bytes instead of 13", key.len())))
}

/// A mark as [`LogKind::Trimmed`] keeps it.
pub fn encode_index(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// Reads what [`encode_index`] wrote.
pub fn decode_index(bytes: &[u8]) -> Result<u64, StorageError> {
    let index = bytes.try_into().map(u64::from_be_bytes);
    index.map_err(|_| corrupt("an index", format!("{} bytes instead of 8", bytes.len())))
}

/// What all keys of a kind and namespace of a shard begin with, in `data/`.
pub fn data_prefix(
    shard: ShardId,
    incarnation: Incarnation,
    kind: DataKind,
    namespace: Namespace,
) -> [u8; 13] {
    let mut key = [0; 13];
    key[..4].copy_from_slice(&shard.0.to_be_bytes());
    key[4..8].copy_from_slice(&incarnation.0.to_be_bytes());
    key[8] = kind as u8;
    key[9..].copy_from_slice(&namespace.0.to_be_bytes());
    key
}

/// The length of a [`state_prefix`].
pub const STATE_PREFIX_BYTES: usize = 8;

/// What all keys of an incarnation of a shard begin with, in `data/`.
pub fn state_prefix(shard: ShardId, incarnation: Incarnation) -> [u8; STATE_PREFIX_BYTES] {
    let mut key = [0; STATE_PREFIX_BYTES];
    key[..4].copy_from_slice(&shard.0.to_be_bytes());
    key[4..].copy_from_slice(&incarnation.0.to_be_bytes());
    key
}

/// The first key behind all of an incarnation of a shard in `data/`.
pub fn state_end(shard: ShardId, incarnation: Incarnation) -> [u8; STATE_PREFIX_BYTES] {
    let number = u64::from(shard.0) << 32 | u64::from(incarnation.0);
    (number + 1).to_be_bytes()
}

/// The key of a shard's meta in `data/`.
pub fn meta_key(shard: ShardId, incarnation: Incarnation) -> [u8; 13] {
    data_prefix(shard, incarnation, DataKind::Meta, Namespace(0))
}

/// The key of the slots that a shard owns, in `data/`.
pub fn owned_key(shard: ShardId, incarnation: Incarnation) -> [u8; 13] {
    data_prefix(shard, incarnation, DataKind::Owned, Namespace(0))
}

/// The key of a user's key in `data/`.
pub fn value_key(shard: ShardId, incarnation: Incarnation, namespace: Namespace, user_key: &[u8]) -> Vec<u8> {
    let prefix = data_prefix(shard, incarnation, DataKind::Value, namespace);
    [prefix.as_slice(), user_key].concat()
}

/// The bounds of the user's keys of a range in `data/`: the first key, and the first behind them.
pub fn value_bounds(
    shard: ShardId,
    incarnation: Incarnation,
    namespace: Namespace,
    range: &KeyRange,
) -> (Vec<u8>, Vec<u8>) {
    let from = value_key(shard, incarnation, namespace, &range.start);
    let end = match (&range.end, namespace.0.checked_add(1)) {
        (Some(end), _) => value_key(shard, incarnation, namespace, end.max(&range.start)),
        (None, Some(next)) => value_key(shard, incarnation, Namespace(next), b""),
        (None, None) => {
            let mut end = data_prefix(shard, incarnation, DataKind::Value, Namespace(0));
            end[8] += 1;
            end.to_vec()
        }
    };
    (from, end)
}

/// The user's key in a key made by [`value_key`].
pub fn user_key(key: &[u8]) -> Result<Bytes, StorageError> {
    let user_key = key.get(13..).map(Bytes::copy_from_slice);
    user_key.ok_or_else(|| corrupt("a value's key", format!("{} bytes instead of 13 and more", key.len())))
}

/// The kind, the namespace and the rest of a key as snapshots have it: one of [`data_prefix`] and more, without shard and
/// incarnation.
pub fn snapshot_key(key: &[u8]) -> Result<(u8, Namespace, &[u8]), StorageError> {
    let mut reader = Reader { bytes: key, what: "the key of a snapshot's record" };
    let [kind] = reader.take()?;
    let namespace = Namespace(reader.u32()?);
    Ok((kind, namespace, reader.bytes))
}

/// The key of a remembered request in `data/`.
pub fn request_key(shard: ShardId, incarnation: Incarnation, record: &RequestRecord) -> Vec<u8> {
    let (kind, id) = match record.id {
        RequestId::Timed(id) => (REQUEST_TIMED, id),
        RequestId::Free(id) => (REQUEST_FREE, id),
    };
    let prefix = data_prefix(shard, incarnation, DataKind::Request, Namespace(0));
    [prefix.as_slice(), &record.time.to_be_bytes(), &[kind], &id.to_be_bytes()].concat()
}

/// The bounds of a shard's remembered requests in `data/`: the first key, and the first behind them.
pub fn request_bounds(shard: ShardId, incarnation: Incarnation) -> (Vec<u8>, Vec<u8>) {
    let from = data_prefix(shard, incarnation, DataKind::Request, Namespace(0));
    let mut end = from;
    end[8] += 1;
    (from.to_vec(), end.to_vec())
}

/// The key of an expiry in `data/`.
pub fn expiry_key(
    shard: ShardId,
    incarnation: Incarnation,
    expires: u64,
    (namespace, user_key): &Place,
) -> Vec<u8> {
    let prefix = data_prefix(shard, incarnation, DataKind::Expiry, Namespace(0));
    [prefix.as_slice(), &expires.to_be_bytes(), &namespace.0.to_be_bytes(), user_key].concat()
}

/// The bounds of a shard's expiries up to a time in `data/`: the first key, and the first behind them.
pub fn expiry_bounds(shard: ShardId, incarnation: Incarnation, latest: u64) -> (Vec<u8>, Vec<u8>) {
    let from = data_prefix(shard, incarnation, DataKind::Expiry, Namespace(0));
    let mut end = from;
    match latest.checked_add(1) {
        Some(behind) => (from.to_vec(), [end.as_slice(), &behind.to_be_bytes()].concat()),
        None => {
            end[8] += 1;
            (from.to_vec(), end.to_vec())
        }
    }
}

/// Reads a key made by [`expiry_key`].
pub fn decode_expiry(key: &[u8]) -> Result<(u64, Place), StorageError> {
    let mut reader = Reader { bytes: key.get(13..).unwrap_or_default(), what: "the key of an expiry" };
    let expires = reader.u64()?;
    let namespace = Namespace(reader.u32()?);
    Ok((expires, (namespace, Bytes::copy_from_slice(reader.bytes))))
}

/// A value as [`DataKind::Value`] keeps it.
pub fn encode_value(value: &Versioned) -> Vec<u8> {
    // No value is stored whose expiry has come, so none has 0.
    let expires = value.expires.unwrap_or(0).to_be_bytes();
    [&value.version.to_be_bytes(), &value.stamp.to_be_bytes(), &expires, value.value.as_ref()].concat()
}

/// Reads what [`encode_value`] wrote.
pub fn decode_value(bytes: &[u8]) -> Result<Versioned, StorageError> {
    let mut reader = Reader { bytes, what: "a value's record" };
    let version = reader.u64()?;
    let stamp = reader.u64()?;
    let expires = Some(reader.u64()?).filter(|expires| *expires > 0);
    Ok(Versioned { version, stamp, expires, value: Bytes::copy_from_slice(reader.bytes) })
}

/// Reads a shard's meta, all but the slots that it owns.
pub fn decode_meta(bytes: &[u8], owned: SlotSet) -> Result<ShardMeta, StorageError> {
    codec::decode_meta(Bytes::copy_from_slice(bytes), owned).map_err(|e| undecodable("a shard's meta", e))
}

/// Reads the slots that a shard owns, as [`SlotSet::to_bytes`] wrote them.
pub fn decode_owned(bytes: Option<&[u8]>) -> Result<SlotSet, StorageError> {
    let unreadable = || corrupt("the slots of a shard", "they are missing or no set of slots".to_owned());
    bytes.and_then(SlotSet::from_bytes).ok_or_else(unreadable)
}

/// Reads a request's record.
pub fn decode_request(bytes: &[u8]) -> Result<RequestRecord, StorageError> {
    let record = codec::decode_request(Bytes::copy_from_slice(bytes));
    record.map_err(|error| undecodable("a request's record", error))
}

/// An identity as both databases keep it:
/// `[format version u32][cluster id 16][node id u64][store id 16]`. The version comes first in every
/// version to come.
pub fn encode_identity(identity: &Identity) -> Vec<u8> {
    [
        FORMAT_VERSION.to_be_bytes().as_slice(),
        identity.cluster_id.as_bytes(),
        &identity.node_id.0.to_be_bytes(),
        identity.store_id.0.as_bytes(),
    ]
    .concat()
}

/// The format version that an identity record begins with.
pub fn identity_version(bytes: &[u8]) -> Result<u32, StorageError> {
    Reader { bytes, what: IDENTITY }.u32()
}

/// Reads what [`encode_identity`] wrote; the caller has checked the version.
pub fn decode_identity(bytes: &[u8]) -> Result<Identity, StorageError> {
    let mut reader = Reader { bytes, what: IDENTITY };
    reader.u32()?;
    let cluster_id = reader.uuid()?;
    let node_id = NodeId(reader.u64()?);
    let store_id = StoreId(reader.uuid()?);
    reader.end()?;
    Ok(Identity { cluster_id, node_id, store_id })
}

/// The first members as `log/` keeps them: `[count u32]`, then `[node id u64][store id 16]` for each, by
/// node id.
pub fn encode_first_members(members: &[FirstMember]) -> Vec<u8> {
    let count = u32::try_from(members.len()).expect("a cluster has fewer than 2^32 nodes");
    let mut bytes = count.to_be_bytes().to_vec();
    for (node, store) in members {
        bytes.extend_from_slice(&node.0.to_be_bytes());
        bytes.extend_from_slice(store.0.as_bytes());
    }
    bytes
}

/// Reads what [`encode_first_members`] wrote.
pub fn decode_first_members(bytes: &[u8]) -> Result<Vec<FirstMember>, StorageError> {
    let mut reader = Reader { bytes, what: "the record of first members" };
    let mut members = Vec::new();
    for _ in 0..reader.u32()? {
        members.push((NodeId(reader.u64()?), StoreId(reader.uuid()?)));
    }
    reader.end()?;
    Ok(members)
}

const IDENTITY: &str = "the identity record";

fn kinded(prefix: u32, kind: u8) -> [u8; 5] {
    let [a, b, c, d] = prefix.to_be_bytes();
    [a, b, c, d, kind]
}

fn corrupt(what: &'static str, cause: String) -> StorageError {
    StorageError::Corrupt { what, cause }
}

/// Damage calls for another copy of the data; what a newer keevee wrote calls for an upgrade only.
fn undecodable(what: &'static str, error: DecodeError) -> StorageError {
    let cause = error.to_string();
    match error {
        DecodeError::Malformed(_) | DecodeError::BadField(_) => corrupt(what, cause),
        DecodeError::UnknownFormat(_) | DecodeError::UnknownKind(_) | DecodeError::UnknownField => {
            StorageError::Io { what, cause }
        }
    }
}

/// Takes a fixed layout apart, from the front.
struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StorageError> {
        let Some((taken, rest)) = self.bytes.split_first_chunk::<N>() else {
            return Err(corrupt(self.what, format!("{N} bytes needed, {} left", self.bytes.len())));
        };
        self.bytes = rest;
        Ok(*taken)
    }

    fn u32(&mut self) -> Result<u32, StorageError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, StorageError> {
        self.take().map(u64::from_be_bytes)
    }

    fn uuid(&mut self) -> Result<Uuid, StorageError> {
        self.take().map(Uuid::from_bytes)
    }

    fn end(&self) -> Result<(), StorageError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(corrupt(self.what, format!("{} bytes too many", self.bytes.len())))
    }
}

#[cfg(test)]
mod tests;
