//! Taking a backup: one time for all shards, a cut of each from its leader, into a folder.
//!
//! Which time is found by trying: a leader that is past it says so, and all shards are asked anew, for a later one. The same
//! is done when a leader is lost on the way. A backup of several times would be none.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::ProgressBar;
use keevee_client::{AnswerBody, Connection, Endpoint, ErrorKind, NodeStatus};
use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::view::{CarpView, ShardView};
use keevee_core::slots::SlotSet;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::folder::{CutFile, FolderError, Manifest, ShardEntry, Target, Written, digest_text};
use super::shards_bar;
use crate::api::Api;
use crate::failure::Failure;

/// How far ahead of the shards' clocks the first attempt is: long enough to ask all of them…
const AHEAD: Duration = Duration::from_millis(500);
/// …and the last.
const AHEAD_MAX: Duration = Duration::from_secs(8);
/// How often all shards are asked.
const ATTEMPTS_MAX: u32 = 10;
/// Before something is tried again.
const PAUSE: Duration = Duration::from_millis(100);
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// A node that sends nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(60);

/// Why there is no cut of a shard.
enum Lost {
    /// Another attempt may do better. `clock` is the shard's, if the time did not fit it.
    Retry { why: String, clock: Option<u64> },
    /// None would.
    Failed(Failure),
}

impl From<FolderError> for Lost {
    fn from(error: FolderError) -> Lost {
        Lost::Failed(Failure::other(error))
    }
}

fn retry(why: impl ToString) -> Lost {
    Lost::Retry { why: why.to_string(), clock: None }
}

/// Takes a backup into a folder, which is new or empty.
pub(crate) async fn take(api: &Api<'_>, folder: &Path) -> Result<Manifest, Failure> {
    let (mut attempts, mut since) = (0, Instant::now());
    let status: NodeStatus = api.get("/v1/cluster/status").await?;
    let mut target = Target::create(folder).map_err(Failure::usage)?;
    // How far the shards' clocks are ahead of this machine's, as far as they have said.
    let (mut offset, mut ahead, mut last) = (0, AHEAD, "nobody was asked".to_owned());
    while attempts < ATTEMPTS_MAX
        && let Some(left) = api.timeout.checked_sub(since.elapsed())
    {
        attempts += 1;
        let api = &Api { timeout: left, ..*api };
        let map: Value = api.get("/v1/cluster/carp").await?;
        let view = CarpView::deserialize(&map).map_err(Failure::other)?;
        let time = wall_micros().saturating_add_signed(offset) + ahead.as_micros() as u64;
        let progress = Arc::new(Progress::new());
        let taken = take_at(api, &view, time, &mut target, &progress).await;
        // Also of an attempt that is given up.
        progress.bar.finish_and_clear();
        match taken {
            Ok(shards) => {
                let manifest = Manifest::new(status.cluster_id, time, shards, map);
                let finished = spawn_blocking(move || target.finish(&manifest).map(|()| manifest)).await;
                return finished.map_err(Failure::other)?.map_err(Failure::other);
            }
            Err(Lost::Failed(failure)) => return Err(failure),
            Err(Lost::Retry { why, clock }) => {
                target.clear();
                last = why;
                // Once cuts of all shards have begun they may take as long as they take, and again.
                if progress.have_all_begun() {
                    since = Instant::now();
                }
                if let Some(clock) = clock {
                    offset = clock.wrapping_sub(wall_micros()) as i64;
                }
                ahead = (2 * ahead).min(AHEAD_MAX);
                sleep(PAUSE).await;
            }
        }
    }
    let detail = format!("unavailable: no cut of all shards in {attempts} attempts; the last: {last}");
    Err(Failure::of_kind(ErrorKind::Unavailable, detail))
}

fn wall_micros() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_micros()).unwrap_or(u64::MAX)
}

/// A cut of every shard as of one time, or of none.
async fn take_at(
    api: &Api<'_>,
    map: &CarpView,
    time: u64,
    target: &mut Target,
    progress: &Arc<Progress>,
) -> Result<Vec<ShardEntry>, Lost> {
    let shards: Vec<&ShardView> = map.shards.iter().filter(|shard| shard.id != ShardId::SYSTEM).collect();
    progress.bar.set_length(shards.len() as u64);
    // Dropped, it ends all of them.
    let mut cuts = JoinSet::new();
    for shard in &shards {
        let source = Source::new(api, map, shard, time);
        let (file, progress) = (target.file(shard.id)?, Arc::clone(progress));
        cuts.spawn(async move { copy(source, file, &progress).await });
    }
    let written = all_written(&mut cuts, &progress.bar).await?;
    check_slots(&written)?;
    let entry = |shard: &ShardView| {
        let Written { keys, bytes, digest, .. } = written.iter().find(|cut| cut.head.shard == shard.id)?;
        let (name, engine) = (shard.name.clone(), shard.engine.name().to_owned());
        Some(ShardEntry {
            id: shard.id,
            name,
            engine,
            keys: *keys,
            bytes: *bytes,
            digest: digest_text(*digest),
        })
    };
    let mut entries: Vec<ShardEntry> = shards.iter().filter_map(|shard| entry(shard)).collect();
    entries.sort_by_key(|entry| entry.id);
    Ok(entries)
}

/// The cuts, once all of them are there.
async fn all_written(
    cuts: &mut JoinSet<Result<Written, Lost>>,
    bar: &ProgressBar,
) -> Result<Vec<Written>, Lost> {
    let mut written = Vec::new();
    while let Some(copied) = cuts.join_next().await {
        written.push(copied.map_err(|error| Lost::Failed(Failure::other(error)))??);
        bar.inc(1);
    }
    Ok(written)
}

/// Each slot must be in one cut: a map that changed meanwhile could leave a shard out.
fn check_slots(written: &[Written]) -> Result<(), Lost> {
    let mut owned = SlotSet::none();
    let mut slots = written.iter().flat_map(|cut| cut.head.owned.iter());
    let is_once = slots.all(|slot| owned.insert(slot));
    if is_once && owned.is_all() { Ok(()) } else { Err(retry("the shards changed meanwhile")) }
}

/// What is drawn while it goes on.
struct Progress {
    bar: ProgressBar,
    /// Of how many shards a cut has begun to come.
    begun: AtomicU64,
    keys: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    fn new() -> Progress {
        let bar = shards_bar("backing up", 0);
        Progress { bar, begun: AtomicU64::new(0), keys: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn have_all_begun(&self) -> bool {
        self.bar.length() == Some(self.begun.load(Ordering::Relaxed))
    }

    fn add(&self, keys: u64, bytes: u64) {
        let keys = self.keys.fetch_add(keys, Ordering::Relaxed) + keys;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let per_second = bytes as f64 / 1e6 / self.bar.elapsed().as_secs_f64().max(1e-3);
        let megabytes = bytes as f64 / 1e6;
        self.bar.set_message(format!("{keys} keys, {megabytes:.1} MB, {per_second:.1} MB/s"));
    }
}

/// Where a shard's cut is to be had.
struct Source {
    shard: ShardId,
    time: u64,
    /// Who is asked first, then the next.
    nodes: Vec<Endpoint>,
    deadline: Instant,
}

/// What a node that has no cut says.
#[derive(Deserialize)]
struct Problem {
    kind: String,
    detail: String,
    clock: Option<u64>,
    hint: Option<Hint>,
}

#[derive(Deserialize)]
struct Hint {
    address: Option<String>,
}

impl Source {
    fn new(api: &Api<'_>, map: &CarpView, shard: &ShardView, time: u64) -> Source {
        let ids: Vec<NodeId> = shard.leader.into_iter().chain(shard.members.iter().copied()).collect();
        let address = |id: &NodeId| map.nodes.iter().find(|node| node.id == *id)?.http.parse().ok();
        let nodes = ids.iter().filter_map(address).collect();
        let until_time = Duration::from_micros(time.saturating_sub(wall_micros())).min(4 * AHEAD_MAX);
        Source { shard: shard.id, time, nodes, deadline: Instant::now() + until_time + api.timeout }
    }

    /// The cut, from whoever leads the shard.
    async fn open(&self) -> Result<AnswerBody, Lost> {
        let shard = self.shard;
        let path = format!("/v1/cluster/cut?shard={shard}&time={}", self.time);
        let (mut hint, mut last) = (None::<Endpoint>, "nobody answers".to_owned());
        for asked in 0.. {
            let Some(node) = hint.take().or_else(|| self.nodes.get(asked % self.nodes.len().max(1)).cloned())
            else {
                return Err(retry(format!("shard {shard} is on no node with an address")));
            };
            match timeout_at(self.deadline, ask(&node, &path)).await {
                Ok(Ok(Ok(body))) => return Ok(body),
                Ok(Ok(Err(problem))) => {
                    last = format!("{node} on shard {shard}: {}: {}", problem.kind, problem.detail);
                    match ErrorKind::from_name(&problem.kind) {
                        Some(ErrorKind::NotLeader) => {
                            hint = problem.hint.and_then(|hint| hint.address?.parse().ok());
                        }
                        Some(ErrorKind::Unavailable) => {}
                        _ if problem.clock.is_some() => {
                            return Err(Lost::Retry { why: last, clock: problem.clock });
                        }
                        kind => {
                            let kind = kind.unwrap_or(ErrorKind::Invalid);
                            return Err(Lost::Failed(Failure::of_kind(kind, last)));
                        }
                    }
                }
                Ok(Err(why)) => last = why,
                Err(_) => return Err(retry(format!("no cut of shard {shard} in time; {last}"))),
            }
            if Instant::now() + PAUSE >= self.deadline {
                break;
            }
            sleep(PAUSE).await;
        }
        Err(retry(last))
    }
}

/// Asks one node for a cut: that, or why it has none; or why there is no answer.
async fn ask(node: &Endpoint, path: &str) -> Result<Result<AnswerBody, Problem>, String> {
    let connection = Connection::open(node, CONNECT_PATIENCE).await;
    let mut connection = connection.map_err(|error| error.to_string())?;
    let (status, mut body) = connection.post(path).await.map_err(|error| error.to_string())?;
    if status == 200 {
        return Ok(Ok(body));
    }
    let mut text = Vec::new();
    while let Some(bytes) = body.next().await.map_err(|error| error.to_string())? {
        text.extend_from_slice(&bytes);
        if text.len() > 1 << 20 {
            break;
        }
    }
    let unknown = |_| Problem {
        kind: ErrorKind::Invalid.name().to_owned(),
        detail: format!("an answer that is not keevee's: HTTP status {status}"),
        clock: None,
        hint: None,
    };
    Ok(Err(serde_json::from_slice(&text).unwrap_or_else(unknown)))
}

/// Copies a cut into its file.
async fn copy(source: Source, mut file: CutFile, progress: &Progress) -> Result<Written, Lost> {
    let mut body = source.open().await?;
    progress.begun.fetch_add(1, Ordering::Relaxed);
    loop {
        let bytes = match timeout(STALLED, body.next()).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(retry(error)),
            Err(_) => return Err(retry(format!("shard {}: nothing came for {STALLED:?}", source.shard))),
        };
        let before = file.keys();
        file.write(&bytes).map_err(|error| broken(&source, error))?;
        progress.add(file.keys() - before, bytes.len() as u64);
    }
    // That may take long. If this attempt is given up meanwhile, the file gets no name any more.
    let synced = spawn_blocking(move || file.sync().map(|()| file)).await;
    let file = synced.map_err(|error| Lost::Failed(Failure::other(error)))??;
    let written = file.finish().map_err(|error| broken(&source, error))?;
    if written.head.shard == source.shard && written.head.time == source.time {
        return Ok(written);
    }
    Err(retry(format!("shard {}: another shard's cut came, or of another time", source.shard)))
}

/// What a node sent is no whole cut: mostly it broke off.
fn broken(source: &Source, error: FolderError) -> Lost {
    match error {
        FolderError::Cut { cause, .. } => retry(format!("what came of shard {}: {cause}", source.shard)),
        other => other.into(),
    }
}
