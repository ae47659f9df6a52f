//! Nothing chosen is lost: what a majority of disks holds at one ballot stays, and is the only value that any
//! higher ballot proposes.
//!
//! Lamport, *Paxos Made Simple* (2001), property P2b: if a value is chosen, every higher-numbered proposal has
//! that value. Also its ground: an acceptor remembers what it accepted, whatever happens to its process; and
//! nobody takes for chosen what no majority holds (openraft#1802).

use std::collections::BTreeMap;

use bytes::Bytes;
use keevee_paxos::{Ballot, Entry, Value};
use keevee_replica::{Members, records};

use super::{Broken, of_nodes};

#[derive(Default)]
struct Place {
    /// What disks hold or held: ballot, value, and who (bit `n` is node `n`).
    accepted: Vec<(Ballot, Value, u64)>,
    chosen: Option<(Ballot, Value)>,
}

impl Place {
    /// A quorum of disks holds a value at a ballot.
    fn choose(&mut self, index: u64, ballot: Ballot, value: Value) -> Result<(), Broken> {
        match &self.chosen {
            Some((chosen_at, chosen)) if *chosen != value => {
                Err(format!("two values are chosen at index {index}, at ballots {chosen_at} and {ballot}"))
            }
            Some((chosen_at, _)) if *chosen_at <= ballot => Ok(()),
            _ => {
                let other = self.accepted.iter().find(|(at, held, _)| *at > ballot && *held != value);
                let kept = match other {
                    None => Ok(()),
                    Some((at, ..)) => Err(format!(
                        "index {index} is chosen at ballot {ballot}, and ballot {at} had proposed another value"
                    )),
                };
                self.chosen = Some((ballot, value));
                kept
            }
        }
    }
}

pub(crate) struct Choices {
    /// Who decides from an index on, as far as it is chosen.
    members: BTreeMap<u64, Members>,
    /// All indexes below are chosen.
    next: u64,
    places: BTreeMap<u64, Place>,
    /// Of each node: the highest ballot that its disk has held at an index.
    held: Vec<BTreeMap<u64, Ballot>>,
}

impl Choices {
    pub(crate) const NAME: &str = "nothing chosen is lost";

    pub(crate) fn new(nodes: u64, members: &Members) -> Choices {
        let members = [(1, members.clone())].into();
        Choices { members, next: 1, places: BTreeMap::new(), held: of_nodes(nodes) }
    }

    pub(crate) fn members(&self) -> &Members {
        self.members.last_key_value().expect("the first ones").1
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
            return self.judge(*index);
        };
        if known != value {
            return Err(format!("two values were proposed at ballot {ballot} and index {index}"));
        }
        *nodes |= 1 << node;
        self.judge(*index)
    }

    /// Looks which values of an index are chosen. Who decides there is known once all before it are.
    fn judge(&mut self, mut index: u64) -> Result<(), Broken> {
        while index <= self.next {
            let (_, members) = self.members.range(..=index).next_back().expect("the first ones");
            let Some(place) = self.places.get_mut(&index) else { return Ok(()) };
            let decides = |nodes: u64| members.is_quorum(|node| nodes >> node.0 & 1 == 1);
            let by_quorum: Vec<(Ballot, Value)> = place
                .accepted
                .iter()
                .filter(|(.., nodes)| decides(*nodes))
                .map(|(ballot, value, _)| (*ballot, value.clone()))
                .collect();
            for (ballot, value) in by_quorum {
                place.choose(index, ballot, value)?;
            }
            let Some((_, chosen)) = &place.chosen else { return Ok(()) };
            if index < self.next {
                return Ok(());
            }
            let entry = Entry { index, ballot: Ballot::ZERO, value: chosen.clone() };
            if let Some(members) = records::members_of(&entry) {
                self.members.insert(index + 1, members);
            }
            self.next += 1;
            index += 1;
        }
        Ok(())
    }

    /// A replica hands out a value as chosen.
    pub(crate) fn taken_for_chosen(
        &self,
        node: u64,
        index: u64,
        value: &Option<Bytes>,
    ) -> Result<(), Broken> {
        let same = |chosen: &Value| match (chosen, value) {
            (Value::Noop | Value::Configuration(_), None) => true,
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
