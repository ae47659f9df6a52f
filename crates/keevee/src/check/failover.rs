//! How long a cluster is without service after its leader is killed.

use std::time::{Duration, Instant};

use clap::Args;
use keevee_client::{Connection, Endpoint};
use keevee_cluster::{TemporaryCluster, until};
use tokio::time::{sleep, timeout};

use crate::commands::cluster::Consensus;
use crate::failure::Failure;

/// Kill the leader of a temporary cluster again and again: how long until the next write succeeds?
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee cluster check failover
  keevee cluster check failover --consensus raft
  keevee cluster check failover --rounds 100 --nodes 5")]
pub(crate) struct Arguments {
    /// How often
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many nodes the cluster has
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// How they agree
    #[arg(long, value_enum, default_value_t = Consensus::Paxos)]
    consensus: Consensus,
}

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let program = std::env::current_exe()?;
    let mut cluster =
        TemporaryCluster::start_with(&program, arguments.nodes, &arguments.consensus.choices()).await?;
    let told = |round: u32, leader: u64, took: Duration| {
        println!("round {round:>3}: node {leader} killed, writes again after {:>6} ms", took.as_millis());
    };
    let times = kill_leaders(&mut cluster, arguments.rounds, told).await?;
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("median {} ms, worst {} ms", median.as_millis(), worst.as_millis());
    Ok(())
}

/// Kills the leader so often, and tells each time how long it took until a write succeeded: the times, the shortest
/// first.
pub(crate) async fn kill_leaders(
    cluster: &mut TemporaryCluster,
    rounds: u32,
    mut told: impl FnMut(u32, u64, Duration),
) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    for round in 1..=rounds {
        let leader = cluster.wait_ready(PATIENCE).await?;
        let survivors: Vec<Endpoint> = {
            let others = cluster.nodes().iter().filter(|node| node.id != leader);
            others.map(|node| node.endpoint()).collect()
        };
        // The clock starts before the signal: its way to the process counts too.
        let start = Instant::now();
        cluster.kill(leader).await?;
        let write = format!("round-{round}");
        let served = until(PATIENCE, async || first_write(&survivors, write.as_bytes()).await).await;
        let Some(end) = served else {
            return Err(Failure::other(format!("no write succeeded within {PATIENCE:?}")));
        };
        let took = end - start;
        told(round, leader, took);
        times.push(took);
        cluster.start_node(leader)?;
    }
    times.sort();
    Ok(times)
}

/// Tries each node once: when the first write succeeded.
async fn first_write(nodes: &[Endpoint], key: &[u8]) -> Option<Instant> {
    for endpoint in nodes {
        let attempt = async {
            let mut connection = Connection::open(endpoint, Duration::from_secs(1)).await.ok()?;
            connection.put(key, "written".into()).await.ok()
        };
        if let Ok(Some(_)) = timeout(Duration::from_secs(2), attempt).await {
            return Some(Instant::now());
        }
        sleep(Duration::from_millis(1)).await;
    }
    None
}
