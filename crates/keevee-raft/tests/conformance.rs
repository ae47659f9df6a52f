//! Raft, held to the seam.

use std::collections::BTreeSet;
use std::time::Duration;

use keevee_raft::{Config, RaftEngine};
use keevee_replica::conformance::{Maker, SharedLog};
use keevee_replica::storage::StorageError;

struct Raft;

impl Maker for Raft {
    type Engine = RaftEngine<SharedLog>;

    fn open(
        &self,
        node: u64,
        members: BTreeSet<u64>,
        seed: u64,
        log: SharedLog,
        applied: u64,
        now: Duration,
    ) -> Result<RaftEngine<SharedLog>, StorageError> {
        RaftEngine::open(Config::new(node, members, seed), log, applied, now)
    }
}

keevee_replica::conformance!(Raft);
