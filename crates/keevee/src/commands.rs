//! The commands, one file each, and the arguments that several of them share.

pub(crate) mod backup;
pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod cluster;
pub(crate) mod completions;
pub(crate) mod delete;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod increment;
pub(crate) mod init;
pub(crate) mod node;
pub(crate) mod put;
pub(crate) mod recover;
pub(crate) mod restore;
pub(crate) mod scan;
pub(crate) mod server;
pub(crate) mod shards;
pub(crate) mod status;
mod table;
pub(crate) mod verify;

use std::time::Duration;

use clap::{Args, ValueEnum};
use keevee_client::{Client, Endpoint, EndpointError, Expect, Options, Write};

/// Which nodes to ask, and how patiently.
#[derive(Args)]
pub(crate) struct ClientArguments {
    #[command(flatten)]
    pub(crate) nodes: NodeArguments,
    /// How long all attempts together may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

impl ClientArguments {
    /// A client as the arguments say.
    pub(crate) fn client(&self) -> Result<Client, EndpointError> {
        let options = Options { timeout: self.timeout, ..Options::default() };
        Client::new(self.nodes.endpoints.clone(), options)
    }
}

/// Which nodes to ask.
#[derive(Args)]
pub(crate) struct NodeArguments {
    /// The nodes to ask, any of them, with commas between: http://HOST:PORT
    #[arg(
        long = "endpoint",
        visible_alias = "endpoints",
        value_name = "URL",
        env = "KEEVEE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8001,http://127.0.0.1:8002,http://127.0.0.1:8003",
        hide_default_value = true
    )]
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What must hold for a write to happen, and its name.
#[derive(Args)]
pub(crate) struct WriteArguments {
    /// Only if the key holds no value
    #[arg(long, group = "condition")]
    if_absent: bool,
    /// Only if the key holds a value
    #[arg(long, group = "condition")]
    if_present: bool,
    /// Only if the key's version is this
    #[arg(long, value_name = "VERSION", group = "condition")]
    if_version: Option<u64>,
    /// Continue an earlier write under its request id, so that it takes effect at most once
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

impl WriteArguments {
    /// The same for the client.
    pub(crate) fn write(&self) -> Write {
        let condition = match (self.if_absent, self.if_present, self.if_version) {
            (true, ..) => Some(Expect::Absent),
            (_, true, _) => Some(Expect::Present),
            (.., version) => version.map(Expect::Version),
        };
        Write { condition, request_id: self.request_id.clone() }
    }
}

/// How to print an answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// One JSON document
    Json,
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Consistency {
    /// It sees every write acknowledged before
    Linearizable,
    /// The asked node's own state, however old
    Stale,
}

impl From<Consistency> for keevee_client::Consistency {
    fn from(consistency: Consistency) -> keevee_client::Consistency {
        match consistency {
            Consistency::Linearizable => keevee_client::Consistency::Linearizable,
            Consistency::Stale => keevee_client::Consistency::Stale,
        }
    }
}

/// Reads `500ms`, `10s`, `2m`, `12h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("write a time with its unit: 500ms, 10s, 2m, 12h, 7d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "not a whole number".to_owned())?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or("too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 24 * 3_600)));
        for text in ["", "10", "s", "1w", "-1s", "1.5s", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
