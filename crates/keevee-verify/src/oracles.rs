//! What must hold of every run, whatever goes wrong in it. One file for each rule, with where it comes from.
//!
//! Oracles see what the world sees: disks, what clients are told, and what replicas hand out as chosen and apply.
//! They ask no replica what it believes, but for one question: who leads. They know nothing of why a rule is broken:
//! that is what the trace is for. Those about a log, a state or a leader watch one shard each.

mod acknowledged;
mod agreement;
mod atomic;
mod chains;
mod choices;
mod commits;
mod disks;
mod durable;
mod early;
mod fetches;
mod honesty;
mod linearizable;
mod liveness;
mod once;
mod one_hop;
mod versions;
mod votes;

pub(crate) use acknowledged::{Acknowledged, Held};
pub(crate) use agreement::Agreement;
pub(crate) use atomic::Atomic;
pub(crate) use chains::Chains;
pub(crate) use choices::Choices;
pub(crate) use commits::Commits;
pub(crate) use disks::Disks;
pub(crate) use durable::Durable;
pub(crate) use early::Early;
pub(crate) use fetches::Fetches;
pub(crate) use honesty::Honesty;
pub(crate) use linearizable::{Checked, Linearizable};
pub(crate) use liveness::{Demand, Leader, Liveness, Sight};
pub(crate) use once::Once;
pub(crate) use one_hop::OneHop;
pub(crate) use versions::Versions;
pub(crate) use votes::Votes;

use keevee_replica::Members;

use crate::plan::Plan;

/// How a rule was broken: a sentence for the reader of the report.
pub(crate) type Broken = String;

/// The name of the rule that replicas hold themselves to: their own assertions, and their refusal to go on.
pub(crate) const REPLICA: &str = "replica";

/// What is kept of each node, by its number.
fn of_nodes<T: Clone + Default>(nodes: u64) -> Vec<T> {
    vec![T::default(); nodes as usize + 1]
}

/// The oracles that watch one shard, but for those that look at the end of a run only.
pub(crate) struct Oracles {
    pub(crate) acknowledged: Acknowledged,
    pub(crate) agreement: Agreement,
    pub(crate) disks: Disks,
    pub(crate) chains: Chains,
    pub(crate) versions: Versions,
    pub(crate) once: Once,
    pub(crate) early: Early,
    pub(crate) fetches: Fetches,
    pub(crate) liveness: Liveness,
}

impl Oracles {
    /// Of a shard that begins with these members.
    pub(crate) fn new(plan: &Plan, members: &Members) -> Oracles {
        Oracles {
            acknowledged: Acknowledged::default(),
            agreement: Agreement::default(),
            disks: Disks::new(plan, members),
            chains: Chains::default(),
            versions: Versions,
            once: Once::default(),
            early: Early::default(),
            fetches: Fetches::default(),
            liveness: Liveness::new(plan.settling(), plan.settings.timeout_max, plan.shards.idle.is_some()),
        }
    }
}
