//! Restoring a backup: into whatever shards the cluster has.
//!
//! The whole backup is checked before the first key is written. Keys then go by batches, each to the shard that owns its
//! keys there, many at once, and each under a request id: a retry writes nothing twice. Versions are those of the new
//! cluster.

use std::collections::BTreeMap;
use std::mem;

use indicatif::ProgressBar;
use keevee_client::{Batch, Client, ErrorKind, Expiry, KeyRange, Only, OperationResult, Scan};
use keevee_core::cut::Record;
use keevee_core::ids::ShardId;
use keevee_core::shard_map::view::CarpView;
use keevee_core::slot_table::SlotTable;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use super::bytes_bar;
use super::folder::{Backup, FolderError, Records};
use crate::api::Api;
use crate::failure::Failure;

/// Keys of one batch…
const BATCH_KEYS: usize = 256;
/// …and bytes of them, unless one has more.
const BATCH_BYTES: usize = 256 << 10;
/// Batches under way at once.
const IN_FLIGHT: usize = 64;
/// Batches that wait for their turn.
const WAITING: usize = 16;
/// Keys that are taken of one file before the next has its turn: so that all shards of the cluster have something to do
/// even where each file's keys belong to one of them.
const TURN_KEYS: usize = 1024;

/// Reads all of a backup.
pub(crate) async fn verify(backup: &Backup) -> Result<(), Failure> {
    let bar = bytes_bar("verifying", backup.manifest.bytes());
    let (backup, drawn) = (backup.clone(), bar.clone());
    let verified = spawn_blocking(move || backup.verify(|bytes| drawn.inc(bytes))).await;
    bar.finish_and_clear();
    verified.map_err(Failure::other)?.map_err(Failure::other)
}

/// Fails unless the cluster has no keys.
pub(crate) async fn check_empty(client: &Client) -> Result<(), Failure> {
    let page = client.scan(&Scan::of_range(KeyRange::default()).limit(1)).await?;
    if page.entries.is_empty() {
        return Ok(());
    }
    let detail =
        "conflict: the cluster holds keys: restore into an empty one, or write over them with --merge";
    Err(Failure::of_kind(ErrorKind::Conflict, detail))
}

/// Writes all keys of a verified backup: how many there were.
pub(crate) async fn restore(api: &Api<'_>, client: &Client, backup: &Backup) -> Result<u64, Failure> {
    let view: CarpView = api.get("/v1/cluster/carp").await?;
    let slots = SlotTable::from_runs(&view.slots).map_err(Failure::other)?;
    let bar = bytes_bar("restoring", backup.manifest.bytes());
    let (sender, batches) = mpsc::channel(WAITING);
    let (source, drawn) = (backup.clone(), bar.clone());
    let reading = spawn_blocking(move || read(&source, &slots, &sender, &drawn));
    let written = write_all(client, batches).await;
    bar.finish_and_clear();
    let written = written?;
    reading.await.map_err(Failure::other)?.map_err(Failure::other)?;
    let keys = backup.manifest.keys();
    if written == keys {
        return Ok(written);
    }
    Err(Failure::other(format!("{written} of {keys} keys were written: please report this")))
}

/// Reads the files by turns, and sorts their keys by the shards that they go to.
fn read(
    backup: &Backup,
    slots: &SlotTable,
    batches: &mpsc::Sender<Vec<Record>>,
    bar: &ProgressBar,
) -> Result<(), FolderError> {
    let files = backup.manifest.shards.iter().map(|shard| backup.records(shard));
    let mut files: Vec<Records> = files.collect::<Result<_, _>>()?;
    let mut sorted: BTreeMap<ShardId, Pending> = BTreeMap::new();
    while !files.is_empty() {
        let mut left = Vec::new();
        for mut file in files {
            let is_left = take_turn(&mut file, |record| {
                let pending = sorted.entry(slots.owner_of_key(&record.key)).or_default();
                pending.add(record).is_none_or(|batch| batches.blocking_send(batch).is_ok())
            })?;
            bar.inc(mem::take(&mut file.progress));
            if batches.is_closed() {
                // Whoever writes has failed, and says why.
                return Ok(());
            }
            if is_left {
                left.push(file);
            } else {
                file.finish()?;
            }
        }
        files = left;
    }
    for Pending { records, .. } in sorted.into_values().filter(|pending| !pending.records.is_empty()) {
        let _ = batches.blocking_send(records);
    }
    Ok(())
}

/// Takes some keys of a file: false if it has no more.
fn take_turn(file: &mut Records, mut take: impl FnMut(Record) -> bool) -> Result<bool, FolderError> {
    for _ in 0..TURN_KEYS {
        let Some(record) = file.next_record()? else { return Ok(false) };
        if !take(record) {
            return Ok(true);
        }
    }
    Ok(true)
}

/// Keys of one shard that make no batch yet.
#[derive(Default)]
struct Pending {
    records: Vec<Record>,
    bytes: usize,
}

impl Pending {
    /// The batch that a key fills up.
    fn add(&mut self, record: Record) -> Option<Vec<Record>> {
        self.bytes += record.key.len() + record.value.len();
        self.records.push(record);
        if self.records.len() < BATCH_KEYS && self.bytes < BATCH_BYTES {
            return None;
        }
        self.bytes = 0;
        Some(mem::take(&mut self.records))
    }
}

/// Writes batches, many at once: how many keys were written.
async fn write_all(client: &Client, mut batches: mpsc::Receiver<Vec<Record>>) -> Result<u64, Failure> {
    // Dropped, it ends all of them.
    let (mut writing, mut written, mut is_all) = (JoinSet::new(), 0, false);
    while !is_all || !writing.is_empty() {
        let result = tokio::select! {
            batch = batches.recv(), if !is_all && writing.len() < IN_FLIGHT => {
                is_all = batch.is_none();
                if let Some(batch) = batch {
                    writing.spawn(write(client.clone(), batch));
                }
                continue;
            }
            Some(result) = writing.join_next() => result,
            // Neither: nothing is under way, and the next look says so.
            else => continue,
        };
        match result.map_err(Failure::other)? {
            Ok(keys) => written += keys,
            Err(error) => {
                let why = format!("{error}; {written} keys and more were written: go on with --merge");
                return Err(Failure::of_kind(error.kind, why));
            }
        }
    }
    Ok(written)
}

/// Writes a batch, under a request id of its own: how many keys were written.
async fn write(client: Client, records: Vec<Record>) -> Result<u64, keevee_client::Error> {
    let put = |batch: Batch, Record { key, value, expires }: Record| {
        batch.put_with(key, value, expires.map_or(Expiry::Never, Expiry::At), Only::Always)
    };
    let results = client.execute(records.into_iter().fold(Batch::new(), put), None).await?;
    let is_written = |result: &&OperationResult| matches!(result, OperationResult::Written { .. });
    Ok(results.iter().filter(is_written).count() as u64)
}
