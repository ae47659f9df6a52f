//! `keevee increment`: adds to a number.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use serde_json::json;

use crate::commands::{ClientArguments, Output, WriteArguments};
use crate::failure::Failure;

/// Add to a number; prints the sum.
///
/// The key holds it as decimal text, of 64 bits. An absent key counts as 0.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee increment visitors
  keevee increment balance --by -10 --if-version 7")]
pub(crate) struct Arguments {
    /// The key
    key: OsString,
    /// How much to add
    #[arg(long, value_name = "NUMBER", default_value_t = 1, allow_negative_numbers = true)]
    by: i64,
    #[command(flatten)]
    write: WriteArguments,
    #[command(flatten)]
    client: ClientArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.client.client()?;
    let key = arguments.key.into_vec();
    let counter = client.increment(&key, arguments.by, arguments.write.write()).await?;
    match arguments.client.output {
        Output::Text => println!("{}", counter.value),
        Output::Json => println!("{}", json!({ "value": counter.value, "version": counter.version })),
    }
    Ok(())
}
