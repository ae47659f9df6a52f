//! What asks for all keys: SCAN, KEYS, DBSIZE, FLUSHDB. They are many commands of the store, and not atomic.
//!
//! A node that forwards answers for the whole cluster. One that redirects answers for the shards that it leads, since its
//! clients ask every leader.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use keevee_core::command::{Action, Command, OperationResult, Outcome};
use keevee_core::ids::ShardId;
use keevee_core::range::{DELETE_RANGE_KEYS_MAX, KeyRange, SCAN_BYTES_MAX, SCAN_KEYS_MAX};
use keevee_core::scan::{Merge, Page};
use keevee_core::slots::{Slot, slot};
use keevee_resp::command::Keyspace;
use keevee_resp::glob;
use keevee_resp::reply::Reply;
use rand::Rng;

use super::group::Answered;
use super::{Resp, try_again};
use crate::node::Context;

/// Shards that are asked at once.
const SHARDS_AT_ONCE: usize = 16;
/// Bytes of the keys in one reply to KEYS.
const KEYS_BYTES_MAX: usize = 64 << 20;
/// Cursors that are known at once.
const CURSORS_MAX: usize = 4096;

/// Where scans go on. Redis's cursors are numbers, and any connection may bring one; ours are keys, so a node remembers
/// which number stands for which key. The oldest are forgotten when there are too many.
pub(super) struct Cursors(Mutex<Known>);

struct Known {
    last: u64,
    cursors: BTreeMap<u64, Cursor>,
}

struct Cursor {
    /// The first key that was not looked at.
    next: Bytes,
    /// The cursor that this one came after. Once this one is used, the client has it, and needs that no more.
    before: u64,
}

impl Cursors {
    pub(super) fn new() -> Cursors {
        // So that another node, or this one after a restart, does not take a cursor for one of its own. Numbers that fit
        // a signed integer, which some clients keep them in.
        let last = rand::rng().next_u64() >> 2;
        Cursors(Mutex::new(Known { last, cursors: BTreeMap::new() }))
    }

    /// Where a cursor goes on.
    fn find(&self, cursor: u64) -> Option<Bytes> {
        let mut known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Cursor { next, before } = known.cursors.get(&cursor)?;
        let (next, before) = (next.clone(), *before);
        known.cursors.remove(&before);
        Some(next)
    }

    /// A cursor that goes on here.
    fn remember(&self, next: Bytes, before: u64) -> u64 {
        let mut known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.cursors.len() >= CURSORS_MAX {
            known.cursors.pop_first();
        }
        known.last += 1;
        let cursor = known.last;
        known.cursors.insert(cursor, Cursor { next, before });
        cursor
    }
}

impl Resp {
    pub(super) async fn keyspace(&self, keyspace: Keyspace) -> Result<Reply, Reply> {
        match keyspace {
            Keyspace::Scan { cursor, pattern, count, shows } => {
                self.scan(cursor, pattern, count, shows).await
            }
            Keyspace::Keys(pattern) => self.keys(&pattern).await.map(|answered| answered.reply),
            Keyspace::Size => {
                let counts = stream::iter(self.own_shards()).map(|shard| self.count(shard, None));
                let counts: Vec<i64> = counts.buffer_unordered(SHARDS_AT_ONCE).try_collect().await?;
                Ok(Reply::Integer(counts.iter().sum()))
            }
            Keyspace::Flush => {
                let flushes = stream::iter(self.own_shards()).map(|shard| self.flush(shard));
                let _: Vec<()> = flushes.buffer_unordered(SHARDS_AT_ONCE).try_collect().await?;
                Ok(Reply::OK)
            }
        }
    }

    /// The shards that this node answers for.
    fn own_shards(&self) -> Vec<ShardId> {
        let (mut shards, directory) = (self.node.shards_with_keys(), self.node.directory());
        if self.redirects() {
            shards.retain(|shard| directory.leader(*shard) == Some(self.node.id()));
        }
        shards
    }

    async fn scan(
        &self,
        cursor: u64,
        pattern: Option<Bytes>,
        count: u32,
        shows: bool,
    ) -> Result<Reply, Reply> {
        let mut range = range_of(pattern.as_deref());
        if cursor > 0 {
            let next = self.cursors.find(cursor).ok_or_else(|| {
                Reply::error(
                    "invalid cursor: it is not known here, or was not used for long; start again with 0",
                )
            })?;
            range = range.rest(next);
        }
        let page = self.page(&range, count).await?;
        let matches =
            |key: &Bytes| shows && pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, key));
        let keys = page.keys.into_iter().map(|found| found.key).filter(matches).map(Reply::Bulk).collect();
        let next = page.next.map_or(0, |next| self.cursors.remember(next, cursor));
        Ok(Reply::Array(vec![Reply::bulk(next.to_string()), Reply::Array(keys)]))
    }

    pub(super) async fn keys(&self, pattern: &Bytes) -> Result<Answered, Reply> {
        let room = Some(self.room_for(2 * KEYS_BYTES_MAX).await?);
        let range = range_of(Some(pattern));
        let (mut keys, mut bytes, mut next) = (Vec::new(), 0, Some(range.start.clone()));
        while let Some(start) = next {
            let page = self.page(&range.rest(start), SCAN_KEYS_MAX).await?;
            for found in page.keys.into_iter().filter(|found| glob::matches(pattern, &found.key)) {
                bytes += found.key.len();
                // Copied: it would keep the value in memory that it came with.
                keys.push(Reply::bulk(Bytes::copy_from_slice(&found.key)));
            }
            if bytes > KEYS_BYTES_MAX {
                return Err(Reply::error("too many keys for one reply: use SCAN"));
            }
            next = page.next;
        }
        Ok(Answered { reply: Reply::Array(keys), room })
    }

    /// Keys in order, of all shards that this node answers for.
    async fn page(&self, range: &KeyRange, count: u32) -> Result<Page, Reply> {
        let mut merge = Merge::new(range, self.own_shards(), count);
        loop {
            let asks = merge.asks();
            if asks.is_empty() {
                return Ok(merge.finish());
            }
            let answers =
                stream::iter(asks).map(async |ask| match self.ask(ask.shard, ask.action()).await? {
                    OperationResult::Scanned { keys, next } => Ok((ask, keys, next)),
                    _ => Err(try_again()),
                });
            let answers: Vec<_> = answers.buffer_unordered(SHARDS_AT_ONCE).try_collect().await?;
            for (ask, keys, next) in answers {
                merge.take_in(&ask, keys, next).map_err(|error| Reply::error(error.to_string()))?;
            }
        }
    }

    /// How many keys of a shard there are, or of a slot of it.
    async fn count(&self, shard: ShardId, of: Option<Slot>) -> Result<i64, Reply> {
        let (mut count, mut next) = (0, Some(Bytes::new()));
        while let Some(start) = next {
            let range = KeyRange { start, end: None };
            let scan = Action::Scan { range, limit: SCAN_KEYS_MAX, bytes_max: SCAN_BYTES_MAX };
            let OperationResult::Scanned { keys, next: rest } = self.ask(shard, scan).await? else {
                return Err(try_again());
            };
            count += keys.iter().filter(|found| of.is_none_or(|of| slot(&found.key) == of)).count() as i64;
            next = rest;
        }
        Ok(count)
    }

    /// CLUSTER COUNTKEYSINSLOT
    pub(super) async fn count_in_slot(&self, wanted: Slot) -> Result<Reply, Reply> {
        let shard = self.node.directory().map().slots.owner(wanted);
        if self.redirects() && !self.own_shards().contains(&shard) {
            return Ok(Reply::Integer(0));
        }
        self.count(shard, Some(wanted)).await.map(Reply::Integer)
    }

    async fn flush(&self, shard: ShardId) -> Result<(), Reply> {
        let mut next = Some(Bytes::new());
        while let Some(start) = next {
            let range = KeyRange { start, end: None };
            let delete = Action::DeleteRange { range, limit: DELETE_RANGE_KEYS_MAX };
            let OperationResult::DeletedRange { next: rest, .. } = self.ask(shard, delete).await? else {
                return Err(try_again());
            };
            next = rest;
        }
        Ok(())
    }

    /// Has one shard do one thing.
    async fn ask(&self, shard: ShardId, action: Action) -> Result<OperationResult, Reply> {
        // A shard was chosen: whoever leads it now is asked.
        let context = Context { shard: Some(shard), redirect: false, ..self.context(false, Instant::now()) };
        match self.node.execute(context, Command::single(action)).await {
            Ok(Outcome::Done(mut results)) if results.len() == 1 => Ok(results.remove(0)),
            Ok(_) => Err(try_again()),
            Err(error) => Err(self.failure(&error, Slot(0))),
        }
    }
}

fn range_of(pattern: Option<&[u8]>) -> KeyRange {
    KeyRange::of_prefix(Bytes::copy_from_slice(pattern.map_or(&[][..], glob::prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_holds_two_cursors_at_most() {
        let cursors = Cursors::new();
        let mut cursor = 0;
        for step in 0..10_000 {
            cursor = cursors.remember(Bytes::from(step.to_string()), cursor);
            assert!(cursor > 0 && i64::try_from(cursor).is_ok());
            for _ in 0..2 {
                assert_eq!(cursors.find(cursor), Some(step.to_string().into()), "it may be used again");
            }
        }
        assert_eq!(cursors.0.lock().unwrap().cursors.len(), 1);
        assert_eq!(cursors.find(cursor + 1), None);
    }

    #[test]
    fn of_too_many_cursors_the_oldest_are_forgotten() {
        let cursors = Cursors::new();
        let first = cursors.remember("a".into(), 0);
        for _ in 0..CURSORS_MAX {
            cursors.remember("b".into(), 0);
        }
        assert_eq!(cursors.find(first), None);
        assert_eq!(cursors.0.lock().unwrap().cursors.len(), CURSORS_MAX);
    }
}
