//! `keevee bench`: measures a running cluster.

mod compare;
mod target;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keevee_client::Endpoint;
use serde_json::json;
use tokio::time::interval;

use crate::commands::cluster::Consensus;
use crate::commands::{Consistency, Output, parse_duration};
use crate::failure::Failure;
use crate::load::{self, Distribution, Extent, Progress, Protocol, Report, Workload};

use self::target::{Place, Target};

/// What keys begin with.
const PREFIX: &str = "bench-";

/// Measure a running cluster, or what it is compared with, by a closed or an open loop.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee bench                                             writes, 64 connections, 10 seconds
  keevee bench --reads 1 --connections 256                 linearizable reads
  keevee bench --protocol resp --pipeline 16 --target leader
  keevee bench --protocol grpc --rate 5000                 5000 each second, whatever the answers take
  keevee bench --reads 0.95 --keys 1000000 --distribution zipf
  keevee bench --operations 100000 --warm-up 0s --output json
  keevee bench --protocol resp --endpoint redis://127.0.0.1:6379   any server of the Redis protocol
  keevee bench --protocol etcd --endpoint http://127.0.0.1:2379    etcd 3
  keevee bench --compare paxos,raft --plot engines.svg     each engine on a cluster of its own

Closed loop: a connection sends its next requests when it has the answers to the last ones. A slow
answer delays the requests behind it, and their wait is not in the figures.

Open loop (--rate): requests are due at fixed times, and latencies count from when one was due. If
all connections are busy it waits, and that is in the figures. A load that falls behind sends as
fast as it gets answers; the report has the rate that came of it, and how many were never sent. A
request leaves about 0.1 ms after it is due, since the system wakes no one sooner.")]
pub(crate) struct Arguments {
    /// The nodes to measure, with commas between: http://HOST:PORT, or redis://HOST:PORT to use just these
    #[arg(
        long = "endpoint",
        visible_alias = "endpoints",
        value_name = "URL",
        env = "KEEVEE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8001,http://127.0.0.1:8002,http://127.0.0.1:8003",
        hide_default_value = true
    )]
    endpoints: Vec<Place>,
    /// What to speak
    #[arg(long, value_enum, default_value_t = Protocol::Http)]
    protocol: Protocol,
    /// Which of the nodes the connections go to
    #[arg(long, value_enum, default_value_t = Target::All)]
    target: Target,
    /// How many connections
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    connections: u32,
    /// How many requests are under way on each connection: sent together, in HTTP and RESP as one write
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pipeline: u32,
    /// Open loop: how many requests are due each second, over all connections
    #[arg(long, value_name = "NUMBER", value_parser = parse_rate)]
    rate: Option<f64>,
    /// How many bytes a value has
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    value_size: usize,
    /// How many bytes a key has
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u32).range(16..=4096))]
    key_size: u32,
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
    #[arg(long, value_name = "ENGINES", value_enum, value_delimiter = ',', conflicts_with_all = ["protocol", "target", "reads", "operations", "pipeline", "rate"])]
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

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (0.001..=1e9).contains(rate));
    rate.ok_or("a rate is how many are due each second: a number above 0".to_owned())
}

fn parse_exponent(text: &str) -> Result<f64, String> {
    let exponent = text.parse().ok().filter(|exponent: &f64| exponent.is_finite() && *exponent >= 0.0);
    exponent.ok_or("an exponent is a number from 0".to_owned())
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    if !arguments.compare.is_empty() {
        return compare::run(&arguments).await;
    }
    if arguments.request_ids && matches!(arguments.protocol, Protocol::Resp | Protocol::Etcd) {
        return Err(Failure::usage("this protocol has no request ids: leave out --request-ids"));
    }
    let endpoints = target::find(arguments.protocol, arguments.target, &arguments.endpoints).await?;
    let workload = Arc::new(workload(&arguments, endpoints));
    if workload.reads > 0.0 && !arguments.no_fill {
        let report = watch(&workload, "filling", workload.keys, load::fill).await?;
        if !report.errors.is_empty() {
            return Err(unfilled(&report, workload.keys));
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
        protocol: arguments.protocol,
        endpoints,
        connections,
        pipeline: arguments.pipeline as usize,
        rate: arguments.rate,
        threads: (arguments.threads as usize).min(connections),
        value_size: arguments.value_size,
        keys: arguments.keys,
        prefix: PREFIX.to_owned(),
        key_digits: arguments.key_size as usize - PREFIX.len(),
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
    Failure::other(format!("no operation succeeded; errors: {}", errors(report)))
}

/// Reads of what is missing would find nothing and be faster than others.
fn unfilled(report: &Report, keys: u64) -> Failure {
    let written = report.operations;
    let errors = errors(report);
    Failure::other(format!(
        "only {written} of {keys} keys were written before reading them; errors: {errors}; run it again, or with --no-fill"
    ))
}

fn errors(report: &Report) -> String {
    let errors: Vec<String> = report.errors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    errors.join(", ")
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
            let scheme = workload.protocol.scheme();
            let endpoint = |endpoint: &Endpoint| format!("{scheme}://{}", endpoint.authority());
            let endpoints: Vec<String> = workload.endpoints.iter().map(endpoint).collect();
            let protocol = workload.protocol.to_possible_value();
            let mut document = serde_json::to_value(report).map_err(Failure::other)?;
            document["workload"] = json!({
                "protocol": protocol.as_ref().map(PossibleValue::get_name),
                "endpoints": endpoints,
                "connections": workload.connections,
                "pipeline": workload.pipeline,
                "key_size": workload.prefix.len() + workload.key_digits,
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
