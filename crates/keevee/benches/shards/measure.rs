//! The closed loops: over HTTP connections by `keevee bench`, and by the client, routed and not.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use keevee_client::{Client, Consistency, Endpoint, Options, Write};
use rand::RngExt;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::Fallible;

/// Requests under way.
const REQUESTS: usize = 256;
const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 128;

/// How requests reach their shard's leader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// 256 HTTP connections to all nodes in turn, which forward what they do not lead.
    Connections,
    /// One client that routes, with a stream to each node.
    Direct,
    /// A client for each node that lets it forward: as many streams.
    Forwarded,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Put,
    Get,
}

pub(crate) const WAYS: [Way; 3] = [Way::Connections, Way::Direct, Way::Forwarded];
pub(crate) const KINDS: [Kind; 2] = [Kind::Put, Kind::Get];

/// What one measurement brought.
#[derive(Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) per_second: f64,
    pub(crate) p99_ms: f64,
}

pub(crate) type Figures = BTreeMap<(Way, Kind), Figure>;

/// Every way and kind in turn, in rounds, so that a slow minute of the machine is nobody's alone: the medians.
pub(crate) async fn measure_all(
    endpoints: &[Endpoint],
    duration: Duration,
    rounds: usize,
) -> Fallible<Figures> {
    let direct = vec![Client::new(endpoints.to_vec(), Options::default())?];
    let forwarded = endpoints.iter().map(|node| Client::unrouted(vec![node.clone()], Options::default()));
    let forwarded = forwarded.collect::<Result<Vec<_>, _>>()?;
    let pairs = (0..KEYS).map(|number| (key(number), vec![b'x'; VALUE_BYTES]));
    for written in direct[0].multi_put(pairs).await {
        written?;
    }
    let mut all: BTreeMap<(Way, Kind), Vec<Figure>> = BTreeMap::new();
    for _ in 0..rounds {
        for way in WAYS {
            for kind in KINDS {
                let figure = match way {
                    Way::Connections => connections(endpoints, kind, duration).await?,
                    Way::Direct => requests(&direct, kind, duration).await?,
                    Way::Forwarded => requests(&forwarded, kind, duration).await?,
                };
                all.entry((way, kind)).or_default().push(figure);
            }
        }
    }
    let median = |mut figures: Vec<Figure>| {
        figures.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
        figures[figures.len() / 2]
    };
    Ok(all.into_iter().map(|(which, figures)| (which, median(figures))).collect())
}

/// As `keevee bench` names them, so that all find what was written.
fn key(number: u64) -> String {
    format!("bench-{number:010}")
}

async fn connections(endpoints: &[Endpoint], kind: Kind, duration: Duration) -> Fallible<Figure> {
    let nodes: Vec<String> = endpoints.iter().map(Endpoint::to_string).collect();
    let reads = if kind == Kind::Get { "1" } else { "0" };
    let output = Command::new(env!("CARGO_BIN_EXE_keevee"))
        .args(["bench", "--no-fill", "--warm-up", "500ms", "--output", "json", "--reads", reads])
        .args(["--connections", &REQUESTS.to_string(), "--keys", &KEYS.to_string()])
        .args(["--value-size", &VALUE_BYTES.to_string(), "--duration", &format!("{}s", duration.as_secs())])
        .env("KEEVEE_ENDPOINTS", nodes.join(","))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await?;
    if !output.status.success() {
        return Err("keevee bench failed".into());
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = |value: &serde_json::Value| value.as_f64().ok_or("a figure is missing");
    let latencies = if kind == Kind::Get { &report["get"] } else { &report["put"] };
    let per_second = number(&report["operations_per_second"])?;
    Ok(Figure { per_second, p99_ms: number(&latencies["p99_ms"])? })
}

/// The clients share the requests.
async fn requests(clients: &[Client], kind: Kind, duration: Duration) -> Fallible<Figure> {
    let begin = Instant::now();
    let end = begin + duration;
    let mut loops = JoinSet::new();
    for number in 0..REQUESTS {
        let client = clients[number % clients.len()].clone();
        loops.spawn(async move {
            let mut times: Vec<u64> = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                request(&client, kind).await?;
                times.push(start.elapsed().as_micros() as u64);
            }
            Ok::<_, keevee_client::Error>(times)
        });
    }
    let mut histogram = Histogram::<u64>::new(3)?;
    while let Some(times) = loops.join_next().await {
        for time in times?? {
            histogram.record(time)?;
        }
    }
    let per_second = histogram.len() as f64 / begin.elapsed().as_secs_f64();
    Ok(Figure { per_second, p99_ms: histogram.value_at_quantile(0.99) as f64 / 1000.0 })
}

async fn request(client: &Client, kind: Kind) -> Result<(), keevee_client::Error> {
    let key = key(rand::rng().random_range(0..KEYS));
    match kind {
        Kind::Put => {
            client.put(key.as_bytes(), vec![b'x'; VALUE_BYTES], Write::default()).await?;
        }
        Kind::Get => {
            client.get(key.as_bytes(), Consistency::Linearizable).await?;
        }
    }
    Ok(())
}
