//! The nodes under test: real processes of this program, each of which reaches the others through the proxies of
//! [`super::network`]. What is done to them is in [`super::inflict`].

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use keevee_client::{Endpoint, ScrubStatus};
use keevee_cluster::{Choices, Cluster, Layout, Plan, free_ports, is_free};
use keevee_core::shard_map::view::CarpView;
use keevee_shim::{Disk, Shim};
use serde::Deserialize;
use tokio::net::TcpSocket;

use super::network::Network;
use crate::api::Api;
use crate::failure::Failure;

/// How long anything may take before the run counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node that was asked to end may take.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How long a node may take to say how it is.
pub(super) const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// Ports of a node: for clients by HTTP, for peers as the map has it, for clients by RESP, and the one at which peers are heard.
const PORTS: u16 = 4;
/// How often it is tried to start nodes on ports that are free.
const TRIES: usize = 5;

/// How many nodes may be lost for good in a run.
const NEWCOMERS: u64 = 64;

/// Running nodes. Dropped, they are killed.
pub(crate) struct Nodes {
    pub(super) cluster: Cluster,
    pub(super) network: Network,
    /// By node; none without a shim.
    pub(super) disks: BTreeMap<u64, Disk>,
    shim: Option<Shim>,
    /// What nodes that take the place of lost ones are called.
    pub(super) newcomers: RangeInclusive<u64>,
    /// The addresses that the shard map has: nobody listens there, so that no node finds a way around the proxies.
    _nowhere: Vec<TcpSocket>,
}

/// A shard's replica, as a node tells.
#[derive(Debug, Deserialize)]
pub(crate) struct ReplicaStatus {
    pub(crate) shard: u32,
    pub(crate) role: String,
    pub(crate) applied: u64,
    pub(crate) last: u64,
    pub(crate) chain: String,
    pub(crate) scrub: Option<ScrubStatus>,
}

#[derive(Debug, Deserialize)]
struct NodeStatus {
    node_id: u64,
    shards: Vec<ReplicaStatus>,
}

impl Nodes {
    /// Makes and starts a cluster in a folder, and waits until it serves.
    pub(crate) async fn start(folder: &Path, asked: &super::Plan) -> Result<Nodes, Failure> {
        let needs_shim = asked.kinds.iter().any(|kind| kind.needs_shim());
        let shim = if needs_shim { Some(Shim::install(folder)?) } else { None };
        // With more nodes than replicas, all can leave one.
        let count = asked.nodes as u16 + u16::from(asked.kinds.iter().any(|kind| kind.moves_replicas()));
        let folder = folder.join("cluster");
        let mut tries = 1;
        loop {
            let ports = free_ports(PORTS * count);
            let is_taken = |port| !is_free((Ipv4Addr::LOCALHOST, port).into());
            match Nodes::try_start(&folder, asked, (count, ports), shim.clone()).await {
                // By another program, which was faster: none of the nodes is there any more.
                Err(_) if tries < TRIES && (ports..ports + PORTS * count).any(is_taken) => tries += 1,
                result => return result,
            }
            fs::remove_dir_all(&folder)?;
        }
    }

    /// So many nodes, on ports from this one on.
    async fn try_start(
        folder: &Path,
        asked: &super::Plan,
        (count, ports): (u16, u16),
        shim: Option<Shim>,
    ) -> Result<Nodes, Failure> {
        let program = std::env::current_exe()?;
        let layout = Layout::Shared { shards: asked.shards, replicas: Some(asked.nodes) };
        let consensus = Some(asked.consensus.clone());
        let plan = Plan {
            folder: folder.to_owned(),
            program: program.clone(),
            nodes: Some(count.into()),
            http_port: Some(ports),
            peer_port: Some(ports + count),
            resp_port: Some(ports + 2 * count),
            choices: Choices { consensus, peer_transport: None, layout: Some(layout) },
        };
        let mut made = Cluster::open_or_create(&plan).await?;
        let listens = |id: u64| SocketAddr::from((Ipv4Addr::LOCALHOST, ports + 3 * count + id as u16 - 1));
        let (founders, last) = (u64::from(count), u64::from(count) + NEWCOMERS);
        let network = Network::open((1..=founders).map(listens).collect(), last).await?;
        let mut nowhere = Vec::new();
        for node in made.nodes() {
            let socket = TcpSocket::new_v4()?;
            socket.bind(node.peer)?;
            nowhere.push(socket);
            lead_through(&network, &node.config(), node.id, listens(node.id))?;
        }
        let cluster = Cluster::open(folder, &program)?;
        let newcomers = founders + 1..=last;
        let mut nodes =
            Nodes { cluster, network, disks: BTreeMap::new(), shim, newcomers, _nowhere: nowhere };
        nodes.ids().into_iter().try_for_each(|id| nodes.give_disk(id))?;
        nodes.cluster.start()?;
        nodes.ready().await?;
        Ok(nodes)
    }

    /// Has a node use a disk that can be steered, if there is a shim.
    pub(super) fn give_disk(&mut self, id: u64) -> Result<(), Failure> {
        let Some(shim) = &self.shim else { return Ok(()) };
        let control = self.cluster.folder().join(format!("node{id}.control"));
        let node = self.cluster.node(id)?;
        let disk = Disk::new(shim, &control, &node.data())?;
        node.set_environment(disk.environment());
        self.disks.insert(id, disk);
        Ok(())
    }

    /// Waits until every node could serve. None may have ended by itself.
    pub(crate) async fn ready(&mut self) -> Result<(), Failure> {
        self.all_run()?;
        self.cluster.wait_ready(PATIENCE).await?;
        Ok(())
    }

    pub(super) fn all_run(&mut self) -> Result<(), Failure> {
        match self.cluster.nodes().iter_mut().find_map(|node| node.pid().is_none().then_some(&*node)) {
            None => Ok(()),
            Some(ended) => Err(Failure::other(format!(
                "node {} ended by itself; the end of {}:\n{}",
                ended.id,
                ended.log().display(),
                ended.log_tail()
            ))),
        }
    }

    /// The same after a fault on which this node may end, at once or a while later.
    pub(super) async fn ready_or_started(&mut self, node: u64) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            self.cluster.start_node(node)?;
            match self.ready().await {
                Err(_) if self.cluster.node(node)?.pid().is_none() && start.elapsed() < PATIENCE => {}
                result => return result,
            }
        }
    }

    pub(crate) fn http(&self) -> Vec<Endpoint> {
        self.cluster.endpoints()
    }

    pub(crate) fn resp(&mut self) -> Vec<Endpoint> {
        let address = |resp: SocketAddr| resp.to_string().parse().expect("an address is an endpoint");
        self.cluster.nodes().iter().filter_map(|node| node.resp).map(address).collect()
    }

    /// The numbers of all nodes.
    pub(crate) fn ids(&mut self) -> Vec<u64> {
        self.cluster.nodes().iter().map(|node| node.id).collect()
    }

    /// Who leads a data shard, of those that say so.
    pub(crate) async fn leaders_of_data(&mut self) -> Vec<u64> {
        let leads = |replica: &ReplicaStatus| replica.shard > 0 && replica.role == "leader";
        let mut leaders = Vec::new();
        for id in self.ids() {
            if self.replicas(id).await.is_some_and(|replicas| replicas.iter().any(leads)) {
                leaders.push(id);
            }
        }
        leaders
    }

    /// The newest shard map that a node knows; `None` if none says.
    pub(crate) async fn newest_map(&mut self) -> Option<CarpView> {
        let mut newest: Option<CarpView> = None;
        for node in self.http() {
            let api = Api { nodes: std::slice::from_ref(&node), timeout: ASK_PATIENCE };
            let Ok(map) = api.get::<CarpView>("/v1/cluster/carp").await else { continue };
            newest = newest.filter(|known| known.epoch >= map.epoch).or(Some(map));
        }
        newest
    }

    /// What a node's replicas are like; `None` if it does not say.
    pub(crate) async fn replicas(&mut self, id: u64) -> Option<Vec<ReplicaStatus>> {
        let node = self.cluster.node(id).ok()?.endpoint();
        Some(status(&node, ASK_PATIENCE).await?.shards)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in self.cluster.nodes() {
            let start = Instant::now();
            // One that ended this very moment is what we want; and none may write any more when its folder goes.
            while let Some(pid) = node.pid().filter(|_| start.elapsed() < STOP_PATIENCE) {
                let _ = keevee_cluster::process::signal(pid, "KILL");
            }
        }
    }
}

async fn status(node: &Endpoint, timeout: Duration) -> Option<NodeStatus> {
    let api = Api { nodes: std::slice::from_ref(node), timeout };
    api.get("/v1/cluster/status").await.ok()
}

/// The node at an address, and the shards that it says it leads; `None` if it does not say.
pub(crate) async fn led_by(node: &Endpoint, timeout: Duration) -> Option<(u64, Vec<u32>)> {
    let NodeStatus { node_id, shards } = status(node, timeout).await?;
    let leads = shards.into_iter().filter(|replica| replica.role == "leader");
    Some((node_id, leads.map(|replica| replica.shard).collect()))
}

/// Rewrites a node's file: it listens at an address that no other node knows, and knows each of the others by its proxy, also
/// those that are yet to come.
fn lead_through(network: &Network, config: &Path, own: u64, listens: SocketAddr) -> Result<(), Failure> {
    let damaged = |why: &str| Failure::other(format!("{}: {why}", config.display()));
    let text = fs::read_to_string(config)?;
    let mut file: toml::Table = text.parse().map_err(|error: toml::de::Error| damaged(error.message()))?;
    let address = |table: &mut toml::Value, address: SocketAddr| {
        let table = table.as_table_mut().ok_or_else(|| damaged("it has no nodes"))?;
        table.insert("peer".to_owned(), address.to_string().into());
        Ok::<_, Failure>(())
    };
    address(&mut file["node"], listens)?;
    let members = file["member"].as_array_mut().ok_or_else(|| damaged("it has no members"))?;
    for (id, proxy) in network.addresses(own).filter(|(id, _)| *id != own) {
        if let Some(member) = members.iter_mut().find(|member| member_id(member) == Some(id)) {
            address(member, proxy)?;
            continue;
        }
        let mut newcomer = toml::Table::new();
        newcomer.insert("id".to_owned(), toml::Value::try_from(id).map_err(Failure::other)?);
        // Nobody asks a node's file for the first of them.
        for kind in ["http", "peer"] {
            newcomer.insert(kind.to_owned(), proxy.to_string().into());
        }
        members.push(newcomer.into());
    }
    fs::write(config, file.to_string())?;
    Ok(())
}

/// The number of a `[[member]]`.
pub(super) fn member_id(member: &toml::Value) -> Option<u64> {
    member.get("id").and_then(toml::Value::as_integer).and_then(|id| u64::try_from(id).ok())
}
