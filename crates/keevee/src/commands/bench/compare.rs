//! `keevee bench --compare`: the engines side by side. Each gets a cluster of its own on this machine, in turn.
//!
//! All figures of an engine are from one cluster: writes, then reads, then kills of the leader. What a write costs is
//! read from the nodes' metrics and, where the system tells it (Linux), from their processes.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keevee_cluster::TemporaryCluster;
use plotters::prelude::*;
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Arguments, Output, measure};
use crate::check::failover::kill_leaders;
use crate::commands::cluster::Consensus;
use crate::failure::Failure;
use crate::load::Report;

const NODES: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(60);
/// Linux tells the CPU time of processes in hundredths of a second, whatever its clock.
const TICK_MICROS: f64 = 10_000.0;

/// One engine's figures.
#[derive(Serialize)]
struct Figures {
    engine: &'static str,
    write: Report,
    read: Report,
    per_write: Costs,
    failover_ms: Failover,
}

/// What one write takes, of all nodes together where it says nothing else.
#[derive(Serialize)]
struct Costs {
    messages: f64,
    bytes: f64,
    syncs: f64,
    /// None where the system does not tell.
    cpu_micros_leader: Option<f64>,
    cpu_micros_follower: Option<f64>,
}

#[derive(Serialize)]
struct Failover {
    kills: u32,
    median: u64,
    worst: u64,
}

/// What the nodes have done since they started.
struct Sample {
    messages: f64,
    bytes: f64,
    syncs: f64,
    /// In ticks.
    cpu_leader: Option<f64>,
    cpu_followers: Option<f64>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut all = Vec::new();
    for engine in &arguments.compare {
        eprintln!("measuring {}", engine.name());
        all.push(figures(*engine, arguments).await?);
    }
    match arguments.output {
        Output::Text => print!("{}", table(&all)),
        Output::Json => {
            let document = json!({
                "nodes": NODES,
                "connections": arguments.connections,
                "value_size": arguments.value_size,
                "keys": arguments.keys,
                "engines": all,
            });
            println!("{document}");
        }
    }
    // Last: a folder that can't be written costs the plot alone.
    if let Some(path) = &arguments.plot {
        plot(path, &all).map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
        eprintln!("the plot is in {}", path.display());
    }
    Ok(())
}

async fn figures(engine: Consensus, arguments: &Arguments) -> Result<Figures, Failure> {
    let program = std::env::current_exe()?;
    let mut cluster = TemporaryCluster::start_with(&program, NODES, &engine.choices()).await?;
    let leader = cluster.wait_ready(PATIENCE).await?;
    let endpoint = cluster.node(leader)?.endpoint();
    if !arguments.warm_up.is_zero() {
        measure(arguments, vec![endpoint.clone()], 0.0, arguments.warm_up).await?;
    }
    let before = sample(&mut cluster, leader).await?;
    let write = measure(arguments, vec![endpoint.clone()], 0.0, arguments.duration).await?;
    let after = sample(&mut cluster, leader).await?;
    let read = measure(arguments, vec![endpoint], 1.0, arguments.duration).await?;
    let times = kill_leaders(&mut cluster, arguments.kills, |_, _, _| {}).await?;
    let millis = |time: Option<&Duration>| time.map_or(0, |time| time.as_millis() as u64);
    let failover_ms = Failover {
        kills: arguments.kills,
        median: millis(times.get(times.len() / 2)),
        worst: millis(times.last()),
    };
    let per_write = costs(&before, &after, write.operations as f64);
    Ok(Figures { engine: engine.name(), write, read, per_write, failover_ms })
}

fn costs(before: &Sample, after: &Sample, writes: f64) -> Costs {
    let cpu = |before: Option<f64>, after: Option<f64>, nodes: f64| {
        Some((after? - before?) * TICK_MICROS / writes / nodes)
    };
    Costs {
        messages: (after.messages - before.messages) / writes,
        bytes: (after.bytes - before.bytes) / writes,
        syncs: (after.syncs - before.syncs) / writes,
        cpu_micros_leader: cpu(before.cpu_leader, after.cpu_leader, 1.0),
        cpu_micros_follower: cpu(before.cpu_followers, after.cpu_followers, (NODES - 1) as f64),
    }
}

async fn sample(cluster: &mut TemporaryCluster, leader: u64) -> Result<Sample, Failure> {
    let mut sample =
        Sample { messages: 0.0, bytes: 0.0, syncs: 0.0, cpu_leader: Some(0.0), cpu_followers: Some(0.0) };
    for node in cluster.nodes() {
        let text = timeout(PATIENCE, metrics(node.http)).await.map_err(Failure::other)??;
        sample.messages += sum(&text, "keevee_peer_sent_messages_total");
        sample.bytes += sum(&text, "keevee_peer_sent_bytes_total");
        sample.syncs += sum(&text, "keevee_log_syncs_total");
        let ticks = node.pid().and_then(cpu_ticks);
        let cpu = if node.id == leader { &mut sample.cpu_leader } else { &mut sample.cpu_followers };
        *cpu = cpu.zip(ticks).map(|(sum, ticks)| sum + ticks);
    }
    Ok(sample)
}

async fn metrics(address: SocketAddr) -> Result<String, Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// The sum of a metric over all its labels.
fn sum(text: &str, name: &str) -> f64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    values.sum()
}

/// The CPU time of a process: the 14th and 15th field of `/proc/PID/stat`, of which the second is in parentheses.
fn cpu_ticks(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    times.sum::<Result<f64, _>>().ok()
}

/// The rows of the table: a name, and how a figure is shown.
type Row = (&'static str, fn(&Figures) -> String);

const ROWS: [Row; 13] = [
    ("writes per second", |figures| format!("{:.0}", figures.write.operations_per_second)),
    ("  p50 ms", |figures| latency(&figures.write, |one| one.p50_ms)),
    ("  p99 ms", |figures| latency(&figures.write, |one| one.p99_ms)),
    ("reads per second", |figures| format!("{:.0}", figures.read.operations_per_second)),
    ("  p50 ms", |figures| latency(&figures.read, |one| one.p50_ms)),
    ("  p99 ms", |figures| latency(&figures.read, |one| one.p99_ms)),
    ("messages per write", |figures| format!("{:.2}", figures.per_write.messages)),
    ("bytes between nodes per write", |figures| format!("{:.0}", figures.per_write.bytes)),
    ("syncs per write", |figures| format!("{:.3}", figures.per_write.syncs)),
    ("CPU per write, leader, us", |figures| micros(figures.per_write.cpu_micros_leader)),
    ("CPU per write, a follower, us", |figures| micros(figures.per_write.cpu_micros_follower)),
    ("failover ms, median", |figures| figures.failover_ms.median.to_string()),
    ("failover ms, worst", |figures| figures.failover_ms.worst.to_string()),
];

fn latency(report: &Report, pick: fn(&crate::load::Latencies) -> f64) -> String {
    let latencies = report.put.as_ref().or(report.get.as_ref());
    latencies.map_or("-".to_owned(), |latencies| format!("{:.2}", pick(latencies)))
}

fn micros(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.1}"))
}

fn table(all: &[Figures]) -> String {
    let mut text = format!("{:<32}", "");
    for figures in all {
        // Writing to a string does not fail.
        let _ = write!(text, "{:>12}", figures.engine);
    }
    for (name, show) in ROWS {
        let _ = write!(text, "\n{name:<32}");
        for figures in all {
            let _ = write!(text, "{:>12}", show(figures));
        }
    }
    text + "\n"
}

/// Bars for each engine: throughput, latency, failover, each with a scale of its own.
fn plot(path: &Path, all: &[Figures]) -> Result<(), Box<dyn std::error::Error>> {
    let p99 = |report: &Report| {
        report.put.as_ref().or(report.get.as_ref()).map_or(0.0, |latencies| latencies.p99_ms)
    };
    let charts: [(&str, Vec<f64>); 5] = [
        ("writes per second", all.iter().map(|one| one.write.operations_per_second).collect()),
        ("write p99, ms", all.iter().map(|one| p99(&one.write)).collect()),
        ("reads per second", all.iter().map(|one| one.read.operations_per_second).collect()),
        ("read p99, ms", all.iter().map(|one| p99(&one.read)).collect()),
        ("failover, median ms", all.iter().map(|one| one.failover_ms.median as f64).collect()),
    ];
    let root = SVGBackend::new(path, (1100, 360)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (title, values)) in root.split_evenly((1, charts.len())).iter().zip(charts) {
        let top = values.iter().copied().fold(0.0, f64::max).max(1e-9) * 1.2;
        let count = values.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 17))
            .margin(12)
            .build_cartesian_2d(0.0..count, 0.0..top)?;
        for (number, value) in values.into_iter().enumerate() {
            let (left, color) = (number as f64, Palette99::pick(number).mix(0.8));
            let bar = Rectangle::new([(left + 0.15, 0.0), (left + 0.85, value)], color.filled());
            chart.draw_series([bar])?;
            let label = format!("{} {value:.*}", all[number].engine, usize::from(value < 100.0));
            let place = (left + 0.15, value + top * 0.06);
            chart.draw_series([Text::new(label, place, ("sans-serif", 14).into_font())])?;
        }
    }
    root.present()?;
    Ok(())
}

/// The options that only a comparison has.
pub(super) fn parse_plot(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let is_svg = path.extension().is_some_and(|extension| extension == "svg");
    if is_svg { Ok(path) } else { Err("the plot is an SVG: name it FILE.svg".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_taken_for_no_other() {
        let text = "# HELP sent_total x\nsent_total{peer=\"1\"} 3\nsent_total{peer=\"2\"} 4\nsent_totals 9\nsent_total 1\n";
        assert_eq!(sum(text, "sent_total"), 8.0);
    }

    #[test]
    fn costs_are_of_one_write_and_one_node() {
        let at = |times: f64| Sample {
            messages: 10.0 * times,
            bytes: 1_000.0 * times,
            syncs: 5.0 * times,
            cpu_leader: Some(times),
            cpu_followers: None,
        };
        let costs = costs(&at(1.0), &at(3.0), 100.0);
        assert_eq!((costs.messages, costs.bytes, costs.syncs), (0.2, 20.0, 0.1));
        assert_eq!((costs.cpu_micros_leader, costs.cpu_micros_follower), (Some(200.0), None));
    }
}
