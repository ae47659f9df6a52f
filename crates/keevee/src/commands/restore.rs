//! `keevee restore`: a backup's keys, into a cluster.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use crate::api::Api;
use crate::backup::folder::Backup;
use crate::backup::{Rate, restore};
use crate::commands::{ClientArguments, Output};
use crate::failure::Failure;

/// Write all keys of a backup into an empty cluster, which may have other shards than the one that was backed up.
///
/// The whole backup is checked before the first key is written. Values and the times at which keys expire are those of the
/// backup; versions are new, since they count the writes of one cluster.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee restore /backups/2026-11-26
  keevee restore /backups/2026-11-26 --output json
  keevee restore /backups/2026-11-26 --merge     go on with one that was interrupted

--timeout is for each batch of keys. A key that expires before it is written is gone at once.")]
pub(crate) struct Arguments {
    /// The backup's folder
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// Write over keys that the cluster holds; keys that are not in the backup stay
    #[arg(long)]
    merge: bool,
    #[command(flatten)]
    client: ClientArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let backup = Backup::open(&arguments.folder).map_err(Failure::other)?;
    restore::verify(&backup).await?;
    let client = arguments.client.client()?;
    if !arguments.merge {
        restore::check_empty(&client).await?;
    }
    let api = Api { nodes: &arguments.client.nodes.endpoints, timeout: arguments.client.timeout };
    let start = Instant::now();
    let keys = restore::restore(&api, &client, &backup).await?;
    let rate = Rate::since(start, keys, backup.manifest.bytes());
    match arguments.client.output {
        Output::Text => {
            println!("restored as of {}", backup.manifest.taken);
            println!("{}", rate.text());
        }
        Output::Json => {
            let (time, taken) = (backup.manifest.time, &backup.manifest.taken);
            let Rate { keys, bytes, seconds } = rate;
            let rate = rate.keys_per_second();
            let answer = json!({
                "time": time, "taken": taken, "keys": keys, "bytes": bytes, "seconds": seconds, "keys_per_second": rate,
            });
            println!("{answer}");
        }
    }
    Ok(())
}
