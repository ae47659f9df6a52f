//! Acknowledged writes survive: what a client was told is done, every replica holds from the moment it has applied it
//! on, through all its lives. At each start of a replica and in the end its values and its memory of request ids are
//! held against what the log has made of them up to the index that it says it has applied.
//!
//! etcd#14370 and nats-server#7564 acknowledged before the fsync, and a crash took the writes back; etcd#13766 kept
//! the applied index and lost what was applied.

use std::collections::BTreeMap;

use bytes::Bytes;
use keevee_core::apply::ShardMeta;
use keevee_core::command::Versioned;
use keevee_core::ids::Namespace;
use keevee_core::requests::RequestId;

use super::Broken;
use crate::history::{Answer, History, Request};
use crate::world::Written;

type Key = (Namespace, Bytes);

#[derive(Default)]
pub(crate) struct Acknowledged {
    /// Of each key: what it held from an index on, until the next one.
    values: BTreeMap<Key, Vec<(u64, Option<Versioned>)>>,
    /// Where each request was executed.
    executed: BTreeMap<RequestId, u64>,
    /// The last entry that some replica applied.
    last: u64,
}

/// What a replica holds.
pub(crate) struct Held {
    pub(crate) meta: ShardMeta,
    pub(crate) values: BTreeMap<Key, Versioned>,
    /// In order.
    pub(crate) request_ids: Vec<RequestId>,
}

impl Acknowledged {
    pub(crate) const NAME: &str = "acknowledged writes survive";

    /// A client is told that its write is done: then some replica has applied it.
    pub(crate) fn answered(request: &Request) -> Result<(), Broken> {
        if request.is_read() || request.effect.is_some() {
            return Ok(());
        }
        Err(format!("request {} was acknowledged, and no replica has applied it", request.number))
    }

    /// A replica has applied an entry. What the first one made of it counts: that all make the same of it is
    /// another rule.
    pub(crate) fn applied(&mut self, written: &Written) {
        if written.index < self.last {
            return;
        }
        self.last = written.index;
        for (key, value) in &written.values {
            let history = self.values.entry(key.clone()).or_default();
            if history.last().is_none_or(|(index, _)| *index < written.index) {
                history.push((written.index, value.clone()));
            }
        }
        for id in &written.executed {
            self.executed.entry(*id).or_insert(written.index);
        }
    }

    /// A replica starts with this, or ends with it. `placed` tells the requests of an entry.
    pub(crate) fn found(
        &self,
        node: u64,
        held: &Held,
        history: &History,
        placed: &BTreeMap<u64, Vec<u64>>,
    ) -> Result<(), Broken> {
        let applied = held.meta.applied;
        for (key, values) in &self.values {
            let known = values.partition_point(|(index, _)| *index <= applied);
            let Some((index, value)) = known.checked_sub(1).map(|last| &values[last]) else { continue };
            if held.values.get(key) == value.as_ref() {
                continue;
            }
            let writers = placed.get(index).into_iter().flatten().map(|number| history.get(*number));
            let mut acknowledged = writers.filter(|request| is_done(request) && request.names(&key.1));
            if let Some(request) = acknowledged.next() {
                let (number, key) = (request.number, String::from_utf8_lossy(&key.1));
                return Err(format!(
                    "node {node} has applied everything up to {applied}, and has lost what acknowledged request \
                     {number} made of {key} at index {index}"
                ));
            }
        }
        let mut ids = held.request_ids.iter().peekable();
        for (id, index) in &self.executed {
            while ids.next_if(|held| *held < id).is_some() {}
            if *index > applied || ids.peek() == Some(&id) || !id.is_in_window(&held.meta) {
                continue;
            }
            let request = history.first_with_id(*id).map(|number| history.get(number));
            if let Some(request) = request.filter(|request| is_done(request)) {
                let number = request.number;
                return Err(format!(
                    "node {node} has applied everything up to {applied}, and has forgotten acknowledged request \
                     {number} of index {index}"
                ));
            }
        }
        Ok(())
    }

    /// All replicas of a shard have applied everything up to an index: all that was acknowledged of its requests is
    /// below it.
    pub(crate) fn at_the_end<'a>(
        requests: impl Iterator<Item = &'a Request>,
        applied: u64,
    ) -> Result<(), Broken> {
        for request in requests.filter(|request| !request.is_read() && is_done(request)) {
            let survives = request.effect.is_some_and(|(index, _)| index <= applied);
            if !survives {
                let number = request.number;
                return Err(format!("request {number} was acknowledged, and is not in the final log"));
            }
        }
        Ok(())
    }
}

fn is_done(request: &Request) -> bool {
    matches!(request.answer, Some((_, Answer::Done(_))))
}
