//! How long a cluster that holds much takes to serve again after all of it was stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use keevee_client::{Client, Consistency, Options};
use keevee_cluster::{Choices, Layout, TemporaryCluster};
use keevee_core::ids::ShardId;
use keevee_core::shard_map::view::CarpView;
use keevee_core::slot_table::SlotTable;

use crate::api::Api;
use crate::check::prefix;
use crate::commands::cluster::Consensus;
use crate::failure::Failure;
use crate::load::{self, Progress, Workload};

/// Fill a temporary cluster, stop all of it and start it: how long until every shard serves?
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee cluster check restart
  keevee cluster check restart --consensus raft --kill
  keevee cluster check restart --shards 16 --keys 100000")]
pub(crate) struct Arguments {
    /// How many shards
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=2048))]
    shards: u16,
    /// How many keys
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How many bytes a value has
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    value_size: usize,
    /// How many nodes the cluster has
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// How they agree
    #[arg(long, value_enum, default_value_t = Consensus::Paxos)]
    consensus: Consensus,
    /// End the nodes by SIGKILL: what was not flushed is read from the log again
    #[arg(long)]
    kill: bool,
}

const CONNECTIONS: usize = 256;
/// How long the cluster may take, to end and to serve.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let program = std::env::current_exe()?;
    let layout = Some(Layout::Shared { shards: arguments.shards, replicas: None });
    let choices = Choices { layout, ..arguments.consensus.choices() };
    let mut cluster = TemporaryCluster::start_with(&program, arguments.nodes, &choices).await?;
    let prefix = prefix("restart");
    let filled = fill(&arguments, &cluster, &prefix).await?;
    let Arguments { keys, shards, nodes, .. } = arguments;
    println!("{keys} keys in {shards} shards on {nodes} nodes: filled in {} s", seconds(filled));
    let probes = probes(&cluster, &prefix, keys).await?;

    let start = Instant::now();
    if arguments.kill {
        cluster.kill_all().await?;
    } else {
        cluster.stop(PATIENCE).await?;
    }
    println!("stopped in {} s", seconds(start.elapsed()));
    let start = Instant::now();
    cluster.start()?;
    cluster.wait_ready(PATIENCE).await?;
    println!("every shard has a leader after {} s", seconds(start.elapsed()));
    let client = Client::new(cluster.endpoints(), Options { timeout: PATIENCE, ..Options::default() })?;
    for value in client.multi_get(&probes, Consistency::Linearizable).await {
        if value?.is_none() {
            return Err(Failure::other("a key that was written is gone"));
        }
    }
    println!("a read in each of {} shards after {} s", probes.len(), seconds(start.elapsed()));
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

/// Puts every key once: how long that took.
async fn fill(arguments: &Arguments, cluster: &TemporaryCluster, prefix: &str) -> Result<Duration, Failure> {
    let workload = Arc::new(Workload {
        connections: CONNECTIONS,
        value_size: arguments.value_size,
        ..Workload::over_http(cluster.endpoints(), prefix.to_owned(), arguments.keys)
    });
    let start = Instant::now();
    let fill = move || load::fill(&workload, &Arc::new(Progress::default()));
    let report = tokio::task::spawn_blocking(fill).await.map_err(Failure::other)?;
    if report.operations != arguments.keys {
        let (done, wanted) = (report.operations, arguments.keys);
        return Err(Failure::other(format!("{done} of {wanted} keys written: {:?}", report.errors)));
    }
    Ok(start.elapsed())
}

/// A key of each shard that owns one.
async fn probes(cluster: &TemporaryCluster, prefix: &str, keys: u64) -> Result<Vec<Vec<u8>>, Failure> {
    let nodes = cluster.endpoints();
    let view: CarpView = Api { nodes: &nodes, timeout: PATIENCE }.get("/v1/cluster/carp").await?;
    let table = SlotTable::from_runs(&view.slots).map_err(Failure::other)?;
    let owners = table.counts().len();
    let mut found: BTreeMap<ShardId, Vec<u8>> = BTreeMap::new();
    for number in 0..keys {
        let key = load::key(prefix, number).into_bytes();
        found.entry(table.owner_of_key(&key)).or_insert(key);
        if found.len() == owners {
            break;
        }
    }
    Ok(found.into_values().collect())
}
