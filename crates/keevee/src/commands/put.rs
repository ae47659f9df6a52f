//! `keevee put`: sets a key.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::commands::{ClientArguments, Output, WriteArguments};
use crate::failure::Failure;

/// Set a key; prints its new version.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee put color green
  keevee put color blue --if-version 7
  keevee put color red --if-absent
  keevee put picture --file picture.png
  date | keevee put now --file -")]
pub(crate) struct Arguments {
    /// The key: 1 to 4,096 bytes
    key: OsString,
    /// Its new value
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<OsString>,
    /// Take the value from this file; - is the standard input
    #[arg(long)]
    file: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArguments,
    #[command(flatten)]
    client: ClientArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let value = match (arguments.value, arguments.file) {
        (Some(value), _) => value.into_vec(),
        (None, Some(path)) => read_value(path)?,
        (None, None) => return Err(Failure::usage("give a value or --file")),
    };
    let client = arguments.client.client()?;
    let key = arguments.key.into_vec();
    let version = client.put(&key, value, arguments.write.write()).await?;
    match arguments.client.output {
        Output::Text => println!("version {version}"),
        Output::Json => println!("{}", json!({ "version": version })),
    }
    Ok(())
}

fn read_value(path: PathBuf) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().read_to_end(&mut value).map(|_| value)
    } else {
        fs::read(&path)
    };
    read.map_err(|error| Failure::other(format!("can't read {}: {error}", path.display())))
}
