//! Clients: each sends one request at a time, through any node, and what was not answered again if it may.
//!
//! Every key is of one kind (a register, a counter, a list), and every value names the request that wrote it, so
//! that a history tells what happened. Some requests name two keys at once.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use keevee_core::command::{
    Action, Command, Expect, Expiry, ExpiryOnly, OnError, Only, Operation, OperationResult, Outcome,
    Precondition,
};
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use keevee_core::requests::RequestId;
use keevee_core::shard_map::ShardMap;
use keevee_replica::{Attempt, Attempts, Refusal};

use super::clock::EPOCH_MICROS;
use super::damage::stand_in;
use super::ingress::{Owner, PATIENCE, Receipt, Submission, Told};
use super::{Event, World};
use crate::coverage::Counter;
use crate::history::{Answer, Request};
use crate::oracles::{Acknowledged, Early, Honesty};
use crate::plan::{ClientPlan, MILLISECOND, Plan, SECOND};
use crate::random::Random;

/// Clients from here on are the world's own: they come after the faults, for each shard and node. Also how many numbers
/// each shard has for them.
const VISITORS: u64 = 1_000;
/// A list as long as this is deleted.
const LIST_BYTES_MAX: u64 = 200;
/// So many of a hundred requests name two keys. They have no preconditions, and no part of them can fail.
const SEVERAL_PERCENT: u64 = 15;

pub(crate) struct Client {
    plan: ClientPlan,
    node: u64,
    current: Option<Current>,
    is_stopped: bool,
    /// What it last saw of each key: its version, or that it was absent.
    versions: BTreeMap<Bytes, Option<u64>>,
    list_bytes: BTreeMap<Bytes, u64>,
    /// Ids whose requests were answered, and the shard that remembers them.
    used_ids: Vec<(ShardId, RequestId)>,
    visits_left: u64,
    visits_failed: Vec<String>,
}

struct Current {
    request: u64,
    attempt: u64,
    sent_at: u64,
    attempts: Attempts,
    retries_left: u64,
}

/// What a client is about to ask.
struct Wish {
    command: Command,
    reuses_id: bool,
}

impl Client {
    pub(crate) fn new(plan: ClientPlan) -> Client {
        Client {
            plan,
            node: 0,
            current: None,
            is_stopped: false,
            versions: BTreeMap::new(),
            list_bytes: BTreeMap::new(),
            used_ids: Vec::new(),
            visits_left: 0,
            visits_failed: Vec::new(),
        }
    }

    /// What it asks next, of one of so many keys, or of two of one shard at once.
    fn wish(&self, plan: &Plan, map: &ShardMap, number: u64, now: u64, random: &mut Random) -> Wish {
        let keys = plan.keys;
        let key = random.below(keys);
        let name = key_name(key);
        let shard = map.owner(&name);
        let names_two = random.percent(SEVERAL_PERCENT);
        let first = random.between(1, keys - 1);
        let mut others = (first..first + keys).map(|step| (key + step) % keys);
        let other = others.find(|other| *other != key && map.owner(&key_name(*other)) == shard);
        let other = other.filter(|_| names_two);
        if random.percent(self.plan.reads_percent) {
            let mut command = Command::single(Action::Get { key: name });
            command.operations.extend(other.map(|other| operation(Action::Get { key: key_name(other) })));
            return Wish { command, reuses_id: false };
        }
        let mut command = match (other, key % 3) {
            (Some(other), _) => Command {
                operations: [key, other].map(|key| operation(plain(key, number))).to_vec(),
                ..Command::single(plain(key, number))
            },
            (None, 0) => self.register(name, number, random),
            (None, 1) => counter(name, random),
            (None, _) => self.list(name, number, random),
        };
        if plan.expiry && key.is_multiple_of(3) && other.is_none() {
            let_expire(&mut command, random);
        }
        let has_tag = command
            .operations
            .iter()
            .any(|operation| matches!(operation.action, Action::Put { .. } | Action::Append { .. }));
        // Without an id a request is known by what it writes.
        let mut reuses_id = false;
        if !has_tag || random.percent(self.plan.ids_percent) {
            command.request_id = Some(self.id(now, random));
            // Other shards do not know of it.
            let mut used = self.used_ids.iter().filter(|(remembers, _)| *remembers == shard).peekable();
            if has_tag && used.peek().is_some() && random.percent(2) {
                let used: Vec<RequestId> = used.map(|(_, id)| *id).collect();
                command.request_id = Some(random.pick(&used));
                reuses_id = true;
            }
        }
        Wish { command, reuses_id }
    }

    fn register(&self, name: Bytes, number: u64, random: &mut Random) -> Command {
        let put = |suffix: &str| Action::put(name.clone(), format!("{number}{suffix}"));
        let mut command = Command::single(put(""));
        match random.below(10) {
            0 => command = Command::single(Action::Delete { key: name }),
            1 => command.preconditions.push(Precondition { key: name, expect: Expect::Absent }),
            2 => command.preconditions.push(Precondition { key: name, expect: Expect::Present }),
            3 | 4 => {
                let expect = match self.versions.get(&name) {
                    Some(Some(version)) => Expect::Version(*version),
                    _ => Expect::Absent,
                };
                command.preconditions.push(Precondition { key: name, expect });
            }
            5 => {
                let actions = [put(".1"), Action::Get { key: name.clone() }, put(".2")];
                command.operations = actions.map(operation).to_vec();
            }
            _ => {}
        }
        command
    }

    fn list(&self, name: Bytes, number: u64, random: &mut Random) -> Command {
        let full = self.list_bytes.get(&name).is_some_and(|bytes| *bytes > LIST_BYTES_MAX);
        if full || random.percent(4) {
            return Command::single(Action::Delete { key: name });
        }
        Command::single(Action::Append { key: name, suffix: format!("{number},").into() })
    }

    /// A UUIDv7 (RFC 9562, section 5.7) by the client's clock. Some clocks are wrong.
    fn id(&self, now: u64, random: &mut Random) -> RequestId {
        let offset = match random.below(50) {
            0 => -(660 * SECOND as i64),
            1 => 300 * SECOND as i64,
            2 => 55 * SECOND as i64,
            _ => self.plan.clock_offset,
        };
        let issued_at = (EPOCH_MICROS + now).saturating_add_signed(offset) / MILLISECOND;
        let high = u128::from(issued_at) << 80 | 7 << 76 | u128::from(random.below(1 << 12)) << 64;
        RequestId::Timed(high | 1 << 63 | u128::from(random.below(1 << 62)))
    }

    /// Notes what an answer says of the keys of a command.
    fn learn(&mut self, command: &Command, outcome: &Outcome) {
        let Outcome::Done(results) = outcome else { return };
        for (operation, result) in command.operations.iter().zip(results) {
            let Some(key) = operation.action.key().cloned() else { continue };
            match result {
                OperationResult::Value(value) => {
                    self.versions.insert(key.clone(), value.as_ref().map(|value| value.version));
                    let bytes = value.as_ref().map_or(0, |value| value.value.len() as u64);
                    self.list_bytes.insert(key, bytes);
                }
                OperationResult::Written { version } | OperationResult::Incremented { version, .. } => {
                    self.versions.insert(key, Some(*version));
                }
                OperationResult::Appended { version, length } => {
                    self.versions.insert(key.clone(), Some(*version));
                    self.list_bytes.insert(key, *length);
                }
                OperationResult::Deleted { .. } => {
                    self.versions.insert(key.clone(), None);
                    self.list_bytes.insert(key, 0);
                }
                OperationResult::Failed(_)
                | OperationResult::Skipped
                | OperationResult::RemovedExpired { .. }
                | OperationResult::Scanned { .. }
                | OperationResult::DeletedRange { .. } => {}
            }
        }
    }
}

fn operation(action: Action) -> Operation {
    Operation { action, on_error: OnError::Abort }
}

/// A write that can't fail, whatever the key holds.
fn plain(key: u64, number: u64) -> Action {
    let name = key_name(key);
    match key % 3 {
        0 => Action::put(name, number.to_string()),
        1 => Action::Increment { key: name, by: 1 },
        _ => Action::Append { key: name, suffix: format!("{number},").into() },
    }
}

/// Lets a register expire that a command sets, or says anew when it does. Without preconditions: which of them hold is
/// not known where the outcome is not, and with expiry there would be too many ways.
fn let_expire(command: &mut Command, random: &mut Random) {
    command.preconditions.clear();
    let span = |random: &mut Random| Expiry::After(random.between(50, 6_000) * MILLISECOND);
    let key = command.keys().next().cloned();
    if random.percent(10)
        && let Some(key) = key
    {
        let expires = span(random);
        let action = Action::SetExpiry { key, expires, only: ExpiryOnly::Always };
        command.operations = vec![operation(action)];
        return;
    }
    for operation in &mut command.operations {
        if let Action::Put { expires, only, .. } = &mut operation.action {
            *expires =
                if random.percent(70) { span(random) } else { random.pick(&[Expiry::Never, Expiry::Keep]) };
            *only = random.pick(&[Only::Always, Only::Always, Only::IfAbsent, Only::IfPresent]);
        }
    }
}

fn counter(name: Bytes, random: &mut Random) -> Command {
    let add = |by: u64| Action::Increment { key: name.clone(), by: by as i64 };
    let mut command = Command::single(add(random.between(1, 3)));
    match random.below(10) {
        0 => command = Command::single(Action::Delete { key: name }),
        1 => command.operations = [add(1), add(2)].map(operation).to_vec(),
        _ => {}
    }
    command
}

fn key_name(key: u64) -> Bytes {
    let kind = ["register", "counter", "list"][key as usize % 3];
    format!("{kind}-{key}").into()
}

/// A command in a few words: on which conditions it does what.
fn describe(command: &Command) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let condition = |one: &Precondition| match one.expect {
        Expect::Absent => format!("if {} is absent", text(&one.key)),
        Expect::Present => format!("if {} is present", text(&one.key)),
        Expect::Version(version) => format!("if {} has version {version}", text(&one.key)),
    };
    let action = |operation: &Operation| match &operation.action {
        Action::Get { key } => format!("get {}", text(key)),
        Action::Put { key, value, .. } => format!("put {} = {}", text(key), text(value)),
        Action::Delete { key } => format!("delete {}", text(key)),
        Action::Increment { key, by } => format!("add {by} to {}", text(key)),
        Action::Append { key, suffix } => format!("append {} to {}", text(suffix), text(key)),
        Action::Scan { range, .. } | Action::DeleteRange { range, .. } => format!("range {range:?}"),
        other => format!("{other:?}"),
    };
    let parts = command.preconditions.iter().map(condition).chain(command.operations.iter().map(action));
    let id = command.request_id.map(|id| match id {
        RequestId::Timed(bits) | RequestId::Free(bits) => format!("id ..{:06x}", bits & 0xff_ffff),
    });
    parts.chain(id).collect::<Vec<_>>().join(", ")
}

impl World {
    pub(crate) fn client_turn(&mut self, number: u64) {
        let now = self.now;
        let map = Rc::clone(&self.groups.map);
        let Some(client) = self.clients.get_mut(&number) else { return };
        if client.is_stopped || client.current.is_some() {
            return;
        }
        let request = self.history.next_number();
        let Wish { command, reuses_id } = client.wish(&self.plan, &map, request, now, &mut self.random);
        let attempts = Attempts::new(command.request_id.is_some());
        let retries_left = client.plan.retries;
        client.current = Some(Current { request, attempt: 0, sent_at: now, attempts, retries_left });
        if !client.plan.faithful || client.node == 0 {
            let node = self.random.between(1, self.plan.nodes);
            client.node = stand_in(&self.nodes, node);
        }
        self.trace.note(now, || format!("client {number}: request {request} asks {}", describe(&command)));
        if let [one, other, ..] = &command.operations[..]
            && one.action.key() != other.action.key()
        {
            self.coverage.note(if command.is_read_only() {
                Counter::ReadsOfTwo
            } else {
                Counter::WritesOfTwo
            });
        }
        self.history.begin(now, number, command, reuses_id);
        self.send_request(number);
    }

    fn send_request(&mut self, number: u64) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&number) else { return };
        let Some(current) = &mut client.current else { return };
        current.attempt += 1;
        current.sent_at = now;
        let (request, attempt, to) = (current.request, current.attempt, client.node);
        let command = self.history.get(request).command.clone();
        self.after(PATIENCE, Event::ClientPatience { client: number, request, attempt });
        self.send_to_node(to, Submission { client: number, request, attempt, command });
    }

    pub(crate) fn client_patience(&mut self, number: u64, request: u64, attempt: u64) {
        let client = &self.clients[&number];
        let waits = |current: &Current| current.request == request && current.attempt == attempt;
        if client.current.as_ref().is_some_and(waits) {
            self.client_attempted(number, Attempt::Unknown("no answer".to_owned()), false);
        }
    }

    pub(crate) fn receipt(&mut self, number: u64, receipt: Receipt) {
        let Receipt { request, attempt, told } = receipt;
        let client = &self.clients[&number];
        let waits = |current: &Current| current.request == request && current.attempt == attempt;
        if !client.current.as_ref().is_some_and(waits) {
            return;
        }
        let attempt = match told {
            // The node knows better now: see `World::refresh_map`.
            Told::Outcome(Outcome::WrongShard) => {
                return self.client_attempted(number, Attempt::Retry("its map is old".to_owned()), true);
            }
            Told::Outcome(outcome) => Attempt::Outcome(outcome),
            Told::Error(kind) => Attempt::forwarded(Err((kind, String::new()))),
            Told::NotReached => Attempt::Retry("nobody listens there".to_owned()),
            Told::HungUp => Attempt::Unknown("the connection broke".to_owned()),
        };
        self.client_attempted(number, attempt, false);
    }

    /// What one sending of a request came to: an answer, or another attempt, mostly elsewhere.
    fn client_attempted(&mut self, number: u64, attempt: Attempt, stays: bool) {
        let nodes = self.plan.nodes;
        let Some(client) = self.clients.get_mut(&number) else { return };
        let Some(current) = &mut client.current else { return };
        let result = match current.attempts.after(attempt) {
            Some(result) => result,
            None if current.retries_left == 0 => Err(current.attempts.give_up()),
            None => {
                current.retries_left -= 1;
                if !stays {
                    client.node = stand_in(&self.nodes, self.random.between(1, nodes));
                }
                self.coverage.note(Counter::ClientRetries);
                return self.send_request(number);
            }
        };
        let refused = |kind| Answer::Refused(kind);
        let answer = match result {
            Ok(Outcome::RequestExpired) => refused(ErrorKind::RequestExpired),
            Ok(Outcome::RequestReused) => refused(ErrorKind::RequestReused),
            Ok(Outcome::RequestMemoryFull) => refused(ErrorKind::Unavailable),
            Ok(outcome) => Answer::Done(outcome),
            Err((ErrorKind::OutcomeUnknown, _)) => Answer::Unknown,
            Err((kind, _)) => refused(kind),
        };
        self.finish_request(number, answer);
    }

    /// What a client found absent was so, or had expired.
    fn check_absences(&mut self, request: &Request, answer: &Answer) {
        if !self.plan.expiry {
            return;
        }
        let Answer::Done(Outcome::Done(results)) = answer else { return };
        let latest = self.note_clocks();
        for (operation, result) in request.command.operations.iter().zip(results) {
            if matches!(operation.action, Action::SetExpiry { .. }) {
                self.coverage.note(Counter::Expiring);
            }
            let (Action::Get { key }, OperationResult::Value(None)) = (&operation.action, result) else {
                continue;
            };
            if request.is_read() {
                let oracle = &self.groups[self.groups.map.owner(key)].oracles.early;
                let found = oracle.found_nothing(key, request.called, latest);
                self.coverage.add(Counter::FoundExpired, u64::from(oracle.has_expired(key)));
                self.hold(Early::NAME, found);
            }
        }
    }

    fn finish_request(&mut self, number: u64, answer: Answer) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&number) else { return };
        let Some(current) = client.current.take() else { return };
        let request = self.history.get_mut(current.request);
        if let Answer::Done(outcome) = &answer {
            client.learn(&request.command, outcome);
        } else {
            client.node = 0;
        }
        request.answer = Some((now, answer.clone()));
        if let (Some(id), Answer::Done(_), Some(key)) =
            (request.command.request_id, &answer, request.command.keys().next())
        {
            client.used_ids.push((self.groups.map.owner(key), id));
        }
        if number >= VISITORS {
            client.visits_left -= 1;
            if !matches!(answer, Answer::Done(_)) {
                client.visits_failed.push(format!("{:?} was answered {answer:?}", request.command));
            }
        }
        let turn = self.random.between(client.plan.think_micros / 4, 2 * client.plan.think_micros);
        let request = request.clone();
        self.trace.fold_text(&format!("{answer:?}"));
        self.trace.note(now, || format!("client {number}: request {} {answer:?}", request.number));
        self.count_answer(&request, &answer, current.sent_at);
        self.check_absences(&request, &answer);
        if let Answer::Done(_) = answer {
            let applied = Acknowledged::answered(&request);
            self.hold(Acknowledged::NAME, applied);
        }
        let honest = Honesty::answered(&request, &answer);
        self.hold(Honesty::NAME, honest);
        self.after(turn, Event::ClientTurn { client: number });
    }

    fn count_answer(&mut self, request: &Request, answer: &Answer, sent_at: u64) {
        let counter = match answer {
            Answer::Done(Outcome::Conflict { .. }) => Counter::Conflicts,
            Answer::Done(_) if !request.is_read() && request.effect.is_some_and(|(_, at)| at < sent_at) => {
                Counter::Remembered
            }
            Answer::Refused(ErrorKind::RequestExpired) => Counter::Expired,
            Answer::Refused(ErrorKind::RequestReused) => Counter::Reused,
            Answer::Refused(_) => Counter::Refusals,
            Answer::Unknown => Counter::Unknown,
            Answer::Done(_) => return,
        };
        self.coverage.note(counter);
    }

    pub(crate) fn count_unknown(&mut self) {
        let unknown = |request: &&Request| matches!(request.answer, None | Some((_, Answer::Unknown)));
        let effects = self.history.iter().filter(unknown).filter(|request| request.effect.is_some());
        let effects = effects.count() as u64;
        self.coverage.add(Counter::UnknownEffects, effects);
    }

    /// What clients have under way is finished; nothing new is begun.
    pub(crate) fn stop_clients(&mut self) {
        self.clients.values_mut().for_each(|client| client.is_stopped = true);
    }

    /// A client that did nothing so far writes and reads a key of a shard through a node, once each. It comes again if
    /// the node's map is an old one, and is told so.
    pub(crate) fn visit(&mut self, shard: ShardId, node: u64) {
        let has_old_map = self.nodes[&node].map.epoch < self.groups.map.epoch;
        let key = self.groups[shard].visited_key.clone();
        for (place, reads_percent) in [(0, 0), (1, 100)] {
            let number = VISITORS * u64::from(shard.0) + 2 * node + place;
            let plan = ClientPlan {
                number,
                think_micros: SECOND,
                reads_percent,
                ids_percent: 100,
                retries: 0,
                clock_offset: 0,
                faithful: true,
            };
            let client = Client { node, is_stopped: true, visits_left: 1, ..Client::new(plan) };
            let now = self.now;
            let request = self.history.next_number();
            let action = match reads_percent {
                0 => Action::put(key.clone(), request.to_string()),
                _ => Action::Get { key: key.clone() },
            };
            let command = Command::single(action);
            let attempts = Attempts::new(false);
            let retries_left = u64::from(has_old_map);
            let current = Current { request, attempt: 0, sent_at: now, attempts, retries_left };
            self.clients.insert(number, Client { current: Some(current), ..client });
            self.trace
                .note(now, || format!("client {number}: request {request} asks {}", describe(&command)));
            self.history.begin(now, number, command, false);
            self.send_request(number);
        }
    }

    /// True once every visitor was answered as it should be.
    pub(crate) fn visitors_are_served(&self) -> bool {
        let visitors = self.clients.range(VISITORS..);
        visitors.clone().all(|(_, client)| client.visits_left == 0 && client.visits_failed.is_empty())
    }

    pub(crate) fn describe_visitors(&self) -> String {
        let failures = self.clients.range(VISITORS..).flat_map(|(number, client)| {
            let (shard, node) = (number / VISITORS, number % VISITORS / 2);
            let open = client.current.as_ref().map(|current| format!("request {} open", current.request));
            client
                .visits_failed
                .iter()
                .cloned()
                .chain(open)
                .map(move |what| format!("shard {shard}, node {node}: {what}"))
        });
        format!("after healing, {}", failures.collect::<Vec<_>>().join("; "))
    }

    /// Writes at a leader, for the oracle of progress. The write is a request as any other is.
    pub(crate) fn write_at(&mut self, shard: ShardId, leader: u64, number: u64) {
        let now = self.nodes[&leader].clock.read(self.now).monotonic;
        let request = self.history.next_number();
        let action = Action::put(self.groups[shard].progress_key.clone(), request.to_string());
        let command = Command::single(action);
        self.history.begin(self.now, 0, command.clone(), false);
        let owner = Owner::Demand { shard, number, request };
        self.submit(leader, shard, owner, command, now + Duration::from_secs(10));
        self.settle(leader);
    }

    /// What became of such a write; `None` if nobody knows.
    pub(crate) fn demand_answered(
        &mut self,
        shard: ShardId,
        number: u64,
        request: u64,
        result: Option<Result<Outcome, Refusal>>,
    ) {
        let answer = match result {
            None | Some(Err(Refusal::OutcomeUnknown(_))) => Answer::Unknown,
            Some(Ok(outcome)) => Answer::Done(outcome),
            Some(Err(refusal)) => Answer::Refused(refusal.kind()),
        };
        self.groups[shard].oracles.liveness.written(self.now, number, matches!(answer, Answer::Done(_)));
        let request = self.history.get_mut(request);
        request.answer = Some((self.now, answer));
        if let Some((_, Answer::Done(_))) = request.answer {
            let applied = Acknowledged::answered(request);
            self.hold(Acknowledged::NAME, applied);
        }
    }
}
