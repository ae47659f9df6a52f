//! The shard map as bytes, for the system shard's log and state and between nodes. `proto/shard_map.proto`
//! holds the layout. Decoding is strict, as everywhere ([`crate::codec`]), and what is decoded is a valid
//! map.

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::{Consensus, NodeInfo, ShardInfo, ShardMap, ShardMapError};
use crate::codec::{DecodeError, check_format_is, decode_known, each};
use crate::ids::{NodeId, ShardId, StoreId};
use crate::slot_table::{Run, SlotTable};
use crate::slots::{SLOTS, Slot};

#[allow(unreachable_pub, clippy::all, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/keevee.shard_map.v1.rs"));
}

/// The format that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// Why bytes are no shard map, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardMapDecodeError {
    /// The bytes could not be decoded.
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    /// They could, to something that is no map.
    #[error("not a valid shard map: fetch it again from another node")]
    Invalid(#[from] ShardMapError),
}

/// Encodes a map.
pub fn encode(map: &ShardMap) -> Bytes {
    let node = |node: &NodeInfo| proto::Node {
        id: node.id.0,
        store_id: Bytes::copy_from_slice(node.store.0.as_bytes()),
        peer: node.peer.clone(),
        http: node.http.clone(),
        resp: node.resp.clone(),
    };
    let shard = |shard: &ShardInfo| proto::Shard {
        id: shard.id.0,
        name: shard.name.clone(),
        load_factor: shard.load_factor,
        consensus: match shard.consensus {
            Consensus::Paxos => proto::Consensus::Paxos,
            Consensus::Raft => proto::Consensus::Raft,
        }
        .into(),
        members: shard.members.iter().map(|member| member.0).collect(),
        next: shard.next.iter().flatten().map(|member| member.0).collect(),
        changes: shard.changes,
    };
    let pair = |run: Run| [u32::from(run.last.0 - run.first.0) + 1, run.shard.0];
    let message = proto::ShardMap {
        format: FORMAT,
        epoch: map.epoch,
        ttl_seconds: map.ttl_seconds,
        nodes: map.nodes.iter().map(node).collect(),
        shards: map.shards.iter().map(shard).collect(),
        slots: map.slots.runs().into_iter().flat_map(pair).collect(),
        removed: map.removed.iter().map(|node| node.0).collect(),
        drained: map.drained.iter().map(|node| node.0).collect(),
    };
    message.encode_to_vec().into()
}

/// Decodes a map, and checks that it is one.
pub fn decode(bytes: Bytes) -> Result<ShardMap, ShardMapDecodeError> {
    let map = decode_known(bytes, FORMAT, |message: proto::ShardMap| {
        check_format_is(FORMAT, message.format)?;
        Ok(ShardMap {
            epoch: message.epoch,
            ttl_seconds: message.ttl_seconds,
            shards: each(message.shards, shard_from_proto)?,
            nodes: each(message.nodes, node_from_proto)?,
            slots: slots_from_proto(&message.slots)?,
            removed: message.removed.into_iter().map(NodeId).collect(),
            drained: message.drained.into_iter().map(NodeId).collect(),
        })
    })?;
    map.validate()?;
    Ok(map)
}

fn node_from_proto(message: proto::Node) -> Result<NodeInfo, DecodeError> {
    let store = Uuid::from_slice(&message.store_id).map_err(|_| DecodeError::BadField("store id"))?;
    let proto::Node { id, peer, http, resp, .. } = message;
    Ok(NodeInfo { id: NodeId(id), store: StoreId(store), peer, http, resp })
}

fn shard_from_proto(message: proto::Shard) -> Result<ShardInfo, DecodeError> {
    let consensus = match proto::Consensus::try_from(message.consensus) {
        Ok(proto::Consensus::Paxos) => Consensus::Paxos,
        Ok(proto::Consensus::Raft) => Consensus::Raft,
        Ok(proto::Consensus::Unspecified) => return Err(DecodeError::BadField("consensus")),
        Err(_) => return Err(DecodeError::UnknownKind("consensus")),
    };
    let next: Vec<NodeId> = message.next.into_iter().map(NodeId).collect();
    Ok(ShardInfo {
        id: ShardId(message.id),
        name: message.name,
        load_factor: message.load_factor,
        consensus,
        members: message.members.into_iter().map(NodeId).collect(),
        next: Some(next).filter(|next| !next.is_empty()),
        changes: message.changes,
    })
}

fn slots_from_proto(pairs: &[u32]) -> Result<SlotTable, DecodeError> {
    let bad = DecodeError::BadField("slots");
    let (pairs, rest) = pairs.as_chunks::<2>();
    let mut runs = Vec::with_capacity(pairs.len().min(SLOTS.into()));
    let mut first: u32 = 0;
    for &[count, shard] in pairs {
        let next = first.checked_add(count).filter(|&next| count > 0 && next <= SLOTS.into());
        let next = next.ok_or_else(|| bad.clone())?;
        runs.push(Run { first: Slot(first as u16), last: Slot((next - 1) as u16), shard: ShardId(shard) });
        first = next;
    }
    if !rest.is_empty() {
        return Err(bad);
    }
    SlotTable::from_runs(&runs).map_err(|_| bad)
}
