//! `keevee batch`: several operations on the keys of one shard, all or none.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use keevee_client::{Appended, Batch, Counter, OperationResult};
use keevee_core::command::{self, Action, Command, OnError};
use keevee_core::json;
use serde_json::json;

use crate::commands::table::table;
use crate::commands::{ClientArguments, Output};
use crate::failure::Failure;

/// Carry out several operations as one; prints what each did.
///
/// The batch is JSON, as for POST /v1/batch. All of its keys are in one shard: give them the same {tag} in braces.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee batch order.json
  echo '{\"operations\": [{\"action\": \"put\", \"key\": \"color\", \"value\": \"green\"},
                        {\"action\": \"increment\", \"key\": \"{color}count\", \"by\": 1}]}' | keevee batch

The form:
  {\"preconditions\": [{\"key\": \"{order-7}state\", \"expect\": \"present\"}],   or \"absent\", or a version
   \"operations\": [{\"action\": \"put\", \"key\": \"{order-7}state\", \"value\": \"paid\"},
                  {\"action\": \"append\", \"key\": \"{order-7}log\", \"value\": \"paid,\"},
                  {\"action\": \"increment\", \"key\": \"{order-7}payments\", \"by\": 1, \"continue_on_error\": true},
                  {\"action\": \"get\", \"key\": \"{order-7}items\"}, {\"action\": \"delete\", \"key\": \"{order-7}draft\"}]}
  key_base64 and value_base64 take what is not UTF-8.")]
pub(crate) struct Arguments {
    /// The file with the batch; - is the standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Continue an earlier batch under its request id, so that it takes effect at most once
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    client: ClientArguments,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let path = &arguments.file;
    let text =
        if path.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(path) };
    let text = text.map_err(|error| Failure::other(format!("can't read {}: {error}", path.display())))?;
    let batch: json::Batch =
        serde_json::from_str(&text).map_err(|error| Failure::usage(format!("this is no batch: {error}")))?;
    let command = batch.command().map_err(Failure::usage)?;
    let names: Vec<[String; 2]> = command.operations.iter().map(name).collect();
    let client = arguments.client.client()?;
    let results = client.execute(batch_of(command), arguments.request_id).await?;
    let results: Vec<json::Result> =
        results.into_iter().map(|result| json::Result::from(in_core(result))).collect();
    match arguments.client.output {
        Output::Json => println!("{}", json!({ "results": results })),
        Output::Text => {
            let row = |([action, key], result): ([String; 2], &json::Result)| {
                Ok([action, key, serde_json::to_string(result).map_err(Failure::other)?])
            };
            let rows: Result<Vec<_>, Failure> = names.into_iter().zip(&results).map(row).collect();
            print!("{}", table(["operation", "key", "result"], &rows?));
        }
    }
    Ok(())
}

fn name(operation: &command::Operation) -> [String; 2] {
    let name = match &operation.action {
        Action::Get { .. } => "get",
        Action::Put { .. } => "put",
        Action::Delete { .. } => "delete",
        Action::Increment { .. } => "increment",
        Action::Append { .. } => "append",
        Action::SetExpiry { .. } => "set_expiry",
        Action::SetRange { .. } => "set_range",
        Action::Scan { .. } | Action::DeleteRange { .. } | Action::RemoveExpired { .. } => {
            unreachable!("a batch has none of these")
        }
    };
    let key = operation.action.key().map(|key| key.escape_ascii().to_string());
    [name.to_owned(), key.unwrap_or_default()]
}

fn batch_of(command: Command) -> Batch {
    let conditions = command.preconditions.into_iter();
    let batch =
        conditions.fold(Batch::new(), |batch, condition| batch.only_if(condition.key, condition.expect));
    command.operations.into_iter().fold(batch, |batch, operation| {
        let batch = match operation.action {
            Action::Get { key } => batch.get(key),
            Action::Put { key, value, expires, only } => batch.put_with(key, value, expires, only),
            Action::Delete { key } => batch.delete(key),
            Action::Increment { key, by } => batch.increment(key, by),
            Action::Append { key, suffix } => batch.append(key, suffix),
            Action::SetExpiry { key, expires, only } => batch.set_expiry(key, expires, only),
            Action::SetRange { key, offset, bytes } => batch.set_range(key, offset, bytes),
            Action::Scan { .. } | Action::DeleteRange { .. } | Action::RemoveExpired { .. } => {
                unreachable!("a batch has none of these")
            }
        };
        if operation.on_error == OnError::Continue { batch.or_go_on() } else { batch }
    })
}

fn in_core(result: OperationResult) -> command::OperationResult {
    match result {
        OperationResult::Value(held) => {
            command::OperationResult::Value(held.map(|held| command::Versioned {
                version: held.version,
                stamp: 0,
                expires: held.expires_ms.map(|millis| millis.saturating_mul(1_000)),
                value: held.bytes,
            }))
        }
        OperationResult::Written { version } => command::OperationResult::Written { version },
        OperationResult::Deleted { existed } => command::OperationResult::Deleted { existed },
        OperationResult::Incremented(Counter { value, version }) => {
            command::OperationResult::Incremented { value, version }
        }
        OperationResult::Appended(Appended { length, version }) => {
            command::OperationResult::Appended { length, version }
        }
        OperationResult::Skipped => command::OperationResult::Skipped,
        OperationResult::Failed(error) => command::OperationResult::Failed(error),
    }
}
