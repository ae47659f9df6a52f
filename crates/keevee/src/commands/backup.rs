//! `keevee backup`: all keys as of one time, into a folder; and whether a backup is whole.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::api::Api;
use crate::backup::folder::{Backup, Manifest};
use crate::backup::{Rate, restore, take};
use crate::commands::{ClientArguments, Output};
use crate::failure::Failure;

/// Copy all keys, as of one time, into a new folder.
///
/// Every shard is cut at the same time of the cluster's hybrid clock, while it serves. Of a write that began after another
/// one was acknowledged, a backup never holds the later without the earlier, as far as the nodes' clocks agree.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  keevee backup --to /backups/2026-11-26
  keevee backup --to /backups/2026-11-26 --output json
  keevee backup --to ./copy --endpoint http://10.0.0.7:8001
  keevee backup verify /backups/2026-11-26       is it whole?
  keevee restore /backups/2026-11-26             into an empty cluster

It goes to the shards' leaders under the addresses that the cluster gives them. --timeout is for
cutting the shards; copying takes as long as it does. Only a folder with manifest.json is a backup."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The folder: a new one, or an empty one
    #[arg(long, value_name = "FOLDER", required = true)]
    to: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArguments,
}

#[derive(Subcommand)]
enum Command {
    Verify(VerifyArguments),
}

/// Read a whole backup, and say whether it can be restored. No cluster is asked.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee backup verify /backups/2026-11-26
  keevee backup verify /backups/2026-11-26 --output json")]
struct VerifyArguments {
    /// The backup's folder
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    if let Some(Command::Verify(arguments)) = arguments.command {
        return verify(arguments).await;
    }
    let Some(folder) = arguments.to else { return Err(Failure::usage("say where to: --to FOLDER")) };
    let client = &arguments.client;
    let (start, api) = (Instant::now(), Api { nodes: &client.nodes.endpoints, timeout: client.timeout });
    let manifest = take::take(&api, &folder).await?;
    show(&folder.to_string_lossy(), &manifest, start, client.output)
}

async fn verify(arguments: VerifyArguments) -> Result<(), Failure> {
    let start = Instant::now();
    let backup = Backup::open(&arguments.folder).map_err(Failure::other)?;
    restore::verify(&backup).await?;
    show(&arguments.folder.to_string_lossy(), &backup.manifest, start, arguments.output)
}

fn show(folder: &str, manifest: &Manifest, start: Instant, output: Output) -> Result<(), Failure> {
    let rate = Rate::since(start, manifest.keys(), manifest.bytes());
    let shards = manifest.shards.len();
    match output {
        Output::Text => {
            println!("{folder} is a whole backup of {shards} shards as of {}", manifest.taken);
            println!("{}", rate.text());
        }
        Output::Json => {
            let Rate { keys, bytes, seconds } = rate;
            let (time, taken) = (manifest.time, &manifest.taken);
            let rate = rate.keys_per_second();
            println!(
                "{}",
                json!({
                    "folder": folder, "cluster": manifest.cluster, "time": time, "taken": taken, "shards": shards,
                    "keys": keys, "bytes": bytes, "seconds": seconds, "keys_per_second": rate,
                })
            );
        }
    }
    Ok(())
}
