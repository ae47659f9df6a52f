//! A store of one shard in memory, by the core's own `apply`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use keevee_core::apply::{self, Entry, ProposalId, ShardMeta, StateView, Take, TakeExpiry};
use keevee_core::command::{Command, Outcome, Versioned};
use keevee_core::error::ErrorKind;
use keevee_core::ids::{Namespace, ShardId};
use keevee_core::range::KeyRange;
use keevee_core::requests::RequestMemory;
use keevee_core::shard_map::ShardMap;
use keevee_core::shard_map::change::ChangeError;
use keevee_core::shard_map::view::CarpView;
use keevee_core::slots::SlotSet;
use tokio::sync::Notify;

use crate::cut::{CutBody, CutFailure};
use crate::http::Store;
use crate::map_keeper::MapError;
use crate::node::{Context, ExecuteError, Explained, NodeStatus, PeerStatus};

/// The epoch of its shard map.
pub(super) const EPOCH: u64 = 3;

/// It can be told what to answer next and whom to keep waiting, and remembers what it was asked.
#[derive(Clone, Default)]
pub(super) struct CoreStore(Arc<Mutex<State>>, Arc<Notify>);

struct State {
    values: Values,
    meta: ShardMeta,
    memory: RequestMemory,
    answers: VecDeque<Result<Outcome, ExecuteError>>,
    asked: Vec<(Context, Command)>,
    held: BTreeSet<Bytes>,
    waiting: usize,
    is_ready: bool,
}

#[derive(Default)]
struct Values(BTreeMap<(Namespace, Bytes), Versioned>);

impl StateView for Values {
    type Error = Infallible;

    fn get(&self, namespace: Namespace, key: &[u8]) -> Result<Option<Versioned>, Infallible> {
        Ok(self.0.get(&(namespace, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(&self, namespace: Namespace, range: &KeyRange, take: &mut Take<'_>) -> Result<(), Infallible> {
        let mut found = self.0.range(range.bounds(namespace));
        let _ = found.try_for_each(|((_, key), value)| take(key.clone(), value.clone()));
        Ok(())
    }

    fn expiries(&self, latest: u64, take: &mut TakeExpiry<'_>) -> Result<(), Infallible> {
        let mut due: Vec<_> =
            self.0.iter().filter_map(|(place, value)| Some((value.expires?, place.clone()))).collect();
        due.sort_unstable();
        let mut due = due.into_iter().take_while(|(expires, _)| *expires <= latest);
        let _ = due.try_for_each(|(expires, place)| take(expires, place));
        Ok(())
    }
}

impl Default for State {
    fn default() -> State {
        State {
            values: Values::default(),
            meta: ShardMeta::new(SlotSet::all()),
            memory: RequestMemory::new(1000),
            answers: VecDeque::new(),
            asked: Vec::new(),
            held: BTreeSet::new(),
            waiting: 0,
            is_ready: true,
        }
    }
}

impl State {
    fn apply(&mut self, command: Command) -> Outcome {
        if command.is_read_only() {
            let Ok(outcome) = apply::read(&self.values, &self.meta, &command);
            return outcome;
        }
        let stamp = 1_700_000_000_000_000;
        let entry = Entry { stamp, proposal: ProposalId::default(), commands: vec![command] };
        let index = self.meta.applied + 1;
        let Ok(mut applied) = apply::apply(&self.values, &self.meta, &mut self.memory, index, &entry);
        for (key, value) in applied.write_set.values {
            match value {
                Some(value) => self.values.0.insert(key, value),
                None => self.values.0.remove(&key),
            };
        }
        self.meta = applied.write_set.meta;
        applied.outcomes.remove(0)
    }
}

impl CoreStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn answer_next(&self, answer: Result<Outcome, ExecuteError>) {
        self.state().answers.push_back(answer);
    }

    pub(super) fn asked(&self) -> Vec<(Context, Command)> {
        std::mem::take(&mut self.state().asked)
    }

    pub(super) fn asked_count(&self) -> usize {
        self.state().asked.len()
    }

    /// Commands on this key wait until it is released.
    pub(super) fn hold(&self, key: &'static str) {
        self.state().held.insert(key.into());
    }

    pub(super) fn release(&self, key: &'static str) {
        self.state().held.remove(key.as_bytes());
        self.1.notify_waiters();
    }

    /// How many commands are held.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting
    }

    pub(super) fn set_ready(&self, is_ready: bool) {
        self.state().is_ready = is_ready;
    }
}

impl Store for CoreStore {
    async fn execute(&self, context: Context, command: Command) -> Result<Outcome, ExecuteError> {
        let is_held = |state: &State| command.keys().any(|key| state.held.contains(key));
        if is_held(&self.state()) {
            self.state().waiting += 1;
            loop {
                let released = self.1.notified();
                if !is_held(&self.state()) {
                    break;
                }
                released.await;
            }
            self.state().waiting -= 1;
        }
        let mut state = self.state();
        state.asked.push((context, command.clone()));
        match state.answers.pop_front() {
            Some(answer) => answer,
            None => Ok(state.apply(command)),
        }
    }

    async fn catch_up(&self, _: u64, _: std::time::Instant) {}

    fn epoch(&self) -> u64 {
        EPOCH
    }

    fn shards_with_keys(&self) -> Vec<ShardId> {
        vec![ShardId::FIRST_DATA]
    }

    async fn status(&self) -> Result<NodeStatus, ExecuteError> {
        Ok(NodeStatus {
            cluster_id: "blue".into(),
            node_id: 1,
            version: "0",
            clock_off: false,
            disk_low: false,
            shards: vec![],
        })
    }

    async fn nodes(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    fn carp(&self) -> CarpView {
        unimplemented!("not asked over gRPC")
    }

    fn explain(&self, _: &[u8]) -> Explained {
        unimplemented!("not asked over gRPC")
    }

    async fn change_map(
        &self,
        _: impl FnOnce(&ShardMap) -> Result<ShardMap, ChangeError> + Send,
    ) -> Result<ShardMap, MapError> {
        unimplemented!("not asked over gRPC")
    }

    async fn cut(&self, shard: ShardId, time: u64) -> Result<CutBody, CutFailure> {
        let detail = format!("shard {shard} is past {time}");
        Err(CutFailure::Time { kind: ErrorKind::Conflict, detail, clock: 17 })
    }

    async fn scrub(&self, _: Option<ShardId>) -> Result<Vec<ShardId>, ExecuteError> {
        unimplemented!("not asked over gRPC")
    }

    fn is_leader(&self, _: ShardId) -> Option<bool> {
        Some(true)
    }

    fn is_ready(&self) -> bool {
        self.state().is_ready
    }
}
