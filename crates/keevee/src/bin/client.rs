//! A sample of the client: writes keys to the clusters that a `Config.toml` describes, reads them back, and prints where
//! each of them went.
//!
//! ```sh
//! cargo run --release --bin client                            # the nodes of Config.toml
//! cargo run --release --bin client http://10.0.0.7:8001 …     # these nodes
//! ```

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use keevee_client::{Client, Connection, Consistency, Endpoint, Options, Write};
use keevee_cluster::Config;
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<Endpoint> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let seeds = match arguments.is_empty() {
        true => Config::load(Path::new("Config.toml"))?.seeds()?,
        false => arguments,
    };
    let client = Client::new(seeds.clone(), Options::default())?;
    for number in 1..=12 {
        let (key, value) = (format!("color-{number}"), format!("green {number}"));
        let version = client.put(key.as_bytes(), value.clone(), Write::default()).await?;
        let read = client.get(key.as_bytes(), Consistency::Linearizable).await?;
        assert_eq!(read.expect("it was just written").bytes, value.as_bytes());
        let place = explain(&seeds, &key).await?;
        let (slot, shard, nodes) = (&place["slot"], &place["name"], &place["replicas"]);
        println!("{key:<9} version {version:<4} slot {slot:<6} {shard} on nodes {nodes}");
    }
    Ok(())
}

/// Where a key belongs, as the first node says that answers.
async fn explain(seeds: &[Endpoint], key: &str) -> Result<Value, Box<dyn Error>> {
    for seed in seeds {
        let Ok(mut node) = Connection::open(seed, Duration::from_secs(1)).await else { continue };
        let (_, body) = node.ask(&format!("/v1/explain?key={key}")).await?;
        return Ok(serde_json::from_slice(&body)?);
    }
    Err("no node answers".into())
}
