//! `keevee delete`: removes a key.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use serde_json::json;

use crate::commands::{ClientArguments, Output, WriteArguments};
use crate::failure::Failure;

/// Remove a key; prints whether it held a value.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee delete color
  keevee delete color --if-version 7")]
pub(crate) struct Arguments {
    /// The key
    key: OsString,
    #[command(flatten)]
    write: WriteArguments,
    #[command(flatten)]
    client: ClientArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.client.client()?;
    let key = arguments.key.into_vec();
    let deleted = client.delete(&key, arguments.write.write()).await?;
    match (arguments.client.output, deleted) {
        (Output::Text, true) => println!("deleted"),
        (Output::Text, false) => println!("there was nothing to delete"),
        (Output::Json, _) => println!("{}", json!({ "deleted": deleted })),
    }
    Ok(())
}
