//! Ranges of keys: ordered scans, and deletes by prefix.
//!
//! A prefix lies over all shards, so each is asked, by calls of their own that route and retry like any other
//! (`attempts.rs`). [`keevee_core::scan`] makes one ordered page of their answers.

use std::collections::BTreeMap;
use std::pin::pin;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use keevee_core::command::{ScannedKey, Versioned};
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use keevee_core::kv::{self, operation, operation_result, request, response};
use keevee_core::range::{DELETE_RANGE_KEYS_MAX, KeyRange, SCAN_KEYS_MAX};
use keevee_core::requests::RequestId;
use keevee_core::scan::{self, Ask, Merge};
use keevee_core::shard_map::view::CarpView;
use tokio::time::Instant;

use crate::answer::{Error, Value};
use crate::attempts::{Attempts, Call, Effect, Place, read_failure};
use crate::client::{Client, Consistency, unexpected};
use crate::router::Served;

/// Shards that one call asks at once.
const SHARDS_AT_ONCE: usize = 16;

/// What a scan shall show.
///
/// ```
/// # use keevee_client::Scan;
/// let scan = Scan::of_prefix("user:").limit(100);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to Client::scan"]
pub struct Scan {
    range: KeyRange,
    limit: Option<u32>,
    cursor: Option<String>,
    consistency: Consistency,
}

impl Scan {
    /// The keys that begin with these bytes; all keys if there are none.
    pub fn of_prefix(prefix: impl Into<Bytes>) -> Scan {
        Scan::of_range(KeyRange::of_prefix(prefix))
    }

    /// The keys of a range.
    pub fn of_range(range: KeyRange) -> Scan {
        Scan { range, ..Scan::default() }
    }

    /// So many keys per page at most: 1 to 1000, which it is otherwise.
    pub fn limit(self, limit: u32) -> Scan {
        Scan { limit: Some(limit), ..self }
    }

    /// The page behind the one that came with this cursor. The range must be the same.
    pub fn after(self, cursor: impl Into<String>) -> Scan {
        Scan { cursor: Some(cursor.into()), ..self }
    }

    /// How fresh it must be.
    pub fn consistency(self, consistency: Consistency) -> Scan {
        Scan { consistency, ..self }
    }
}

/// An ordered part of what a scan shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The keys, in order. None but at the end, where there may be none.
    pub entries: Vec<Entry>,
    /// Give it to [`Scan::after`] for what follows; `None` at the end. Over HTTP it means the same.
    pub cursor: Option<String>,
}

/// A key and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// What it holds.
    pub value: Value,
}

impl Client {
    /// One page of keys in byte order, over all shards. It holds up to 1000 keys and 1 MiB, or one larger key.
    ///
    /// A page is no snapshot: each key is shown as it was at one moment during the call (linearizably, unless the scan
    /// asks for less). Over all pages, a key that is there all the time is shown exactly once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the cursor belongs to another range.
    pub async fn scan(&self, scan: &Scan) -> Result<Page, Error> {
        let deadline = Instant::now() + self.shared.options.timeout;
        let rest = match &scan.cursor {
            Some(cursor) => scan::rest(&scan.range, cursor)
                .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?,
            None => scan.range.clone(),
        };
        let limit = scan.limit.unwrap_or(SCAN_KEYS_MAX);
        let mut merge = Merge::new(&rest, self.shards_with_keys(deadline).await?, limit);
        loop {
            let asks = merge.asks();
            if asks.is_empty() {
                break;
            }
            let answers = stream::iter(asks).map(async |ask| {
                let kv::Scanned { keys, next } = self.scan_shard(&ask, scan.consistency, deadline).await?;
                Ok::<_, Error>((ask, keys, next))
            });
            let answers: Vec<_> = answers.buffer_unordered(SHARDS_AT_ONCE).try_collect().await?;
            for (ask, keys, next) in answers {
                let keys = keys.into_iter().map(|found| {
                    let kv::ScannedKey { key, value, version, expires_unix_ms } = found;
                    let expires = expires_unix_ms.map(|millis| millis.saturating_mul(1_000));
                    ScannedKey { key, value: Versioned { version, stamp: 0, expires, value } }
                });
                let taken = merge.take_in(&ask, keys.collect(), next);
                taken.map_err(|error| Error::new(ErrorKind::Unavailable, error.to_string()))?;
            }
        }
        let page = merge.finish();
        let entry = |ScannedKey { key, value }| {
            let expires_ms = value.expires_unix_ms();
            Entry { key, value: Value { version: value.version, bytes: value.value, expires_ms } }
        };
        let cursor = page.next.map(|next| scan::cursor(&scan.range, &next));
        Ok(Page { entries: page.keys.into_iter().map(entry).collect(), cursor })
    }

    /// All that a scan shows, page by page: each page is a call of its own, with the time of one. After an error there
    /// is nothing more.
    pub fn scan_all(&self, scan: Scan) -> impl Stream<Item = Result<Entry, Error>> + Send + use<> {
        let client = self.clone();
        let pages = stream::try_unfold(Some(scan), move |scan| {
            let client = client.clone();
            async move {
                let Some(scan) = scan else { return Ok::<_, Error>(None) };
                let Page { entries, cursor } = client.scan(&scan).await?;
                let next = cursor.map(|cursor| scan.after(cursor));
                Ok(Some((stream::iter(entries).map(Ok), next)))
            }
        });
        pages.try_flatten()
    }

    /// Removes every key that begins with these bytes: how many there were. As [`Client::delete_range`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the prefix is empty.
    pub async fn delete_prefix(
        &self,
        prefix: impl Into<Bytes>,
        request_id: Option<String>,
    ) -> Result<u64, Error> {
        self.delete_range(KeyRange::of_prefix(prefix), request_id).await
    }

    /// Removes every key of a range: how many there were.
    ///
    /// It is done in steps, of up to 1000 keys of one shard, and not as one. Each step takes effect at most once, under
    /// an id of its own. Keys that are written to the range meanwhile may be removed or not. A request id is as
    /// [`crate::Write`]'s: given again, the steps that were done are not done again.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the range is all keys. When the time is up before all is done,
    /// [`ErrorKind::OutcomeUnknown`] with [`Error::deleted`]; call it again for the rest.
    pub async fn delete_range(&self, range: KeyRange, request_id: Option<String>) -> Result<u64, Error> {
        let deadline = Instant::now() + self.shared.options.timeout;
        let mut deletion = self.deletion(range, request_id)?;
        while deletion.step_until(deadline).await? {}
        Ok(deletion.deleted)
    }

    /// The same, step by step, for as long as it takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] if the range is all keys.
    pub fn deletion(&self, range: KeyRange, request_id: Option<String>) -> Result<Deletion, Error> {
        if range.is_all() {
            let detail = "the range is all keys: say where it begins or ends";
            return Err(Error::new(ErrorKind::Invalid, detail));
        }
        let request_id = request_id.map(|id| RequestId::from_idempotency_key(id.as_bytes()));
        Ok(Deletion { client: self.clone(), range, request_id, left: None, deleted: 0 })
    }

    async fn scan_shard(
        &self,
        ask: &Ask,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<kv::Scanned, Error> {
        let KeyRange { start, end } = ask.range.clone();
        let scan = kv::Scan { start, end, limit: ask.limit, bytes_max: ask.bytes_max };
        let (consistency, served) = consistency.on_wire();
        let execute = kv::ExecuteRequest { consistency: consistency.into(), ..kv::ExecuteRequest::default() };
        let (action, effect) = (operation::Action::Scan(scan), Effect::Reads(served));
        match self.ask_shard(ask.shard, action, execute, effect, deadline).await? {
            operation_result::Result::Scanned(scanned) => Ok(scanned),
            other => Err(read_failure(unexpected(&other))),
        }
    }

    /// One operation of a range, on one shard.
    async fn ask_shard(
        &self,
        shard: ShardId,
        action: operation::Action,
        execute: kv::ExecuteRequest,
        effect: Effect,
        deadline: Instant,
    ) -> Result<operation_result::Result, Error> {
        let operations = vec![kv::Operation { action: Some(action), continue_on_error: false }];
        let operation =
            request::Operation::Execute(kv::ExecuteRequest { operations, shard: Some(shard.0), ..execute });
        let call = Call { operation, place: Place::Shard(shard), effect };
        match Attempts::until(&self.shared, call, deadline).run().await? {
            response::Result::Execute(kv::ExecuteResponse { mut results }) if results.len() == 1 => {
                let result = results.pop().and_then(|result| result.result);
                result
                    .ok_or_else(|| Error::unreadable("a result is of a kind that this version does not know"))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The shards that may hold keys.
    async fn shards_with_keys(&self, deadline: Instant) -> Result<Vec<ShardId>, Error> {
        if self.shared.router.routes() {
            return Ok(self.shared.router.map(deadline).await?.shards_with_slots());
        }
        // Nodes route for this client, but none of them knows a range as one.
        let view: CarpView = self.carp(deadline).await?;
        let mut shards: Vec<ShardId> = view.slots.iter().map(|run| run.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        Ok(shards)
    }
}

/// A delete of a range that is under way, step by step. Dropped, it stops: what was removed stays removed.
#[derive(Debug)]
#[must_use = "it does nothing until Deletion::step"]
pub struct Deletion {
    client: Client,
    range: KeyRange,
    request_id: Option<RequestId>,
    /// Where each shard's keys begin that are left; `None` before the first step.
    left: Option<BTreeMap<ShardId, Bytes>>,
    deleted: u64,
}

impl Deletion {
    /// How many keys were removed so far.
    pub fn deleted(&self) -> u64 {
        self.deleted
    }

    /// Removes some keys of each shard that has more: false if none has. It takes the time of one call.
    ///
    /// # Errors
    ///
    /// As [`Client::delete_range`]'s. It may be called again, and goes on where it was.
    pub async fn step(&mut self) -> Result<bool, Error> {
        self.step_until(Instant::now() + self.client.shared.options.timeout).await
    }

    async fn step_until(&mut self, deadline: Instant) -> Result<bool, Error> {
        if self.left.is_none() {
            let shards = self.client.shards_with_keys(deadline).await?;
            self.left = Some(shards.into_iter().map(|shard| (shard, self.range.start.clone())).collect());
        }
        let this = &*self;
        let steps = this.left.clone().unwrap_or_default().into_iter();
        let steps = steps.map(async |(shard, start)| (shard, this.delete_some(shard, start, deadline).await));
        let (mut done, mut error) = (Vec::new(), None::<Error>);
        {
            let mut steps = pin!(stream::iter(steps).buffer_unordered(SHARDS_AT_ONCE));
            while let Some((shard, step)) = steps.next().await {
                match step {
                    Ok(step) => done.push((shard, step)),
                    // What is unknown of one shard is unknown of the whole.
                    Err(failed) if failed.kind == ErrorKind::OutcomeUnknown => error = Some(failed),
                    Err(failed) => error = error.or(Some(failed)),
                }
            }
        }
        let left = self.left.get_or_insert_default();
        for (shard, kv::DeletedRange { deleted, next }) in done {
            self.deleted += deleted;
            match next {
                Some(next) => left.insert(shard, next),
                None => left.remove(&shard),
            };
        }
        match error {
            None => Ok(!left.is_empty()),
            Some(error) => Err(self.stopped(error)),
        }
    }

    /// The error that is true of all steps.
    fn stopped(&self, error: Error) -> Error {
        let deleted = Some(self.deleted);
        if self.deleted == 0 {
            return Error { deleted, ..error };
        }
        let detail = format!("{} keys were deleted, and then: {}", self.deleted, error.detail);
        Error { kind: ErrorKind::OutcomeUnknown, detail, deleted, ..error }
    }

    async fn delete_some(
        &self,
        shard: ShardId,
        start: Bytes,
        deadline: Instant,
    ) -> Result<kv::DeletedRange, Error> {
        let (id, is_minted) = match self.request_id {
            Some(id) => {
                // The first step has no start: for another range it is found to be a reuse.
                let behind = (start != self.range.start).then_some(&start[..]);
                (on_wire(id.of_step(shard, behind)), false)
            }
            None => (self.client.shared.mint(), true),
        };
        let delete = kv::DeleteRange { start, end: self.range.end.clone(), limit: DELETE_RANGE_KEYS_MAX };
        let execute = kv::ExecuteRequest { idempotency_key: Some(id), ..kv::ExecuteRequest::default() };
        let (action, effect) = (operation::Action::DeleteRange(delete), Effect::Writes { is_minted });
        match self.client.ask_shard(shard, action, execute, effect, deadline).await? {
            operation_result::Result::DeletedRange(deleted) => Ok(deleted),
            other => Err(unexpected(&other)),
        }
    }
}

/// A request id as it travels.
fn on_wire(id: RequestId) -> Bytes {
    match id {
        RequestId::Timed(bits) => uuid::Uuid::from_u128(bits).hyphenated().to_string().into(),
        // Not as mere digits, which might read as a UUID.
        RequestId::Free(bits) => format!("step {bits:x}").into(),
    }
}

impl Consistency {
    /// As it travels, and who may answer.
    pub(crate) fn on_wire(self) -> (kv::Consistency, Served) {
        match self {
            Consistency::Linearizable => (kv::Consistency::Linearizable, Served::ByLeader),
            Consistency::Stale => (kv::Consistency::Stale, Served::ByAnyMember),
        }
    }
}
