//! CARP in 64 bits: what keevee ranks shards by for each slot, and nodes for each shard.
//!
//! It keeps the idea of the draft and mends what its age made weak: xxh3 instead of the hand-made 32-bit
//! hash, numeric ids instead of names, multipliers by logarithms, so that thousands of members with unequal
//! load factors lose no precision, and integer scores, so that ties are ties on every machine.
//!
//! Multipliers are floating-point numbers, and the last bit of a logarithm may differ between machines.
//! That does no harm: one node computes a slot table, and the table is what is logged.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::ids::{NodeId, ShardId};
use crate::slots::Slot;

/// Seeds of the two uses. Never changed: every table and every map was computed with them.
const SHARDS_SEED: u64 = 0x6b65_6576_6565_0001;
const NODES_SEED: u64 = 0x6b65_6576_6565_0002;

/// How well a member ranks for an item: a hash times the member's multiplier. The highest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score(pub u64);

impl Score {
    /// The score as people read it, from 0 to 1.
    pub fn fraction(self) -> f64 {
        self.0 as f64 / u64::MAX as f64
    }
}

/// The multipliers `X` of the draft (section 3.3), in the order of the load factors; 0 for load factor 0.
///
/// With them, each member has the highest score for a share of all items that is its load factor over the
/// sum of all. Equal load factors have equal multipliers. The recursion of [`super::v1::multipliers`] is
/// computed in logarithms, since its product and its powers leave the range of any float for unequal
/// factors.
pub fn multipliers(load_factors: &[u32]) -> Vec<f64> {
    logarithms(load_factors).into_iter().map(f64::exp).collect()
}

/// The logarithms of the multipliers: minus infinity for load factor 0.
fn logarithms(load_factors: &[u32]) -> Vec<f64> {
    let mut ascending: Vec<usize> = (0..load_factors.len()).filter(|&at| load_factors[at] > 0).collect();
    ascending.sort_by_key(|&at| load_factors[at]);
    let total: u64 = load_factors.iter().map(|&load_factor| u64::from(load_factor)).sum();
    let mut logarithms = vec![f64::NEG_INFINITY; load_factors.len()];
    let (mut last_factor, mut last, mut sum) = (0, f64::NEG_INFINITY, 0.0);
    for (at_or_before, &member) in ascending.iter().enumerate() {
        let load_factor = load_factors[member];
        if load_factor != last_factor {
            let remaining = (ascending.len() - at_or_before) as f64;
            // The difference is taken between integers: nothing cancels.
            let step = f64::from(load_factor - last_factor) / total as f64;
            last = ln_of_sum((remaining * step).ln() - sum, remaining * last) / remaining;
            last_factor = load_factor;
        }
        logarithms[member] = last;
        sum += last;
    }
    logarithms
}

/// ln(exp(one) + exp(other)), without leaving the range of floats. At least one is finite.
fn ln_of_sum(one: f64, other: f64) -> f64 {
    let (low, high) = if one < other { (one, other) } else { (other, one) };
    high + (low - high).exp().ln_1p()
}

/// Shards, ready to be ranked for slots or other items.
#[derive(Clone, Debug)]
pub struct Ranking {
    shards: Vec<RankedShard>,
}

#[derive(Clone, Copy, Debug)]
struct RankedShard {
    shard: ShardId,
    /// The multiplier over the largest one, of 2^64 - 1. The order of scores is the same for all common
    /// factors.
    scale: u64,
}

impl Ranking {
    /// Takes shards and their load factors. Their order decides nothing but the order of positions.
    pub fn new(shards: &[(ShardId, u32)]) -> Ranking {
        let load_factors: Vec<u32> = shards.iter().map(|(_, load_factor)| *load_factor).collect();
        let logarithms = logarithms(&load_factors);
        let largest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scale = |logarithm: f64| match logarithm {
            f64::NEG_INFINITY => 0,
            // The conversion saturates: the largest is 2^64 - 1.
            _ => ((logarithm - largest).exp() * u64::MAX as f64) as u64,
        };
        let ranked = shards.iter().zip(logarithms);
        Ranking {
            shards: ranked
                .map(|(&(shard, _), logarithm)| RankedShard { shard, scale: scale(logarithm) })
                .collect(),
        }
    }

    /// The score of the shard at a position (of the list that the ranking was made of) for an item.
    #[inline]
    pub fn score(&self, position: usize, item: u64) -> Score {
        let RankedShard { shard, scale } = self.shards[position];
        let hash = pair_hash(item, shard.0.into(), SHARDS_SEED);
        Score(((u128::from(hash) * u128::from(scale)) >> 64) as u64)
    }

    /// The shard that ranks best for an item, the lesser id of equals; `None` if all load factors are 0.
    pub fn best(&self, item: u64) -> Option<ShardId> {
        let scored = self.shards.iter().enumerate().filter(|(_, ranked)| ranked.scale > 0);
        let scored = scored.map(|(position, ranked)| (self.score(position, item), ranked.shard));
        let better = |one: (Score, ShardId), other: (Score, ShardId)| {
            let is_other = other.0 > one.0 || (other.0 == one.0 && other.1 < one.1);
            if is_other { other } else { one }
        };
        scored.reduce(better).map(|(_, shard)| shard)
    }

    /// All shards with their scores for a slot, best first, the lesser id first of equals.
    pub fn ranked(&self, slot: Slot) -> Vec<(ShardId, Score)> {
        let scored = self.shards.iter().enumerate();
        let mut ranked: Vec<_> =
            scored.map(|(position, ranked)| (ranked.shard, self.score(position, slot.0.into()))).collect();
        ranked.sort_by_key(|&(shard, score)| (std::cmp::Reverse(score), shard));
        ranked
    }
}

/// The nodes as they rank for a shard, best first. All have the same load factor.
pub fn rank_nodes(shard: ShardId, nodes: &[NodeId]) -> Vec<NodeId> {
    let mut ranked = nodes.to_vec();
    ranked.sort_by_key(|&node| (std::cmp::Reverse(pair_hash(shard.0.into(), node.0, NODES_SEED)), node));
    ranked
}

/// One hash of both, not a combination of two: similar ids spread as well as any.
#[inline]
fn pair_hash(item: u64, member: u64, seed: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&item.to_le_bytes());
    bytes[8..].copy_from_slice(&member.to_le_bytes());
    xxh3_64_with_seed(&bytes, seed)
}

#[cfg(test)]
mod tests;
