//! Who takes part: the configurations of the log.
//!
//! A configuration decides from the index behind its own on; at its own, the one before it does. Nothing new is proposed
//! behind one until it is chosen, so that a leader counts with one quorum system at a time (Lamport, Malkhi, Zhou:
//! Reconfiguring a state machine, 2010, with a window of one). Each step of a change is a configuration: with learners,
//! joint, and the new one alone; what is chosen under a joint one is on majorities of both sides, so the old members may go.
//!
//! It leaves out which step comes next: the caller says so.

use std::collections::{BTreeMap, BTreeSet};

use crate::ballot::{Index, NodeId};
use crate::log::Log;
use crate::message::{LogRead, Message, Value};
use crate::quorum::{Configuration, QuorumSystem};
use crate::replica::{Replica, Role};

/// The configurations known to be chosen.
pub(crate) struct Configurations {
    /// The one in force at the applied index, and all that follow.
    chosen: BTreeMap<Index, Configuration>,
}

impl Configurations {
    /// Of which one is known.
    pub(crate) fn new(index: Index, configuration: Configuration) -> Configurations {
        Configurations { chosen: [(index, configuration)].into() }
    }

    /// The last one.
    pub(crate) fn in_force(&self) -> (Index, &Configuration) {
        let (index, configuration) = self.chosen.last_key_value().expect("one is always known");
        (*index, configuration)
    }

    fn at(&self, index: Index) -> Option<(Index, &Configuration)> {
        self.chosen.range(..=index).next_back().map(|(index, configuration)| (*index, configuration))
    }

    fn add(&mut self, index: Index, configuration: Configuration, applied: Index) {
        self.chosen.insert(index, configuration);
        let kept = self.at(applied).map_or(0, |(index, _)| index);
        self.chosen = self.chosen.split_off(&kept);
    }
}

/// Those in force, and those that may come to be.
pub(crate) fn all_nodes(in_force: &Configuration, log: &Log) -> BTreeSet<NodeId> {
    let unchosen = log.configurations().flat_map(|(_, configuration)| configuration.nodes());
    in_force.nodes().into_iter().chain(unchosen).collect()
}

impl Replica {
    /// Proposes who takes part from the next index on.
    pub(crate) fn propose_configuration(&mut self, configuration: Configuration, disk: &dyn LogRead) {
        if !self.may_propose() {
            return;
        }
        let index = self.append(Value::Configuration(Box::new(configuration)));
        self.output.proposed = Some(index);
        self.replicate_all(disk);
    }

    /// True while this replica leads, and a configuration is to be chosen before anything else is proposed.
    pub fn is_changing_configuration(&self) -> bool {
        matches!(self.role, Role::Leading(_)) && self.has_unchosen_configuration()
    }

    pub(crate) fn has_unchosen_configuration(&self) -> bool {
        self.log.configurations().next().is_some()
    }

    /// The configuration in force behind an applied index, and its place.
    pub fn configuration_at(&self, applied: Index) -> Option<(Index, &Configuration)> {
        self.configurations.at(applied)
    }

    /// Everything up to here is chosen. Configurations on the way come into force.
    pub(crate) fn advance_chosen(&mut self, index: Index) {
        if index <= self.chosen {
            return;
        }
        self.chosen = index;
        let passed = self.log.take_configurations(index);
        let Some((first, _)) = passed.first_key_value() else { return };
        self.entered = Some(self.entered.map_or(*first, |earlier| earlier.min(*first)));
        for (index, configuration) in passed {
            self.configurations.add(index, configuration, self.applied);
        }
        let (_, configuration) = self.configurations.in_force();
        self.quorum = configuration.quorum.clone();
        self.output.configuration = Some(configuration.clone());
        self.look_at_nodes();
    }

    /// Says farewell to those that take part no longer: else they would not know.
    pub(crate) fn look_at_nodes(&mut self) {
        let (_, in_force) = self.configurations.in_force();
        let nodes = all_nodes(in_force, &self.log);
        let chosen = self.chosen;
        if let Role::Leading(leading) = &mut self.role {
            let ballot = leading.ballot;
            leading.set_followers(&nodes);
            for gone in self.nodes.difference(&nodes).filter(|gone| **gone != self.id) {
                self.output.send.push((*gone, Message::Chosen { ballot, chosen }));
            }
        }
        self.nodes = nodes;
    }

    /// True of a node that votes, or will if a configuration comes to be chosen: it may lead.
    pub(crate) fn may_lead(&self) -> bool {
        let votes = |quorum: &QuorumSystem| quorum.has(self.id);
        votes(&self.quorum) || self.log.configurations().any(|(_, unchosen)| votes(&unchosen.quorum))
    }

    /// True if promises of these nodes are enough to lead, given the values that are to be proposed first: a configuration
    /// among them may have been chosen, and others may have been chosen behind it by its quorums alone.
    pub(crate) fn is_promised_by<'a>(
        &self,
        found: impl IntoIterator<Item = &'a Value>,
        promised: impl Fn(NodeId) -> bool,
    ) -> bool {
        let is_enough = |value: &Value| match value {
            Value::Configuration(found) => found.quorum.is_phase1_quorum(&promised),
            Value::Noop | Value::Data(_) => true,
        };
        self.quorum.is_phase1_quorum(&promised) && found.into_iter().all(is_enough)
    }
}
