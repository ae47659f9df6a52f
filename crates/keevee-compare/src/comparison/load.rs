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
/// At so many, what does not vary by connections is shown.
pub(super) const TYPICAL_CONNECTIONS: u32 = 64;
const PIPELINE: u32 = 16;
/// On each connection of a fill, under way at most: what a node had no room for would not be put again.
const FILL_BYTES: u32 = 64 << 10;
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
    pub(super) value_bytes: u32,
    pub(super) keys: u64,
    /// To the nodes that do not lead, in turn: they hand each request on. Else to the one that leads.
    pub(super) to_followers: bool,
}

impl Case {
    /// What all systems are asked for, but for their pipelines.
    pub(super) fn typical(is_read: bool, connections: u32) -> Case {
        let (value_bytes, keys) = (VALUE_BYTES, KEYS);
        Case { is_read, pipeline: 1, connections, value_bytes, keys, to_followers: false }
    }
}

/// Without what all typical cases have in common. The others are named by their [`Sweep`](super::sweep::Sweep).
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
        cases.extend(CONNECTIONS.map(|connections| Case::typical(is_read, connections)));
        if protocol == "resp" {
            cases.push(Case { pipeline: PIPELINE, ..Case::typical(is_read, TYPICAL_CONNECTIONS) });
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
                let once = ["--operations", "1", "--connections", "1"];
                match self.bench(place, false, &once).output().await {
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
    pub(super) async fn fill(&self, place: &Place, keys: u64, value_bytes: u32) -> Fallible {
        let pipeline = (FILL_BYTES / value_bytes).clamp(1, PIPELINE);
        let [keys, value_bytes, pipeline] =
            [keys, value_bytes.into(), pipeline.into()].map(|number| number.to_string());
        let load = ["--keys", &keys, "--value-size", &value_bytes, "--pipeline", &pipeline];
        let options = [&["--reads", "1", "--operations", "1"], &load[..]].concat();
        self.report(self.bench(place, false, &options)).await?;
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
            (case.connections.to_string(), case.pipeline.to_string(), case.keys.to_string());
        let value_size = case.value_bytes.to_string();
        let options = ["--no-fill", "--warm-up", "0s", "--keys", &keys, "--value-size", &value_size];
        let load = ["--reads", if case.is_read { "1" } else { "0" }, "--connections", &connections];
        let duration = format!("{}s", self.seconds);
        let options =
            |duration| [&options[..], &load, &["--pipeline", &pipeline, "--duration", duration]].concat();
        // By itself, so that the CPU time is that of the operations that are counted.
        self.report(self.bench(place, case.to_followers, &options(WARM_UP))).await?;
        let command = self.bench(place, case.to_followers, &options(&duration));
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

    fn bench(&self, place: &Place, to_followers: bool, options: &[&str]) -> Command {
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
            command.args(["--target", if to_followers { "followers" } else { "leader" }]);
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
