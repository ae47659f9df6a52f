//! The cluster's folder: written, read back.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use tokio::process::Command;
use uuid::Uuid;

use crate::cluster::Node;
use crate::error::ClusterError;
use crate::plan::{Choices, Layout, Plan};
use crate::ports::{self, Addresses};

/// Which shards the cluster began with, as `keevee init` was told: what they are now, the nodes know.
const LAYOUT_FILE: &str = "first-shards";
/// How nodes agree if nothing is said.
const CONSENSUS_DEFAULT: &str = "paxos";
/// What nodes speak to each other if nothing is said.
const PEER_TRANSPORT_DEFAULT: &str = "grpc";

/// Writes the folders of a new cluster and formats them: all of them, or none.
pub(crate) async fn create(plan: &Plan) -> Result<(), ClusterError> {
    let addresses = plan.addresses()?;
    // Nothing is written for a cluster that could not start.
    for (node, addresses) in (1..).zip(&addresses) {
        ports::check(node, addresses)?;
    }
    // Prepared aside and moved when done, so that a crash on the way leaves no half-made cluster.
    let draft = plan.folder.join(".new");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(ClusterError::file("remove", &draft))?;
    }
    let was_there = plan.folder.exists();
    let drafted = write_draft(plan, &addresses, &draft).await;
    if drafted.is_err() {
        // What went wrong is what the user must know, not that something is left of it.
        let _ = fs::remove_dir_all(if was_there { &draft } else { &plan.folder });
    }
    let layout = drafted?;
    let path = plan.folder.join(LAYOUT_FILE);
    fs::write(&path, layout.join(" ") + "\n").map_err(ClusterError::file("write", path))?;
    // Node 1 last: a folder without it counts as empty.
    for id in (1..=addresses.len()).rev() {
        let name = format!("node{id}");
        let target = plan.folder.join(&name);
        fs::rename(draft.join(&name), &target).map_err(ClusterError::file("make", &target))?;
    }
    fs::remove_dir(&draft).map_err(ClusterError::file("remove", &draft))
}

/// Writes and formats the folders of the nodes: returns which shards `keevee init` was told.
async fn write_draft(
    plan: &Plan,
    addresses: &[Addresses],
    draft: &Path,
) -> Result<Vec<String>, ClusterError> {
    let Choices { consensus, peer_transport, layout } = plan.choices.clone();
    let layout = layout.unwrap_or_default().init_arguments();
    let peer_transport = peer_transport.unwrap_or_else(peer_transport_default);
    let cluster = ClusterTable { id: Uuid::new_v4(), secret: secret(), peer_transport };
    let engine = EngineTable { consensus: consensus.unwrap_or_else(consensus_default) };
    let mut members = Vec::new();
    for id in 1..=addresses.len() as u64 {
        let folder = draft.join(format!("node{id}"));
        fs::create_dir_all(&folder).map_err(ClusterError::file("make", &folder))?;
        let config = folder.join("keevee.toml");
        write_private(&config, &render(&cluster, &engine, id, addresses))?;
        // A single node's folder is complete after the first step.
        let arguments = if addresses.len() == 1 { &layout[..] } else { &[] };
        members.extend(init(plan, id, &config, arguments).await?);
    }
    if addresses.len() > 1 {
        let arguments = [&["--members".to_owned(), members.join(",")], &layout[..]].concat();
        for id in 1..=addresses.len() as u64 {
            let config = draft.join(format!("node{id}")).join("keevee.toml");
            init(plan, id, &config, &arguments).await?;
        }
    }
    Ok(layout)
}

/// Runs `keevee init`: returns the members that it prints, `id=store-id`.
async fn init(
    plan: &Plan,
    node: u64,
    config: &Path,
    arguments: &[String],
) -> Result<Vec<String>, ClusterError> {
    let output = Command::new(&plan.program)
        .arg("init")
        .arg("--config")
        .arg(config)
        .args(arguments)
        .stdin(Stdio::null())
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

fn render(cluster: &ClusterTable, engine: &EngineTable, id: u64, addresses: &[Addresses]) -> String {
    let EngineTable { consensus } = engine;
    let ClusterTable { id: cluster_id, secret, peer_transport } = cluster;
    let mut text = format!(
        "# Node {id} of a local keevee cluster. Start it alone with: keevee server --config <this file>\n\n\
         [cluster]\nid = \"{cluster_id}\"\nsecret = \"{secret}\"\npeer_transport = \"{peer_transport}\"\n\n\
         [engine]\nconsensus = \"{consensus}\"\n\n\
         [node]\nid = {id}\ndata = \"./data\"\n{}",
        addresses_text(&addresses[id as usize - 1])
    );
    for (id, addresses) in (1..).zip(addresses) {
        text += &format!("\n[[member]]\nid = {id}\n{}", addresses_text(addresses));
    }
    text
}

fn addresses_text(Addresses { http, peer, resp }: &Addresses) -> String {
    let resp = resp.map_or_else(String::new, |resp| format!("resp = \"{resp}\"\n"));
    format!("http = \"{http}\"\npeer = \"{peer}\"\n{resp}")
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
    resp: Option<SocketAddr>,
}

#[derive(Deserialize)]
struct MemberTable {}

/// A cluster as it is in a folder.
pub(crate) struct Existing {
    /// Without those that were removed.
    pub(crate) nodes: Vec<Node>,
    /// With how many it began.
    pub(crate) first_nodes: usize,
    pub(crate) consensus: String,
    pub(crate) peer_transport: String,
    /// What `keevee init` was told of its shards.
    pub(crate) layout: String,
}

/// The cluster in a folder; `None` if there is none.
pub(crate) fn read(folder: &Path) -> Result<Option<Existing>, ClusterError> {
    // Node 1 comes last when a cluster is made, and may have been removed since.
    let is_unfinished = folder.join(".new").exists();
    let ids = ids(folder)?;
    if ids.is_empty() || !ids.contains(&1) && is_unfinished {
        return Ok(None);
    }
    // The manager may be asked from anywhere, and nodes are found by absolute path.
    let folder = fs::canonicalize(folder).map_err(ClusterError::file("open", folder))?;
    let (mut consensus, mut peer_transport) = (consensus_default(), peer_transport_default());
    let mut nodes = Vec::new();
    let mut first_nodes = 0;
    for id in ids {
        let folder = folder.join(format!("node{id}"));
        let config = folder.join("keevee.toml");
        let text = fs::read_to_string(&config).map_err(ClusterError::file("read", &config))?;
        let damaged = |why: String| ClusterError::Damaged { config: config.clone(), why };
        let file: ConfigFile = toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
        if file.node.id != id {
            return Err(damaged(format!("it is node {}'s, in node {id}'s place", file.node.id)));
        }
        first_nodes = file.member.len();
        consensus = file.engine.consensus;
        peer_transport = file.cluster.peer_transport;
        let NodeTable { http, peer, resp, .. } = file.node;
        let node = Node::new(id, folder, Addresses { http, peer, resp });
        if !node.is_removed() {
            nodes.push(node);
        }
    }
    let path = folder.join(LAYOUT_FILE);
    let layout = match fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        // Written by a program that knew one shard only.
        Err(error) if error.kind() == ErrorKind::NotFound => Layout::default().init_arguments().join(" "),
        Err(error) => return Err(ClusterError::file("read", path)(error)),
    };
    Ok(Some(Existing { nodes, first_nodes, consensus, peer_transport, layout }))
}

/// The nodes that have a configuration there, in order.
fn ids(folder: &Path) -> Result<Vec<u64>, ClusterError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let has = |entry: fs::DirEntry| {
        let id: u64 = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let is_one = entry.file_name() == *format!("node{id}") && entry.path().join("keevee.toml").exists();
        is_one.then_some(id)
    };
    let entries = entries.map_err(ClusterError::file("open", folder))?;
    let mut ids: Vec<u64> = entries.into_iter().filter_map(has).collect();
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::REMOVED;

    #[tokio::test]
    async fn a_cluster_that_cannot_be_made_leaves_nothing() {
        let parent = tempfile::tempdir().expect("a folder");
        for folder in ["new", "there"].map(|name| parent.path().join(name)) {
            if folder.ends_with("there") {
                fs::create_dir(&folder).expect("a folder");
            }
            let plan = Plan {
                folder: folder.clone(),
                program: "false".into(),
                nodes: Some(1),
                http_port: Some(0),
                peer_port: Some(0),
                resp_port: Some(0),
                choices: Choices::default(),
            };
            let error = create(&plan).await.expect_err("`keevee init` fails");
            assert!(matches!(error, ClusterError::Init { node: 1, .. }), "{error}");
            assert_eq!(folder.exists(), folder.ends_with("there"));
            assert!(fs::read_dir(&folder).map_or(0, Iterator::count) == 0, "it is empty");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(read(folder.path()).expect("an empty folder").is_none());
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let of = |id: u16| Addresses {
            http: address(8000 + id),
            peer: address(9000 + id),
            resp: Some(address(7000 + id)),
        };
        let addresses = [of(1), of(2)];
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
        assert_eq!((nodes.len(), existing.first_nodes), (2, 2));
        assert_eq!((nodes[1].id, nodes[1].addresses()), (2, of(2)));
        assert_eq!((existing.consensus.as_str(), existing.peer_transport.as_str()), ("raft", "http-json"));
        assert_eq!(existing.layout, "--shards 1", "as before there were others");
        fs::write(folder.path().join(LAYOUT_FILE), "--shards 16\n").expect("written");
        let existing = read(folder.path()).expect("a cluster").expect("a cluster");
        assert_eq!(existing.layout, "--shards 16");
    }

    #[test]
    fn nodes_that_were_removed_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses =
            [1, 2, 3].map(|id| Addresses { http: address(8000 + id), peer: address(9000 + id), resp: None });
        let cluster =
            ClusterTable { id: Uuid::new_v4(), secret: secret(), peer_transport: "grpc".to_owned() };
        for id in 1..=3 {
            let node = folder.path().join(format!("node{id}"));
            fs::create_dir_all(node.join("data")).expect("a folder");
            let text = render(&cluster, &EngineTable::default(), id, &addresses);
            write_private(&node.join("keevee.toml"), &text).expect("written");
        }
        let ids = || {
            let existing = read(folder.path()).expect("a cluster").expect("a cluster");
            assert_eq!(existing.first_nodes, 3);
            existing.nodes.iter().map(|node| node.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(), [1, 2, 3]);
        fs::write(folder.path().join("node2/data").join(REMOVED), "").expect("written");
        assert_eq!(ids(), [1, 3]);
        // Its owner did as it was told.
        fs::remove_dir_all(folder.path().join("node1")).expect("removed");
        assert_eq!(ids(), [3]);
        fs::create_dir(folder.path().join(".new")).expect("a folder");
        assert!(
            read(folder.path()).expect("a folder").is_none(),
            "of one that was never finished node 1 is not there yet"
        );
    }
}
