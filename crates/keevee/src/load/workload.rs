//! What the load is: how many, how large, which keys, how long.

use std::time::Duration;

use clap::ValueEnum;
use keevee_client::Endpoint;
use rand::RngExt;
use rand::rngs::StdRng;
use rand_distr::{Distribution as _, Zipf};

use crate::load::worker::Phase;

/// How many digits a key's number has if nothing else is asked for.
pub(crate) const KEY_DIGITS: usize = 10;

/// A load.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// What the connections speak.
    pub(crate) protocol: Protocol,
    /// Where the connections go, in turn.
    pub(crate) endpoints: Vec<Endpoint>,
    /// How many connections.
    pub(crate) connections: usize,
    /// How many requests are under way on each.
    pub(crate) pipeline: usize,
    /// How many operations are due each second; without it, the next is due when an answer has come.
    pub(crate) rate: Option<f64>,
    /// How many threads hold them.
    pub(crate) threads: usize,
    /// How many bytes a value has.
    pub(crate) value_size: usize,
    /// How many keys there are.
    pub(crate) keys: u64,
    /// What they begin with.
    pub(crate) prefix: String,
    /// How many digits follow.
    pub(crate) key_digits: usize,
    /// Which share of the operations reads, from 0 to 1.
    pub(crate) reads: f64,
    /// Which share deletes; the rest puts.
    pub(crate) deletes: f64,
    /// Whether reads may be stale.
    pub(crate) stale: bool,
    /// Whether writes carry a request id.
    pub(crate) request_ids: bool,
    /// Which keys are chosen how often.
    pub(crate) distribution: Distribution,
    /// What comes before the measured part.
    pub(crate) warm_up: Duration,
    /// When it is over.
    pub(crate) extent: Extent,
}

/// What is spoken on the connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// keevee's HTTP API
    Http,
    /// The Redis protocol
    Resp,
    /// keevee's gRPC API
    Grpc,
    /// etcd's gRPC API, version 3
    Etcd,
}

/// Which keys are chosen how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Distribution {
    /// All alike.
    Uniform,
    /// The n-th in proportion to 1/n^exponent.
    Zipf(f64),
    /// One after the other.
    InOrder,
}

/// When a load is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// After this time.
    Time(Duration),
    /// After so many operations.
    Operations(u64),
}

/// What to do next, to which key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Get,
    Put,
    Delete,
}

impl Protocol {
    /// How it is written before an address.
    pub(crate) fn scheme(self) -> &'static str {
        if self == Protocol::Resp { "redis" } else { "http" }
    }
}

impl Workload {
    /// Puts to these nodes over HTTP, one at a time on each connection: each key once, in order.
    pub(crate) fn over_http(endpoints: Vec<Endpoint>, prefix: String, keys: u64) -> Workload {
        Workload {
            protocol: Protocol::Http,
            endpoints,
            connections: 64,
            pipeline: 1,
            rate: None,
            threads: 1,
            value_size: 128,
            keys,
            prefix,
            key_digits: KEY_DIGITS,
            reads: 0.0,
            deletes: 0.0,
            stale: false,
            request_ids: false,
            distribution: Distribution::InOrder,
            warm_up: Duration::ZERO,
            extent: Extent::Operations(keys),
        }
    }

    pub(crate) fn warm_up(&self, phase: Phase) -> Duration {
        match (phase, self.extent) {
            (Phase::Measure, Extent::Time(_)) => self.warm_up,
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn kind(&self, random: &mut StdRng) -> Kind {
        let point: f64 = random.random();
        if point < self.reads {
            Kind::Get
        } else if point < self.reads + self.deletes {
            Kind::Delete
        } else {
            Kind::Put
        }
    }
}

/// Draws keys' numbers.
#[derive(Debug)]
pub(crate) enum Keys {
    Uniform(u64),
    Zipf(Zipf<f64>),
    InOrder { next: u64, step: u64, count: u64 },
}

impl Keys {
    /// The keys of connection `number`: in order, it has every `connections`-th key.
    pub(crate) fn new(workload: &Workload, phase: Phase, number: usize) -> Keys {
        let count = workload.keys;
        let in_order = Keys::InOrder { next: number as u64, step: workload.connections as u64, count };
        match (phase, workload.distribution) {
            (Phase::Fill, _) | (_, Distribution::InOrder) => in_order,
            (_, Distribution::Uniform) => Keys::Uniform(count),
            (_, Distribution::Zipf(exponent)) => match Zipf::new(count as f64, exponent) {
                Ok(zipf) => Keys::Zipf(zipf),
                Err(_) => Keys::Uniform(count),
            },
        }
    }

    /// The next key's number; `None` after the last of keys in order.
    pub(crate) fn draw(&mut self, random: &mut StdRng) -> Option<u64> {
        match self {
            Keys::Uniform(count) => Some(random.random_range(0..*count)),
            Keys::Zipf(zipf) => Some(zipf.sample(random) as u64 - 1),
            Keys::InOrder { next, step, count } => {
                let number = *next;
                *next += *step;
                (number < *count).then_some(number)
            }
        }
    }
}
