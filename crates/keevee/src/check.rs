//! `keevee cluster check`: does a real cluster do what it promises? The test scripts are thin wrappers on these.
//!
//! Each check uses the cluster that runs in the folder given, or one of its own, which is gone afterwards.
//! These are tests for people who look at a cluster; the proof is elsewhere.

mod benchmarks;
mod cross_nodes;
mod crud;
pub(crate) mod failover;
mod restart;

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use keevee_client::{Client, Endpoint, EndpointError, Options};
use keevee_cluster::{Cluster, TemporaryCluster};

use crate::commands::cluster::{Consensus, FolderArguments};
use crate::failure::Failure;

/// Check a cluster: the running one, or a temporary one.
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  keevee cluster check crud
  keevee cluster check cross-nodes --writes 5000
  keevee cluster check benchmarks
  keevee cluster check failover --rounds 20
  keevee cluster check restart

Exit code 1 if anything is not as it must be.")]
pub(crate) enum Command {
    /// Create, read, update and delete through every node
    #[command(after_help = "\
Examples:
  keevee cluster check crud
  keevee cluster check crud --data /var/tmp/kv")]
    Crud(ClusterArguments),
    CrossNodes(cross_nodes::Arguments),
    Benchmarks(benchmarks::Arguments),
    Failover(failover::Arguments),
    Restart(restart::Arguments),
}

/// Which cluster to check.
#[derive(Args)]
pub(crate) struct ClusterArguments {
    #[command(flatten)]
    folder: FolderArguments,
    /// How many nodes a temporary cluster has
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    nodes: u64,
    /// How the nodes of a temporary cluster agree
    #[arg(long, value_enum, default_value_t = Consensus::Paxos)]
    consensus: Consensus,
}

/// The cluster under check.
enum Subject {
    Running(Vec<Endpoint>),
    Temporary(TemporaryCluster),
}

impl ClusterArguments {
    async fn subject(&self) -> Result<Subject, Failure> {
        let folder = self.folder.folder()?;
        if let Some(endpoints) = running(&folder)? {
            println!("Checking the cluster that runs in {}.", folder.display());
            return Ok(Subject::Running(endpoints));
        }
        println!("No cluster runs in {}: starting a temporary one.", folder.display());
        let program = std::env::current_exe()?;
        let choices = self.consensus.choices();
        Ok(Subject::Temporary(TemporaryCluster::start_with(&program, self.nodes, &choices).await?))
    }
}

/// The endpoints of the nodes that run there, if any does.
fn running(folder: &Path) -> Result<Option<Vec<Endpoint>>, Failure> {
    let Ok(mut cluster) = Cluster::open(folder, &std::env::current_exe()?) else {
        return Ok(None);
    };
    let running = cluster.running();
    let nodes = cluster.nodes().iter().filter(|node| running.contains(&node.id));
    let endpoints: Vec<Endpoint> = nodes.map(|node| node.endpoint()).collect();
    Ok(Some(endpoints).filter(|endpoints| !endpoints.is_empty()))
}

impl Subject {
    fn endpoints(&self) -> Vec<Endpoint> {
        match self {
            Subject::Running(endpoints) => endpoints.clone(),
            Subject::Temporary(cluster) => cluster.endpoints(),
        }
    }

    /// A client for each node, which asks no other node.
    fn clients(&self) -> Result<Vec<Client>, EndpointError> {
        self.endpoints().into_iter().map(client_of).collect()
    }
}

fn client_of(endpoint: Endpoint) -> Result<Client, EndpointError> {
    let timeout = Duration::from_secs(30);
    Client::unrouted(vec![endpoint], Options { timeout, ..Options::default() })
}

/// Keys of this run only, so that checks can be repeated on a cluster that holds something.
fn prefix(check: &str) -> String {
    format!("check-{check}-{:08x}-", rand::random::<u32>())
}

pub(crate) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Crud(arguments) => crud::run(arguments).await,
        Command::CrossNodes(arguments) => cross_nodes::run(arguments).await,
        Command::Benchmarks(arguments) => benchmarks::run(arguments).await,
        Command::Failover(arguments) => failover::run(arguments).await,
        Command::Restart(arguments) => restart::run(arguments).await,
    }
}
