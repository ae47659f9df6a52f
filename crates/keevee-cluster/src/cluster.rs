//! The cluster: starts its nodes, waits until they serve, ends them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use keevee_client::{Connection, Endpoint};
use tokio::time::timeout;

use crate::error::ClusterError;
use crate::folder;
use crate::plan::Plan;
use crate::ports::{self, Addresses};
use crate::wait::until;
use crate::{process, watch};

/// How long a node that runs takes at most to say how it is.
const ASK_PATIENCE: Duration = Duration::from_secs(1);

/// The file that a node leaves in its data folder when it ends since it was removed from its cluster.
pub const REMOVED: &str = "removed";

/// A cluster of nodes on this machine.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) folder: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) nodes: Vec<Node>,
}

/// One node of a local cluster.
#[derive(Debug)]
pub struct Node {
    /// Its id, from 1.
    pub id: u64,
    /// Its public address.
    pub http: SocketAddr,
    /// Its address for peers.
    pub peer: SocketAddr,
    /// Its address for clients that speak the Redis protocol, if it listens for them.
    pub resp: Option<SocketAddr>,
    folder: PathBuf,
    /// Set if this program started it: a child must be waited for, or it stays as a zombie.
    child: Option<Child>,
    /// How the last process that this program started ended, if it has.
    exit: Option<ExitStatus>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was not running.
    NotRunning,
    /// On SIGTERM, by itself.
    Graceful,
    /// On SIGKILL, since it took too long.
    Killed,
}

impl Node {
    pub(crate) fn new(id: u64, folder: PathBuf, Addresses { http, peer, resp }: Addresses) -> Node {
        let (environment, arguments) = (Vec::new(), Vec::new());
        Node { id, http, peer, resp, folder, child: None, exit: None, environment, arguments }
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses { http: self.http, peer: self.peer, resp: self.resp }
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("keevee.toml")
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("keevee.log")
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// True if the cluster knows it no longer: it found out and ended, or its folder was deleted after that.
    pub fn is_removed(&self) -> bool {
        self.data().join(REMOVED).exists() || !self.folder.exists()
    }

    /// Variables that its process gets from its next start on, beside this program's own, for as long as this program
    /// starts it. None are remembered in the cluster's folder.
    pub fn set_environment(&mut self, variables: Vec<(String, String)>) {
        self.environment = variables;
    }

    /// Arguments of `keevee server` beside its configuration, in the same way.
    pub fn set_arguments(&mut self, arguments: Vec<String>) {
        self.arguments = arguments;
    }

    /// How its last process ended, if this program started it and it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.pid().is_some() { None } else { self.exit }
    }

    /// Its public address, for a client.
    pub fn endpoint(&self) -> Endpoint {
        ports::endpoint(self.http)
    }

    /// Its process, if it runs.
    pub fn pid(&mut self) -> Option<u32> {
        if let Some(child) = &mut self.child {
            let exit = child.try_wait();
            if let Ok(None) = exit {
                return Some(child.id());
            }
            self.exit = exit.ok().flatten();
            self.child = None;
        }
        process::running(&self.config())
    }

    /// True if it says that it could serve.
    pub async fn is_ready(&self) -> bool {
        self.ask("/readyz").await.is_some_and(|(status, _)| status == 200)
    }

    /// True if it says that it leads.
    pub async fn is_leader(&self) -> bool {
        self.ask("/is_leader").await.is_some_and(|(status, body)| status == 200 && body == "true")
    }

    async fn ask(&self, path: &str) -> Option<(u16, String)> {
        let asked = async {
            let mut connection = Connection::open(&self.endpoint(), ASK_PATIENCE).await?;
            connection.ask(path).await
        };
        let (status, body) = timeout(ASK_PATIENCE, asked).await.ok()?.ok()?;
        Some((status, String::from_utf8_lossy(&body).trim().to_owned()))
    }

    pub(crate) fn spawn(&mut self, program: &Path) -> Result<(), ClusterError> {
        ports::check(self.id, &self.addresses())?;
        let config = self.config();
        let child = process::spawn(program, &config, &self.log(), &self.arguments, &self.environment)
            .map_err(|source| ClusterError::Program { program: program.to_owned(), source })?;
        // The node writes it too; until then it should be found already.
        let path = process::pid_file(&config);
        process::write_pid_file(&config, child.id()).map_err(ClusterError::file("write", path))?;
        self.child = Some(child);
        self.exit = None;
        Ok(())
    }

    fn signal(&mut self, signal: &'static str) -> Result<(), ClusterError> {
        let node = self.id;
        let pid = self.pid().ok_or(ClusterError::NotRunning(node))?;
        process::signal(pid, signal).map_err(|why| ClusterError::Signal { node, pid, signal, why })
    }

    async fn ended_within(&mut self, patience: Duration) -> bool {
        until(patience, async || self.pid().is_none().then_some(())).await.is_some()
    }

    async fn kill(&mut self) -> Result<(), ClusterError> {
        let Some(pid) = self.pid() else { return Err(ClusterError::NotRunning(self.id)) };
        self.signal("KILL")?;
        if self.ended_within(Duration::from_secs(10)).await {
            Ok(())
        } else {
            Err(ClusterError::WontEnd { node: self.id, pid })
        }
    }

    /// Waits for the end of a child that was killed.
    pub(crate) fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    fn ended(&self) -> ClusterError {
        ClusterError::NodeEnded { node: self.id, log: self.log(), tail: self.log_tail() }
    }
}

impl Cluster {
    /// The cluster in the plan's folder, made anew if there is none. Starts nothing.
    pub async fn open_or_create(plan: &Plan) -> Result<Cluster, ClusterError> {
        if let Some(existing) = folder::read(&plan.folder)? {
            plan.check(&existing)?;
        } else {
            folder::create(plan).await?;
        }
        Cluster::open(&plan.folder, &plan.program)
    }

    /// The cluster in a folder.
    pub fn open(folder: &Path, program: &Path) -> Result<Cluster, ClusterError> {
        let (folder, program) = (folder.to_owned(), program.to_owned());
        match folder::read(&folder)? {
            Some(existing) => Ok(Cluster { folder, program, nodes: existing.nodes }),
            None => Err(ClusterError::NoCluster { folder }),
        }
    }

    /// Takes in the nodes whose folders have come since, which may join, and forgets those whose folders have gone.
    pub fn look_again(&mut self) -> Result<(), ClusterError> {
        let Some(existing) = folder::read(&self.folder)? else {
            return Err(ClusterError::NoCluster { folder: self.folder.clone() });
        };
        self.nodes.retain(|node| existing.nodes.iter().any(|one| one.id == node.id));
        let known: Vec<u64> = self.nodes.iter().map(|node| node.id).collect();
        self.nodes.extend(existing.nodes.into_iter().filter(|node| !known.contains(&node.id)));
        Ok(())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its nodes, by id.
    pub fn nodes(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// The node of this id.
    pub fn node(&mut self, id: u64) -> Result<&mut Node, ClusterError> {
        let found = self.nodes.iter_mut().find(|node| node.id == id);
        found.ok_or(ClusterError::UnknownNode(id))
    }

    /// The public addresses of all nodes, for a client.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.nodes.iter().map(Node::endpoint).collect()
    }

    /// The ids of the nodes that run.
    pub fn running(&mut self) -> Vec<u64> {
        self.nodes.iter_mut().filter_map(|node| node.pid().map(|_| node.id)).collect()
    }

    /// Starts the nodes that do not run: returns their ids.
    pub fn start(&mut self) -> Result<Vec<u64>, ClusterError> {
        let mut resting: Vec<&mut Node> = self.nodes.iter_mut().filter(|node| !node.is_removed()).collect();
        resting.retain_mut(|node| node.pid().is_none());
        // Before any of them runs.
        for node in &resting {
            ports::check(node.id, &node.addresses())?;
        }
        watch::forget_stop(&self.folder)?;
        for node in &mut resting {
            node.spawn(&self.program)?;
        }
        Ok(resting.iter().map(|node| node.id).collect())
    }

    /// Starts one node.
    pub fn start_node(&mut self, id: u64) -> Result<(), ClusterError> {
        watch::forget_stop(&self.folder)?;
        let program = self.program.clone();
        let node = self.node(id)?;
        if node.pid().is_some() { Ok(()) } else { node.spawn(&program) }
    }

    /// Waits until every running node could serve and one of them leads: returns the leader's id.
    pub async fn wait_ready(&mut self, patience: Duration) -> Result<u64, ClusterError> {
        let running = self.running();
        let mut failure = None;
        let leader = until(patience, async || match self.ready_leader(&running).await {
            Ok(leader) => leader,
            Err(error) => {
                failure = Some(error);
                Some(0)
            }
        })
        .await;
        match (leader, failure) {
            (_, Some(error)) => Err(error),
            (Some(leader), None) => Ok(leader),
            (None, None) => {
                let state = self.describe().await;
                let folder = self.folder.clone();
                Err(ClusterError::NotReady { waited: patience, state, folder })
            }
        }
    }

    async fn ready_leader(&mut self, running: &[u64]) -> Result<Option<u64>, ClusterError> {
        let mut leader = None;
        for id in running {
            let node = self.node(*id)?;
            if node.pid().is_none() {
                if node.is_removed() {
                    continue;
                }
                return Err(node.ended());
            }
            if !node.is_ready().await {
                return Ok(None);
            }
            if node.is_leader().await {
                leader = Some(*id);
            }
        }
        Ok(leader)
    }

    /// The node that says it leads, if one does.
    pub async fn leader(&mut self) -> Option<u64> {
        for node in &mut self.nodes {
            if node.pid().is_some() && node.is_leader().await {
                return Some(node.id);
            }
        }
        None
    }

    async fn describe(&mut self) -> String {
        let mut states = Vec::new();
        for node in &mut self.nodes {
            let state = match (node.pid(), node.is_ready().await) {
                (None, _) => "not running",
                (Some(_), false) => "not ready",
                (Some(_), true) => "ready",
            };
            states.push(format!("node {} is {state}", node.id));
        }
        states.join(", ")
    }

    /// Ends every node: by SIGTERM, and by SIGKILL whoever is still there after `patience`. Whoever watches the
    /// cluster ([`Cluster::watch`]) is told before, and lets them go.
    pub async fn stop(&mut self, patience: Duration) -> Result<Vec<(u64, Ending)>, ClusterError> {
        watch::note_stop(&self.folder)?;
        let mut endings = Vec::new();
        let asked: Vec<Option<u32>> = self.nodes.iter_mut().map(Node::pid).collect();
        for (node, pid) in self.nodes.iter_mut().zip(&asked) {
            if pid.is_some() {
                // One that ended just now needs no signal.
                let _ = node.signal("TERM");
            }
        }
        let deadline = tokio::time::Instant::now() + patience;
        for (node, pid) in self.nodes.iter_mut().zip(asked) {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let ending = match pid {
                None => Ending::NotRunning,
                Some(_) if node.ended_within(left).await => Ending::Graceful,
                Some(_) => {
                    node.kill().await?;
                    Ending::Killed
                }
            };
            if let Some(pid) = pid {
                process::remove_pid_file(&node.config(), pid);
            }
            endings.push((node.id, ending));
        }
        Ok(endings)
    }

    /// Ends one node by SIGTERM.
    pub async fn stop_node(&mut self, id: u64, patience: Duration) -> Result<Ending, ClusterError> {
        let node = self.node(id)?;
        node.signal("TERM")?;
        if node.ended_within(patience).await {
            return Ok(Ending::Graceful);
        }
        node.kill().await?;
        Ok(Ending::Killed)
    }

    /// Ends a node by SIGKILL: to test what that does.
    pub async fn kill(&mut self, id: u64) -> Result<(), ClusterError> {
        self.node(id)?.kill().await
    }

    /// Ends all nodes by SIGKILL, as close together as can be.
    pub async fn kill_all(&mut self) -> Result<(), ClusterError> {
        for node in &mut self.nodes {
            if node.pid().is_some() {
                node.signal("KILL")?;
            }
        }
        for node in &mut self.nodes {
            if !node.ended_within(Duration::from_secs(10)).await {
                let pid = node.pid().unwrap_or_default();
                return Err(ClusterError::WontEnd { node: node.id, pid });
            }
        }
        Ok(())
    }

    /// Stops a node's clock and hands, by SIGSTOP: to test what its waking does.
    pub fn pause(&mut self, id: u64) -> Result<(), ClusterError> {
        self.node(id)?.signal("STOP")
    }

    /// Wakes a paused node.
    pub fn resume(&mut self, id: u64) -> Result<(), ClusterError> {
        self.node(id)?.signal("CONT")
    }
}
