//! `keevee recover`: a new cluster from the data folders that survive the loss of a majority.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use keevee_core::ids::{NodeId, ShardId};
use keevee_server::config::Config;
use keevee_server::recover::plan::{Holding, Kept};
use keevee_server::recover::{Folder, Made, ShardSurvey, Survey};
use serde_json::{Value, json};

use crate::backup::time::rfc3339;
use crate::commands::Output;
use crate::commands::table::{list, table};
use crate::failure::Failure;

/// Make a new cluster from what is left, when a majority of nodes is lost for good.
///
/// Inspects the data folders that survive, whose nodes must be stopped, and tells what would be kept of each shard and what may
/// be lost. That changes nothing. With --config and --new-cluster it then makes a cluster of one node, with a new identity: the
/// best of all folders in a new folder. The old folders stay as they are. Name all folders that survive: each may have writes
/// that the others have not.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee recover node1/data node3/data
      only look: what is there, what would be kept
  keevee recover node1/data node3/data --config new/keevee.toml --new-cluster
      make a new cluster of one node in the folder that new/keevee.toml names; it has a [cluster] id of its own
  keevee recover node1/data --config new/keevee.toml --new-cluster --accept-loss
      the same, though writes that were acknowledged may be lost

While a majority can still be had, have that instead: start the nodes. A majority that comes back later goes on as the old
cluster, beside the new one.")]
pub(crate) struct Arguments {
    /// The data folders that survive
    #[arg(value_name = "FOLDER", required = true)]
    folders: Vec<PathBuf>,
    /// The configuration file of the new cluster's one node
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make the new cluster
    #[arg(long, requires = "config")]
    new_cluster: bool,
    /// Though writes that were acknowledged may be lost
    #[arg(long, requires = "new_cluster")]
    accept_loss: bool,
    /// Though shards are lost as a whole: they are empty in the new cluster
    #[arg(long, requires = "new_cluster")]
    accept_lost_shards: bool,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = arguments.config.as_deref().map(Config::load).transpose().map_err(Failure::other)?;
    let survey = Survey::take(&arguments.folders).map_err(Failure::other)?;
    if arguments.output == Output::Text {
        tell(&survey);
    }
    let made = match &config {
        Some(config) if arguments.new_cluster => {
            check_consent(&survey, &arguments)?;
            Some(survey.make(config).map_err(Failure::other)?)
        }
        _ => None,
    };
    match (arguments.output, &made, &config) {
        (Output::Json, ..) => println!("{}", as_json(&survey, made.as_ref())),
        (Output::Text, Some(made), Some(config)) => {
            tell_next_steps(made, config, arguments.config.as_deref().unwrap_or(Path::new("keevee.toml")));
        }
        (Output::Text, ..) => tell_how(&survey, &arguments),
    }
    Ok(())
}

fn lost(survey: &Survey) -> Vec<ShardId> {
    survey.shards.iter().filter(|shard| shard.is_lost()).map(|shard| shard.info.id).collect()
}

fn may_lose(survey: &Survey) -> Vec<ShardId> {
    let may_lose = |shard: &&ShardSurvey| !shard.is_complete() && !shard.is_lost();
    survey.shards.iter().filter(may_lose).map(|shard| shard.info.id).collect()
}

fn check_consent(survey: &Survey, arguments: &Arguments) -> Result<(), Failure> {
    let refused = |shards: &[ShardId], what: &str, flag: &str| {
        let shards = list(shards);
        Err(Failure::usage(format!(
            "of shards {shards} {what}; nothing was made: name more folders if there are any, or accept it with {flag}"
        )))
    };
    match (&lost(survey)[..], &may_lose(survey)[..]) {
        ([_, ..], _) if !arguments.accept_lost_shards => {
            refused(&lost(survey), "no folder has anything whole", "--accept-lost-shards")
        }
        (_, shards @ [_, ..]) if !arguments.accept_loss => {
            refused(shards, "acknowledged writes may be lost", "--accept-loss")
        }
        _ => Ok(()),
    }
}

fn tell(survey: &Survey) {
    println!("cluster {}, shard map of epoch {}\n", survey.cluster, survey.map.epoch);
    let row = |Folder { path, found }: &Folder| match found {
        Ok(survivor) => {
            let identity = &survivor.identity;
            let (node, store) = (identity.node_id.to_string(), identity.store_id.to_string());
            [path.display().to_string(), node, store, "whole".to_owned()]
        }
        Err(cause) => {
            let unknown = "?".to_owned();
            [path.display().to_string(), unknown.clone(), unknown, format!("damaged, left out: {cause}")]
        }
    };
    let rows: Vec<_> = survey.folders.iter().map(row).collect();
    println!("{}", table(["folder", "node", "store", "state"], &rows));
    let row = |shard: &ShardSurvey, holding: &Holding| {
        [
            shard.info.id.to_string(),
            shard.info.consensus.name().to_owned(),
            holding.node.to_string(),
            holding.applied.to_string(),
            holding.chosen.to_string(),
            holding.last().to_string(),
            holding.promised.to_string(),
            holding.keys.to_string(),
            time(newest(holding)),
        ]
    };
    let rows: Vec<_> = survey
        .shards
        .iter()
        .flat_map(|shard| shard.holdings.iter().map(move |holding| row(shard, holding)))
        .collect();
    let header = ["shard", "engine", "node", "applied", "chosen", "last", "promised", "keys", "newest entry"];
    println!("{}", table(header, &rows));
    for shard in &survey.shards {
        tell_shard(survey, shard);
    }
}

fn tell_shard(survey: &Survey, shard: &ShardSurvey) {
    let (id, name) = (shard.info.id, &shard.info.name);
    for (at, cause) in &shard.damaged {
        println!(
            "shard {id}: what {} has of it is damaged and left out: {cause}",
            path(survey, *at).display()
        );
    }
    let kept = match &shard.kept {
        Some(kept) if !shard.is_lost() => kept,
        _ => {
            let slots = survey.map.slots.slots_of(id).len();
            println!(
                "shard {id} ({name}) is LOST: no folder has anything whole of it. It would be empty, with its {slots} slots"
            );
            return;
        }
    };
    let holdings = &shard.holdings;
    let base = &holdings[kept.base];
    println!(
        "shard {id} ({name}): keeps node {}'s state of index {}, and {} up to index {}, of {}",
        base.node,
        base.applied,
        match &from(shard, kept)[..] {
            [] => "no entries".to_owned(),
            nodes => format!("entries of node {}", list(nodes)),
        },
        kept.last(holdings),
        time(kept.time)
    );
    let (voters, lost) = (list(&kept.voters), list(shard.lost()));
    if kept.is_complete {
        println!("  nothing that was acknowledged is lost: enough of its voters {voters} are here");
        return;
    }
    if kept.voters.is_empty() {
        println!(
            "  MAY LOSE WRITES: nothing here says who its voters were; this may be an old state, and not all of it"
        );
        return;
    }
    println!(
        "  MAY LOSE WRITES: of its voters {voters}, {lost} are not here, a majority\n  \
         up to index {} entries are known to be chosen; what is behind is kept, chosen or not; what only nodes {lost} had is lost",
        kept.chosen
    );
}

/// Whose entries are kept.
fn from(shard: &ShardSurvey, kept: &Kept) -> Vec<NodeId> {
    let from: BTreeSet<usize> = kept.entries.iter().filter_map(|(_, from)| *from).collect();
    from.iter().map(|from| shard.holdings[*from].node).collect()
}

fn newest(holding: &Holding) -> u64 {
    holding.entries.iter().filter_map(|entry| entry.time).chain([holding.time]).max().unwrap_or(0)
}

fn time(micros: u64) -> String {
    if micros == 0 { "no time".to_owned() } else { rfc3339(micros) }
}

fn path(survey: &Survey, at: usize) -> &Path {
    &survey.folders[at].path
}

fn tell_how(survey: &Survey, arguments: &Arguments) {
    let mut flags = vec!["--new-cluster"];
    flags.extend((!may_lose(survey).is_empty()).then_some("--accept-loss"));
    flags.extend((!lost(survey).is_empty()).then_some("--accept-lost-shards"));
    let folders =
        arguments.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(" ");
    let config = arguments.config.as_deref().unwrap_or(Path::new("new/keevee.toml")).display();
    println!("\nNothing was changed. To make a new cluster of this, if no majority can be had any more:");
    if arguments.config.is_none() {
        println!(
            "  write {config}: as the old nodes' files, with a new [cluster] id (uuidgen), a new folder as [node] data, and\n  \
             the new node as the only [[member]]"
        );
    }
    println!("  keevee recover {folders} --config {config} {}", flags.join(" "));
}

fn tell_next_steps(made: &Made, config: &Config, file: &Path) {
    let Made { identity, map } = made;
    let own = &map.nodes[0];
    println!("\nmade cluster {} of node {} in {}", identity.cluster_id, own.id, config.node.data.display());
    println!("Next:");
    println!("  keevee server --config {}", file.display());
    println!(
        "  on each further machine, with a keevee.toml that has [cluster] id \"{}\", the same secret, and a [node] id and \
         addresses of its own:",
        identity.cluster_id
    );
    println!("    keevee server --config keevee.toml --join {}", own.http);
    println!("    keevee node add ID --replicas 3 --endpoint http://{}", own.http);
    println!(
        "Until there are three nodes, the loss of one is the loss of all. Keep the old folders until you have looked."
    );
}

fn as_json(survey: &Survey, made: Option<&Made>) -> Value {
    let folder = |Folder { path, found }: &Folder| match found {
        Ok(survivor) => json!({
            "path": path, "node": survivor.identity.node_id, "store": survivor.identity.store_id.to_string(),
        }),
        Err(cause) => json!({ "path": path, "damaged": cause }),
    };
    let holding = |(holding, at): (&Holding, &usize)| {
        json!({
            "path": path(survey, *at), "node": holding.node, "applied": holding.applied, "chosen": holding.chosen,
            "last": holding.last(), "promised": holding.promised.to_string(), "keys": holding.keys,
            "newest": newest(holding),
        })
    };
    let shard = |shard: &ShardSurvey| {
        let kept = shard.kept.as_ref().filter(|_| !shard.is_lost()).map(|kept| {
            json!({
                "state_of": shard.holdings[kept.base].node, "applied": shard.holdings[kept.base].applied,
                "entries_of": from(shard, kept), "chosen": kept.chosen, "last": kept.last(&shard.holdings),
                "newest": kept.time, "voters": kept.voters,
            })
        });
        let damaged = |(at, cause): &(usize, String)| json!({ "path": path(survey, *at), "cause": cause });
        json!({
            "id": shard.info.id, "name": shard.info.name, "engine": shard.info.consensus.name(),
            "replicas": shard.holdings.iter().zip(&shard.folders).map(holding).collect::<Vec<_>>(),
            "damaged": shard.damaged.iter().map(damaged).collect::<Vec<_>>(),
            "kept": kept, "lost_voters": shard.lost(), "may_lose_writes": !shard.is_complete(), "lost": shard.is_lost(),
        })
    };
    let made = made.map(|Made { identity, map }| {
        json!({ "cluster": identity.cluster_id.to_string(), "node": identity.node_id,
                "store": identity.store_id.to_string(), "epoch": map.epoch })
    });
    json!({
        "cluster": survey.cluster.to_string(), "epoch": survey.map.epoch,
        "folders": survey.folders.iter().map(folder).collect::<Vec<_>>(),
        "shards": survey.shards.iter().map(shard).collect::<Vec<_>>(), "made": made,
    })
}
