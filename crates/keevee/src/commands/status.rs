//! `keevee status`: how the nodes and shards of a cluster are.

use std::time::Duration;

use clap::Args;
use keevee_client::{Client, Endpoint, NodeStatus, Options, ShardStatus};
use keevee_core::ids::ShardId;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::api::Api;
use crate::commands::shards::{self, Shard};
use crate::commands::table::{list, table};
use crate::commands::{ClientArguments, Output};
use crate::failure::Failure;

/// Show every node and every shard: who leads, and what is amiss.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee status
  keevee status --replicas
  keevee status --output json
  keevee status --endpoint http://10.0.0.7:8001

One node that answers is enough: it names the others. Replicas of a shard that have applied the same
index have the same chain hash.")]
pub(crate) struct Arguments {
    /// A line for each replica instead: role, ballot, log, chain hash
    #[arg(long)]
    replicas: bool,
    #[command(flatten)]
    client: ClientArguments,
}

/// One node, as it says itself.
#[derive(Serialize)]
pub(crate) struct Row {
    /// The node.
    pub(crate) node: u64,
    /// Its public address.
    pub(crate) http: String,
    /// Its address for clients that speak the Redis protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resp: Option<String>,
    /// What it says.
    pub(crate) status: Option<NodeStatus>,
    /// Why it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unreachable: Option<String>,
}

impl Row {
    /// What came from a node's public address, if anything did.
    pub(crate) fn new(node: u64, http: String, answer: Option<NodeStatus>) -> Row {
        let (status, unreachable) = match answer {
            Some(status) if status.node_id == node => (Some(status), None),
            // Two nodes were given one address, or another cluster's node has taken it.
            Some(other) => (None, Some(format!("another node answers there: {}", other.node_id))),
            None => (None, Some("does not answer".to_owned())),
        };
        Row { node, http, resp: None, status, unreachable }
    }

    fn unreachable(&self) -> String {
        self.unreachable.clone().unwrap_or_default()
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = &arguments.client;
    let rows = rows(&client.client()?).await?;
    match client.output {
        Output::Json => println!("{}", serde_json::to_string(&rows).map_err(Failure::other)?),
        Output::Text if arguments.replicas => print!("{}", replicas_table(&rows)),
        Output::Text => {
            let shards =
                shards::all(&Api { nodes: &client.nodes.endpoints, timeout: client.timeout }).await?;
            print!("{}", tables(&rows, &shards));
        }
    }
    Ok(())
}

/// Asks a node for all nodes, and each of them for its status.
pub(crate) async fn rows(client: &Client) -> Result<Vec<Row>, Failure> {
    let mut asked = JoinSet::new();
    for peer in client.nodes().await? {
        asked.spawn(async move {
            let answer = status_of(&peer.http).await;
            Row { resp: peer.resp, ..Row::new(peer.id, peer.http, answer) }
        });
    }
    let mut rows = asked.join_all().await;
    rows.sort_by_key(|row| row.node);
    Ok(rows)
}

async fn status_of(address: &str) -> Option<NodeStatus> {
    let endpoint: Endpoint = address.parse().ok()?;
    let timeout = Duration::from_secs(1);
    let options = Options { timeout, attempt_timeout: timeout, connect_timeout: timeout };
    Client::unrouted(vec![endpoint], options).ok()?.status().await.ok()
}

fn replicas(rows: &[Row], shard: u32) -> Vec<&ShardStatus> {
    let statuses = rows.iter().filter_map(|row| row.status.as_ref());
    statuses.flat_map(|status| &status.shards).filter(|replica| replica.shard == shard).collect()
}

/// Who leads a shard. A leader that has lost its followers may not know that yet: it is whom most replicas follow.
pub(crate) fn leader(rows: &[Row], shard: u32) -> Option<u64> {
    let replicas = replicas(rows, shard);
    let leads = |row: &&Row| {
        let mut shards = row.status.iter().flat_map(|status| &status.shards);
        shards.any(|replica| replica.shard == shard && replica.role == "leader")
    };
    let followers = |node: &u64| replicas.iter().filter(|replica| replica.leader == Some(*node)).count();
    rows.iter().filter(leads).map(|row| row.node).max_by_key(followers)
}

/// A line for each node, and one for each shard.
pub(crate) fn tables(rows: &[Row], shards: &[Shard]) -> String {
    let nodes: Vec<_> = rows.iter().map(node_line).collect();
    let nodes = table(["node", "http", "resp", "shards", "leads", "state"], &nodes);
    // The system shard last: it is not what people look for.
    let (system, data): (Vec<&Shard>, _) = shards.iter().partition(|shard| shard.view.id == ShardId::SYSTEM);
    let lines: Vec<_> = data.into_iter().chain(system).map(|shard| shard_line(rows, shard)).collect();
    let shards = table(["shard", "name", "engine", "leader", "members", "slots", "chosen", "state"], &lines);
    format!("{nodes}\n{shards}")
}

fn node_line(row: &Row) -> [String; 6] {
    let (node, http) = (row.node.to_string(), row.http.clone());
    let resp = row.resp.clone().unwrap_or_else(|| "-".to_owned());
    let Some(status) = &row.status else {
        return [node, http, resp, "-".to_owned(), "-".to_owned(), row.unreachable()];
    };
    let data = || status.shards.iter().filter(|shard| shard.shard > 0);
    let leads = data().filter(|shard| shard.role == "leader").count();
    let state = match status {
        NodeStatus { clock_off: true, .. } => "its clock is off: set it right",
        NodeStatus { disk_low: true, .. } => "its disk is nearly full: make room",
        status if status.shards.iter().any(ShardStatus::is_rebuilding) => {
            "its data was damaged, and is being rebuilt"
        }
        _ => "ok",
    };
    [node, http, resp, data().count().to_string(), leads.to_string(), state.to_owned()]
}

fn shard_line(rows: &[Row], Shard { view, slots }: &Shard) -> [String; 8] {
    let replicas = replicas(rows, view.id.0);
    let leader = leader(rows, view.id.0);
    let (here, all) = (replicas.len(), view.members.len());
    let rebuilding = replicas.iter().filter(|replica| replica.is_rebuilding()).count();
    let state = match leader {
        None if rebuilding > 0 => {
            format!("no leader; {here} of {all} replicas answer, {rebuilding} of them are being rebuilt")
        }
        None => format!("no leader; {here} of {all} replicas answer"),
        Some(_) if here < all => format!("{here} of {all} replicas answer"),
        Some(_) if rebuilding > 0 => format!("{rebuilding} of {all} replicas are being rebuilt"),
        Some(_) if replicas.iter().any(|replica| differs(replica)) => {
            "replicas hold different data: see --output json".to_owned()
        }
        Some(_) => "ok".to_owned(),
    };
    let chosen = replicas.iter().map(|shard| shard.chosen).max();
    [
        view.id.to_string(),
        view.name.clone(),
        view.engine.name().to_owned(),
        leader.map_or("-".to_owned(), |leader| leader.to_string()),
        list(&view.members),
        slots.to_string(),
        chosen.map_or("-".to_owned(), |chosen| chosen.to_string()),
        state,
    ]
}

/// True if the last scrub found another replica that holds something else.
fn differs(replica: &ShardStatus) -> bool {
    replica.scrub.as_ref().is_some_and(|scrub| !scrub.differ.is_empty())
}

/// A line for each replica.
fn replicas_table(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        let (node, http) = (row.node.to_string(), row.http.clone());
        let Some(status) = &row.status else {
            let blank = std::array::from_fn::<String, 5, _>(|_| "-".to_owned());
            let [ballot, last, chosen, applied, chain] = blank;
            lines.push([node, http, "-".to_owned(), row.unreachable(), ballot, last, chosen, applied, chain]);
            continue;
        };
        lines.extend(status.shards.iter().map(|shard| {
            let chain = shard.chain.get(..8).unwrap_or(&shard.chain).to_owned();
            let [last, chosen, applied] = [shard.last, shard.chosen, shard.applied].map(|at| at.to_string());
            let (id, role, ballot) = (shard.shard.to_string(), shard.role.clone(), shard.ballot.clone());
            [node.clone(), http.clone(), id, role, ballot, last, chosen, applied, chain]
        }));
    }
    table(["node", "http", "shard", "role", "ballot", "last", "chosen", "applied", "chain"], &lines)
}

#[cfg(test)]
mod tests {
    use keevee_client::ScrubStatus;
    use keevee_core::ids::NodeId;
    use keevee_core::shard_map::Consensus;
    use keevee_core::shard_map::view::ShardView;

    use super::*;

    fn row(node: u64, role: &str, leader: Option<u64>) -> Row {
        let shard = ShardStatus {
            shard: 1,
            engine: "paxos".to_owned(),
            role: role.to_owned(),
            leader,
            ballot: "1.1".to_owned(),
            last: 7,
            chosen: 7,
            applied: 7,
            chain: "0123456789abcdef".to_owned(),
            quiesced: false,
            scrub: None,
        };
        let (cluster_id, version) = (String::new(), String::new());
        let status = NodeStatus {
            cluster_id,
            node_id: node,
            version,
            clock_off: false,
            disk_low: false,
            shards: vec![shard],
        };
        Row::new(node, format!("127.0.0.1:800{node}"), Some(status))
    }

    fn shard() -> Shard {
        let view = ShardView {
            id: ShardId(1),
            name: "shard-1".to_owned(),
            load_factor: 1,
            multiplier: 1.0,
            engine: Consensus::Paxos,
            members: [1, 2, 3].map(NodeId).to_vec(),
            next: None,
            leader: None,
        };
        Shard { view, slots: 16_384 }
    }

    #[test]
    fn a_shard_says_who_leads_and_what_is_amiss() {
        let mut rows =
            vec![row(1, "follower", Some(2)), row(2, "leader", Some(2)), row(3, "leader", Some(3))];
        let [_, _, _, leader, members, .., state] = shard_line(&rows, &shard());
        assert_eq!((leader.as_str(), members.as_str(), state.as_str()), ("2", "1,2,3", "ok"));
        let scrub = |differ| {
            let agree = vec![1, 3];
            Some(ScrubStatus { index: 7, ended_unix_ms: 1, records: 9, bytes: 99, agree, differ })
        };
        rows[0].status.as_mut().unwrap().shards[0].scrub = scrub(vec![]);
        assert_eq!(shard_line(&rows, &shard())[7], "ok");
        rows[0].status.as_mut().unwrap().shards[0].scrub = scrub(vec![2]);
        assert_eq!(shard_line(&rows, &shard())[7], "replicas hold different data: see --output json");
        rows[2] = Row::new(3, rows[2].http.clone(), None);
        assert_eq!(shard_line(&rows, &shard())[7], "2 of 3 replicas answer");
        rows[1] = Row::new(2, rows[1].http.clone(), None);
        assert_eq!(shard_line(&rows, &shard())[7], "no leader; 1 of 3 replicas answer");
        let text = tables(&rows, &[shard()]);
        assert!(text.contains("2     127.0.0.1:8002  -     -       -      does not answer\n"), "{text}");
        rows[0].status.as_mut().unwrap().clock_off = true;
        assert_eq!(node_line(&rows[0])[5], "its clock is off: set it right");
        let status = rows[0].status.as_mut().unwrap();
        (status.clock_off, status.disk_low) = (false, true);
        assert_eq!(node_line(&rows[0])[5], "its disk is nearly full: make room");
        let text = replicas_table(&rows);
        assert!(text.contains("1.1     7     7       7        01234567\n"), "{text}");
    }

    #[test]
    fn who_answers_at_the_address_of_another_node_is_not_taken_for_it() {
        let (one, status) = (row(1, "leader", Some(1)), row(3, "leader", Some(3)).status);
        let rows = [one, Row::new(2, "127.0.0.1:8003".to_owned(), status)];
        assert_eq!(leader(&rows, 1), Some(1));
        assert_eq!(shard_line(&rows, &shard())[7], "1 of 3 replicas answer");
        for text in [tables(&rows, &[shard()]), replicas_table(&rows)] {
            assert!(text.contains("another node answers there: 3"), "{text}");
        }
    }
}
