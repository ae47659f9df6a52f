//! Random writes through all nodes, leaders and followers; then every key compared on every node.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use keevee_client::{Client, Consistency, Write};
use keevee_cluster::until;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::check::{ClusterArguments, prefix};
use crate::failure::Failure;

/// Write through all nodes at random, then compare every key on every node, linearizable and stale.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee cluster check cross-nodes
  keevee cluster check cross-nodes --writes 10000 --seed 42")]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    /// How many writes
    #[arg(long, value_name = "COUNT", default_value_t = 2_000)]
    writes: usize,
    /// How many keys
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    keys: usize,
    /// Which random writes [default: other ones each time]
    #[arg(long)]
    seed: Option<u64>,
}

/// Each writer has keys of its own, so that what must come out is known whatever the order.
const WRITERS: usize = 8;

/// How long a node may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(30);

type Model = BTreeMap<String, Option<String>>;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let subject = arguments.cluster.subject().await?;
    let clients = subject.clients()?;
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("{} random writes to {} keys, seed {seed}", arguments.writes, arguments.keys);
    let prefix = prefix("cross");
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let clients = clients.clone();
        let keys: Vec<String> =
            (writer..arguments.keys).step_by(WRITERS).map(|key| format!("{prefix}{key}")).collect();
        let writes = (writer..arguments.writes).step_by(WRITERS).len();
        let random = StdRng::seed_from_u64(seed.wrapping_add(writer as u64));
        writers.spawn(async move { write(&clients, keys, writes, random).await });
    }
    let mut model = Model::new();
    while let Some(written) = writers.join_next().await {
        model.extend(written.map_err(Failure::other)??);
    }
    for (endpoint, client) in subject.endpoints().iter().zip(&clients) {
        compare_linearizable(client, &model).await?;
        println!("ok  {endpoint}: {} keys agree, read linearizably", model.len());
        compare_stale(client, &model).await?;
        println!("ok  {endpoint}: {} keys agree, read stale", model.len());
    }
    for key in model.keys() {
        clients[0].delete(key.as_bytes(), Write::default()).await?;
    }
    Ok(())
}

async fn write(
    clients: &[Client],
    keys: Vec<String>,
    writes: usize,
    mut random: StdRng,
) -> Result<Model, Failure> {
    let mut model: Model = keys.iter().map(|key| (key.clone(), None)).collect();
    for number in 0..writes {
        let Some(key) = keys.get(random.random_range(0..keys.len().max(1))) else { break };
        let client = &clients[random.random_range(0..clients.len())];
        let held = model.get(key).cloned().flatten();
        let now = if random.random_ratio(1, 5) {
            let deleted = client.delete(key.as_bytes(), Write::default()).await?;
            if deleted != held.is_some() {
                return Err(mismatch(key, "a delete found", &held));
            }
            None
        } else {
            let value = format!("{number}-{:x}", random.random::<u64>());
            client.put(key.as_bytes(), value.clone(), Write::default()).await?;
            Some(value)
        };
        model.insert(key.clone(), now);
    }
    Ok(model)
}

fn mismatch(key: &str, what: &str, wanted: &Option<String>) -> Failure {
    Failure::other(format!("mismatch: {key}: {what} otherwise than {wanted:?}"))
}

async fn holds(
    client: &Client,
    key: &str,
    wanted: &Option<String>,
    consistency: Consistency,
) -> Result<bool, keevee_client::Error> {
    let value = client.get(key.as_bytes(), consistency).await?;
    let found = value.as_ref().map(|value| &value.bytes[..]);
    Ok(found == wanted.as_ref().map(String::as_bytes))
}

async fn compare_linearizable(client: &Client, model: &Model) -> Result<(), Failure> {
    for (key, wanted) in model {
        if !holds(client, key, wanted, Consistency::Linearizable).await? {
            return Err(mismatch(key, "a linearizable read", wanted));
        }
    }
    Ok(())
}

/// A stale read may be late, but not for ever.
async fn compare_stale(client: &Client, model: &Model) -> Result<(), Failure> {
    for (key, wanted) in model {
        let caught_up = until(CATCH_UP, async || {
            let read = holds(client, key, wanted, Consistency::Stale).await;
            read.map(|holds| holds.then_some(())).transpose()
        });
        match caught_up.await {
            Some(read) => read?,
            None => return Err(mismatch(key, "after 30 seconds a stale read", wanted)),
        }
    }
    Ok(())
}
