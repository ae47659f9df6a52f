//! `keevee explain`: where a key belongs, and why.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::commands::status;
use crate::commands::table::list;
use crate::commands::{ClientArguments, Output};
use crate::failure::Failure;

/// How many shards of the ranking people are shown.
const RANKING_SHOWN: usize = 5;

/// Show which slot and shard a key belongs to, and which nodes hold it.
///
/// The key need not be there. Keys with the same {tag} in braces are in the same slot.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee explain color
  keevee explain 'user:{17}:name'
  keevee explain color --output json")]
pub(crate) struct Arguments {
    /// The key
    key: OsString,
    #[command(flatten)]
    client: ClientArguments,
}

#[derive(Deserialize, Serialize)]
struct Explained {
    slot: u16,
    shard: u32,
    name: String,
    replicas: Vec<u64>,
    leader: Option<u64>,
    scores: Vec<Score>,
}

#[derive(Deserialize, Serialize)]
struct Score {
    shard: u32,
    score: f64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let shown = arguments.key.to_string_lossy().into_owned();
    let client = &arguments.client;
    let api = Api { nodes: &client.nodes.endpoints, timeout: client.timeout };
    let key = arguments.key.into_vec();
    let path = format!("/v1/explain?key={}", percent_encode(&key, NON_ALPHANUMERIC));
    let mut explained: Explained = api.get(&path).await?;
    if explained.leader.is_none() {
        // The node that answered holds no replica, and has had nothing to do with who does.
        explained.leader = status::leader(&status::rows(&client.client()?).await?, explained.shard);
    }
    match client.output {
        Output::Json => println!("{}", serde_json::to_string(&explained).map_err(Failure::other)?),
        Output::Text => print!("{}", text(&shown, &explained)),
    }
    Ok(())
}

fn text(key: &str, explained: &Explained) -> String {
    let Explained { slot, shard, name, replicas, leader, scores } = explained;
    let leader = leader.map_or("not known".to_owned(), |leader| leader.to_string());
    let score = |score: &Score| format!("shard {} {:.4}", score.shard, score.score);
    let mut ranking: Vec<String> = scores.iter().take(RANKING_SHOWN).map(score).collect();
    if scores.len() > RANKING_SHOWN {
        ranking.push(format!("and {} more", scores.len() - RANKING_SHOWN));
    }
    format!(
        "key      {key}\nslot     {slot}\nshard    {shard} ({name})\nnodes    {}\nleader   {leader}\nranking  {}\n",
        list(replicas),
        ranking.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_readable() {
        let score = |shard| Score { shard, score: 0.5 };
        let scores = (1..=7).map(score).collect();
        let (name, replicas) = ("shard-2".to_owned(), vec![1, 3]);
        let explained = Explained { slot: 17, shard: 2, name, replicas, leader: Some(3), scores };
        let text = text("color", &explained);
        assert!(text.contains("shard    2 (shard-2)\nnodes    1,3\nleader   3\n"), "{text}");
        assert!(text.ends_with("shard 5 0.5000, and 2 more\n"), "{text}");
    }
}
