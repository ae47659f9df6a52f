//! Groups: commands about keys that a connection has sent together, carried out by one command of the store per shard.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use keevee_core::command::{
    Action, Expect, OnError, Operation, OperationResult, Outcome, Precondition, Versioned,
};
use keevee_core::ids::ShardId;
use keevee_core::slots::{Slot, slot};
use keevee_resp::data::{Answer, Data, command};
use keevee_resp::reply::{Reply, Version};
use keevee_resp::session::{Batch, Queued};

use super::{Resp, crossslot, now, try_again};
use crate::node::ExecuteError;

/// Bytes of keys and values of one group, unless its first command alone has more: an entry of the log has no more.
const BYTES_MAX: usize = 1 << 20;
/// Replies of one group.
const REPLIES_MAX: usize = 4096;
/// Bytes of the reply to one command.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// How many values are read at once. Nobody knows their sizes before, and all of them are in memory together; so it is
/// few at first, and more while they turn out to be small.
pub(super) struct Reads {
    at_once: u16,
}

/// The largest values fit an answer of another node by so many.
const READS_MIN: u16 = 4;
const READS_MAX: u16 = 64;
/// More than this is much.
const READ_BYTES_MUCH: usize = 1 << 20;

impl Default for Reads {
    fn default() -> Reads {
        Reads { at_once: READS_MIN }
    }
}

impl Reads {
    fn at_once(&self) -> usize {
        self.at_once.into()
    }

    fn learn(&mut self, results: &[Results]) {
        // Too large an answer may be why one has failed.
        let all: Result<usize, &Failed> =
            results.iter().map(|results| results.as_ref().map(|results| value_bytes(results))).sum();
        self.at_once = match all.unwrap_or(usize::MAX) {
            much if much > READ_BYTES_MUCH => (self.at_once / 4).max(READS_MIN),
            little if little < READ_BYTES_MUCH / 4 => (self.at_once * 2).min(READS_MAX),
            _ => self.at_once,
        };
    }
}

/// See the module.
pub(super) struct Group<'a> {
    resp: &'a Resp,
    replies: Vec<Slotted>,
    parts: Vec<Part>,
    operations: usize,
    reads: usize,
    bytes: usize,
}

/// What one shard is to do.
struct Part {
    shard: ShardId,
    operations: Vec<Operation>,
    /// What this node has applied will do.
    is_stale: bool,
}

/// The reply to one command, in its place, and what it is encoded for.
enum Slotted {
    /// Known already.
    Known(Reply, Version),
    /// Made of results.
    Made { answer: Answer, place: Place, slot: Slot, version: Version },
}

/// Where the results of one command are.
enum Place {
    /// In one part.
    Run { part: usize, first: usize, count: usize },
    /// In several: of each, the part and where it is in it.
    Spread(Vec<(usize, usize)>),
}

type Results = Result<Vec<OperationResult>, Failed>;

/// Why a part has no results.
enum Failed {
    Execute(ExecuteError),
    /// The shard does not own the keys any more.
    Moved,
}

impl<'a> Group<'a> {
    pub(super) fn new(resp: &'a Resp) -> Group<'a> {
        Group { resp, replies: Vec::new(), parts: Vec::new(), operations: 0, reads: 0, bytes: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.replies.len() >= REPLIES_MAX
    }

    /// True if the command may join those that are here.
    pub(super) fn has_room_for(&self, data: &Data, reads: &Reads) -> bool {
        self.operations == 0
            || self.operations + data.operations.len() <= self.operations_max()
                && self.reads + data.reads() <= reads.at_once()
                && self.bytes + data.bytes() <= BYTES_MAX
    }

    /// True if a group takes the command at all: else it is carried out in parts, or under conditions.
    pub(super) fn takes(&self, data: &Data, reads: &Reads) -> bool {
        let is_small = data.operations.len() <= self.operations_max()
            && data.reads() <= reads.at_once()
            && data.bytes() <= BYTES_MAX;
        !data.if_absent && (!data.spreads || is_small)
    }

    fn operations_max(&self) -> usize {
        self.resp.settings.limits.operations_max
    }

    pub(super) fn push_reply(&mut self, reply: Reply, version: Version) {
        self.replies.push(Slotted::Known(reply, version));
    }

    pub(super) fn push(&mut self, data: Data, is_readonly: bool, version: Version) {
        let directory = self.resp.node.directory();
        let Some(first) = data.keys().next() else {
            return self.push_reply(Reply::error("no keys"), version);
        };
        let (owner, slot) = (directory.owner(first), slot(first));
        let is_together = data.keys().skip(1).all(|key| directory.owner(key) == owner);
        if !is_together && !data.spreads {
            return self.push_reply(crossslot(), version);
        }
        self.reads += data.reads();
        self.bytes += data.bytes();
        self.operations += data.operations.len();
        let (answer, is_stale) = (data.answer, is_readonly && data.is_read());
        let place = if is_together {
            let part = self.part(owner, is_stale);
            let operations = &mut self.parts[part].operations;
            let (first, count) = (operations.len(), data.operations.len());
            operations.extend(data.operations);
            Place::Run { part, first, count }
        } else {
            let mut places = Vec::with_capacity(data.operations.len());
            for operation in data.operations {
                let owner = operation.action.key().map_or(owner, |key| directory.owner(key));
                let part = self.part(owner, is_stale);
                places.push((part, self.parts[part].operations.len()));
                self.parts[part].operations.push(operation);
            }
            Place::Spread(places)
        };
        self.replies.push(Slotted::Made { answer, place, slot, version });
    }

    /// The part of a shard. One that may be read stale may not be joined by what may not.
    fn part(&mut self, shard: ShardId, is_stale: bool) -> usize {
        let known = self.parts.iter().position(|part| part.shard == shard && part.is_stale == is_stale);
        known.unwrap_or_else(|| {
            self.parts.push(Part { shard, operations: Vec::new(), is_stale });
            self.parts.len() - 1
        })
    }

    /// Carries out what was pushed, appends the replies, and is empty again.
    pub(super) async fn carry_out(&mut self, reads: &mut Reads, out: &mut BytesMut) {
        let results = self.resp.parts(std::mem::take(&mut self.parts)).await;
        if self.reads > 0 {
            reads.learn(&results);
        }
        let now = now();
        for slotted in self.replies.drain(..) {
            match slotted {
                Slotted::Known(reply, version) => reply.encode(version, out),
                Slotted::Made { answer, place, slot, version } => {
                    let found = self.resp.found(&place, slot, &results);
                    found.map_or_else(|error| error, |found| answer.reply(&found, now)).encode(version, out);
                }
            }
        }
        (self.operations, self.reads, self.bytes) = (0, 0, 0);
    }
}

fn value_bytes(results: &[OperationResult]) -> usize {
    let bytes = |result: &OperationResult| match result {
        OperationResult::Value(Some(found)) => found.value.len(),
        _ => 0,
    };
    results.iter().map(bytes).sum()
}

impl Resp {
    async fn parts(&self, parts: Vec<Part>) -> Vec<Results> {
        match <[Part; 1]>::try_from(parts) {
            Ok([part]) => vec![self.part(part).await],
            Err(parts) => join_all(parts.into_iter().map(|part| self.part(part))).await,
        }
    }

    async fn part(&self, Part { operations, is_stale, .. }: Part) -> Results {
        match self.node.execute(self.context(is_stale), command(Vec::new(), operations)).await {
            Ok(Outcome::Done(results)) => Ok(results),
            // Without preconditions, request ids and operations that abort, no other outcome is left.
            Ok(_) => Err(Failed::Moved),
            Err(error) => Err(Failed::Execute(error)),
        }
    }

    /// The results of one command.
    fn found<'r>(
        &self,
        place: &Place,
        slot: Slot,
        results: &'r [Results],
    ) -> Result<Cow<'r, [OperationResult]>, Reply> {
        let few = || Reply::error("the store answered too little: upgrade its nodes");
        let of_part = |part: usize| match &results[part] {
            Ok(results) => Ok(results),
            Err(Failed::Moved) => Err(try_again()),
            // Of several places a client can't be sent to all.
            Err(Failed::Execute(error)) if error.hint.is_some() && matches!(place, Place::Spread(_)) => {
                Err(crossslot())
            }
            Err(Failed::Execute(error)) => Err(self.failure(error, slot)),
        };
        match place {
            Place::Run { part, first, count } => {
                of_part(*part)?.get(*first..first + count).map(Cow::Borrowed).ok_or_else(few)
            }
            Place::Spread(places) => {
                let one = |(part, at): &(usize, usize)| of_part(*part)?.get(*at).cloned().ok_or_else(few);
                places.iter().map(one).collect::<Result<Vec<_>, _>>().map(Cow::Owned)
            }
        }
    }

    /// Carries out one command that no group takes: under conditions, or a part after the other.
    pub(super) async fn in_parts(&self, data: Data, reads: &mut Reads, is_readonly: bool) -> Reply {
        if data.if_absent {
            return self.if_absent(data).await;
        }
        let answer = data.answer;
        match self.spread(data, reads, is_readonly).await {
            Ok(results) => answer.reply(&results, now()),
            Err(reply) => reply,
        }
    }

    /// The results of operations that are carried out each by itself, a part after the other.
    async fn spread(
        &self,
        mut data: Data,
        reads: &mut Reads,
        is_readonly: bool,
    ) -> Result<Vec<OperationResult>, Reply> {
        let (mut results, mut bytes) = (Vec::with_capacity(data.operations.len()), 0);
        let keeps_values = data.answer == Answer::Values;
        let mut operations = std::mem::take(&mut data.operations).into_iter().peekable();
        while operations.peek().is_some() {
            let count = if operations.peek().is_some_and(|next| next.action.is_read()) {
                reads.at_once()
            } else {
                self.settings.limits.operations_max
            };
            let operations = operations.by_ref().take(count).collect();
            let found = self.step(Data { operations, ..data }, reads, is_readonly).await?;
            bytes += value_bytes(&found);
            if keeps_values && bytes > REPLY_BYTES_MAX {
                return Err(Reply::error("the values are too large for one reply: ask for fewer keys"));
            }
            results.extend(
                found.into_iter().map(|result| if keeps_values { result } else { without_value(result) }),
            );
        }
        Ok(results)
    }

    async fn step(
        &self,
        data: Data,
        reads: &mut Reads,
        is_readonly: bool,
    ) -> Result<Vec<OperationResult>, Reply> {
        let mut group = Group::new(self);
        group.push(data, is_readonly, Version::Resp2);
        let results = self.parts(group.parts).await;
        reads.learn(&results);
        match group.replies.pop() {
            Some(Slotted::Made { place, slot, .. }) => {
                self.found(&place, slot, &results).map(Cow::into_owned)
            }
            Some(Slotted::Known(reply, _)) => Err(reply),
            None => Ok(Vec::new()),
        }
    }

    async fn if_absent(&self, data: Data) -> Reply {
        let (preconditions, answer) = (data.preconditions(), data.answer);
        match self.together(preconditions, data.operations).await {
            Ok(Some(results)) => answer.reply(&results, now()),
            Ok(None) => Reply::Integer(0),
            Err(reply) => reply,
        }
    }

    /// EXEC
    pub(super) async fn transaction(&self, batch: Batch) -> Reply {
        let preconditions: Vec<Precondition> = batch
            .watched
            .iter()
            .map(|(key, expect)| Precondition { key: key.clone(), expect: *expect })
            .collect();
        let operations = |queued: &Queued| match queued {
            Queued::Data(data) => data.operations.clone(),
            Queued::Reply(_) => Vec::new(),
        };
        let mut operations: Vec<Operation> = batch.queue.iter().flat_map(operations).collect();
        if operations.is_empty() {
            // Whether the watched keys are as they were counts all the same.
            let Some((key, _)) = batch.watched.first() else { return batch.reply(&[], now()) };
            operations
                .push(Operation { action: Action::Get { key: key.clone() }, on_error: OnError::Continue });
        }
        match self.together(preconditions, operations).await {
            Ok(Some(results)) => batch.reply(&results, now()),
            Ok(None) => Reply::NullArray,
            Err(reply) => reply,
        }
    }

    /// Carries out operations as one, in one shard; `None` if a precondition does not hold.
    async fn together(
        &self,
        preconditions: Vec<Precondition>,
        operations: Vec<Operation>,
    ) -> Result<Option<Vec<OperationResult>>, Reply> {
        let command = command(preconditions, operations);
        let directory = self.node.directory();
        let Some(first) = command.keys().next() else { return Ok(Some(Vec::new())) };
        let (owner, slot) = (directory.owner(first), slot(first));
        if command.keys().any(|key| directory.owner(key) != owner) {
            return Err(crossslot());
        }
        match self.node.execute(self.context(false), command).await {
            Ok(Outcome::Done(results)) => Ok(Some(results)),
            Ok(Outcome::Conflict { .. }) => Ok(None),
            Ok(_) => Err(try_again()),
            Err(error) => Err(self.failure(&error, slot)),
        }
    }

    /// What must hold of keys for them to be as they are.
    pub(super) async fn versions(
        &self,
        keys: Vec<Bytes>,
        reads: &mut Reads,
    ) -> Result<Vec<(Bytes, Expect)>, Reply> {
        let mut data = Data::look_up(&keys);
        data.check(&self.settings.limits)?;
        let results = self.spread(data, reads, false).await?;
        let expect = |result: &OperationResult| match result {
            OperationResult::Value(Some(found)) => Expect::Version(found.version),
            _ => Expect::Absent,
        };
        Ok(keys.into_iter().zip(results.iter().map(expect)).collect())
    }
}

/// Of a value only that it is there, and its version.
fn without_value(result: OperationResult) -> OperationResult {
    match result {
        OperationResult::Value(Some(found)) => {
            OperationResult::Value(Some(Versioned { value: Bytes::new(), ..found }))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: usize) -> Results {
        let value = Bytes::from(vec![0; bytes]);
        Ok(vec![OperationResult::Value(Some(Versioned { version: 1, stamp: 1, expires: None, value }))])
    }

    #[test]
    fn many_values_are_read_at_once_only_while_they_are_small() {
        let mut reads = Reads::default();
        for _ in 0..10 {
            reads.learn(&[read(100), read(100)]);
        }
        assert_eq!(reads.at_once(), usize::from(READS_MAX));
        reads.learn(&[read(READ_BYTES_MUCH / 2)]);
        assert_eq!(reads.at_once(), usize::from(READS_MAX));
        reads.learn(&[read(100), read(READ_BYTES_MUCH)]);
        assert_eq!(reads.at_once(), usize::from(READS_MAX / 4));
        reads.learn(&[read(100), Err(Failed::Moved)]);
        assert_eq!(reads.at_once(), usize::from(READS_MIN));
    }
}
