//! Nothing chosen is lost, in Raft's terms: an entry that a majority of disks holds since the term of the leader that
//! proposed it is chosen, and all entries before it are; whoever leads later has them; no disk drops them; and nobody
//! takes for chosen what is not.
//!
//! Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm* (2014): log matching (5.3), leader
//! completeness (5.4), and 5.4.2: that a majority holds an entry of an earlier term says nothing yet (figure 8).

use std::collections::BTreeMap;

use bytes::Bytes;
use keevee_raft::{LogEntry, Payload, records};
use keevee_replica::Members;
use keevee_replica::storage::LogRecord;

use super::{Broken, of_nodes};

/// What a disk holds.
#[derive(Clone, Default)]
struct Disk {
    /// The term of its vote.
    term: u64,
    /// Of each index: its entry's term.
    entries: BTreeMap<u64, u64>,
}

/// What disks hold at a place of the log.
struct Place {
    payload: Payload,
    /// Who got it in the term in which it was proposed (bit `n` is node `n`).
    nodes: u64,
}

struct Chosen {
    /// In which it was proposed.
    term: u64,
    /// In which it was chosen: leaders of later terms have it.
    chosen_in: u64,
    payload: Payload,
}

pub(crate) struct Commits {
    /// Who decides from an index on, as some log says: several ways, if one is not chosen yet.
    members: BTreeMap<u64, Vec<Members>>,
    /// The last that are chosen, and their index.
    in_force: (u64, Members),
    disks: Vec<Disk>,
    /// By index and term.
    places: BTreeMap<(u64, u64), Place>,
    /// By index, from 0.
    chosen: Vec<Chosen>,
}

impl Commits {
    pub(crate) const NAME: &str = super::Choices::NAME;

    pub(crate) fn new(nodes: u64, members: &Members) -> Commits {
        Commits {
            members: [(0, vec![members.clone()])].into(),
            in_force: (0, members.clone()),
            disks: of_nodes(nodes),
            places: BTreeMap::new(),
            chosen: Vec::new(),
        }
    }

    pub(crate) fn members(&self) -> &Members {
        &self.in_force.1
    }

    /// True if a leader may take an entry for chosen that so many have: it counts by the last members in its log, also for
    /// what is before them, and as soon as they are in its log. Each step of a change is such that no other choice can be
    /// made by those before it.
    fn decides(&self, nodes: u64) -> bool {
        let (from, in_force) = &self.in_force;
        let known = self.members.range(from..).flat_map(|(_, members)| members.clone());
        let next = in_force.next.iter().map(|next| Members::of_voters(next.iter().copied()));
        known.chain(next).any(|members| members.is_quorum(|node| nodes >> node.0 & 1 == 1))
    }

    /// Once others are in force: what so many have already as they want.
    fn judge_again(&mut self) -> Result<(), Broken> {
        let open = self.places.range((self.chosen.len() as u64, 0)..);
        let decided = open.filter(|(_, place)| self.decides(place.nodes));
        let held = decided.filter_map(|(&(index, term), place)| {
            let holds = |node: &usize| {
                place.nodes >> node & 1 == 1 && self.disks[*node].entries.get(&index) == Some(&term)
            };
            let node = (1..self.disks.len()).find(holds)?;
            Some((index, term, node as u64, place.nodes))
        });
        match held.last() {
            Some((index, term, node, nodes)) => self.choose(index, term, node, nodes),
            None => Ok(()),
        }
    }

    /// A submission has reached a node's disk.
    pub(crate) fn synced(&mut self, node: u64, submission: &[LogRecord]) -> Result<(), Broken> {
        for record in submission {
            match record {
                LogRecord::HardState(bytes) => {
                    let state = records::decode_hard_state(bytes.clone()).map_err(|e| e.to_string())?;
                    self.disks[node as usize].term = state.vote.map_or(0, |vote| vote.term);
                }
                LogRecord::Entry { index, bytes } => {
                    let entry = records::decode_entry(*index, bytes.clone()).map_err(|e| e.to_string())?;
                    self.entry_synced(node, entry)?;
                }
                LogRecord::DropFrom(from) => self.dropped_from(node, *from)?,
                LogRecord::Incarnation(_) => {}
                LogRecord::DropBelow(first) => {
                    if *first > self.chosen.len() as u64 {
                        return Err(format!(
                            "node {node} drops its log below {first}, and not all of it is chosen"
                        ));
                    }
                    let entries = &mut self.disks[node as usize].entries;
                    *entries = entries.split_off(first);
                }
            }
        }
        Ok(())
    }

    fn entry_synced(&mut self, node: u64, entry: LogEntry) -> Result<(), Broken> {
        let (index, term) = (entry.id.index, entry.id.term);
        let disk = &self.disks[node as usize];
        if disk.entries.get(&index).is_some_and(|before| *before != term) {
            self.dropped_from(node, index)?;
        }
        let disk = &mut self.disks[node as usize];
        if disk.entries.last_key_value().is_some_and(|(last, _)| last + 1 < index) {
            return Err(format!("node {node} writes index {index} and lacks what is before it"));
        }
        disk.entries.insert(index, term);
        let accepted_in = disk.term;
        // Whoever leads in a term has all that was chosen before it, and followers have what the leader has.
        for (at, held) in disk.entries.range(index.saturating_sub(1)..=index) {
            if let Some(chosen) = self.chosen.get(*at as usize)
                && chosen.chosen_in <= accepted_in
                && chosen.term != *held
            {
                return Err(format!(
                    "node {node} holds an entry of term {held} at index {at} in term {accepted_in}, where one of \
                     term {} was chosen in term {}",
                    chosen.term, chosen.chosen_in
                ));
            }
        }
        let LogEntry { payload, .. } = entry;
        if let Payload::Members(members) = &payload {
            let known = self.members.entry(index).or_default();
            if !known.contains(members) {
                known.push(members.clone());
            }
        }
        let place = self.places.entry((index, term)).or_insert(Place { payload: payload.clone(), nodes: 0 });
        if place.payload != payload {
            return Err(format!("two values were proposed in term {term} and at index {index}"));
        }
        if accepted_in == term {
            place.nodes |= 1 << node;
            let nodes = place.nodes;
            if self.decides(nodes) {
                let (before, _) = self.in_force;
                self.choose(index, term, node, nodes)?;
                if self.in_force.0 != before {
                    return self.judge_again();
                }
            }
        }
        Ok(())
    }

    /// What a node's disk holds up to an index is chosen; so many others have had the same.
    fn choose(&mut self, index: u64, term: u64, node: u64, nodes: u64) -> Result<(), Broken> {
        for at in self.chosen.len() as u64..=index {
            let held = |node: usize| self.disks[node].entries.get(&at).copied();
            let Some(of) = held(node as usize) else {
                return Err(format!("index {index} is chosen, and node {node} lacks index {at}"));
            };
            let differs = |other: &usize| {
                // What it has dropped meanwhile was overwritten in a later term, and is another rule's.
                let holds = held(*other).is_some() && self.disks[*other].entries.get(&index) == Some(&term);
                nodes >> *other & 1 == 1 && holds && held(*other) != Some(of)
            };
            if let Some(other) = (1..self.disks.len()).find(differs) {
                return Err(format!(
                    "nodes {node} and {other} hold the same at index {index} and not at index {at}"
                ));
            }
            let payload = self.places[&(at, of)].payload.clone();
            if let Payload::Members(members) = &payload {
                self.in_force = (at, members.clone());
            }
            self.chosen.push(Chosen { term: of, chosen_in: term, payload });
        }
        Ok(())
    }

    /// A disk forgets what it holds from an index on.
    fn dropped_from(&mut self, node: u64, from: u64) -> Result<(), Broken> {
        let dropped = self.disks[node as usize].entries.split_off(&from);
        let is_chosen = |(index, term): &(&u64, &u64)| {
            self.chosen.get(**index as usize).is_some_and(|chosen| chosen.term == **term)
        };
        match dropped.iter().find(is_chosen) {
            Some((index, term)) => {
                Err(format!("node {node} drops the entry of term {term} at index {index}, which is chosen"))
            }
            None => Ok(()),
        }
    }

    /// A replica hands out a value as chosen.
    pub(crate) fn taken_for_chosen(
        &self,
        node: u64,
        index: u64,
        value: &Option<Bytes>,
    ) -> Result<(), Broken> {
        let Some(chosen) = self.chosen.get(index as usize) else {
            return Err(format!(
                "node {node} takes a value for chosen at index {index} that no majority holds on disk"
            ));
        };
        let is_same = match (&chosen.payload, value) {
            (Payload::Data(bytes), Some(value)) => bytes == value,
            (Payload::Blank | Payload::Members(_), None) => true,
            _ => false,
        };
        let term = chosen.term;
        if !is_same {
            return Err(format!(
                "node {node} takes another value for chosen than that of term {term} at index {index}"
            ));
        }
        if self.disks[node as usize].entries.get(&index) != Some(&term) {
            return Err(format!(
                "node {node} takes index {index} for chosen, and does not hold it on its disk"
            ));
        }
        Ok(())
    }

    /// A node starts with these entries on its disk, those above its applied index.
    pub(crate) fn restored(&self, node: u64, applied: u64, entries: &[LogEntry]) -> Result<(), Broken> {
        let found: BTreeMap<u64, u64> = entries.iter().map(|entry| (entry.id.index, entry.id.term)).collect();
        for (index, term) in self.disks[node as usize].entries.range(applied + 1..) {
            if found.get(index) != Some(term) {
                return Err(format!("node {node} has lost what it held at index {index}, of term {term}"));
            }
        }
        Ok(())
    }
}
