//! What is asked of every system: `keevee bench`, with the same keys and values.

use std::fmt;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use keevee_cluster::until;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::interval;

use super::process::{cpu_micros, resident_bytes};
use super::systems::{Place, Running};
use crate::Fallible;

pub(super) const KEYS: u64 = 10_000;
pub(super) const VALUE_BYTES: u32 = 128;
pub(super) const CONNECTIONS: [u32; 3] = [1, 64, 256];
const PIPELINE: u32 = 16;
const WARM_UP: &str = "500ms";
/// How often memory is looked at.
const SAMPLES: Duration = Duration::from_millis(200);
const START_PATIENCE: Duration = Duration::from_secs(60);

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Case {
    pub(super) is_read: bool,
    pub(super) pipeline: u32,
    pub(super) connections: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_read { "read" } else { "write" };
        write!(formatter, "{kind}, {}", self.connections)?;
        if self.pipeline > 1 { write!(formatter, " x {}", self.pipeline) } else { Ok(()) }
    }
}

/// What is measured over this protocol.
pub(super) fn cases(protocol: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for is_read in [false, true] {
        cases.extend(CONNECTIONS.map(|connections| Case { is_read, pipeline: 1, connections }));
        if protocol == "resp" {
            cases.push(Case { is_read, pipeline: PIPELINE, connections: 64 });
        }
    }
    cases
}

/// What one measurement brought.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Of one operation, over all processes of the system.
    pub(super) cpu_micros: f64,
    /// Pairs of a quantile and its latency.
    pub(super) quantiles_ms: Vec<(f64, f64)>,
    pub(super) errors: u64,
}

impl Figures {
    /// Each figure's median; the distribution is that of the round with the median p99.
    pub(super) fn median(rounds: &[Figures]) -> Option<Figures> {
        let middle = |pick: fn(&Figures) -> f64| {
            let mut sorted: Vec<&Figures> = rounds.iter().collect();
            sorted.sort_by(|one, other| pick(one).total_cmp(&pick(other)));
            sorted.get(sorted.len() / 2).copied()
        };
        let typical = middle(|figures| figures.p99_ms)?;
        Some(Figures {
            per_second: middle(|figures| figures.per_second)?.per_second,
            p50_ms: middle(|figures| figures.p50_ms)?.p50_ms,
            p99_ms: typical.p99_ms,
            cpu_micros: middle(|figures| figures.cpu_micros)?.cpu_micros,
            quantiles_ms: typical.quantiles_ms.clone(),
            errors: rounds.iter().map(|figures| figures.errors).sum(),
        })
    }

    fn new(report: &Value, case: Case, cpu_micros: u64) -> Fallible<Figures> {
        let latencies = if case.is_read { &report["get"] } else { &report["put"] };
        let number = |value: &Value| value.as_f64().ok_or("a figure is missing");
        let pair = |pair: &Value| Ok((number(&pair[0])?, number(&pair[1])?));
        let quantiles = latencies["quantiles_ms"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(Figures {
            per_second: number(&report["operations_per_second"])?,
            p50_ms: number(&latencies["p50_ms"])?,
            p99_ms: number(&latencies["p99_ms"])?,
            cpu_micros: cpu_micros as f64 / number(&report["operations"])?,
            quantiles_ms: quantiles.iter().map(pair).collect::<Result<_, &str>>()?,
            errors: report["errors"]
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(_, count)| count.as_u64())
                .sum(),
        })
    }
}

/// Runs `keevee bench`.
pub(super) struct Loader {
    pub(super) keevee: PathBuf,
    pub(super) seconds: u64,
}

impl Loader {
    /// Waits until all places of a system answer.
    pub(super) async fn wait_ready(&self, running: &Running) -> Fallible {
        for place in &running.places {
            let mut last = String::new();
            let ready = until(START_PATIENCE, async || {
                let asked = self.bench(place, &["--operations", "1", "--connections", "1"]).output().await;
                match asked {
                    Ok(output) if output.status.success() => return Some(()),
                    Ok(output) => last = String::from_utf8_lossy(&output.stderr).into_owned(),
                    Err(error) => last = error.to_string(),
                }
                None
            });
            if ready.await.is_none() {
                return Err(format!("it does not answer within {START_PATIENCE:?}: {}", last.trim()).into());
            }
        }
        Ok(())
    }

    /// Puts so many keys.
    pub(super) async fn fill(&self, place: &Place, keys: u64) -> Fallible {
        let keys = keys.to_string();
        let options = ["--reads", "1", "--operations", "1", "--pipeline", "16", "--keys", &keys];
        self.report(self.bench(place, &options)).await?;
        Ok(())
    }

    /// One measurement; the most memory that it took, and the command.
    pub(super) async fn measure(
        &self,
        place: &Place,
        case: Case,
        pids: &[u32],
    ) -> Fallible<(Figures, u64, String)> {
        let (connections, pipeline, keys) =
            (case.connections.to_string(), case.pipeline.to_string(), KEYS.to_string());
        let value_size = VALUE_BYTES.to_string();
        let options = ["--no-fill", "--warm-up", "0s", "--keys", &keys, "--value-size", &value_size];
        let load = ["--reads", if case.is_read { "1" } else { "0" }, "--connections", &connections];
        let duration = format!("{}s", self.seconds);
        let options =
            |duration| [&options[..], &load, &["--pipeline", &pipeline, "--duration", duration]].concat();
        // By itself, so that the CPU time is that of the operations that are counted.
        self.report(self.bench(place, &options(WARM_UP))).await?;
        let command = self.bench(place, &options(&duration));
        let typed =
            command.as_std().get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let before = cpu_micros(pids);
        let (mut load, mut tick, mut peak_bytes) = (pin!(self.report(command)), interval(SAMPLES), 0);
        let report = loop {
            tokio::select! {
                report = &mut load => break report?,
                _ = tick.tick() => peak_bytes = peak_bytes.max(resident_bytes(pids)),
            }
        };
        let figures = Figures::new(&report, case, cpu_micros(pids) - before)?;
        Ok((figures, peak_bytes, format!("keevee {typed}")))
    }

    fn bench(&self, place: &Place, options: &[&str]) -> Command {
        let mut command = Command::new(&self.keevee);
        command.args([
            "bench",
            "--output",
            "json",
            "--protocol",
            place.protocol,
            "--endpoint",
            &place.endpoints,
        ]);
        // Of several endpoints one leads; a single one is all there is.
        if place.endpoints.contains(',') {
            command.args(["--target", "leader"]);
        }
        command.args(options).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn report(&self, mut command: Command) -> Fallible<Value> {
        let output = command.output().await?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
