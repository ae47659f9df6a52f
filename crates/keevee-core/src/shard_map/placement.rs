//! Which nodes hold a shard, and which of them shall lead.
//!
//! Nodes are ranked for each shard by CARP, so that the shards of a node have their other replicas on many
//! different nodes; the least loaded come before the best ranked, so that nobody holds more than others.
//! The system shard counts for nothing here: it is nearly idle.
//!
//! It leaves out moving replicas that are placed already.

use std::collections::{BTreeMap, VecDeque};

use crate::carp::ranking::rank_nodes;
use crate::ids::{NodeId, ShardId};

/// Chooses `count` nodes for a shard: those with the fewest replicas (`replicas` holds all nodes there
/// are), and of these the ones that rank best for it. `None` if there are not as many nodes.
///
/// Placing shard after shard so keeps the numbers of replicas within one of each other if they were before.
pub fn place_replicas(
    replicas: &BTreeMap<NodeId, usize>,
    shard: ShardId,
    count: usize,
) -> Option<Vec<NodeId>> {
    let mut nodes = rank_nodes(shard, &replicas.keys().copied().collect::<Vec<_>>());
    // Stable: equally loaded nodes stay as they rank.
    nodes.sort_by_key(|node| replicas[node]);
    (count <= nodes.len()).then(|| nodes[..count].to_vec())
}

/// Puts the preferred leader of each shard first in its list of members, so that the numbers of shards that
/// nodes lead are as even as the members allow.
///
/// If all shards have equally many members and the nodes' replicas are within one of each other, nodes
/// lead equally many shards to within one: giving each member an equal part of the leadership is such a
/// division in fractions, and where there is one in fractions there is one in whole numbers.
pub fn spread_leaders(shards: &mut [Vec<NodeId>]) {
    let mut leads: BTreeMap<NodeId, usize> = shards.iter().flatten().map(|&node| (node, 0)).collect();
    for members in shards.iter_mut() {
        if let Some(leader) = fewest_leads(&leads, members) {
            prefer(members, leader);
            leads.entry(leader).and_modify(|count| *count += 1);
        }
    }
    // An assignment is as even as can be once no chain of handovers leads from a node to one with two fewer
    // (Harvey, Ladner, Lovász, Tamir: Semi-matchings for bipartite graphs and load balancing, 2003).
    while let Some(chain) = leads.keys().find_map(|&from| handovers(shards, &leads, from)) {
        for (at, to) in chain {
            let from = prefer(&mut shards[at], to);
            leads.entry(from).and_modify(|count| *count -= 1);
            leads.entry(to).and_modify(|count| *count += 1);
        }
    }
}

/// Of these members the one that leads the fewest shards, the first of equals.
pub(super) fn fewest_leads(leads: &BTreeMap<NodeId, usize>, members: &[NodeId]) -> Option<NodeId> {
    members.iter().copied().min_by_key(|node| leads.get(node).copied().unwrap_or(0))
}

/// Makes a member the preferred leader; returns who was.
pub(super) fn prefer(members: &mut [NodeId], leader: NodeId) -> NodeId {
    let former = members[0];
    if let Some(at) = members.iter().position(|&member| member == leader) {
        members[..=at].rotate_right(1);
    }
    former
}

/// A chain of handovers (which shard, to whom) from a node to one that leads at least two fewer.
fn handovers(
    shards: &[Vec<NodeId>],
    leads: &BTreeMap<NodeId, usize>,
    from: NodeId,
) -> Option<Vec<(usize, NodeId)>> {
    if leads.values().all(|&count| count + 2 > leads[&from]) {
        return None;
    }
    // How each node was reached: from whom, by handing over which shard.
    let mut reached: BTreeMap<NodeId, (NodeId, usize)> = BTreeMap::new();
    let mut waiting = VecDeque::from([from]);
    while let Some(node) = waiting.pop_front() {
        if leads[&node] + 2 <= leads[&from] {
            let mut chain = Vec::new();
            let mut to = node;
            while to != from {
                let (before, at) = reached[&to];
                chain.push((at, to));
                to = before;
            }
            return Some(chain);
        }
        for (at, members) in shards.iter().enumerate().filter(|(_, members)| members.first() == Some(&node)) {
            for &member in &members[1..] {
                if member != from && !reached.contains_key(&member) {
                    reached.insert(member, (node, at));
                    waiting.push_back(member);
                }
            }
        }
    }
    None
}

/// How many replicas of these shards each node holds, and how many it is preferred to lead.
pub(super) fn loads<'a>(
    nodes: impl Iterator<Item = NodeId>,
    shards: impl Iterator<Item = &'a Vec<NodeId>>,
) -> (BTreeMap<NodeId, usize>, BTreeMap<NodeId, usize>) {
    let mut replicas: BTreeMap<NodeId, usize> = nodes.map(|node| (node, 0)).collect();
    let mut leads = replicas.clone();
    for members in shards {
        for member in members {
            replicas.entry(*member).and_modify(|count| *count += 1);
        }
        if let Some(leader) = members.first() {
            leads.entry(*leader).and_modify(|count| *count += 1);
        }
    }
    (replicas, leads)
}
