//! `keevee put`: sets a key.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use keevee_client::Expiry;
use serde_json::json;

use crate::commands::{ClientArguments, Output, WriteArguments, parse_duration};
use crate::failure::Failure;

/// Set a key; prints its new version.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee put color green
  keevee put color blue --if-version 7
  keevee put color red --if-absent
  keevee put picture --file picture.png
  keevee put session alice --ttl 30m     gone after half an hour
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
    /// Let the key be gone after this time: 500ms, 30s, 10m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    ttl: Option<Duration>,
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
    let expires = arguments
        .ttl
        .map_or(Expiry::Never, |ttl| Expiry::After(u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX)));
    let version = client.put_with(&key, value, expires, arguments.write.write()).await?;
    match arguments.client.output {
        Output::Text => println!("version {version}"),
        Output::Json => println!("{}", json!({ "version": version })),
    }
    Ok(())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|ttl| if ttl.is_zero() { Err("at least 1ms".to_owned()) } else { Ok(ttl) })
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
