//! `Config.toml`: clusters on this machine as a file, for `keevee cluster start --config`.
//!
//! ```toml
//! num_clusters = 2
//! nodes_per_cluster = 3
//! engine = "raft"
//! ```
//!
//! is one keevee cluster of six nodes with a shard on nodes 1 to 3 and another on nodes 4 to 6: to its clients one
//! store, and no node of one group does any work of the other's. With `shared = true` the shards are over
//! shared nodes instead. What a single node must be told is in its `keevee.toml`, which the manager writes.

use std::fs;
use std::path::{Path, PathBuf};

use keevee_client::Endpoint;
use serde::Deserialize;

use crate::error::ClusterError;
use crate::plan::{Choices, HTTP_PORT_DEFAULT, Layout, Plan, shard_count};
use crate::ports;

/// A `Config.toml`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The cluster's folder, if the file names one; a relative path starts at the file's own folder.
    pub data: Option<PathBuf>,
    /// How many nodes, if the file says so.
    pub nodes: Option<u64>,
    /// Node 1's public port; the others' follow.
    pub http_port: Option<u16>,
    /// Node 1's port for peers; the others' follow.
    pub peer_port: Option<u16>,
    /// Node 1's port for the Redis protocol; the others' follow.
    pub resp_port: Option<u16>,
    /// What is chosen for the cluster as a whole.
    pub choices: Choices,
}

/// Why a `Config.toml` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, or not of this shape, or contradicts itself.
    #[error("{}: {why}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        why: String,
    },
}

/// The keys as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    num_clusters: Option<u64>,
    nodes_per_cluster: Option<u64>,
    load_factors: Option<Vec<u32>>,
    #[serde(default)]
    shared: bool,
    nodes: Option<u64>,
    shards: Option<u64>,
    replicas: Option<u64>,
    engine: Option<String>,
    peer_transport: Option<String>,
    http_port: Option<u16>,
    peer_port: Option<u16>,
    resp_port: Option<u16>,
    data: Option<PathBuf>,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        Config::parse(&fs::read_to_string(path).map_err(read)?, path)
    }

    /// As [`Config::load`], of a text that stands for the file at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let wrong = |why| ConfigError::Wrong { path: path.to_owned(), why };
        let keys: Keys = toml::from_str(text).map_err(|error| wrong(with_nearest_key(error.to_string())))?;
        let (nodes, layout) = keys.layout().map_err(wrong)?;
        one_of("engine", &keys.engine, ["paxos", "raft"]).map_err(wrong)?;
        one_of("peer_transport", &keys.peer_transport, ["grpc", "http-json"]).map_err(wrong)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let choices =
            Choices { consensus: keys.engine, peer_transport: keys.peer_transport, layout: Some(layout) };
        let config = Config {
            data: keys.data.map(|data| folder.join(data)),
            nodes,
            http_port: keys.http_port,
            peer_port: keys.peer_port,
            resp_port: keys.resp_port,
            choices,
        };
        // What no cluster can be is found here, and not only by whoever starts it.
        let checked = config.plan(PathBuf::new(), PathBuf::new()).addresses();
        checked.map_err(|error| wrong(error.to_string()))?;
        Ok(config)
    }

    /// The cluster that the file describes, in a folder, of a program.
    pub fn plan(&self, folder: PathBuf, program: PathBuf) -> Plan {
        Plan {
            folder,
            program,
            nodes: self.nodes,
            http_port: self.http_port,
            peer_port: self.peer_port,
            resp_port: self.resp_port,
            choices: self.choices.clone(),
        }
    }

    /// The public addresses of the nodes, for a client. With ports that are chosen at the start (0) only the cluster's
    /// folder has them: see [`Cluster::endpoints`](crate::Cluster::endpoints).
    pub fn seeds(&self) -> Result<Vec<Endpoint>, ClusterError> {
        let base = self.http_port.unwrap_or(HTTP_PORT_DEFAULT);
        let plan = self.plan(PathBuf::new(), PathBuf::new());
        let ids = 1..=plan.addresses()?.len() as u64;
        ids.map(|id| ports::from_base(base, id).map(ports::endpoint)).collect()
    }
}

impl Keys {
    /// How many nodes there are, and which shards on them.
    fn layout(&self) -> Result<(Option<u64>, Layout), String> {
        let pinned: &[_] = &[
            ("num_clusters", self.num_clusters.is_some()),
            ("nodes_per_cluster", self.nodes_per_cluster.is_some()),
        ];
        let shared: &[_] = &[
            ("nodes", self.nodes.is_some()),
            ("shards", self.shards.is_some()),
            ("replicas", self.replicas.is_some()),
        ];
        let (others, advice) = match self.shared {
            true => (pinned, "write `nodes`, `shards` and `replicas`, or leave out `shared = true`"),
            false => (shared, "write `num_clusters` and `nodes_per_cluster`, or add `shared = true`"),
        };
        if let Some((name, _)) = others.iter().find(|(_, given)| *given) {
            let kind = if self.shared { "groups with nodes of their own" } else { "shared nodes" };
            return Err(format!("`{name}` is for {kind}: {advice}"));
        }
        if self.shared {
            let replicas = self.replicas;
            let shards = self.shards.map(|count| shard_count("shards", count)).transpose();
            let layout = match (&self.load_factors, shards.map_err(|error| error.to_string())?) {
                (None, shards) => Layout::Shared { shards: shards.unwrap_or(1), replicas },
                (Some(given), Some(shards)) if given.len() != usize::from(shards) => {
                    let count = given.len();
                    return Err(format!(
                        "`load_factors` has {count} numbers for {shards} shards: write {shards}"
                    ));
                }
                (Some(given), _) => Layout::Weighted { load_factors: given.clone(), replicas },
            };
            return Ok((self.nodes, layout));
        }
        let groups = self.num_clusters.unwrap_or(1);
        let load_factors = match &self.load_factors {
            Some(given) if given.len() as u64 != groups => {
                let count = given.len();
                return Err(format!(
                    "`load_factors` has {count} numbers for {groups} clusters: write {groups}"
                ));
            }
            Some(given) => given.clone(),
            // More than there may be nodes are refused as too many nodes.
            None => vec![1; usize::try_from(groups.min(1000)).unwrap_or(1000)],
        };
        let group_nodes = self.nodes_per_cluster.unwrap_or(3);
        Ok((Some(groups.saturating_mul(group_nodes)), Layout::Pinned { group_nodes, load_factors }))
    }
}

fn one_of(key: &str, given: &Option<String>, known: [&str; 2]) -> Result<(), String> {
    match given {
        Some(given) if !known.contains(&given.as_str()) => {
            let [one, other] = known;
            Err(format!("`{key}` is {one:?} or {other:?}, not {given:?}"))
        }
        _ => Ok(()),
    }
}

/// Adds the nearest right key to serde's message about an unknown one.
fn with_nearest_key(message: String) -> String {
    let Some(start) = message.find("unknown field `") else { return message };
    let mut names = message[start..].split('`').skip(1).step_by(2);
    let Some(unknown) = names.next() else { return message };
    let likeness = |name: &&str| strsim::jaro_winkler(unknown, name);
    match names.max_by(|a, b| likeness(a).total_cmp(&likeness(b))) {
        Some(nearest) => format!("{}\ndid you mean `{nearest}`?", message.trim_end()),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/Config.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn clusters_are_groups_of_nodes_of_their_own() {
        let text = "num_clusters = 2\nnodes_per_cluster = 3\nengine = \"raft\"\nload_factors = [1, 2]\n\
                    http_port = 8101\npeer_port = 9101\nresp_port = 7101\ndata = \"./tmp/clusters\"";
        let config = parse(text).expect("right");
        let layout = Layout::Pinned { group_nodes: 3, load_factors: vec![1, 2] };
        let choices =
            Choices { consensus: Some("raft".to_owned()), peer_transport: None, layout: Some(layout) };
        let data = Some(PathBuf::from("/etc/./tmp/clusters"));
        let (http_port, peer_port, resp_port) = (Some(8101), Some(9101), Some(7101));
        let expected = Config { data, nodes: Some(6), http_port, peer_port, resp_port, choices };
        assert_eq!(config, expected);
        let seeds = config.seeds().expect("addresses");
        assert_eq!(seeds.len(), 6);
        assert_eq!(seeds[5].authority(), "127.0.0.1:8106");
    }

    #[test]
    fn shards_may_share_nodes() {
        let config = parse("shared = true\nnodes = 5\nshards = 16\nreplicas = 3").expect("right");
        assert_eq!(config.nodes, Some(5));
        assert_eq!(config.choices.layout, Some(Layout::Shared { shards: 16, replicas: Some(3) }));
    }

    #[test]
    fn shards_over_shared_nodes_may_have_unequal_shares() {
        let config = parse("shared = true\nload_factors = [1, 2]\nreplicas = 3").expect("right");
        let layout = Layout::Weighted { load_factors: vec![1, 2], replicas: Some(3) };
        assert_eq!((config.nodes, config.choices.layout), (None, Some(layout)));
    }

    #[test]
    fn an_empty_file_is_one_cluster_of_three_nodes() {
        let config = parse("").expect("right");
        let layout = Layout::Pinned { group_nodes: 3, load_factors: vec![1] };
        assert_eq!((config.nodes, config.choices.layout), (Some(3), Some(layout)));
    }

    #[test]
    fn the_sample_is_right_and_uses_raft() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Config.toml");
        let config = Config::load(&path).expect("right");
        assert_eq!(config.choices.consensus.as_deref(), Some("raft"));
    }

    #[test]
    fn an_unknown_key_names_the_nearest_right_one() {
        for (unknown, nearest) in [
            ("num_cluster", "num_clusters"),
            ("node_per_cluster", "nodes_per_cluster"),
            ("http_ports", "http_port"),
        ] {
            let error = parse(&format!("{unknown} = 1")).unwrap_err();
            assert!(error.contains(&format!("did you mean `{nearest}`?")), "{error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let many = format!("shared = true\nload_factors = [{}]", "1,".repeat(2049));
        for (text, expected) in [
            ("nodes = 3", "add `shared = true`"),
            ("shards = 3\nnum_clusters = 2", "add `shared = true`"),
            ("shared = true\nnum_clusters = 2", "leave out `shared = true`"),
            ("shared = true\nload_factors = [0]", "above 0"),
            ("shared = true\nload_factors = [1, 2]\nshards = 3", "write 3"),
            ("shared = true\nreplicas = 4", "there are 3"),
            ("shared = true\nshards = 20000", "`shards`: a cluster has up to 2048 shards, not 20000"),
            ("shared = true\nshards = 99999999", "up to 2048 shards, not 99999999"),
            (&many[..], "`load_factors`: a cluster has up to 2048 shards, not 2049"),
            ("num_clusters = 2\nload_factors = [1]", "write 2"),
            ("num_clusters = 11", "1 to 30 nodes, not 33"),
            ("num_clusters = 99999999999", "1 to 30 nodes"),
            ("num_clusters = 0", "1 to 30 nodes"),
            ("num_clusters = 2\nload_factors = [0, 0]", "above 0"),
            ("http_port = 9000", "overlap"),
            ("engine = \"smoke\"", "\"paxos\" or \"raft\", not \"smoke\""),
            ("peer_transport = \"smoke\"", "\"grpc\" or \"http-json\""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("/etc/Config.toml: ") && error.contains(expected), "{text}: {error}");
        }
    }
}
