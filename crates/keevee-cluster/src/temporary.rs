//! A cluster for one test or one measurement.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::error::ClusterError;
use crate::plan::{Choices, Plan};
use crate::ports::{self, Addresses};
use crate::process;

/// A cluster on free ports, in a folder of its own. Dropped, it is gone: processes, folder and all.
#[derive(Debug)]
pub struct TemporaryCluster {
    cluster: Cluster,
    _folder: Folder,
}

/// Removes its folder when dropped.
#[derive(Debug)]
struct Folder(PathBuf);

impl TemporaryCluster {
    /// Makes and starts a cluster of so many nodes, and waits until it serves.
    pub async fn start(program: &Path, nodes: u64) -> Result<TemporaryCluster, ClusterError> {
        TemporaryCluster::start_with(program, nodes, &Choices::default()).await
    }

    /// As [`TemporaryCluster::start`], with nodes that have this in common.
    pub async fn start_with(
        program: &Path,
        nodes: u64,
        choices: &Choices,
    ) -> Result<TemporaryCluster, ClusterError> {
        let mut tries = 1;
        loop {
            match TemporaryCluster::try_start(program, nodes, choices).await {
                // Another program took a port between our look and the node's start.
                Err(ClusterError::PortTaken { .. }) if tries < 5 => tries += 1,
                result => return result,
            }
        }
    }

    async fn try_start(
        program: &Path,
        nodes: u64,
        choices: &Choices,
    ) -> Result<TemporaryCluster, ClusterError> {
        let name = format!("keevee-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        let folder = Folder(path.clone());
        let plan = Plan {
            folder: path.clone(),
            program: program.to_owned(),
            nodes: Some(nodes),
            http_port: Some(0),
            peer_port: Some(0),
            resp_port: Some(0),
            choices: choices.clone(),
        };
        let cluster = Cluster::open_or_create(&plan).await?;
        let mut temporary = TemporaryCluster { cluster, _folder: folder };
        temporary.cluster.start()?;
        match temporary.cluster.wait_ready(Duration::from_secs(60)).await {
            Ok(_) => Ok(temporary),
            Err(ClusterError::NodeEnded { node, log, tail }) => Err(temporary.why_ended(node, log, tail)),
            Err(error) => Err(error),
        }
    }

    /// A node that can't have its port is no fault of the node.
    fn why_ended(&mut self, node: u64, log: PathBuf, tail: String) -> ClusterError {
        let ended = self.cluster.nodes().iter().find(|ended| ended.id == node);
        let addresses = ended.map(|ended| ended.addresses());
        match addresses.iter().flat_map(Addresses::all).find(|address| !ports::is_free(*address)) {
            Some(address) => ClusterError::PortTaken { node, address: address.to_string() },
            None => ClusterError::NodeEnded { node, log, tail },
        }
    }
}

impl Deref for TemporaryCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for TemporaryCluster {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

impl Drop for TemporaryCluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        for node in self.cluster.nodes() {
            if failed {
                eprintln!("the end of node {}'s log:\n{}\n", node.id, node.log_tail());
            }
            if let Some(pid) = node.pid() {
                // A node that ended this very moment is what we want.
                let _ = process::signal(pid, "KILL");
            }
            node.reap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
