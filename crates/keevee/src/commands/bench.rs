//! `keevee bench`: measures a running cluster.

mod compare;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keevee_client::{Client, Endpoint, Options};
use serde_json::json;
use tokio::time::{interval, timeout};

use crate::commands::cluster::Consensus;
use crate::commands::{Consistency, NodeArguments, Output, parse_duration};
use crate::failure::Failure;
use crate::load::{self, Distribution, Extent, Progress, Report, Workload};

/// Measure a running cluster: a closed loop of connections with one request each.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee bench                                             writes, 64 connections, 10 seconds
  keevee bench --reads 1 --connections 256                 linearizable reads
  keevee bench --reads 0.95 --keys 1000000 --distribution zipf
  keevee bench --operations 100000 --warm-up 0s --output json
  keevee bench --target leader --duration 30s
  keevee bench --compare paxos,raft --plot engines.svg     each engine on a cluster of its own

Closed loop: a connection sends its next request when it has the answer to the last one. A slow
answer delays the requests behind it, and their wait is not in the figures.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    nodes: NodeArguments,
    /// Which of the nodes the connections go to
    #[arg(long, value_enum, default_value_t = Target::All)]
    target: Target,
    /// How many connections
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    connections: u32,
    /// How many bytes a value has
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    value_size: usize,
    /// How many keys
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Which share of the operations reads, from 0 to 1; the rest puts
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = parse_share)]
    reads: f64,
    /// How fresh reads must be
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// How keys are chosen
    #[arg(long, value_enum, default_value_t = KeyChoice::Uniform)]
    distribution: KeyChoice,
    /// The exponent of the Zipf distribution
    #[arg(long, value_name = "NUMBER", default_value_t = 0.99, value_parser = parse_exponent)]
    zipf_exponent: f64,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Measure so many operations instead, without warm-up
    #[arg(long, value_name = "COUNT", conflicts_with = "duration")]
    operations: Option<u64>,
    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    warm_up: Duration,
    /// Give each write a request id, so that it could be retried
    #[arg(long)]
    request_ids: bool,
    /// Do not put every key once before there are reads
    #[arg(long)]
    no_fill: bool,
    /// How many threads make the load
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Compare engines: each gets a cluster of its own on this machine, in turn
    #[arg(long, value_name = "ENGINES", value_enum, value_delimiter = ',', conflicts_with_all = ["target", "reads", "operations"])]
    compare: Vec<Consensus>,
    /// With --compare: how often to kill the leader of each
    #[arg(long, value_name = "COUNT", requires = "compare", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// With --compare: draw the figures into this file
    #[arg(long, value_name = "FILE.svg", requires = "compare", value_parser = compare::parse_plot)]
    plot: Option<PathBuf>,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Which nodes get the load.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// All, in turn
    All,
    /// The one that leads when it starts
    Leader,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeyChoice {
    /// All keys alike
    Uniform,
    /// A few keys most of the time
    Zipf,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or("a share is a number from 0 to 1".to_owned())
}

fn parse_exponent(text: &str) -> Result<f64, String> {
    let exponent = text.parse().ok().filter(|exponent: &f64| exponent.is_finite() && *exponent >= 0.0);
    exponent.ok_or("an exponent is a number from 0".to_owned())
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    if !arguments.compare.is_empty() {
        return compare::run(&arguments).await;
    }
    let endpoints = match arguments.target {
        Target::All => answering(&arguments.nodes.endpoints).await?,
        Target::Leader => vec![leader(&arguments.nodes.endpoints).await?],
    };
    let workload = Arc::new(workload(&arguments, endpoints));
    if workload.reads > 0.0 && !arguments.no_fill {
        let report = watch(&workload, "filling", workload.keys, load::fill).await?;
        if report.operations == 0 {
            return Err(failed(&report));
        }
    }
    let expected = match workload.extent {
        Extent::Operations(count) => count,
        Extent::Time(_) => 0,
    };
    let report = watch(&workload, "measuring", expected, load::run).await?;
    print(&report, &workload, arguments.output)?;
    if report.operations == 0 { Err(failed(&report)) } else { Ok(()) }
}

fn workload(arguments: &Arguments, endpoints: Vec<Endpoint>) -> Workload {
    let connections = arguments.connections as usize;
    Workload {
        endpoints,
        connections,
        threads: (arguments.threads as usize).min(connections),
        value_size: arguments.value_size,
        keys: arguments.keys,
        prefix: "bench-".to_owned(),
        reads: arguments.reads,
        deletes: 0.0,
        stale: arguments.consistency == Consistency::Stale,
        request_ids: arguments.request_ids,
        distribution: match arguments.distribution {
            KeyChoice::Uniform => Distribution::Uniform,
            KeyChoice::Zipf => Distribution::Zipf(arguments.zipf_exponent),
        },
        warm_up: arguments.warm_up,
        extent: match arguments.operations {
            Some(count) => Extent::Operations(count),
            None => Extent::Time(arguments.duration),
        },
    }
}

/// Measures one share of reads for so long, without warm-up. Keys that were not written are absent.
async fn measure(
    arguments: &Arguments,
    endpoints: Vec<Endpoint>,
    reads: f64,
    duration: Duration,
) -> Result<Report, Failure> {
    let plain = workload(arguments, endpoints);
    let workload = Workload { reads, warm_up: Duration::ZERO, extent: Extent::Time(duration), ..plain };
    let report = watch(&Arc::new(workload), "measuring", 0, load::run).await?;
    if report.operations == 0 { Err(failed(&report)) } else { Ok(report) }
}

fn failed(report: &Report) -> Failure {
    let errors: Vec<String> = report.errors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    Failure::other(format!("no operation succeeded; errors: {}", errors.join(", ")))
}

/// Runs a part of the load on a thread of its own and shows how far it is, if somebody watches.
async fn watch(
    workload: &Arc<Workload>,
    name: &'static str,
    expected: u64,
    part: fn(&Arc<Workload>, &Arc<Progress>) -> Report,
) -> Result<Report, Failure> {
    let progress = Arc::new(Progress::default());
    let shared = (workload.clone(), progress.clone());
    let mut load = tokio::task::spawn_blocking(move || part(&shared.0, &shared.1));
    // Ends the load's threads when this is dropped halfway.
    let _stop = StopOnDrop(progress.clone());
    let bar = progress_bar(name, expected);
    let mut tick = interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            report = &mut load => {
                bar.finish_and_clear();
                return report.map_err(Failure::other);
            }
            _ = tick.tick() => bar.set_position(progress.done.load(Ordering::Relaxed)),
        }
    }
}

struct StopOnDrop(Arc<Progress>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn progress_bar(name: &'static str, expected: u64) -> ProgressBar {
    let (bar, template) = if expected > 0 {
        (ProgressBar::new(expected), "{prefix} {bar:40} {pos}/{len} {per_sec}")
    } else {
        (ProgressBar::no_length(), "{prefix} {spinner} {elapsed} {pos} operations {per_sec}")
    };
    let hidden = !std::io::stderr().is_terminal();
    bar.set_draw_target(if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(name);
    bar
}

fn print(report: &Report, workload: &Workload, output: Output) -> Result<(), Failure> {
    match output {
        Output::Text => print!("{report}"),
        Output::Json => {
            let distribution = match workload.distribution {
                Distribution::Uniform => "uniform".to_owned(),
                Distribution::Zipf(exponent) => format!("zipf {exponent}"),
                Distribution::InOrder => "in order".to_owned(),
            };
            let endpoints: Vec<String> = workload.endpoints.iter().map(Endpoint::to_string).collect();
            let mut document = serde_json::to_value(report).map_err(Failure::other)?;
            document["workload"] = json!({
                "endpoints": endpoints,
                "connections": workload.connections,
                "value_size": workload.value_size,
                "keys": workload.keys,
                "reads": workload.reads,
                "stale": workload.stale,
                "request_ids": workload.request_ids,
                "distribution": distribution,
            });
            println!("{document}");
        }
    }
    Ok(())
}

/// A client of one node that does not wait long.
fn single(endpoint: &Endpoint) -> Result<Client, Failure> {
    let timeout = Duration::from_secs(2);
    let options = Options { timeout, attempt_timeout: timeout, connect_timeout: timeout };
    Ok(Client::unrouted(vec![endpoint.clone()], options)?)
}

/// The nodes that answer: the default names three, and a cluster may have fewer, or one that is down.
async fn answering(endpoints: &[Endpoint]) -> Result<Vec<Endpoint>, Failure> {
    let mut answering = Vec::new();
    let mut last = None;
    for endpoint in endpoints {
        let client = single(endpoint)?;
        match timeout(Duration::from_secs(2), client.status()).await {
            Ok(Ok(_)) => answering.push(endpoint.clone()),
            Ok(Err(error)) => last = Some(Failure::from(error)),
            Err(_) => last = Some(Failure::other(format!("{endpoint} does not answer"))),
        }
    }
    match last {
        Some(failure) if answering.is_empty() => Err(failure),
        Some(failure) => {
            eprintln!("warning: left out a node that does not answer: {failure}");
            Ok(answering)
        }
        None => Ok(answering),
    }
}

async fn leader(endpoints: &[Endpoint]) -> Result<Endpoint, Failure> {
    for endpoint in endpoints {
        if single(endpoint)?.is_leader().await.unwrap_or(false) {
            return Ok(endpoint.clone());
        }
    }
    Err(Failure::other("none of the nodes leads; is the cluster running? `keevee cluster start`"))
}
