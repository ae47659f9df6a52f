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
    let mut times = Vec::new();
    for round in 1..=arguments.rounds {
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
        println!("round {round:>3}: node {leader} killed, writes again after {:>6} ms", took.as_millis());
        times.push(took);
        cluster.start_node(leader)?;
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("median {} ms, worst {} ms", median.as_millis(), worst.as_millis());
    Ok(())
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
