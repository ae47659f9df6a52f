//! The slot table: which shard owns each slot. It is the authority; CARP only ranks.
//!
//! A table is computed from the one in force and the shards with their load factors:
//!
//! 1. Each shard's quota is its share of the 16384 slots, a fraction of integers. It gets the floor of it,
//!    or one more: the slots left over go, one each, to those who hold the most above their floor, then to
//!    those who hold any, then by id. That leaves the fewest slots to move.
//! 2. Whoever holds more than it gets gives up the difference; slots of shards that are gone are all given
//!    up.
//! 3. Of all pairs of a slot that may move and a shard with room, the one with the highest score is taken,
//!    again and again. So the slots that move are those that CARP would have moved first.
//!
//! A table without a predecessor is the same with every slot given up.
//!
//! It leaves out how slots move from shard to shard, and who may own nothing: that is the shard map's to
//! say.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::carp::ranking::{Ranking, Score};
use crate::ids::ShardId;
use crate::slots::{SLOTS, Slot, SlotSet, slot};

/// How many shards may share the slots.
pub const SHARDS_MAX: usize = 2048;

/// Which shard owns each slot. Cloning shares the table.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotTable {
    /// The owner of slot `s` at `s`: as many as there are slots.
    owners: Arc<[ShardId]>,
}

/// Slots that follow each other and have one owner: `[first, last, shard]` in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "(Slot, Slot, ShardId)", into = "(Slot, Slot, ShardId)")]
pub struct Run {
    /// The first of them.
    pub first: Slot,
    /// The last of them.
    pub last: Slot,
    /// Who owns them.
    pub shard: ShardId,
}

impl From<(Slot, Slot, ShardId)> for Run {
    fn from((first, last, shard): (Slot, Slot, ShardId)) -> Run {
        Run { first, last, shard }
    }
}

impl From<Run> for (Slot, Slot, ShardId) {
    fn from(run: Run) -> (Slot, Slot, ShardId) {
        (run.first, run.last, run.shard)
    }
}

/// A slot that changes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The slot.
    pub slot: Slot,
    /// Who owns it before.
    pub from: ShardId,
    /// Who owns it after.
    pub to: ShardId,
}

/// Why there is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotTableError {
    /// Nobody would own the slots.
    #[error("no shard has a load factor above 0: give one to at least one data shard")]
    NoShards,
    /// Quotas and multipliers are sound up to a limit.
    #[error("{0} shards: at most {SHARDS_MAX} may share the slots")]
    TooManyShards(usize),
    /// A shard stands in the list twice.
    #[error("shard {0} is listed twice: list each shard once")]
    DuplicateShard(ShardId),
    /// Runs leave a slot out, name one twice, or name one that does not exist.
    #[error("at slot {0} the runs have a gap, an overlap or an end: they must cover all slots in order")]
    BadRuns(Slot),
}

impl SlotTable {
    /// One shard owns every slot.
    pub fn of_one(shard: ShardId) -> SlotTable {
        SlotTable { owners: vec![shard; SLOTS.into()].into() }
    }

    /// Who owns a slot.
    ///
    /// # Panics
    ///
    /// If there is no such slot.
    #[inline]
    pub fn owner(&self, slot: Slot) -> ShardId {
        self.owners[usize::from(slot.0)]
    }

    /// Who owns a key.
    #[inline]
    pub fn owner_of_key(&self, key: &[u8]) -> ShardId {
        self.owner(slot(key))
    }

    /// The slots that a shard owns.
    pub fn slots_of(&self, shard: ShardId) -> SlotSet {
        self.iter().filter(|&(_, owner)| owner == shard).map(|(slot, _)| slot).collect()
    }

    /// Slots and their owners, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, ShardId)> + '_ {
        (0..SLOTS).map(Slot).zip(self.owners.iter().copied())
    }

    /// How many slots each owner has.
    pub fn counts(&self) -> BTreeMap<ShardId, usize> {
        let mut counts = BTreeMap::new();
        for &owner in self.owners.iter() {
            *counts.entry(owner).or_default() += 1;
        }
        counts
    }

    /// What changes hands if the other table follows this one.
    pub fn moves_to<'a>(&'a self, next: &'a SlotTable) -> impl Iterator<Item = Move> + 'a {
        let pairs = self.iter().zip(next.owners.iter().copied());
        pairs.filter(|((_, from), to)| from != to).map(|((slot, from), to)| Move { slot, from, to })
    }

    /// The table as runs, in order: neighbours with one owner are one run.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (slot, shard) in self.iter() {
            match runs.last_mut() {
                Some(run) if run.shard == shard => run.last = slot,
                _ => runs.push(Run { first: slot, last: slot, shard }),
            }
        }
        runs
    }

    /// The table of these runs. They must cover every slot once, in order.
    pub fn from_runs(runs: &[Run]) -> Result<SlotTable, SlotTableError> {
        let mut owners: Vec<ShardId> = Vec::with_capacity(SLOTS.into());
        for run in runs {
            if usize::from(run.first.0) != owners.len() || run.last < run.first || run.last.0 >= SLOTS {
                return Err(SlotTableError::BadRuns(run.first));
            }
            owners.resize(usize::from(run.last.0) + 1, run.shard);
        }
        if owners.len() < SLOTS.into() {
            return Err(SlotTableError::BadRuns(Slot(owners.len() as u16)));
        }
        Ok(SlotTable { owners: owners.into() })
    }

    /// The table that gives these shards their shares, and that the fewest slots must move for from the one
    /// in force.
    pub fn compute(
        in_force: Option<&SlotTable>,
        shards: &[(ShardId, u32)],
    ) -> Result<SlotTable, SlotTableError> {
        let mut shards = shards.to_vec();
        shards.sort();
        if let Some(pair) = shards.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(SlotTableError::DuplicateShard(pair[0].0));
        }
        if shards.len() > SHARDS_MAX {
            return Err(SlotTableError::TooManyShards(shards.len()));
        }
        let holders: Vec<Option<usize>> = match in_force {
            None => vec![None; SLOTS.into()],
            Some(table) => {
                let position = |shard: &ShardId| shards.binary_search_by_key(shard, |(id, _)| *id).ok();
                table.owners.iter().map(position).collect()
            }
        };
        let mut held = vec![0; shards.len()];
        for &holder in holders.iter().flatten() {
            held[holder] += 1;
        }
        let targets = targets(&shards, &held)?;
        let ranking = Ranking::new(&shards);
        let positions = Matching::new(holders, &held, &targets, &ranking).run();
        Ok(SlotTable { owners: positions.into_iter().map(|position| shards[position].0).collect() })
    }
}

impl fmt::Debug for SlotTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SlotTable({:?})", self.counts())
    }
}

/// How many slots each shard shall have, by position. The shards are in order of their ids.
fn targets(shards: &[(ShardId, u32)], held: &[usize]) -> Result<Vec<usize>, SlotTableError> {
    let total: u64 = shards.iter().map(|&(_, load_factor)| u64::from(load_factor)).sum();
    if total == 0 {
        return Err(SlotTableError::NoShards);
    }
    let quota = |load_factor: u32| u64::from(SLOTS) * u64::from(load_factor);
    let mut targets: Vec<usize> =
        shards.iter().map(|&(_, load_factor)| (quota(load_factor) / total) as usize).collect();
    // A quota without a remainder is met exactly. Of the others some get one slot more.
    let mut candidates: Vec<usize> =
        (0..shards.len()).filter(|&position| quota(shards[position].1) % total != 0).collect();
    candidates.sort_by_key(|&position| {
        (Reverse(held[position].saturating_sub(targets[position])), held[position] == 0, shards[position].0)
    });
    let left_over = usize::from(SLOTS) - targets.iter().sum::<usize>();
    for &position in &candidates[..left_over] {
        targets[position] += 1;
    }
    Ok(targets)
}

/// The pairs of slots and shards with the highest scores first, until everybody has what it shall have.
///
/// Not all pairs are sorted: a heap holds for each slot the best shard that had room when it was looked
/// for. Rooms only shrink, so that is never less than what the slot would find now, and the top of the
/// heap, if its shard still has room, is the best pair of all.
struct Matching<'a> {
    ranking: &'a Ranking,
    /// The position of the shard that has each slot; `None` if it must move.
    holders: Vec<Option<usize>>,
    /// How many slots each shard has yet to give up.
    surplus: Vec<usize>,
    /// How many slots each shard has yet to get.
    room: Vec<usize>,
    /// The shards with room, in order.
    open: Vec<usize>,
}

/// Ordered so that the largest is taken first: by score, then the lesser slot, then the lesser shard.
type Candidate = (Score, Reverse<usize>, Reverse<usize>);

impl<'a> Matching<'a> {
    fn new(
        holders: Vec<Option<usize>>,
        held: &[usize],
        targets: &[usize],
        ranking: &'a Ranking,
    ) -> Matching<'a> {
        let differences = |more: &[usize], less: &[usize]| -> Vec<usize> {
            more.iter().zip(less).map(|(more, less)| more.saturating_sub(*less)).collect()
        };
        let room = differences(targets, held);
        let open = (0..room.len()).filter(|&position| room[position] > 0).collect();
        Matching { ranking, holders, surplus: differences(held, targets), room, open }
    }

    fn run(mut self) -> Vec<usize> {
        let movable = |holder: Option<usize>| holder.is_none_or(|holder| self.surplus[holder] > 0);
        let slots = (0..self.holders.len()).filter(|&slot| movable(self.holders[slot]));
        let mut heap: BinaryHeap<Candidate> = slots.filter_map(|slot| self.best(slot)).collect();
        while let Some((_, Reverse(slot), Reverse(shard))) = heap.pop() {
            let holder = self.holders[slot];
            if holder.is_some_and(|holder| self.surplus[holder] == 0) {
                continue;
            }
            if self.room[shard] == 0 {
                heap.extend(self.best(slot));
                continue;
            }
            if let Some(holder) = holder {
                self.surplus[holder] -= 1;
            }
            self.holders[slot] = Some(shard);
            self.room[shard] -= 1;
            if self.room[shard] == 0 {
                self.open.retain(|&open| open != shard);
            }
        }
        let owned = self.holders.into_iter();
        owned
            .map(|holder| holder.expect("room and surplus add up, so that every slot has an owner"))
            .collect()
    }

    /// The best shard with room for a slot; `None` if none has room.
    fn best(&self, slot: usize) -> Option<Candidate> {
        let scored = self.open.iter().map(|&shard| (self.ranking.score(shard, slot as u64), shard));
        // The first of equals stays: the open shards are in order.
        let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(score, shard)| (score, Reverse(slot), Reverse(shard)))
    }
}

#[cfg(test)]
mod tests;
