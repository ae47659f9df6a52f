//! Reads and writes of whole clusters by number of shards, and what forwarding costs.
//!
//! ```sh
//! cargo bench -p keevee --bench shards                                   # clusters of its own; prints tables
//! cargo bench -p keevee --bench shards -- --write docs/benchmarks        # the same, into the repository
//! KEEVEE_NODES=10.0.0.1:8001,10.0.0.2:8001 cargo bench -p keevee --bench shards   # a cluster that runs
//! ```
//!
//! Closed loops: 256 requests are under way, and the next one is sent when an answer comes. The load comes from the machine
//! that runs this; with clusters of its own that is the nodes' machine too, so the ratios tell more than the figures.
//! About four minutes. Beside `--write DIR` there are `--seconds N` (of each measurement, 3), `--rounds N` (of
//! which the median counts, 3) and `--engine paxos|raft`; the pages of Raft are `shards-raft`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keevee_client::{Connection, Endpoint};
use keevee_cluster::{Choices, Layout, TemporaryCluster};

#[path = "shards/measure.rs"]
mod measure;
#[path = "shards/page.rs"]
mod page;

use measure::{Figures, measure_all};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const SHARDS: [u16; 4] = [1, 3, 16, 128];
const NODES: u64 = 3;

/// What is asked for on the command line.
struct Settings {
    write: Option<PathBuf>,
    seconds: u64,
    rounds: usize,
    engine: String,
}

/// One cluster's figures.
struct Row {
    shards: usize,
    figures: Figures,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // As a test there is nothing to see here.
        return Ok(());
    }
    let settings = settings(&arguments)?;
    let engine = &settings.engine;
    let page = match std::env::var("KEEVEE_NODES") {
        Ok(nodes) => {
            let rows = vec![running(&nodes, &settings).await?];
            page::Page::new(&format!("KEEVEE_NODES={nodes} "), engine, "A cluster that ran already", rows)
        }
        Err(_) => {
            let subject = format!("{NODES} nodes and the load on one machine, engine {engine}");
            page::Page::new("", engine, &subject, own(&settings).await?)
        }
    };
    println!("\n{}", page.markdown());
    if let Some(folder) = &settings.write {
        page.write(folder)?;
        println!("written to {}", folder.display());
    }
    Ok(())
}

fn settings(arguments: &[String]) -> Fallible<Settings> {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map(|at| arguments.get(at + 1).ok_or(format!("{name} needs a value"))).transpose()
    };
    let number = |name: &str| value(name).map(|text| text.map_or(Ok(3), |text| text.parse()));
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Ok(Settings {
        write: value("--write")?.map(|folder| repository.join(folder)),
        seconds: number("--seconds")??,
        rounds: number("--rounds")??.max(1) as usize,
        engine: value("--engine")?.cloned().unwrap_or("paxos".to_owned()),
    })
}

/// A cluster that runs: as many shards as it has.
async fn running(nodes: &str, settings: &Settings) -> Fallible<Row> {
    let endpoints = nodes.split(',').map(str::parse).collect::<Result<Vec<Endpoint>, _>>()?;
    println!("Measuring the cluster that KEEVEE_NODES names.");
    measure(&endpoints, settings).await
}

/// One cluster after the other on this machine.
async fn own(settings: &Settings) -> Fallible<Vec<Row>> {
    println!(
        "KEEVEE_NODES is not set: starting clusters of {NODES} nodes on this machine, one after the other."
    );
    let mut rows = Vec::new();
    for shards in SHARDS {
        let layout = Layout::Shared { shards, replicas: Some(NODES) };
        let consensus = Some(settings.engine.clone());
        let choices = Choices { consensus, layout: Some(layout), ..Choices::default() };
        let program = Path::new(env!("CARGO_BIN_EXE_keevee"));
        let cluster = TemporaryCluster::start_with(program, NODES, &choices).await?;
        rows.push(measure(&cluster.endpoints(), settings).await?);
    }
    Ok(rows)
}

async fn measure(endpoints: &[Endpoint], settings: &Settings) -> Fallible<Row> {
    let shards = shards(endpoints.first().ok_or("KEEVEE_NODES names no node")?).await?;
    println!("{shards} shards");
    let duration = Duration::from_secs(settings.seconds);
    let figures = measure_all(endpoints, duration, settings.rounds).await?;
    Ok(Row { shards, figures })
}

/// How many shards hold keys.
async fn shards(node: &Endpoint) -> Fallible<usize> {
    let (_, body) = Connection::open(node, Duration::from_secs(5)).await?.ask("/v1/cluster/shards").await?;
    let shards: Vec<serde_json::Value> = serde_json::from_slice(&body)?;
    Ok(shards.iter().filter(|shard| shard["slots"].as_u64() > Some(0)).count())
}
