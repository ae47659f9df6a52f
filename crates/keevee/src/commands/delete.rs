//! `keevee delete`: removes a key, or all keys of a prefix or range.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::commands::scan::RangeArguments;
use crate::commands::{ClientArguments, Output, WriteArguments};
use crate::failure::Failure;

/// Remove a key, or all keys with a prefix; prints what there was.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee delete color
  keevee delete color --if-version 7
  keevee delete --prefix draft:
  keevee delete --start 2024- --end 2025- --timeout 10m

Keys of a range are removed step by step, not as one; --timeout is then for all steps together.")]
pub(crate) struct Arguments {
    /// The key
    #[arg(conflicts_with_all = ["prefix", "start", "end"])]
    key: Option<OsString>,
    #[command(flatten)]
    range: RangeArguments,
    #[command(flatten)]
    write: WriteArguments,
    #[command(flatten)]
    client: ClientArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Some(key) = arguments.key else { return delete_range(arguments).await };
    let client = arguments.client.client()?;
    let deleted = client.delete(&key.into_vec(), arguments.write.write()).await?;
    match (arguments.client.output, deleted) {
        (Output::Text, true) => println!("deleted"),
        (Output::Text, false) => println!("there was nothing to delete"),
        (Output::Json, _) => println!("{}", json!({ "deleted": deleted })),
    }
    Ok(())
}

async fn delete_range(arguments: Arguments) -> Result<(), Failure> {
    if !arguments.range.is_given() {
        return Err(Failure::usage("say what to delete: a KEY, or all keys of --prefix, --start or --end"));
    }
    let write = arguments.write.write();
    if write.condition.is_some() {
        return Err(Failure::usage("--if-absent, --if-present and --if-version are for one key"));
    }
    let client = arguments.client.client()?;
    let mut deletion = client.deletion(arguments.range.range()?, write.request_id)?;
    let deadline = Instant::now() + arguments.client.timeout;
    // Draws on a terminal only, on the standard error.
    let progress = ProgressBar::new_spinner();
    loop {
        let step = timeout_at(deadline, deletion.step()).await;
        progress.set_message(format!("{} keys deleted", deletion.deleted()));
        progress.tick();
        match step {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => break,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                let deleted = deletion.deleted();
                let detail = format!(
                    "outcome_unknown: {deleted} keys were deleted, and perhaps some more; the time was up"
                );
                return Err(Failure::of_kind(keevee_client::ErrorKind::OutcomeUnknown, detail));
            }
        }
    }
    progress.finish_and_clear();
    let deleted = deletion.deleted();
    match arguments.client.output {
        Output::Text => println!("{deleted} keys deleted"),
        Output::Json => println!("{}", json!({ "deleted": deleted })),
    }
    Ok(())
}
