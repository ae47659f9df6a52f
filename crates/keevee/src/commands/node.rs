//! `keevee node`: the nodes of a cluster, and which of them hold its shards.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use keevee_client::ErrorKind;
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::members::Move;
use keevee_core::shard_map::view::{CarpView, ShardView};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::api::Api;
use crate::commands::shards::{self, Shard};
use crate::commands::table::{list, table};
use crate::commands::{ClientArguments, Output, parse_duration};
use crate::failure::Failure;

const PATH: &str = "/v1/cluster/nodes";
/// How often it is looked whether a change is done.
const LOOK: Duration = Duration::from_millis(300);

/// List the nodes, or move shards from node to node while the cluster goes on.
///
/// A new node joins with `keevee server --join`, and holds nothing until `keevee node add`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee node list
  keevee node add 4                     # give node 4, which has joined, its share of the shards
  keevee node add 4 --replicas 3        # and a replica of each shard that has fewer than three
  keevee node drain 2 --dry-run         # what would move off node 2?
  keevee node replace 2 --with 4        # node 2 is lost: node 4 takes its place
  keevee node remove 2                  # drain it, then forget it")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the nodes, and what each holds
    List(ListArguments),
    /// Give a node that has joined its share of the shards
    Add(AddArguments),
    /// Move all shards and leaderships off a node
    Drain(DrainArguments),
    /// Have one node take the place of another, which may be dead
    Replace(ReplaceArguments),
    /// Drain a node, and remove it from the cluster
    Remove(DrainArguments),
}

#[derive(Args)]
struct ListArguments {
    #[command(flatten)]
    client: ClientArguments,
}

#[derive(Args)]
struct ChangeArguments {
    /// The node's id
    node: u64,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until it is done: it goes on all the same
    #[arg(long)]
    no_wait: bool,
    /// How long to wait until it is done
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    patience: Duration,
    #[command(flatten)]
    client: ClientArguments,
}

#[derive(Args)]
struct AddArguments {
    #[command(flatten)]
    change: ChangeArguments,
    /// Give it a replica of each shard that has fewer than this
    #[arg(long, value_name = "COUNT")]
    replicas: Option<usize>,
}

#[derive(Args)]
struct DrainArguments {
    #[command(flatten)]
    change: ChangeArguments,
    /// Give up replicas that no other node can take
    #[arg(long)]
    fewer_replicas: bool,
}

#[derive(Args)]
struct ReplaceArguments {
    #[command(flatten)]
    change: ChangeArguments,
    /// The node that takes its place; what that one holds already goes to others
    #[arg(long, value_name = "NODE")]
    with: u64,
    /// Give up replicas that no other node can take
    #[arg(long)]
    fewer_replicas: bool,
}

/// What a node says of another.
#[derive(Deserialize, Serialize)]
struct Node {
    id: u64,
    http: String,
    peer: String,
    reachable: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    drained: bool,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

/// What is done, or would be.
#[derive(Deserialize, Serialize)]
struct Planned {
    moves: Vec<Move>,
    epoch: u64,
    dry_run: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (client, planned) = match arguments.command {
        Command::List(arguments) => return show(&arguments.client).await,
        Command::Add(AddArguments { change: arguments, replicas }) => {
            // A node of an older version does not know the word.
            let asked = replicas.map_or_else(|| json!({}), |replicas| json!({ "replicas": replicas }));
            let planned = change(&arguments, "add", asked).await?;
            (arguments.client, planned)
        }
        Command::Drain(DrainArguments { change: arguments, fewer_replicas }) => {
            let planned = change(&arguments, "drain", json!({ "fewer_replicas": fewer_replicas })).await?;
            (arguments.client, planned)
        }
        Command::Replace(ReplaceArguments { change: arguments, with, fewer_replicas }) => {
            let mut asked = json!({ "with": with });
            // A node of an older version does not know the word here.
            if fewer_replicas {
                asked["fewer_replicas"] = json!(true);
            }
            let planned = change(&arguments, "replace", asked).await?;
            (arguments.client, planned)
        }
        Command::Remove(arguments) => {
            let planned = remove(&arguments).await?;
            (arguments.change.client, planned)
        }
    };
    if client.output == Output::Json {
        println!("{}", serde_json::to_string(&planned).map_err(Failure::other)?);
    }
    Ok(())
}

/// Drains the node first.
async fn remove(arguments: &DrainArguments) -> Result<Planned, Failure> {
    let DrainArguments { change: arguments, fewer_replicas } = arguments;
    if arguments.no_wait {
        let why =
            "a node is removed once it holds nothing: `keevee node drain --no-wait`, and later `remove`";
        return Err(Failure::of_kind(ErrorKind::Invalid, why.to_owned()));
    }
    let drained = change(arguments, "drain", json!({ "fewer_replicas": fewer_replicas })).await?;
    if !arguments.dry_run {
        let removed = change(arguments, "remove", json!({})).await?;
        return Ok(Planned { epoch: removed.epoch, ..drained });
    }
    if arguments.client.output == Output::Text {
        println!("then node {} would be removed", arguments.node);
    }
    Ok(drained)
}

fn api(client: &ClientArguments) -> Api<'_> {
    Api { nodes: &client.nodes.endpoints, timeout: client.timeout }
}

async fn show(client: &ClientArguments) -> Result<(), Failure> {
    let nodes: Vec<Node> = api(client).get(PATH).await?;
    let shards = shards::all(&api(client)).await?;
    if client.output == Output::Json {
        let held = |node: &Node| {
            let mut value = serde_json::to_value(node).map_err(Failure::other)?;
            value["shards"] = json!(held(&shards, node.id, members));
            if shards.iter().any(|shard| shard.view.next.is_some()) {
                value["next_shards"] = json!(held(&shards, node.id, wanted));
            }
            Ok::<_, Failure>(value)
        };
        let nodes: Vec<_> = nodes.iter().map(held).collect::<Result<_, _>>()?;
        println!("{}", serde_json::to_string(&nodes).map_err(Failure::other)?);
        return Ok(());
    }
    let row = |node: &Node| {
        let held = held(&shards, node.id, members);
        let held = held.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let state = match (node.reachable, node.drained) {
            (true, false) => "up",
            (true, true) => "drained",
            (false, false) => "no answer",
            (false, true) => "drained, no answer",
        };
        [node.id.to_string(), node.http.clone(), node.peer.clone(), state.to_owned(), held]
    };
    print!(
        "{}",
        table(["node", "http", "peer", "state", "shards"], &nodes.iter().map(row).collect::<Vec<_>>())
    );
    for Shard { view, .. } in shards.iter().filter(|shard| shard.view.next.is_some()) {
        let next = view.next.as_deref().unwrap_or_default();
        println!("shard {}: nodes {} become {}", view.id, list(&view.members), list(next));
    }
    Ok(())
}

fn members(view: &ShardView) -> &[NodeId] {
    &view.members
}

/// Who holds it once what is under way is done.
fn wanted(view: &ShardView) -> &[NodeId] {
    view.next.as_deref().unwrap_or(&view.members)
}

/// The shards of which these nodes include the node.
fn held(shards: &[Shard], node: u64, nodes: impl Fn(&ShardView) -> &[NodeId]) -> Vec<ShardId> {
    let views = shards.iter().map(|shard| &shard.view);
    views.filter(|view| nodes(view).contains(&NodeId(node))).map(|view| view.id).collect()
}

/// Waits until it is done, unless it shall not.
async fn change(
    arguments: &ChangeArguments,
    what: &str,
    mut body: serde_json::Value,
) -> Result<Planned, Failure> {
    let ChangeArguments { node, dry_run, no_wait, patience, client } = arguments;
    body["dry_run"] = json!(dry_run);
    let (path, body) = (format!("{PATH}/{node}/{what}"), body.to_string());
    let planned: Planned = match dry_run {
        true => api(client).post_in_vain(&path, &body).await?,
        false => api(client).post(&path, &body).await?,
    };
    if client.output == Output::Text {
        tell(*node, what, &planned);
    }
    // Of a node that is removed nothing is left to be done, and the one that was asked may be the one.
    if !dry_run && !no_wait && what != "remove" {
        wait(client, NodeId(*node), &planned, *patience).await?;
    }
    Ok(planned)
}

fn tell(node: u64, what: &str, planned: &Planned) {
    let would = if planned.dry_run { "would move" } else { "moves" };
    for Move { shard, from, to } in &planned.moves {
        match (from, to) {
            (Some(from), Some(to)) => println!("shard {shard} {would} from node {from} to node {to}"),
            (Some(from), None) => println!("shard {shard} {would} off node {from}: it has one replica fewer"),
            (None, Some(to)) => println!("shard {shard} {would} onto node {to} as well"),
            (None, None) => {}
        }
    }
    match what {
        "remove" => println!("node {node} is removed: it stops by itself if it runs; delete its folder"),
        _ if planned.moves.is_empty() => println!("nothing has to move"),
        _ => {}
    }
}

/// Until a map that is not older than this plan's says of all that concerns the node that it is done.
async fn wait(
    client: &ClientArguments,
    node: NodeId,
    planned: &Planned,
    patience: Duration,
) -> Result<(), Failure> {
    let until = Instant::now() + patience;
    let mut told = 0;
    loop {
        let asked = api(client).get("/v1/cluster/carp").await;
        let CarpView { epoch, shards, .. } = asked.map_err(|failure| {
            let detail =
                format!("outcome_unknown: the shard map says so now, and it goes on, but then: {failure}");
            Failure::of_kind(ErrorKind::OutcomeUnknown, detail)
        })?;
        let is_planned = |shard: &ShardView| planned.moves.iter().any(|one| one.shard == shard.id);
        let concerns = |shard: &ShardView| {
            is_planned(shard)
                || shard.members.contains(&node)
                || shard.next.iter().flatten().any(|next| *next == node)
        };
        let open: Vec<ShardId> = shards
            .iter()
            .filter(|shard| shard.next.is_some() && concerns(shard))
            .map(|shard| shard.id)
            .collect();
        let is_new = epoch >= planned.epoch;
        let done = planned.moves.len().saturating_sub(open.len());
        if is_new && done > told && client.output == Output::Text {
            told = done;
            println!("{done} of {} done", planned.moves.len());
        }
        if is_new && open.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Failure::other(format!(
                "shards {} have not changed within {patience:?}: it goes on; `keevee node list` shows what is under way",
                list(&open)
            )));
        }
        sleep(LOOK).await;
    }
}
