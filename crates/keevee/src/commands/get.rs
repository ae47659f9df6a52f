//! `keevee get`: reads a key.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;

use crate::commands::{ClientArguments, Consistency, Output};
use crate::failure::Failure;

/// Read a key; prints the value's bytes and nothing else.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee get color
  keevee get color --consistency stale --endpoint http://127.0.0.1:8002
  keevee get picture > picture.png
  keevee get color --output json       value (base64 if it is not UTF-8), version, and when it is gone

A key that holds no value is exit code 3.")]
pub(crate) struct Arguments {
    /// The key
    key: OsString,
    /// How fresh the value must be
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    #[command(flatten)]
    client: ClientArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.client.client()?;
    let shown = arguments.key.to_string_lossy().into_owned();
    let key = arguments.key.into_vec();
    let Some(value) = client.get(&key, arguments.consistency.into()).await? else {
        return Err(Failure::absent(&shown));
    };
    match arguments.client.output {
        Output::Text => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&value.bytes)?;
            stdout.flush()?;
        }
        Output::Json => {
            let version = value.version;
            let mut document = match std::str::from_utf8(&value.bytes) {
                Ok(text) => json!({ "version": version, "value": text }),
                Err(_) => {
                    json!({ "version": version, "value_base64": STANDARD.encode(&value.bytes) })
                }
            };
            if let Some(expires_ms) = value.expires_ms {
                document["expires_ms"] = expires_ms.into();
            }
            println!("{document}");
        }
    }
    Ok(())
}
