//! Nothing chosen is lost: what a majority of disks holds at one ballot stays, and is the only value that any
//! higher ballot proposes.
//!
//! Lamport, *Paxos Made Simple* (2001), property P2b: if a value is chosen, every higher-numbered proposal has
//! that value. Also its ground: an acceptor remembers what it accepted, whatever happens to its process; and
//! nobody takes for chosen what no majority holds (openraft#1802).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keevee_paxos::{Ballot, Entry, Value};

use super::{Broken, of_nodes};

#[derive(Default)]
struct Place {
    /// What disks hold or held: ballot, value, and who (bit `n` is node `n`).
    accepted: Vec<(Ballot, Value, u64)>,
    chosen: Option<(Ballot, Value)>,
}

pub(crate) struct Choices {
    majority: u32,
    places: BTreeMap<u64, Place>,
    /// Of each node: the highest ballot that its disk has held at an index.
    held: Vec<BTreeMap<u64, Ballot>>,
}

impl Choices {
    pub(crate) const NAME: &str = "nothing chosen is lost";

    pub(crate) fn new(members: &BTreeSet<u64>) -> Choices {
        let majority = members.len() as u32 / 2 + 1;
        Choices { majority, places: BTreeMap::new(), held: of_nodes(members) }
    }

    /// An entry has reached a node's disk.
    pub(crate) fn synced(&mut self, node: u64, entry: &Entry) -> Result<(), Broken> {
        let Entry { index, ballot, value } = entry;
        let highest = self.held[node as usize].entry(*index).or_default();
        *highest = (*highest).max(*ballot);
        let place = self.places.entry(*index).or_default();
        if let Some((chosen_at, chosen)) = &place.chosen
            && ballot > chosen_at
            && value != chosen
        {
            return Err(format!(
                "ballot {ballot} put another value at index {index}, where one was chosen at ballot {chosen_at}"
            ));
        }
        let Some((_, known, nodes)) = place.accepted.iter_mut().find(|(at, ..)| at == ballot) else {
            place.accepted.push((*ballot, value.clone(), 1 << node));
            return Ok(());
        };
        if known != value {
            return Err(format!("two values were proposed at ballot {ballot} and index {index}"));
        }
        *nodes |= 1 << node;
        if nodes.count_ones() < self.majority {
            return Ok(());
        }
        match &place.chosen {
            Some((chosen_at, chosen)) if chosen != value => {
                Err(format!("two values are chosen at index {index}, at ballots {chosen_at} and {ballot}"))
            }
            Some((chosen_at, _)) if chosen_at <= ballot => Ok(()),
            _ => {
                place.chosen = Some((*ballot, value.clone()));
                let other = place.accepted.iter().find(|(at, held, _)| at > ballot && held != value);
                match other {
                    None => Ok(()),
                    Some((at, ..)) => Err(format!(
                        "index {index} is chosen at ballot {ballot}, and ballot {at} had proposed another value"
                    )),
                }
            }
        }
    }

    /// A replica hands out a value as chosen.
    pub(crate) fn taken_for_chosen(
        &self,
        node: u64,
        index: u64,
        value: &Option<Bytes>,
    ) -> Result<(), Broken> {
        let same = |chosen: &Value| match (chosen, value) {
            (Value::Noop, None) => true,
            (Value::Data(bytes), Some(value)) => bytes == value,
            _ => false,
        };
        let chosen = self.places.get(&index).and_then(|place| place.chosen.as_ref());
        match chosen {
            Some((_, chosen)) if same(chosen) => Ok(()),
            Some((ballot, _)) => Err(format!(
                "node {node} takes another value for chosen than ballot {ballot}'s at index {index}"
            )),
            None => Err(format!(
                "node {node} takes a value for chosen at index {index} that no majority holds on disk"
            )),
        }
    }

    /// A node starts with these entries on its disk, those above its applied index.
    pub(crate) fn restored(&self, node: u64, applied: u64, entries: &[Entry]) -> Result<(), Broken> {
        let found: BTreeMap<u64, Ballot> = entries.iter().map(|entry| (entry.index, entry.ballot)).collect();
        for (index, ballot) in self.held[node as usize].range(applied + 1..) {
            if found.get(index).is_none_or(|found| found < ballot) {
                return Err(format!(
                    "node {node} has lost what it accepted at index {index} and ballot {ballot}"
                ));
            }
        }
        Ok(())
    }

    /// True if some disk has held a no-op at an index, accepted below this ballot.
    pub(crate) fn had_noop(&self, index: u64, below: Ballot) -> bool {
        let is_noop = |(ballot, value, _): &(Ballot, Value, u64)| *ballot < below && *value == Value::Noop;
        self.places.get(&index).is_some_and(|place| place.accepted.iter().any(is_noop))
    }
}
