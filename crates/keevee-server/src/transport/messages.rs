//! What nodes say to each other, as the node has it: no bytes, no sockets.

use std::time::Duration;

use bytes::Bytes;
use keevee_core::error::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_paxos::Message;
use keevee_raft::RaftMessage;
use keevee_replica::{ChainHash, ScrubMessage, SnapshotMessage};
use serde::{Deserialize, Serialize};

/// What nodes speak to each other: the same on every node of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerProtocol {
    /// Long-lived streams of gRPC.
    #[default]
    Grpc,
    /// Readable JSON over HTTP/1.1, for teaching and debugging.
    HttpJson,
}

/// One replica's message to its counterpart on another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// Of the Multi-Paxos engine.
    Paxos(Message),
    /// Of the Raft engine.
    Raft(RaftMessage),
    /// The sender's chain hash at an index: replicas that differ have diverged.
    ChainHash(ChainHash),
    /// The sender leads the shard, and is quiesced from here on.
    Quiesce {
        /// The last index.
        index: u64,
    },
    /// The sender is not quiesced.
    Wake,
    /// Of the node, whatever shard it comes with: it is alive.
    Alive {
        /// Drawn by its process when it started.
        boot: u64,
        /// How many shards it leads.
        leads: u32,
        /// Its wall clock, in microseconds since the Unix epoch; an older version does not tell.
        wall_micros: Option<u64>,
        /// Its disk is nearly full.
        short_of_room: bool,
        /// Of the shard map that it goes by; 0 from an older version.
        map_epoch: u64,
    },
    /// The leader shall let shard time come so far, for the sender's reads.
    AdvanceTime {
        /// Microseconds since the Unix epoch.
        to: u64,
    },
    /// That is not due by the leader's clock.
    TimeNotCome {
        /// As the leader was asked.
        to: u64,
    },
    /// About a snapshot of the shard's state.
    Snapshot(SnapshotMessage),
    /// About a comparison of the replicas' states.
    Scrub(ScrubMessage),
}

/// Commands that an ingress node hands to the leader: one hop, never forwarded again.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The shard that owns every key of the commands.
    pub shard: ShardId,
    /// What is left of the callers' time.
    pub time_left: Duration,
    /// Each command in [`keevee_core::codec`]'s encoding.
    pub commands: Vec<Bytes>,
}

/// What became of one forwarded command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardReply {
    /// It was carried out or refused by `apply`: an outcome in [`keevee_core::codec`]'s encoding.
    Outcome(Bytes),
    /// It was not carried out, or nobody can say.
    Error {
        /// What the ingress node may do next.
        kind: ErrorKind,
        /// For people.
        detail: String,
        /// Of [`ErrorKind::NotLeader`]: who leads, if that is known.
        leader: Option<NodeId>,
    },
}
