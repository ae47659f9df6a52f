//! `keevee verify`: real processes under faults, and a proof that nothing is lost. A cluster of its own, clients of all
//! protocols, faults drawn from a seed, and in the end a verdict over everything the clients were told.
//!
//! [`schedule`] says which faults come, [`inflict`] (with [`rot`] and [`replace`]) does them to the [`nodes`] and their
//! [`network`]; [`clients`] and [`callers`] are the load, whose [`history`] the [`verdict`] is on; [`report`] and
//! [`mod@page`] tell of it. The simulator (`keevee-verify`) tries far more schedules, of the same code without its disks,
//! sockets and processes; this is for what only those can show.

mod callers;
mod clients;
mod history;
mod inflict;
mod network;
mod nodes;
mod page;
mod replace;
mod report;
mod rot;
mod schedule;
mod timeline;
mod verdict;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use keevee_client::Endpoint;

use crate::failure::Failure;
use clients::{Clients, Pace, Shared};
use history::History;
use nodes::Nodes;
pub(crate) use page::page;
use report::{Fault, Leadership, Outcome, Report};
pub(crate) use schedule::Kind;
use schedule::Schedule;
use timeline::Timeline;

/// Keys that are in use at a time.
const KEYS: usize = 48;
/// How long after the last fault the load goes on.
const CALM: Duration = Duration::from_secs(2);
/// So often each kind is tried, if it does not happen before.
const ROUNDS_MIN: usize = 4;
/// How often it is looked who leads.
const LOOK: Duration = Duration::from_millis(250);

/// What is asked for.
pub(crate) struct Plan {
    pub(crate) consensus: String,
    pub(crate) nodes: u64,
    pub(crate) shards: u16,
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
    pub(crate) kinds: BTreeSet<Kind>,
    pub(crate) clients: usize,
    /// Operations per second.
    pub(crate) rate: u32,
    pub(crate) shows_progress: bool,
}

/// Runs it in a folder, which is there and empty.
pub(crate) async fn run(plan: &Plan, folder: &Path) -> Result<Report, Failure> {
    let mut nodes = Nodes::start(folder, plan).await?;
    let map = nodes.newest_map().await.ok_or_else(|| Failure::other("no node tells the shard map"))?;
    let pace = Pace { clients: plan.clients, rate: plan.rate };
    let history = History::new(format!("verify-{}", plan.seed), KEYS);
    let clients = Clients::start(&nodes.http(), &nodes.resp(), pace, history, plan.seed)?;
    let origin = clients.shared.origin;
    let (endpoints, mut leaderships, mut blows) = (nodes.http(), Vec::new(), Vec::new());
    let tormented = tokio::select! {
        tormented = torment(plan, &mut nodes, &clients.shared, &mut blows) => tormented,
        never = watch(&endpoints, origin, &mut leaderships) => match never {},
    };
    let Shared { history, done, refused, unknown, by_leaders, .. } = clients.stop().await;
    let keys = history.into_keys();
    let ended = origin.elapsed();
    let by_leaders = by_leaders.into_inner().unwrap_or_else(PoisonError::into_inner);
    let timeline = Timeline::new(&keys, &map, by_leaders, ended);
    if tormented.is_err() {
        nodes.heal().await;
    }
    let verdict = verdict::judge(&mut nodes, keys, || origin.elapsed().as_micros() as u64).await;
    let outcome = Outcome {
        done: done.map(AtomicU64::into_inner),
        refused: refused.into_inner(),
        unknown: unknown.into_inner(),
        blows,
        broken_off: tormented.err().map(|failure| failure.to_string()),
        leaderships,
        timeline,
        ended,
        verdict,
    };
    Ok(Report::new(plan, outcome))
}

/// One blow after the other, until the time is over and each kind has come; and a while without any. Fails at one that can't be
/// done or undone.
async fn torment(
    plan: &Plan,
    nodes: &mut Nodes,
    shared: &Arc<Shared>,
    blows: &mut Vec<Vec<Fault>>,
) -> Result<(), Failure> {
    let (origin, start) = (shared.origin, Instant::now());
    let bar = progress(plan);
    for blow in Schedule::new(plan.seed, &plan.kinds, nodes.ids().len()) {
        let is_over = start.elapsed() + blow.pause >= plan.duration;
        let faults = || blows.iter().flatten();
        let has_come = |kind: &Kind| faults().any(|fault| fault.kind == *kind && fault.happened);
        let is_last_try = faults().count() >= ROUNDS_MIN * plan.kinds.len();
        if is_over && (is_last_try || plan.kinds.iter().all(has_come)) {
            break;
        }
        bar.set_prefix(format!(
            "{} faults, {} operations",
            faults().count(),
            shared.done.iter().map(|done| done.load(Ordering::Relaxed)).sum::<u64>()
        ));
        tokio::time::sleep(blow.pause).await;
        bar.set_message(blow.to_string());
        let inflicted = nodes.inflict(&blow, || origin.elapsed()).await;
        blows.push(inflicted.map_err(|failure| Failure::other(format!("{blow}: {failure}")))?);
        bar.set_position(start.elapsed().min(plan.duration).as_secs());
    }
    bar.finish_and_clear();
    tokio::time::sleep(CALM).await;
    Ok(())
}

fn progress(plan: &Plan) -> ProgressBar {
    if !plan.shows_progress {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(plan.duration.as_secs());
    let style = "{elapsed_precise} {bar:30} {prefix} {msg}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Notes who leads, for as long as it is asked to.
async fn watch(nodes: &[Endpoint], origin: Instant, seen: &mut Vec<Leadership>) -> Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        for endpoint in nodes {
            let Some((node, shards)) = nodes::led_by(endpoint, LOOK).await else { continue };
            let at = origin.elapsed();
            seen.extend(shards.into_iter().map(|shard| Leadership { at, shard, node }));
        }
    }
}
