//! `keevee.toml`: what a node must be told. What it must never forget is in its data folder instead.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keevee_core::apply::VALUE_BYTES_MAX_APPLY;
use keevee_core::ids::{NodeId, StoreId};
use keevee_core::limits::Limits;
use keevee_core::shard_map::change::{ChangeError, Placement, ShardSpec};
use keevee_core::shard_map::{Consensus, NodeInfo, ShardMap};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine::Timing;
use crate::storage::FirstMember;
use crate::transport::PeerProtocol;

/// Slower, the largest value would take longer than its sender waits.
const SNAPSHOT_BYTES_PER_SECOND_MIN: u64 = 1 << 20;

/// Slower, a scrub of a large state would never end.
const SCRUB_BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// More replicas than this make a shard slower and hardly safer; who wants them names the nodes.
const REPLICAS_MAX: usize = 5;

/// A node's configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which cluster.
    pub cluster: ClusterConfig,
    /// Which node of it.
    pub node: NodeConfig,
    /// Where every node of the cluster is, this one included. A node that joins may leave it out: it asks, and is reached where
    /// it listens.
    #[serde(rename = "member", default)]
    pub members: Vec<MemberConfig>,
    /// How leaders are kept and replaced.
    #[serde(default)]
    pub engine: EngineConfig,
    /// How large and how long requests may be.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// What clients of HTTP and gRPC may hold, and for how long.
    #[serde(default)]
    pub http: HttpConfig,
    /// What whoever connects to the port for peers may hold, and for how long.
    #[serde(default)]
    pub peers: PeersConfig,
    /// How the Redis protocol is spoken.
    #[serde(default)]
    pub resp: RespConfig,
    /// What is logged.
    #[serde(default)]
    pub log: LogConfig,
}

/// How the Redis protocol is spoken, where `[node] resp` says that it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RespConfig {
    /// What is done with a command for a key that another node leads.
    pub redirect: Redirect,
    /// Connections open at once; more are closed at once.
    pub connections_max: usize,
    /// Bytes of large requests in memory, of all connections together; at least [`RESP_BYTES_MIN`].
    pub requests_bytes_max: usize,
    /// The same of large replies.
    pub replies_bytes_max: usize,
    /// A client that takes none of its replies for so long, or sends nothing of a large request that it has begun, is cut
    /// off; in milliseconds.
    pub stalled_ms: u64,
    /// A request must have arrived so long after its first bytes; in milliseconds. Between requests there is no limit.
    pub request_ms: u64,
}

/// The largest request has more than half of it, and the answer to a transaction with its replies all of it.
pub const RESP_BYTES_MIN: usize = 32 << 20;

impl Default for RespConfig {
    fn default() -> RespConfig {
        RespConfig {
            redirect: Redirect::Forward,
            connections_max: 10_000,
            requests_bytes_max: 256 << 20,
            replies_bytes_max: 256 << 20,
            stalled_ms: 60_000,
            request_ms: 60_000,
        }
    }
}

/// What clients of HTTP and gRPC may hold, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Connections open at once; more are refused at once.
    pub connections_max: usize,
    /// A request's head, and the first bytes of HTTP/2, must have arrived so long after they began; in milliseconds.
    pub head_ms: u64,
    /// A body, and each message of a stream, must have arrived so long after it began; in milliseconds.
    pub body_ms: u64,
    /// A connection without a request for so long is closed; in milliseconds.
    pub idle_ms: u64,
    /// A client that takes nothing of an answer for so long is cut off; in milliseconds.
    pub stalled_ms: u64,
}

impl Default for HttpConfig {
    fn default() -> HttpConfig {
        HttpConfig {
            connections_max: 10_000,
            head_ms: 10_000,
            body_ms: 30_000,
            idle_ms: 75_000,
            stalled_ms: 60_000,
        }
    }
}

/// What whoever connects to the port for peers may hold, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeersConfig {
    /// Connections open at once; more are closed at once. Each peer has three, and a few more over HTTP.
    pub connections_max: usize,
    /// The cluster's secret, and who calls, must have arrived so long after a connection was made; in milliseconds.
    pub handshake_ms: u64,
}

impl Default for PeersConfig {
    fn default() -> PeersConfig {
        PeersConfig { connections_max: 1024, handshake_ms: 10_000 }
    }
}

/// What a node does with a command for a key that another node leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Redirect {
    /// It has the leader carry it out: any client may use any node.
    #[default]
    Forward,
    /// It tells the client to go there: `MOVED`. Clients must know clusters.
    Moved,
}

/// Which cluster: the same on every node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Tells this cluster from others.
    pub id: Uuid,
    /// Known to the nodes of the cluster only: at least 16 characters.
    pub secret: String,
    /// What the nodes speak to each other.
    #[serde(default)]
    pub peer_transport: PeerProtocol,
}

/// This node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Its number, from 1.
    pub id: u64,
    /// Its data folder; a relative path starts at the configuration file's folder.
    pub data: PathBuf,
    /// Where it listens for clients, `host:port`.
    pub http: String,
    /// Where it listens for other nodes, `host:port`.
    pub peer: String,
    /// Where it listens for clients that speak the Redis protocol, `host:port`; without, it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resp: Option<String>,
    /// Threads that serve connections and run the replicas; 0 means one for every two cores. The log has a thread of
    /// its own.
    #[serde(default)]
    pub io_threads: usize,
}

/// Where a node is reached.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// The node.
    pub id: u64,
    /// For clients, `host:port`.
    pub http: String,
    /// For other nodes, `host:port`.
    pub peer: String,
    /// For clients that speak the Redis protocol, `host:port`, if it listens for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resp: Option<String>,
}

/// How leaders are kept and replaced: the same on every node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// How the replicas of a new data folder agree; a folder keeps what it began with.
    pub consensus: Consensus,
    /// Between a leader's heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// The shortest silence after which a node looks for another leader, in milliseconds.
    pub timeout_min_ms: u64,
    /// The longest, in milliseconds.
    pub timeout_max_ms: u64,
    /// Entries on their way to the disk before the next batch of commands is cut.
    pub unsynced_entries_max: usize,
    /// How often applied state is flushed at least, so that the log can be truncated, in milliseconds.
    pub flush_interval_ms: u64,
    /// Memory for values that were read lately, of all shards of the node.
    pub value_cache_bytes: u64,
    /// How much of a shard's log is kept for replicas that lack some of it, in bytes. One that lacks more needs a snapshot.
    pub log_bytes_max: u64,
    /// How fast a snapshot is fetched, in bytes per second.
    pub snapshot_bytes_per_second: u64,
    /// How long after a shard's last scrub its leader begins another, in milliseconds; 0 for never.
    pub scrub_interval_ms: u64,
    /// How fast a node reads its states for scrubs, all of them together, in bytes per second.
    pub scrub_bytes_per_second: u64,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            consensus: Consensus::Paxos,
            heartbeat_ms: 100,
            timeout_min_ms: 600,
            timeout_max_ms: 1200,
            unsynced_entries_max: 1,
            flush_interval_ms: 10_000,
            value_cache_bytes: 64 << 20,
            log_bytes_max: 512 << 20,
            snapshot_bytes_per_second: 8 << 20,
            scrub_interval_ms: 24 * 60 * 60 * 1000,
            scrub_bytes_per_second: 8 << 20,
        }
    }
}

/// How large and how long requests may be.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// The largest value, in bytes.
    pub value_bytes_max: usize,
    /// How long a request may take, in milliseconds, unless it says otherwise.
    pub request_timeout_ms: u64,
    /// How long a request waits while there is no leader, in milliseconds.
    pub leader_wait_ms: u64,
    /// Commands that may wait in one shard.
    pub waiting_commands_max: usize,
    /// With less room than this on the data folder's file system, in bytes, a node leads no shard if others can, and takes no
    /// writes that take room; 0 for never.
    pub disk_free_bytes_min: u64,
}

impl Default for LimitsConfig {
    fn default() -> LimitsConfig {
        LimitsConfig {
            value_bytes_max: 8 << 20,
            request_timeout_ms: 5_000,
            leader_wait_ms: 3_000,
            waiting_commands_max: 65_536,
            disk_free_bytes_min: 512 << 20,
        }
    }
}

/// What is logged; the command line and `KEEVEE_LOG` come first.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter like `info,keevee_server=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {path}: {cause}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It is not TOML, or not of this shape.
    #[error("{path}: {cause}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why, and the nearest right key if one was wrong.
        cause: String,
    },
    /// It contradicts itself.
    #[error("{path}: {cause}", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        cause: String,
    },
}

impl Config {
    /// Reads and checks a configuration file. Relative paths in it become relative to its folder.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = |cause| ConfigError::Read { path: path.to_owned(), cause };
        let text = fs::read_to_string(path).map_err(read)?;
        Config::parse(&text, path)
    }

    /// As [`Config::load`], of a text that stands for the file at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let parse = |cause: toml::de::Error| ConfigError::Parse {
            path: path.to_owned(),
            cause: with_nearest_key(cause.to_string()),
        };
        let mut config: Config = toml::from_str(text).map_err(parse)?;
        config.check().map_err(|cause| ConfigError::Wrong { path: path.to_owned(), cause })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.node.data = folder.join(&config.node.data);
        Ok(config)
    }

    /// The first shard map of a cluster of these nodes and stores: with these data shards, or with one on all nodes, five
    /// at most.
    ///
    /// # Errors
    ///
    /// [`ChangeError`] if there is no such map.
    pub fn first_map(&self, stores: &[FirstMember], shards: &[ShardSpec]) -> Result<ShardMap, ChangeError> {
        let store = |id: u64| stores.iter().find(|(node, _)| node.0 == id).map(|(_, store)| *store);
        let node = |member: &MemberConfig| {
            let MemberConfig { id, http, peer, resp } = member.clone();
            store(id).map(|store| NodeInfo { id: NodeId(id), store, peer, http, resp })
        };
        let nodes: Vec<NodeInfo> = self.members.iter().filter_map(node).collect();
        let alone = [self.shard(nodes.len())];
        let shards = if shards.is_empty() { &alone } else { shards };
        ShardMap::bootstrap(nodes, self.engine.consensus, shards)
    }

    /// A data shard on so many nodes, five at most.
    pub fn shard(&self, nodes: usize) -> ShardSpec {
        ShardSpec {
            name: None,
            load_factor: 1,
            consensus: self.engine.consensus,
            placement: Placement::Spread { replicas: nodes.min(REPLICAS_MAX) },
        }
    }

    /// This node, whose folder has this store, where others reach it.
    pub fn own_node(&self, store: StoreId) -> NodeInfo {
        let listed = self.members.iter().find(|member| member.id == self.node.id);
        let (peer, http, resp) = match listed {
            Some(member) => (&member.peer, &member.http, &member.resp),
            None => (&self.node.peer, &self.node.http, &self.node.resp),
        };
        // One that listens is reached where it listens, unless the member says otherwise.
        let resp = self.node.resp.as_ref().map(|own| resp.as_ref().unwrap_or(own).clone());
        NodeInfo { id: self.node_id(), store, peer: peer.clone(), http: http.clone(), resp }
    }

    /// The timing of elections.
    pub fn timing(&self) -> Timing {
        Timing {
            heartbeat: Duration::from_millis(self.engine.heartbeat_ms),
            timeout_min: Duration::from_millis(self.engine.timeout_min_ms),
            timeout_max: Duration::from_millis(self.engine.timeout_max_ms),
        }
    }

    /// How large commands may be.
    pub fn limits(&self) -> Limits {
        Limits { value_bytes_max: self.limits.value_bytes_max, ..Limits::default() }
    }

    /// How many threads serve connections and run the replicas.
    pub fn io_threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if self.node.io_threads > 0 { self.node.io_threads } else { cores.div_ceil(2) }
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.node.id)
    }

    fn check(&self) -> Result<(), String> {
        let mut ids: Vec<u64> = self.members.iter().map(|member| member.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) || ids.contains(&0) {
            return Err("each [[member]] needs an id of its own, from 1".to_owned());
        }
        if self.node.id == 0 {
            return Err("[node] id must be at least 1".to_owned());
        }
        if !ids.is_empty() && !ids.contains(&self.node.id) {
            return Err(format!("[node] id = {} is none of the [[member]]s: {ids:?}", self.node.id));
        }
        let NodeConfig { http, peer, .. } = &self.node;
        let reaches_nobody = |address: &&String| {
            address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
        };
        if ids.is_empty()
            && let Some(address) = [http, peer].into_iter().find(reaches_nobody)
        {
            let node = self.node.id;
            return Err(format!(
                "nobody reaches node {node} at {address}: say in a [[member]] with this id where others reach it"
            ));
        }
        if self.cluster.secret.len() < 16 {
            return Err("[cluster] secret needs at least 16 characters".to_owned());
        }
        let EngineConfig { heartbeat_ms, timeout_min_ms, timeout_max_ms, .. } = self.engine;
        if heartbeat_ms == 0 || timeout_min_ms < 2 * heartbeat_ms || timeout_max_ms <= timeout_min_ms {
            return Err("[engine] needs 0 < 2 * heartbeat_ms <= timeout_min_ms < timeout_max_ms".to_owned());
        }
        if self.engine.unsynced_entries_max == 0 || self.engine.flush_interval_ms == 0 {
            return Err("[engine] unsynced_entries_max and flush_interval_ms must be at least 1".to_owned());
        }
        if self.engine.snapshot_bytes_per_second < SNAPSHOT_BYTES_PER_SECOND_MIN {
            let least = SNAPSHOT_BYTES_PER_SECOND_MIN;
            return Err(format!("[engine] snapshot_bytes_per_second must be at least {least}"));
        }
        if self.engine.scrub_bytes_per_second < SCRUB_BYTES_PER_SECOND_MIN {
            let least = SCRUB_BYTES_PER_SECOND_MIN;
            return Err(format!("[engine] scrub_bytes_per_second must be at least {least}"));
        }
        let LimitsConfig { value_bytes_max, request_timeout_ms, waiting_commands_max, .. } = self.limits;
        if request_timeout_ms == 0 || waiting_commands_max == 0 {
            return Err("[limits] request_timeout_ms and waiting_commands_max must be at least 1".to_owned());
        }
        let HttpConfig { connections_max, head_ms, body_ms, idle_ms, stalled_ms } = self.http;
        if connections_max == 0 || [head_ms, body_ms, stalled_ms].contains(&0) {
            let names = "connections_max, head_ms, body_ms and stalled_ms";
            return Err(format!("[http] {names} must be at least 1"));
        }
        if idle_ms < head_ms {
            return Err("[http] idle_ms must be at least head_ms: a head may take so long".to_owned());
        }
        if self.peers.connections_max == 0 || self.peers.handshake_ms == 0 {
            return Err("[peers] connections_max and handshake_ms must be at least 1".to_owned());
        }
        if self.resp.connections_max == 0 || self.resp.stalled_ms == 0 || self.resp.request_ms == 0 {
            return Err("[resp] connections_max, stalled_ms and request_ms must be at least 1".to_owned());
        }
        if self.resp.requests_bytes_max.min(self.resp.replies_bytes_max) < RESP_BYTES_MIN {
            return Err(format!(
                "[resp] requests_bytes_max and replies_bytes_max must be at least {RESP_BYTES_MIN}"
            ));
        }
        if value_bytes_max == 0 || value_bytes_max > VALUE_BYTES_MAX_APPLY {
            return Err(format!(
                "[limits] value_bytes_max must be at least 1 and at most {VALUE_BYTES_MAX_APPLY}"
            ));
        }
        Ok(())
    }
}

/// Adds the nearest right key to serde's message about an unknown one.
fn with_nearest_key(message: String) -> String {
    let Some(start) = message.find("unknown field `") else { return message };
    let mut names = message[start..].split('`').skip(1).step_by(2);
    let Some(unknown) = names.next() else { return message };
    let nearest =
        names.max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
    match nearest {
        Some(nearest) => format!("{}\ndid you mean `{nearest}`?", message.trim_end()),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [cluster]
        id = "0b5c2d0e-6d3a-4b8e-9a51-2f6f6f1f7c11"
        secret = "a secret of sixteen"
        [node]
        id = 1
        data = "data"
        http = "127.0.0.1:8001"
        peer = "127.0.0.1:9001"
        [[member]]
        id = 1
        http = "127.0.0.1:8001"
        peer = "127.0.0.1:9001"
    "#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/keevee.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        assert_eq!(parse(GOOD).map(|config| config.node.data), Ok(PathBuf::from("/etc/data")));
    }

    #[test]
    fn the_peer_transport_is_grpc_unless_said_otherwise() {
        let with = |line: &str| {
            let text = GOOD.replace("[node]", &format!("{line}\n[node]"));
            parse(&text).map(|config| config.cluster.peer_transport)
        };
        assert_eq!(with(""), Ok(PeerProtocol::Grpc));
        assert_eq!(with("peer_transport = \"grpc\""), Ok(PeerProtocol::Grpc));
        assert_eq!(with("peer_transport = \"http-json\""), Ok(PeerProtocol::HttpJson));
        let error = with("peer_transport = \"smoke\"").unwrap_err();
        assert!(error.contains("grpc") && error.contains("http-json"), "{error}");
    }

    #[test]
    fn an_unknown_key_names_the_nearest_right_one() {
        let error = parse(&format!("{GOOD}\n[limits]\nvalue_byte_max = 1")).unwrap_err();
        assert!(error.contains("did you mean `value_bytes_max`?"), "{error}");
        let error = parse(&GOOD.replace("[node]", "[nod]")).unwrap_err();
        assert!(error.contains("did you mean `node`?"), "{error}");
    }

    #[test]
    fn the_smallest_limits_are_taken() {
        let limits =
            "value_bytes_max = 1\nrequest_timeout_ms = 1\nleader_wait_ms = 0\nwaiting_commands_max = 1";
        parse(&format!("{GOOD}\n[limits]\n{limits}")).unwrap();
    }

    /// Without `[[member]]`s.
    fn alone() -> String {
        GOOD[..GOOD.find("[[member]]").unwrap()].to_owned()
    }

    #[test]
    fn a_node_that_joins_need_not_know_the_members() {
        let config = parse(&alone()).unwrap();
        let own = config.own_node(StoreId(Uuid::from_u128(1)));
        assert_eq!((own.http.as_str(), own.peer.as_str()), ("127.0.0.1:8001", "127.0.0.1:9001"));
    }

    #[test]
    fn contradictions_are_refused() {
        let wrong = [
            (alone().replace("id = 1", "id = 0"), "[node] id must be at least 1"),
            (alone().replace("127.0.0.1:9001", "0.0.0.0:9001"), "nobody reaches node 1 at 0.0.0.0:9001"),
            (alone().replace("127.0.0.1:8001", "[::]:8001"), "nobody reaches node 1 at [::]:8001"),
            (GOOD.replace("[node]\n        id = 1", "[node]\n        id = 2"), "none of the [[member]]s"),
            (GOOD.replace("a secret of sixteen", "short"), "at least 16"),
            (format!("{GOOD}\n[engine]\nheartbeat_ms = 700"), "2 * heartbeat_ms"),
            (format!("{GOOD}\n[[member]]\nid = 1\nhttp = \"a\"\npeer = \"b\""), "id of its own"),
            (format!("{GOOD}\n[engine]\nscrub_bytes_per_second = 0"), "scrub_bytes_per_second must be"),
            (format!("{GOOD}\n[limits]\nvalue_bytes_max = 99999999"), "at most"),
            (format!("{GOOD}\n[limits]\nvalue_bytes_max = 0"), "value_bytes_max must be at least 1"),
            (format!("{GOOD}\n[limits]\nrequest_timeout_ms = 0"), "must be at least 1"),
            (format!("{GOOD}\n[limits]\nwaiting_commands_max = 0"), "must be at least 1"),
            (format!("{GOOD}\n[http]\nhead_ms = 0"), "[http] connections_max, head_ms"),
            (format!("{GOOD}\n[http]\nstalled_ms = 0"), "[http] connections_max, head_ms"),
            (format!("{GOOD}\n[http]\nidle_ms = 9999"), "idle_ms must be at least head_ms"),
            (format!("{GOOD}\n[peers]\nhandshake_ms = 0"), "[peers] connections_max and handshake_ms"),
            (format!("{GOOD}\n[resp]\nrequest_ms = 0"), "[resp] connections_max, stalled_ms and request_ms"),
        ];
        for (text, expected) in wrong {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
