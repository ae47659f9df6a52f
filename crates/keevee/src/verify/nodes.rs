//! The nodes under test: real processes of this program, each of which reaches the others through the proxies of
//! [`super::network`]; and what is done to them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keevee_client::Endpoint;
use keevee_cluster::{Choices, Cluster, Ending, Layout, Plan, free_ports, until};
use keevee_core::shard_map::view::CarpView;
use keevee_shim::{Disk, Fault, Injected, Shim};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpSocket;

use super::network::{Network, Way};
use super::schedule::{Kind, Planned, Target};
use crate::api::Api;
use crate::failure::Failure;

/// How long anything may take before the run counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node that was asked to end may take.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How long a node may take to say how it is.
const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// How much longer than a fault holds an fsync takes that stalls.
const STALL: Duration = Duration::from_secs(30);
/// What is left of a disk that has little room, far less than nodes want…
const ROOM_BYTES: u64 = 1 << 20;
/// …and how often they look, and some more.
const ROOM_LOOK: Duration = Duration::from_secs(2);
/// How far clocks jump: much further than nodes tolerate of each other.
const JUMP: Duration = Duration::from_secs(60);
/// How much longer a chunk takes on a slow link.
const SLOW: Duration = Duration::from_millis(40);

/// What a run is made of.
pub(crate) struct Setting {
    pub(crate) consensus: String,
    pub(crate) nodes: u64,
    pub(crate) shards: u16,
    pub(crate) replicas: u64,
    /// For faults of disks and clocks.
    pub(crate) shim: Option<Shim>,
}

/// Running nodes. Dropped, they are killed.
pub(crate) struct Nodes {
    cluster: Cluster,
    network: Network,
    /// By node; none without a shim.
    disks: BTreeMap<u64, Disk>,
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
}

#[derive(Debug, Deserialize)]
struct NodeStatus {
    shards: Vec<ReplicaStatus>,
}

/// The answer to a change of members.
#[derive(Deserialize)]
struct Change {
    epoch: u64,
    moves: Vec<serde_json::Value>,
}

impl Nodes {
    /// Makes and starts a cluster in a folder, and waits until it serves.
    pub(crate) async fn start(folder: &Path, program: PathBuf, setting: &Setting) -> Result<Nodes, Failure> {
        let layout = Layout::Shared { shards: setting.shards, replicas: Some(setting.replicas) };
        let consensus = Some(setting.consensus.clone());
        let plan = Plan {
            folder: folder.to_owned(),
            program: program.clone(),
            nodes: Some(setting.nodes),
            http_port: Some(0),
            peer_port: Some(0),
            resp_port: Some(0),
            choices: Choices { consensus, peer_transport: None, layout: Some(layout) },
        };
        let mut made = Cluster::open_or_create(&plan).await?;
        let first = free_ports(setting.nodes as u16);
        let listens = |id: u64| SocketAddr::from((Ipv4Addr::LOCALHOST, first + id as u16 - 1));
        let peers: BTreeMap<u64, SocketAddr> = (1..=setting.nodes).map(|id| (id, listens(id))).collect();
        let network = Network::open(&peers).await?;
        let mut nowhere = Vec::new();
        for node in made.nodes() {
            let socket = TcpSocket::new_v4()?;
            socket.bind(node.peer)?;
            nowhere.push(socket);
            lead_through(&network, &node.config(), node.id, listens(node.id))?;
        }
        let mut cluster = Cluster::open(folder, &program)?;
        let mut disks = BTreeMap::new();
        for node in cluster.nodes() {
            let Some(shim) = &setting.shim else { break };
            let disk = Disk::new(shim, &folder.join(format!("node{}.control", node.id)), &node.data())?;
            node.set_environment(disk.environment());
            disks.insert(node.id, disk);
        }
        let mut nodes = Nodes { cluster, network, disks, _nowhere: nowhere };
        nodes.cluster.start()?;
        nodes.ready().await?;
        Ok(nodes)
    }

    /// Waits until every node could serve. None may have ended by itself.
    pub(crate) async fn ready(&mut self) -> Result<(), Failure> {
        self.all_run()?;
        self.cluster.wait_ready(PATIENCE).await?;
        Ok(())
    }

    fn all_run(&mut self) -> Result<(), Failure> {
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
    async fn ready_or_started(&mut self, node: u64) -> Result<(), Failure> {
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

    /// Who a fault is meant for, among those that run.
    pub(crate) async fn target(&mut self, planned: &Planned) -> u64 {
        let count = self.cluster.nodes().len() as u64;
        match planned.target {
            // One that holds nothing writes nothing.
            Target::Node(at) if !planned.kind.needs_shim() => at as u64 % count + 1,
            Target::Node(_) | Target::Leader => {
                let leaders = self.leaders_of_data().await;
                leaders.get(planned.other % leaders.len().max(1)).copied().unwrap_or(1)
            }
        }
    }

    async fn leaders_of_data(&mut self) -> Vec<u64> {
        let leads = |replica: &ReplicaStatus| replica.shard > 0 && replica.role == "leader";
        let mut leaders = Vec::new();
        for id in 1..=self.cluster.nodes().len() as u64 {
            if self.replicas(id).await.is_some_and(|replicas| replicas.iter().any(leads)) {
                leaders.push(id);
            }
        }
        leaders
    }

    /// What a node's replicas are like; `None` if it does not say.
    pub(crate) async fn replicas(&mut self, id: u64) -> Option<Vec<ReplicaStatus>> {
        let node = self.cluster.node(id).ok()?.endpoint();
        replicas(&node, ASK_PATIENCE).await
    }

    /// Does it, undoes it after its time, and tells whether it really happened. Everything is as before then, but for what
    /// the nodes have to catch up with.
    pub(crate) async fn inflict(&mut self, planned: &Planned, target: u64) -> Result<bool, Failure> {
        self.all_run()?;
        let other = (target - 1 + planned.other as u64) % self.cluster.nodes().len() as u64 + 1;
        match planned.kind {
            Kind::Kill => {
                self.cluster.kill(target).await?;
                tokio::time::sleep(planned.holds).await;
                self.cluster.start_node(target)?;
                Ok(true)
            }
            Kind::KillAll => {
                self.cluster.kill_all().await?;
                self.cluster.start()?;
                Ok(true)
            }
            Kind::Pause => {
                self.cluster.pause(target)?;
                tokio::time::sleep(planned.holds).await;
                self.cluster.resume(target)?;
                Ok(true)
            }
            Kind::Isolate | Kind::Split | Kind::OneWay | Kind::Partial | Kind::SlowLink => {
                let before = self.network.hindered();
                self.hinder(planned.kind, target, other);
                tokio::time::sleep(planned.holds).await;
                self.network.heal();
                Ok(self.network.hindered() > before)
            }
            Kind::HandOver => self.restart(target).await,
            Kind::RollingRestart => {
                let mut is_graceful = true;
                for id in 1..=self.cluster.nodes().len() as u64 {
                    is_graceful &= self.restart(id).await?;
                    self.ready().await?;
                }
                Ok(is_graceful)
            }
            Kind::Members => self.change_members(target).await,
            Kind::PowerLoss => {
                self.cut_power(planned.holds).await?;
                Ok(true)
            }
            Kind::FailSync => self.fail_syncs(target).await,
            Kind::StallSync => {
                let stalled = |injected: Injected| injected.stalled_syncs;
                self.with_fault(target, Fault::StallSync(STALL), planned.holds, stalled).await
            }
            Kind::LowDisk => {
                let (low, holds) = (Fault::LowRoom(ROOM_BYTES), planned.holds + ROOM_LOOK);
                self.with_fault(target, low, holds, |injected| injected.told_low).await
            }
            Kind::FullDisk => {
                let refused = |injected: Injected| injected.refused_full;
                let happened = self.with_fault(target, Fault::Full, planned.holds, refused).await?;
                self.ready_or_started(target).await?;
                Ok(happened)
            }
            Kind::ClockJump => {
                let micros = JUMP.as_micros() as i64;
                let offset =
                    Fault::ClockOffset(if planned.other.is_multiple_of(2) { micros } else { -micros });
                self.with_fault(target, offset, planned.holds, |injected| injected.clock_reads).await
            }
        }
    }

    /// Sets a fault for so long.
    async fn with_fault(
        &mut self,
        node: u64,
        fault: Fault,
        holds: Duration,
        count: impl Fn(Injected) -> u64,
    ) -> Result<bool, Failure> {
        let disk = &self.disks[&node];
        let before = count(disk.injected()?);
        disk.set(fault)?;
        tokio::time::sleep(holds).await;
        disk.heal()?;
        Ok(count(disk.injected()?) > before)
    }

    /// A node that can't sync must end, or it might say that it could.
    async fn fail_syncs(&mut self, node: u64) -> Result<bool, Failure> {
        let disk = &self.disks[&node];
        let before = disk.injected()?.failed_syncs;
        disk.set(Fault::FailSync)?;
        let cluster = &mut self.cluster;
        let ended = until(PATIENCE, async || cluster.node(node).ok()?.pid().is_none().then_some(())).await;
        disk.heal()?;
        let happened = disk.injected()?.failed_syncs > before;
        if ended.is_none() && happened {
            return Err(Failure::other(format!("node {node} goes on though its disk can't sync")));
        }
        self.cluster.start_node(node)?;
        Ok(happened)
    }

    /// Most of the time all is synced, and nothing but files that RocksDB was writing is lost.
    async fn cut_power(&mut self, after: Duration) -> Result<(), Failure> {
        self.disks.values().try_for_each(|disk| disk.set(Fault::DropUnsynced))?;
        tokio::time::sleep(after).await;
        self.cluster.kill_all().await?;
        for disk in self.disks.values() {
            disk.drop_unsynced()?;
            disk.heal()?;
        }
        self.cluster.start()?;
        Ok(())
    }

    /// True if it ended by itself.
    async fn restart(&mut self, id: u64) -> Result<bool, Failure> {
        let ending = self.cluster.stop_node(id, STOP_PATIENCE).await?;
        self.cluster.start_node(id)?;
        Ok(ending == Ending::Graceful)
    }

    fn hinder(&self, kind: Kind, target: u64, other: u64) {
        let count = self.http().len() as u64;
        let is_in_part = |id: u64| id == target || id == other;
        for (from, to) in (1..=count).flat_map(|from| (1..=count).map(move |to| (from, to))) {
            let touches = from == target || to == target;
            let way = match kind {
                _ if from == to => continue,
                Kind::Isolate if touches => Way::Closed,
                Kind::Split if is_in_part(from) != is_in_part(to) => Way::Closed,
                Kind::OneWay if from == target => Way::Closed,
                Kind::Partial if is_in_part(from) && is_in_part(to) => Way::Closed,
                Kind::SlowLink if touches => Way::Slow(SLOW),
                _ => continue,
            };
            self.network.set(from, to, way);
        }
    }

    /// Moves all replicas off a node, and its share back onto it. False if nothing moved.
    async fn change_members(&mut self, node: u64) -> Result<bool, Failure> {
        let endpoints = self.http();
        let api = Api { nodes: &endpoints, timeout: PATIENCE };
        let mut happened = true;
        for what in ["drain", "add"] {
            let path = format!("/v1/cluster/nodes/{node}/{what}");
            let change: Change = api.post(&path, &json!({}).to_string()).await?;
            happened &= !change.moves.is_empty();
            let done = until(PATIENCE, async || {
                let map: CarpView = api.get("/v1/cluster/carp").await.ok()?;
                // A node that answers may not know of the change yet.
                let is_done =
                    map.epoch >= change.epoch && map.shards.iter().all(|shard| shard.next.is_none());
                is_done.then_some(())
            });
            if done.await.is_none() {
                return Err(Failure::other(format!("a change of members is not done within {PATIENCE:?}")));
            }
        }
        Ok(happened)
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

async fn replicas(node: &Endpoint, timeout: Duration) -> Option<Vec<ReplicaStatus>> {
    let api = Api { nodes: std::slice::from_ref(node), timeout };
    let status: NodeStatus = api.get("/v1/cluster/status").await.ok()?;
    Some(status.shards)
}

/// The shards that a node says it leads; `None` if it does not say.
pub(crate) async fn led_by(node: &Endpoint, timeout: Duration) -> Option<Vec<u32>> {
    let leads = replicas(node, timeout).await?.into_iter().filter(|replica| replica.role == "leader");
    Some(leads.map(|replica| replica.shard).collect())
}

/// Rewrites a node's file: it listens at an address that no other node knows, and knows each of the others by its proxy.
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
    for member in file["member"].as_array_mut().into_iter().flatten() {
        let id = member.get("id").and_then(toml::Value::as_integer).and_then(|id| u64::try_from(id).ok());
        match id.ok_or_else(|| damaged("a member has no id"))? {
            id if id == own => {}
            id => address(member, network.address(own, id))?,
        }
    }
    fs::write(config, file.to_string())?;
    Ok(())
}
