//! Groups: commands about keys that a connection has sent together, carried out by one command of the store per shard.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::join_all;
use keevee_core::apply::{ANSWER_BYTES_MAX_APPLY, VALUE_BYTES_MAX_APPLY};
use keevee_core::command::{
    Action, Command, Expect, OnError, Operation, OperationError, OperationResult, Outcome, Precondition,
    Versioned,
};
use keevee_core::ids::ShardId;
use keevee_core::slots::{Slot, slot};
use keevee_resp::data::{Answer, Data, command, refuse_partly_read};
use keevee_resp::reply::{Reply, Version};
use keevee_resp::session::{Batch, Queued};
use tokio::sync::OwnedSemaphorePermit;

use super::{Resp, acquire, crossslot, moved, now, try_again};
use crate::node::{Context, ExecuteError};

/// Bytes of keys and values of one group, unless its first command alone has more: an entry of the log has no more.
const BYTES_MAX: usize = 1 << 20;
/// Replies of one group.
const REPLIES_MAX: usize = 4096;
/// Bytes of values that a shard may hand over for a group: a connection holds so much without asking for shared room.
const OWN_ANSWER_BYTES: u32 = 256 << 10;
/// Shared room for what a command of the store returns at most, and for the replies made of it.
const ANSWER_ROOM_BYTES: usize = 2 * ANSWER_BYTES_MAX_APPLY;
/// Values that a group reads if it has commands that read and write: nothing of a group happens if one of those can't be
/// answered ([`ANSWER_BYTES_MAX_APPLY`]), and so there is always room for values of a MiB.
const READS_BESIDE_WRITES_MAX: usize = ANSWER_BYTES_MAX_APPLY >> 20;
/// Bytes of the reply to one command.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// See the module.
pub(super) struct Group<'a> {
    resp: &'a Resp,
    replies: Vec<Slotted>,
    parts: Vec<Part>,
    operations: usize,
    bytes: usize,
    reads: usize,
    /// A command is here that reads and writes.
    reads_and_writes: bool,
}

/// What one shard is to do.
struct Part {
    shard: ShardId,
    operations: Vec<Operation>,
    /// What this node has applied will do.
    is_stale: bool,
    /// It has commands that read and write.
    reads_and_writes: bool,
}

/// The reply to one command, in its place, and what it is encoded for.
enum Slotted {
    /// Known already.
    Known(Reply, Version),
    /// Made of results.
    Made { answer: Answer, place: Place, slot: Slot, version: Version, again: Option<Again> },
}

/// Of what only reads: how it is carried out again, if there is no room for what it found beside what others found.
struct Again {
    spreads: bool,
    is_readonly: bool,
}

/// Where the results of one command are.
enum Place {
    /// In one part.
    Run { part: usize, first: usize, count: usize },
    /// In several: of each, the part and where it is in it.
    Spread(Vec<(usize, usize)>),
}

impl Place {
    /// What one command asked for.
    fn operations(&self, done: &[Done]) -> Vec<Operation> {
        match self {
            Place::Run { part, first, count } => done[*part].operations[*first..first + count].to_vec(),
            Place::Spread(places) => {
                places.iter().map(|(part, at)| done[*part].operations[*at].clone()).collect()
            }
        }
    }
}

type Results = Result<Vec<OperationResult>, Failed>;

/// What became of a part.
struct Done {
    operations: Vec<Operation>,
    results: Results,
    /// What the results have.
    _room: Option<Room>,
}

/// Room in memory that all connections share: held until what it is for was written.
pub(super) type Room = OwnedSemaphorePermit;

/// A reply, and the room that it has.
pub(super) struct Answered {
    pub(super) reply: Reply,
    pub(super) room: Option<Room>,
}

impl From<Reply> for Answered {
    fn from(reply: Reply) -> Answered {
        Answered { reply, room: None }
    }
}

/// Why a part has no results.
enum Failed {
    Execute(ExecuteError),
    /// The shard does not own the keys any more.
    Moved,
    /// Nothing happened: what was read does not fit one answer.
    NoRoom,
}

impl<'a> Group<'a> {
    pub(super) fn new(resp: &'a Resp) -> Group<'a> {
        Group {
            resp,
            replies: Vec::new(),
            parts: Vec::new(),
            operations: 0,
            bytes: 0,
            reads: 0,
            reads_and_writes: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.replies.len() >= REPLIES_MAX
    }

    /// True if the command may join those that are here.
    pub(super) fn has_room_for(&self, data: &Data, reads_at_once: usize) -> bool {
        self.operations == 0
            || self.operations + data.operations.len() <= self.operations_max()
                && self.bytes + data.bytes() <= BYTES_MAX
                && self.reads + data.reads() <= reads_at_once
                && (!self.reads_and_writes && !data.reads_and_writes()
                    || self.reads + data.reads() <= READS_BESIDE_WRITES_MAX)
    }

    /// True if a group takes the command at all: else it is carried out in parts, or under conditions.
    pub(super) fn takes(&self, data: &Data) -> bool {
        let is_small = data.operations.len() <= self.operations_max() && data.bytes() <= BYTES_MAX;
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
        let slot = slot(first);
        let owner = directory.owner_of_slot(slot);
        let is_together = data.keys().skip(1).all(|key| directory.owner(key) == owner);
        if !is_together && !data.spreads {
            return self.push_reply(crossslot(), version);
        }
        self.bytes += data.bytes();
        self.operations += data.operations.len();
        self.reads += data.reads();
        self.reads_and_writes |= data.reads_and_writes();
        let is_read = data.is_read();
        let (answer, is_stale) = (data.answer, is_readonly && is_read);
        let again = is_read.then_some(Again { spreads: data.spreads, is_readonly });
        let reads_and_writes = data.reads_and_writes();
        let place = if is_together {
            let part = self.part(owner, is_stale);
            self.parts[part].reads_and_writes |= reads_and_writes;
            let operations = &mut self.parts[part].operations;
            let (first, count) = (operations.len(), data.operations.len());
            // Mostly it is the only command.
            match first {
                0 => *operations = data.operations,
                _ => operations.extend(data.operations),
            }
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
        self.replies.push(Slotted::Made { answer, place, slot, version, again });
    }

    /// The part of a shard. One that may be read stale may not be joined by what may not.
    fn part(&mut self, shard: ShardId, is_stale: bool) -> usize {
        let known = self.parts.iter().position(|part| part.shard == shard && part.is_stale == is_stale);
        known.unwrap_or_else(|| {
            self.parts.push(Part { shard, operations: Vec::new(), is_stale, reads_and_writes: false });
            self.parts.len() - 1
        })
    }

    /// Takes what was pushed out of the group, and carries it out. It was asked for at `asked`.
    pub(super) fn carry_out(&mut self, asked: Instant) -> impl Future<Output = CarriedOut<'a>> + use<'a> {
        let Group { resp, replies, parts, .. } = std::mem::replace(self, Group::new(self.resp));
        async move {
            let done = resp.parts(parts, asked).await;
            CarriedOut { resp, done, replies: replies.into_iter(), has_read_again: false }
        }
    }
}

/// A group that was carried out: gives the reply to each command, one by one, so that not all of them are held at once.
pub(super) struct CarriedOut<'a> {
    resp: &'a Resp,
    replies: std::vec::IntoIter<Slotted>,
    done: Vec<Done>,
    has_read_again: bool,
}

impl CarriedOut<'_> {
    /// The reply to the next command.
    pub(super) async fn next(&mut self) -> Option<(Answered, Version)> {
        let (answer, place, slot, version, again) = match self.replies.next()? {
            Slotted::Known(reply, version) => return Some((reply.into(), version)),
            Slotted::Made { answer, place, slot, version, again } => (answer, place, slot, version, again),
        };
        let found = match self.resp.found(&place, slot, &self.done) {
            Ok(found) => found,
            Err(error) => return Some((error.into(), version)),
        };
        let answered = match again {
            Some(again) if found.iter().any(had_no_room) => {
                self.has_read_again = true;
                let operations = place.operations(&self.done);
                let data = Data { operations, answer, spreads: again.spreads, if_absent: false };
                Box::pin(self.again(data, again.is_readonly)).await
            }
            _ => answer.reply(&found, now).into(),
        };
        Some((answered, version))
    }

    /// Carries out a read by itself for whose result there was no room beside those of others.
    async fn again(&self, data: Data, is_readonly: bool) -> Answered {
        // What came after it may have been written by now.
        let mut writes =
            self.done.iter().flat_map(|done| &done.operations).filter(|one| !one.action.is_read());
        if writes.any(|write| write.action.key().is_some_and(|key| data.keys().any(|read| read == key))) {
            return no_room().into();
        }
        self.resp.in_parts(data, is_readonly).await
    }

    /// True if not all values that were read together had room.
    pub(super) fn has_read_again(&self) -> bool {
        self.has_read_again
    }
}

fn no_room() -> Reply {
    Reply::error(
        "the values read are too large to be answered at once, and nothing happened: send fewer commands together",
    )
}

/// True of a read for which the answer of its shard had no room.
fn had_no_room(result: &OperationResult) -> bool {
    matches!(result, OperationResult::Failed(OperationError::AnswerTooLarge))
}

fn value_bytes(result: &OperationResult) -> usize {
    match result {
        OperationResult::Value(Some(found)) => found.value.len(),
        _ => 0,
    }
}

impl Resp {
    async fn parts(&self, parts: Vec<Part>, asked: Instant) -> Vec<Done> {
        match <[Part; 1]>::try_from(parts) {
            Ok([part]) => vec![self.part(part, asked).await],
            Err(parts) => Box::pin(join_all(parts.into_iter().map(|part| self.part(part, asked)))).await,
        }
    }

    fn part(&self, part: Part, asked: Instant) -> impl Future<Output = Done> {
        let Part { shard, operations, is_stale, reads_and_writes } = part;
        let few = Command { answer_bytes_max: Some(OWN_ANSWER_BYTES), ..command(Vec::new(), operations) };
        async move {
            let results = self.results(shard, self.context(is_stale, asked), &few).await;
            let mut done = Done { operations: few.operations, results, _room: None };
            // Nothing has happened, for want of room.
            if reads_and_writes && matches!(done.results, Err(Failed::NoRoom)) {
                Box::pin(self.with_room(shard, is_stale, &mut done)).await;
            }
            done
        }
    }

    async fn with_room(&self, shard: ShardId, is_stale: bool, done: &mut Done) {
        let Ok(room) = self.room_for(ANSWER_ROOM_BYTES).await else { return };
        let all = command(Vec::new(), std::mem::take(&mut done.operations));
        let results = self.results(shard, self.context(is_stale, Instant::now()), &all).await;
        *done = Done { operations: all.operations, results, _room: Some(room) };
    }

    async fn results(&self, shard: ShardId, context: Context, command: &Command) -> Results {
        self.node.check(command).map_err(Failed::Execute)?;
        match self.node.execute_in(shard, context, command).await {
            Ok(Outcome::Done(results)) => Ok(results),
            Ok(Outcome::Aborted { .. }) => Err(Failed::NoRoom),
            // Without preconditions and request ids, no other outcome is left.
            Ok(_) => Err(Failed::Moved),
            Err(error) => Err(Failed::Execute(error)),
        }
    }

    /// Room for large values. Whoever does not take its replies holds it until it is cut off.
    pub(super) async fn room_for(&self, bytes: usize) -> Result<Room, Reply> {
        acquire(&self.replies_room, bytes.min(self.replies_bytes_max)).await.ok_or_else(|| {
            Reply::Error("OOM too many large values are on their way to clients: try again".to_owned())
        })
    }

    /// The results of one command.
    fn found<'r>(
        &self,
        place: &Place,
        slot: Slot,
        done: &'r [Done],
    ) -> Result<Cow<'r, [OperationResult]>, Reply> {
        let few = || Reply::error("the store answered too little: upgrade its nodes");
        let of_part = |part: usize| match &done[part].results {
            Ok(results) => Ok(results),
            Err(Failed::Moved) => Err(try_again()),
            Err(Failed::NoRoom) => Err(no_room()),
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
    pub(super) async fn in_parts(&self, data: Data, is_readonly: bool) -> Answered {
        if data.if_absent {
            return self.if_absent(data).await.into();
        }
        let answer = data.answer;
        match self.spread(data, is_readonly).await {
            Ok((results, room)) => Answered { reply: answer.reply(&results, now), room },
            Err(reply) => reply.into(),
        }
    }

    /// The results of operations that are carried out each by itself, a part after the other. What there was no room for
    /// is read again with shared room, from one shard after the other.
    async fn spread(
        &self,
        mut data: Data,
        is_readonly: bool,
    ) -> Result<(Vec<OperationResult>, Option<Room>), Reply> {
        let (shows_value, mut bytes, mut room) = (data.answer.shows_value(), 0, None);
        let all = std::mem::take(&mut data.operations);
        let mut results: Vec<Option<OperationResult>> = vec![None; all.len()];
        let owner = |at: &usize| all[*at].action.key().map(|key| self.node.directory().owner(key));
        let mut next = 0;
        while next < all.len() {
            let is_missing = |at: &usize| results[*at].is_none();
            let is_near = |at: &usize| room.is_none() || owner(at) == owner(&next);
            let missing: Vec<usize> = (next..all.len())
                .filter(|at| is_missing(at) && is_near(at))
                .take(self.settings.limits.operations_max)
                .collect();
            let operations = missing.iter().map(|at| all[*at].clone()).collect();
            let answer_bytes_max = if room.is_some() { None } else { Some(OWN_ANSWER_BYTES) };
            let found = self.step(Data { operations, ..data }, is_readonly, answer_bytes_max).await?;
            for (at, result) in missing.into_iter().zip(found).filter(|(_, result)| !had_no_room(result)) {
                bytes += if shows_value { value_bytes(&result) } else { 0 };
                results[at] = Some(if shows_value { result } else { without_value(result) });
            }
            if bytes > REPLY_BYTES_MAX {
                return Err(Reply::error("the values are too large for one reply: ask for fewer keys"));
            }
            // A value of an earlier version, when there were larger ones: it would be so for ever.
            if room.is_some() && results[next].is_none() {
                return Err(no_room());
            }
            next += results[next..].iter().take_while(|result| result.is_some()).count();
            if next < all.len() && room.is_none() {
                let values = if all.len() == 1 { 1 } else { REPLY_BYTES_MAX / VALUE_BYTES_MAX_APPLY };
                room = Some(self.room_for(2 * values * VALUE_BYTES_MAX_APPLY).await?);
            }
        }
        Ok((results.into_iter().flatten().collect(), room))
    }

    async fn step(
        &self,
        data: Data,
        is_readonly: bool,
        answer_bytes_max: Option<u32>,
    ) -> Result<Vec<OperationResult>, Reply> {
        let mut group = Group::new(self);
        group.push(data, is_readonly, Version::Resp2);
        let parts = group.parts.into_iter().map(async |Part { shard, operations, is_stale, .. }| {
            let all = Command { answer_bytes_max, ..command(Vec::new(), operations) };
            let results = self.results(shard, self.context(is_stale, Instant::now()), &all).await;
            Done { operations: all.operations, results, _room: None }
        });
        let done = join_all(parts).await;
        match group.replies.pop() {
            Some(Slotted::Made { place, slot, .. }) => self.found(&place, slot, &done).map(Cow::into_owned),
            Some(Slotted::Known(reply, _)) => Err(reply),
            None => Ok(Vec::new()),
        }
    }

    async fn if_absent(&self, data: Data) -> Reply {
        let (preconditions, answer) = (data.preconditions(), data.answer);
        match self.together(command(preconditions, data.operations)).await {
            Together::Done(results) => answer.reply(&results, now),
            Together::Conflict => Reply::Integer(0),
            Together::NoRoom => no_room(),
            Together::Refused(reply) => reply,
        }
    }

    /// EXEC
    pub(super) async fn transaction(&self, batch: Batch) -> Answered {
        let preconditions = batch
            .watched
            .iter()
            .map(|(key, expect)| Precondition { key: key.clone(), expect: *expect })
            .collect();
        let operations = |queued: &Queued| match queued {
            Queued::Data(data) => data.operations.clone(),
            Queued::Reply(_) => Vec::new(),
        };
        let mut operations: Vec<Operation> = batch.queue.iter().flat_map(operations).collect();
        refuse_partly_read(&mut operations);
        if operations.is_empty() {
            // Whether the watched keys are as they were counts all the same.
            let Some((key, _)) = batch.watched.first() else { return batch.reply(&[], now).into() };
            let action = Action::Get { key: key.clone() };
            operations.push(Operation { action, on_error: OnError::Continue });
        }
        let few = Command { answer_bytes_max: Some(OWN_ANSWER_BYTES), ..command(preconditions, operations) };
        let kept = few.operations.iter().any(|operation| operation.action.is_read()).then(|| few.clone());
        let (mut done, mut room) = (self.together(few).await, None);
        if let (Together::NoRoom, Some(kept)) = (&done, kept) {
            room = match self.room_for(ANSWER_ROOM_BYTES).await {
                Ok(room) => Some(room),
                Err(reply) => return reply.into(),
            };
            done = self.together(Command { answer_bytes_max: None, ..kept }).await;
        }
        let reply = match done {
            Together::Done(results) => batch.reply(&results, now),
            Together::Conflict => Reply::NullArray,
            Together::NoRoom => no_room(),
            Together::Refused(reply) => reply,
        };
        Answered { reply, room }
    }

    /// Carries out a command in one shard.
    async fn together(&self, command: Command) -> Together {
        let directory = self.node.directory();
        let Some(first) = command.keys().next() else { return Together::Done(Vec::new()) };
        let (owner, slot) = (directory.owner(first), slot(first));
        if command.keys().any(|key| directory.owner(key) != owner) {
            return Together::Refused(crossslot());
        }
        match self.node.execute(self.context(false, Instant::now()), command).await {
            Ok(Outcome::Done(results)) => Together::Done(results),
            Ok(Outcome::Conflict { .. }) => Together::Conflict,
            Ok(Outcome::Aborted { .. }) => Together::NoRoom,
            Ok(_) => Together::Refused(try_again()),
            Err(error) => Together::Refused(self.failure(&error, slot)),
        }
    }

    /// Why a command can't be part of a transaction, as far as that can be told before.
    pub(super) fn not_here(&self, data: &Data) -> Option<Reply> {
        let directory = self.node.directory();
        let first = data.keys().next()?;
        let (owner, slot) = (directory.owner(first), slot(first));
        if data.keys().any(|key| directory.owner(key) != owner) {
            return Some(crossslot());
        }
        let leader =
            directory.leader(owner).filter(|leader| self.redirects() && *leader != self.node.id())?;
        self.address(leader).map(|address| moved(slot, &address))
    }

    /// What must hold of keys for them to be as they are.
    pub(super) async fn versions(&self, keys: Vec<Bytes>) -> Result<Vec<(Bytes, Expect)>, Reply> {
        let mut data = Data::look_up(&keys);
        data.check(&self.settings.limits)?;
        let (results, _) = self.spread(data, false).await?;
        let expect = |result: &OperationResult| match result {
            OperationResult::Value(Some(found)) => Expect::Version(found.version),
            _ => Expect::Absent,
        };
        Ok(keys.into_iter().zip(results.iter().map(expect)).collect())
    }
}

/// What became of operations that are carried out as one.
enum Together {
    Done(Vec<OperationResult>),
    /// A precondition does not hold.
    Conflict,
    /// Nothing happened: what was read does not fit one answer.
    NoRoom,
    /// Nothing happened, or nobody knows.
    Refused(Reply),
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
