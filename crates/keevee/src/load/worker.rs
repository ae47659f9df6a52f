//! One connection of the load: draws an operation, sends it, waits for the answer, notes the time.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use keevee_client::{Endpoint, ErrorKind};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::load::Progress;
use crate::load::report::SharedTally;
use crate::load::wire::{Reply, Wire};
use crate::load::workload::{Extent, Keys, Kind, Workload};

/// After this long without an answer a connection is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether every key is put once, or the workload carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Fill,
    Measure,
}

pub(crate) struct Worker {
    number: usize,
    workload: Arc<Workload>,
    progress: Arc<Progress>,
    tally: SharedTally,
    phase: Phase,
    /// Operations that start before are warm-up.
    begin: Instant,
    random: StdRng,
    keys: Keys,
    /// Random bytes, twice a value's size: a value is a window on them.
    values: Vec<u8>,
    request: Vec<u8>,
}

#[derive(Deserialize)]
struct Problem<'a> {
    kind: &'a str,
}

impl Worker {
    pub(crate) fn new(
        number: usize,
        workload: Arc<Workload>,
        progress: Arc<Progress>,
        tally: SharedTally,
        phase: Phase,
        begin: Instant,
    ) -> Worker {
        let mut random = StdRng::seed_from_u64(rand::random());
        let mut values = vec![0; 2 * workload.value_size];
        random.fill(&mut values[..]);
        let keys = Keys::new(&workload, phase, number);
        let request = Vec::with_capacity(256 + workload.value_size);
        Worker { number, workload, progress, tally, phase, begin, random, keys, values, request }
    }

    pub(crate) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let endpoints = &self.workload.endpoints;
            let endpoint = endpoints[(self.number + failures) % endpoints.len()].clone();
            if self.is_over() {
                return;
            }
            match timeout(PATIENCE, Wire::open(&endpoint)).await {
                Ok(Ok(wire)) => {
                    if self.work(wire, &endpoint).await {
                        return;
                    }
                }
                Ok(Err(_)) | Err(_) => self.tally.error("connection"),
            }
            // Another node next time, and no busy loop while all are away.
            failures += 1;
            sleep(Duration::from_millis(self.random.random_range(5..20))).await;
        }
    }

    /// Uses a connection until it breaks; true if the work is done.
    async fn work(&mut self, mut wire: Wire, endpoint: &Endpoint) -> bool {
        loop {
            if self.is_over() {
                return true;
            }
            let Some(key) = self.keys.draw(&mut self.random) else { return true };
            // Last: whoever has no more keys must not take an operation from those that have.
            if !self.progress.take() {
                return true;
            }
            let kind = match self.phase {
                Phase::Fill => Kind::Put,
                Phase::Measure => self.workload.kind(&mut self.random),
            };
            self.write_request(kind, key, endpoint);
            let start = Instant::now();
            let reply = match timeout(PATIENCE, wire.exchange(&self.request)).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(_)) => {
                    self.tally.error("connection");
                    return false;
                }
                Err(_) => {
                    self.tally.error("timeout");
                    return false;
                }
            };
            let error = error_kind(kind, &reply);
            let end = Instant::now();
            if start < self.begin {
                continue;
            }
            match error {
                None => {
                    self.tally.record(kind, end - start, end);
                    self.progress.done.fetch_add(1, Ordering::Relaxed);
                }
                Some(kind) => self.tally.error(kind),
            }
        }
    }

    fn is_over(&self) -> bool {
        let late = match (self.phase, self.workload.extent) {
            (Phase::Measure, Extent::Time(time)) => Instant::now() >= self.begin + time,
            _ => false,
        };
        late || self.progress.stop.load(Ordering::Relaxed)
    }

    fn write_request(&mut self, kind: Kind, key: u64, endpoint: &Endpoint) {
        let Workload { prefix, value_size, stale, request_ids, .. } = &*self.workload;
        let method = match kind {
            Kind::Get => "GET",
            Kind::Put => "PUT",
            Kind::Delete => "DELETE",
        };
        let query = if kind == Kind::Get && *stale { "?consistency=stale" } else { "" };
        let host = endpoint.authority();
        self.request.clear();
        let request = &mut self.request;
        // Writing to memory does not fail.
        let _ = write!(request, "{method} /kv/{prefix}{key:010}{query} HTTP/1.1\r\nhost: {host}\r\n");
        if kind != Kind::Get && *request_ids {
            let _ = write!(request, "idempotency-key: {}\r\n", Uuid::now_v7());
        }
        if kind == Kind::Put {
            let _ = write!(request, "content-length: {value_size}\r\n\r\n");
            let start = self.random.random_range(0..=*value_size);
            request.extend_from_slice(&self.values[start..start + value_size]);
        } else {
            request.extend_from_slice(b"\r\n");
        }
    }
}

/// What went wrong, if anything: a get of a key that holds no value is no error.
fn error_kind(kind: Kind, reply: &Reply<'_>) -> Option<&'static str> {
    match reply.status {
        200 => None,
        404 if kind == Kind::Get => None,
        _ => {
            let problem = serde_json::from_slice::<Problem<'_>>(reply.body).ok();
            let kind = problem.and_then(|problem| ErrorKind::from_name(problem.kind));
            Some(kind.map_or("not keevee's answer", ErrorKind::name))
        }
    }
}
