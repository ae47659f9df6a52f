//! `keevee status`: how each node of a cluster is.

use std::time::Duration;

use clap::Args;
use keevee_client::{Client, Endpoint, NodeStatus, Options};
use serde::Serialize;

use crate::commands::{ClientArguments, Output};
use crate::failure::Failure;

/// Show every node: role, ballot, log, chain hash.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee status
  keevee status --output json
  keevee status --endpoint http://10.0.0.7:8001

One node that answers is enough: it names the others. Replicas that have applied the same index
have the same chain hash.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    client: ClientArguments,
}

/// One node, as it says itself; without a status if it does not answer.
#[derive(Serialize)]
pub(crate) struct Row {
    /// The node.
    pub(crate) node: u64,
    /// Its public address.
    pub(crate) http: String,
    /// What it says.
    pub(crate) status: Option<NodeStatus>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let rows = rows(&arguments.client.client()?).await?;
    match arguments.client.output {
        Output::Text => print!("{}", table(&rows)),
        Output::Json => println!("{}", serde_json::to_string(&rows).map_err(Failure::other)?),
    }
    Ok(())
}

/// Asks a node for all nodes, and each of them for its status.
pub(crate) async fn rows(client: &Client) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for peer in client.nodes().await? {
        let status = status_of(&peer.http).await;
        rows.push(Row { node: peer.id, http: peer.http, status });
    }
    Ok(rows)
}

async fn status_of(address: &str) -> Option<NodeStatus> {
    let endpoint: Endpoint = address.parse().ok()?;
    let timeout = Duration::from_secs(1);
    let options = Options { timeout, attempt_timeout: timeout, connect_timeout: timeout };
    Client::unrouted(vec![endpoint], options).ok()?.status().await.ok()
}

/// A line for each shard of each node.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<5} {:<22} {:<6} {:<10} {:>9} {:>10} {:>10} {:>10}  {}\n",
        "node", "http", "shard", "role", "ballot", "last", "chosen", "applied", "chain"
    );
    for row in rows {
        let Some(status) = &row.status else {
            text += &format!("{:<5} {:<22} does not answer\n", row.node, row.http);
            continue;
        };
        for shard in &status.shards {
            text += &format!(
                "{:<5} {:<22} {:<6} {:<10} {:>9} {:>10} {:>10} {:>10}  {}\n",
                row.node,
                row.http,
                shard.shard,
                shard.role,
                shard.ballot,
                shard.last,
                shard.chosen,
                shard.applied,
                shard.chain.get(..8).unwrap_or(&shard.chain),
            );
        }
    }
    text
}
