//! The cluster's folder: planned, written, read back.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;
use tokio::process::Command;
use uuid::Uuid;

use crate::cluster::Node;
use crate::error::ClusterError;
use crate::ports;

/// What a new cluster shall be like. What is `None` is as the cluster in the folder has it, else the default.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cluster's folder.
    pub folder: PathBuf,
    /// The keevee program.
    pub program: PathBuf,
    /// How many nodes; 3 by default.
    pub nodes: Option<u64>,
    /// Node 1's public port, the others' follow; 8001 by default.
    pub http_port: Option<u16>,
    /// Node 1's port for peers, the others' follow; 9001 by default.
    pub peer_port: Option<u16>,
    /// What all nodes have in common.
    pub choices: Choices,
}

/// What all nodes of a cluster have in common, as `keevee.toml` names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// How the nodes agree; `paxos` by default.
    pub consensus: Option<String>,
    /// What the nodes speak to each other; `grpc` by default.
    pub peer_transport: Option<String>,
}

/// How nodes agree if nothing is said.
const CONSENSUS_DEFAULT: &str = "paxos";
/// What nodes speak to each other if nothing is said.
const PEER_TRANSPORT_DEFAULT: &str = "grpc";

impl Plan {
    /// Where each node listens: public address, address for peers.
    fn addresses(&self) -> Result<Vec<(SocketAddr, SocketAddr)>, ClusterError> {
        let count = self.nodes.unwrap_or(3);
        if !(1..=9).contains(&count) {
            let text = format!("a local cluster has 1 to 9 nodes, not {count}");
            return Err(ClusterError::Plan(text));
        }
        let (http, peer) = (self.http_port.unwrap_or(8001), self.peer_port.unwrap_or(9001));
        if u64::from(http.abs_diff(peer)) < count {
            let text = format!("ports from {http} and from {peer} overlap for {count} nodes");
            return Err(ClusterError::Plan(text));
        }
        (1..=count).map(|id| Ok((ports::from_base(http, id)?, ports::from_base(peer, id)?))).collect()
    }

    /// Checks that a cluster that is there already is what the plan asks for.
    pub(crate) fn check(&self, existing: &Existing) -> Result<(), ClusterError> {
        let differs = |has: String, wanted: String| ClusterError::OtherCluster {
            folder: self.folder.clone(),
            has,
            wanted,
        };
        let Existing { nodes, consensus, peer_transport } = existing;
        for (name, wanted, has) in [
            ("the consensus", &self.choices.consensus, consensus),
            ("the peer transport", &self.choices.peer_transport, peer_transport),
        ] {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != has) {
                return Err(differs(format!("{name} {has}"), wanted.clone()));
            }
        }
        let count = nodes.len() as u64;
        if let Some(wanted) = self.nodes.filter(|wanted| *wanted != count) {
            return Err(differs(format!("{count} nodes"), wanted.to_string()));
        }
        let Some(first) = nodes.first() else { return Ok(()) };
        for (name, wanted, has) in
            [("HTTP", self.http_port, first.http.port()), ("peer", self.peer_port, first.peer.port())]
        {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != has) {
                return Err(differs(format!("{name} ports from {has}"), wanted.to_string()));
            }
        }
        Ok(())
    }
}

/// Writes the folders of a new cluster and formats them: all of them, or none.
pub(crate) async fn create(plan: &Plan) -> Result<(), ClusterError> {
    let addresses = plan.addresses()?;
    // Prepared aside and moved when done, so that a crash on the way leaves no half-made cluster.
    let draft = plan.folder.join(".new");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(ClusterError::file("remove", &draft))?;
    }
    let Choices { consensus, peer_transport } = plan.choices.clone();
    let peer_transport = peer_transport.unwrap_or_else(peer_transport_default);
    let cluster = ClusterTable { id: Uuid::new_v4(), secret: secret(), peer_transport };
    let engine = EngineTable { consensus: consensus.unwrap_or_else(consensus_default) };
    let mut members = Vec::new();
    for id in 1..=addresses.len() as u64 {
        let folder = draft.join(format!("node{id}"));
        fs::create_dir_all(&folder).map_err(ClusterError::file("make", &folder))?;
        let config = folder.join("keevee.toml");
        write_private(&config, &render(&cluster, &engine, id, &addresses))?;
        members.extend(init(plan, id, &config, None).await?);
    }
    // A single node's folder is complete after the first step.
    if addresses.len() > 1 {
        let members = members.join(",");
        for id in 1..=addresses.len() as u64 {
            let config = draft.join(format!("node{id}")).join("keevee.toml");
            init(plan, id, &config, Some(&members)).await?;
        }
    }
    // Node 1 last: a folder without it counts as empty.
    for id in (1..=addresses.len()).rev() {
        let name = format!("node{id}");
        let target = plan.folder.join(&name);
        fs::rename(draft.join(&name), &target).map_err(ClusterError::file("make", &target))?;
    }
    fs::remove_dir(&draft).map_err(ClusterError::file("remove", &draft))
}

/// Runs `keevee init`: returns the members that it prints, `id=store-id`.
async fn init(
    plan: &Plan,
    node: u64,
    config: &Path,
    members: Option<&str>,
) -> Result<Vec<String>, ClusterError> {
    let mut command = Command::new(&plan.program);
    command.arg("init").arg("--config").arg(config).stdin(Stdio::null());
    if let Some(members) = members {
        command.arg("--members").arg(members);
    }
    let output = command
        .output()
        .await
        .map_err(|source| ClusterError::Program { program: plan.program.clone(), source })?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let output = format!("{}{}", stdout, stderr).trim().to_owned();
        return Err(ClusterError::Init { node, output });
    }
    let found = stdout.lines().filter_map(|line| line.strip_prefix("member "));
    Ok(found.map(str::to_owned).collect())
}

fn secret() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The nodes' shared secret is nobody else's business.
fn write_private(path: &Path, text: &str) -> Result<(), ClusterError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(ClusterError::file("write", path))
}

fn render(
    cluster: &ClusterTable,
    engine: &EngineTable,
    id: u64,
    addresses: &[(SocketAddr, SocketAddr)],
) -> String {
    let EngineTable { consensus } = engine;
    let (http, peer) = addresses[id as usize - 1];
    let ClusterTable { id: cluster_id, secret, peer_transport } = cluster;
    let mut text = format!(
        "# Node {id} of a local keevee cluster. Start it alone with: keevee server --config <this file>\n\n\
         [cluster]\nid = \"{cluster_id}\"\nsecret = \"{secret}\"\npeer_transport = \"{peer_transport}\"\n\n\
         [engine]\nconsensus = \"{consensus}\"\n\n\
         [node]\nid = {id}\ndata = \"./data\"\nhttp = \"{http}\"\npeer = \"{peer}\"\n"
    );
    for (number, (http, peer)) in addresses.iter().enumerate() {
        let id = number + 1;
        text += &format!("\n[[member]]\nid = {id}\nhttp = \"{http}\"\npeer = \"{peer}\"\n");
    }
    text
}

#[derive(Deserialize)]
struct ConfigFile {
    cluster: ClusterTable,
    #[serde(default)]
    engine: EngineTable,
    node: NodeTable,
    member: Vec<MemberTable>,
}

/// The same in every node's file.
#[derive(Deserialize)]
struct ClusterTable {
    id: Uuid,
    secret: String,
    #[serde(default = "peer_transport_default")]
    peer_transport: String,
}

fn peer_transport_default() -> String {
    PEER_TRANSPORT_DEFAULT.to_owned()
}

/// The same in every node's file.
#[derive(Deserialize)]
struct EngineTable {
    #[serde(default = "consensus_default")]
    consensus: String,
}

impl Default for EngineTable {
    fn default() -> EngineTable {
        EngineTable { consensus: consensus_default() }
    }
}

fn consensus_default() -> String {
    CONSENSUS_DEFAULT.to_owned()
}

#[derive(Deserialize)]
struct NodeTable {
    id: u64,
    http: SocketAddr,
    peer: SocketAddr,
}

#[derive(Deserialize)]
struct MemberTable {}

/// A cluster as it is in a folder.
pub(crate) struct Existing {
    pub(crate) nodes: Vec<Node>,
    consensus: String,
    peer_transport: String,
}

/// The cluster in a folder; `None` if there is none.
pub(crate) fn read(folder: &Path) -> Result<Option<Existing>, ClusterError> {
    if !folder.join("node1").join("keevee.toml").exists() {
        return Ok(None);
    }
    // The manager may be asked from anywhere, and nodes are found by absolute path.
    let folder = fs::canonicalize(folder).map_err(ClusterError::file("open", folder))?;
    let (mut consensus, mut peer_transport) = (consensus_default(), peer_transport_default());
    let mut nodes = Vec::new();
    let mut members = 1;
    while nodes.len() < members {
        let id = nodes.len() as u64 + 1;
        let folder = folder.join(format!("node{id}"));
        let config = folder.join("keevee.toml");
        let text = fs::read_to_string(&config).map_err(ClusterError::file("read", &config))?;
        let damaged = |why: String| ClusterError::Damaged { config: config.clone(), why };
        let file: ConfigFile = toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
        if file.node.id != id {
            return Err(damaged(format!("it is node {}'s, in node {id}'s place", file.node.id)));
        }
        members = file.member.len();
        consensus = file.engine.consensus;
        peer_transport = file.cluster.peer_transport;
        nodes.push(Node::new(id, folder, file.node.http, file.node.peer));
    }
    Ok(Some(Existing { nodes, consensus, peer_transport }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: u64, http_port: u16, peer_port: u16) -> Plan {
        Plan {
            folder: PathBuf::from("."),
            program: PathBuf::from("keevee"),
            nodes: Some(nodes),
            http_port: Some(http_port),
            peer_port: Some(peer_port),
            choices: Choices::default(),
        }
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        assert_eq!(plan(3, 8001, 9001).addresses().expect("fine").len(), 3);
        assert!(plan(0, 8001, 9001).addresses().is_err());
        assert!(plan(10, 8001, 9001).addresses().is_err());
        assert!(plan(3, 8001, 8003).addresses().is_err(), "ports overlap");
        assert!(plan(3, 65_534, 9001).addresses().is_err(), "ports end at 65,535");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(read(folder.path()).expect("an empty folder").is_none());
        let addresses = plan(2, 8001, 9001).addresses().expect("fine");
        let peer_transport = "http-json".to_owned();
        let cluster = ClusterTable { id: Uuid::new_v4(), secret: secret(), peer_transport };
        for id in 1..=2 {
            let node = folder.path().join(format!("node{id}"));
            fs::create_dir(&node).expect("a folder");
            let text = render(&cluster, &EngineTable { consensus: "raft".to_owned() }, id, &addresses);
            write_private(&node.join("keevee.toml"), &text).expect("written");
        }
        let existing = read(folder.path()).expect("a cluster").expect("a cluster");
        let nodes = &existing.nodes;
        assert_eq!(nodes.len(), 2);
        assert_eq!((nodes[1].id, nodes[1].http.port(), nodes[1].peer.port()), (2, 8002, 9002));
        assert!(plan(2, 8001, 9001).check(&existing).is_ok());
        assert!(plan(3, 8001, 9001).check(&existing).is_err());
        assert!(plan(2, 8101, 9001).check(&existing).is_err());
        let with = |consensus: &str, transport: &str| {
            let (consensus, peer_transport) = (Some(consensus.into()), Some(transport.into()));
            let choices = Choices { consensus, peer_transport };
            Plan { choices, ..plan(2, 8001, 9001) }.check(&existing)
        };
        assert!(with("raft", "http-json").is_ok());
        assert!(with("raft", "grpc").is_err());
        assert!(with("paxos", "http-json").is_err());
    }
}
