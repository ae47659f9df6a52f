//! `keevee shards`: the shards of a cluster, one more, and whether their replicas hold the same.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Args, Subcommand};
use keevee_client::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::view::ShardView;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::Api;
use crate::commands::cluster::Consensus;
use crate::commands::status;
use crate::commands::table::{list, table};
use crate::commands::{ClientArguments, Output};
use crate::failure::Failure;

const PATH: &str = "/v1/cluster/shards";
const SCRUB_PATH: &str = "/v1/cluster/scrub";
/// How long one node may take to say that it begins.
const NODE_PATIENCE: Duration = Duration::from_secs(2);

/// List the shards: engine, slots, who leads, who holds a replica.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  keevee shards
  keevee shards --output json
  keevee shards add --name archive --engine raft --replicas 3
  keevee shards scrub"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    client: ClientArguments,
}

#[derive(Subcommand)]
enum Command {
    Add(AddArguments),
    Scrub(ScrubArguments),
}

/// Add a shard. It holds no keys yet: slots can't move in this version.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee shards add --name archive
  keevee shards add --name archive --engine raft --replicas 3")]
struct AddArguments {
    /// Its name: letters, digits, '-', '_' and '.'
    #[arg(long)]
    name: String,
    /// How its replicas agree [default: as the system shard's]
    #[arg(long, value_enum)]
    engine: Option<Consensus>,
    /// How many nodes hold it [default: 3, or all if there are fewer]
    #[arg(long, value_name = "COUNT")]
    replicas: Option<usize>,
    #[command(flatten)]
    client: ClientArguments,
}

/// Have replicas compare their data now, in the background, as each shard's leader does once a day.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee shards scrub
  keevee shards scrub 2
  keevee status --output json          what came of it, for each replica

Each replica reads its data through at a bounded rate ([engine] scrub_bytes_per_second). One that holds
something else than most of the others is damaged: its node gives its data up, and rebuilds it from the others.")]
struct ScrubArguments {
    /// The shard [default: all]
    #[arg(value_name = "SHARD")]
    shard: Option<u32>,
    #[command(flatten)]
    client: ClientArguments,
}

/// A shard, and how many slots it owns.
#[derive(Deserialize, Serialize)]
pub(crate) struct Shard {
    #[serde(flatten)]
    pub(crate) view: ShardView,
    pub(crate) slots: u32,
}

/// The cluster's shards, the system shard first.
pub(crate) async fn all(api: &Api<'_>) -> Result<Vec<Shard>, Failure> {
    api.get(PATH).await
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Some(Command::Add(arguments)) => return add(arguments).await,
        Some(Command::Scrub(arguments)) => return scrub(arguments).await,
        None => {}
    }
    let client = &arguments.client;
    let mut shards = all(&Api { nodes: &client.nodes.endpoints, timeout: client.timeout }).await?;
    // The node that answered knows for sure only of the shards that it holds.
    let rows = status::rows(&client.client()?).await?;
    for Shard { view, .. } in &mut shards {
        view.leader = status::leader(&rows, view.id.0).map(NodeId).or(view.leader);
    }
    match client.output {
        Output::Text => print!("{}", shards_table(&shards)),
        Output::Json => println!("{}", serde_json::to_string(&shards).map_err(Failure::other)?),
    }
    Ok(())
}

fn shards_table(shards: &[Shard]) -> String {
    let row = |Shard { view, slots }: &Shard| {
        let leader = view.leader.map_or("not known".to_owned(), |leader| leader.to_string());
        let (id, load_factor) = (view.id.to_string(), view.load_factor.to_string());
        let engine = view.engine.name().to_owned();
        [id, view.name.clone(), engine, load_factor, slots.to_string(), leader, list(&view.members)]
    };
    let rows: Vec<_> = shards.iter().map(row).collect();
    table(["shard", "name", "engine", "load", "slots", "leader", "members"], &rows)
}

async fn add(arguments: AddArguments) -> Result<(), Failure> {
    let client = &arguments.client;
    let api = Api { nodes: &client.nodes.endpoints, timeout: client.timeout };
    let mut body = json!({ "name": arguments.name });
    if let Some(engine) = arguments.engine {
        body["engine"] = json!(engine.name());
    }
    if let Some(replicas) = arguments.replicas {
        body["replicas"] = json!(replicas);
    }
    let answer: Value = api.post(PATH, &body.to_string()).await?;
    if client.output == Output::Json {
        println!("{answer}");
        return Ok(());
    }
    let added = ShardView::deserialize(&answer).map_err(Failure::other)?;
    println!("shard {} ({}) is on nodes {}", added.id, added.name, list(&added.members));
    Ok(())
}

/// Shards of which a node begins a scrub.
#[derive(Deserialize)]
struct Begun {
    shards: Vec<ShardId>,
}

/// Asks every node, each of which begins with the shards that it leads.
async fn scrub(arguments: ScrubArguments) -> Result<(), Failure> {
    let client = &arguments.client;
    let path = arguments.shard.map_or(SCRUB_PATH.to_owned(), |shard| format!("{SCRUB_PATH}?shard={shard}"));
    let (mut begun, mut failed) = (BTreeSet::new(), None);
    for peer in client.client()?.nodes().await? {
        let nodes = [peer.http.parse().map_err(Failure::other)?];
        // A node that does not answer leads nothing for long.
        let timeout = client.timeout.min(NODE_PATIENCE);
        match (Api { nodes: &nodes, timeout }).post::<Begun>(&path, "").await {
            Ok(Begun { shards }) => begun.extend(shards),
            Err(failure) => failed = Some(failure),
        }
    }
    if begun.is_empty() {
        let detail = "unavailable: no node that answers leads such a shard";
        return Err(failed.unwrap_or_else(|| Failure::of_kind(ErrorKind::Unavailable, detail)));
    }
    let begun: Vec<ShardId> = begun.into_iter().collect();
    match client.output {
        Output::Json => println!("{}", json!({ "shards": begun })),
        Output::Text => {
            let begun: Vec<String> = begun.iter().map(ShardId::to_string).collect();
            println!("the replicas of these shards are compared: {}", begun.join(","));
        }
    }
    Ok(())
}
