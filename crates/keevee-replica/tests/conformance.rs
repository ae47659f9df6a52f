//! Multi-Paxos, held to the seam.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_paxos::{Config, QuorumSystem};
use keevee_replica::PaxosEngine;
use keevee_replica::conformance::{Maker, SharedLog};
use keevee_replica::storage::StorageError;

struct Paxos;

impl Maker for Paxos {
    type Engine = PaxosEngine<SharedLog>;

    fn open(
        &self,
        node: u64,
        members: BTreeSet<u64>,
        seed: u64,
        log: SharedLog,
        applied: u64,
        now: Duration,
    ) -> Result<PaxosEngine<SharedLog>, StorageError> {
        let config = Config::new(node, QuorumSystem::majority(members), seed);
        PaxosEngine::open(config, log, applied, now)
    }
}

keevee_replica::conformance!(Paxos);
