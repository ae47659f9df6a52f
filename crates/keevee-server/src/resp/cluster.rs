//! CLUSTER: the shard map and its leaders, as clients of Redis Cluster read them.
//!
//! A node that leads a shard with slots is a master, and has the slots of all shards that it leads. Any other is a replica
//! of one whose shard it holds. In Redis no node is both, and there are clients that keep one role for each: so a master is
//! not told of as a replica of the shards that others lead. Nodes without an address of this protocol are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use keevee_core::ids::{NodeId, ShardId};
use keevee_core::shard_map::{NodeInfo, ShardInfo, ShardMap};
use keevee_core::slots::{SLOTS, Slot, slot};
use keevee_resp::command::ClusterCall;
use keevee_resp::reply::Reply;

use super::Resp;

/// First and last slot of a run.
type Run = (u16, u16);

/// What is known now.
struct View {
    map: Arc<ShardMap>,
    /// Who leads each shard with slots, or shall: during an election a client finds out there.
    leaders: BTreeMap<ShardId, NodeId>,
    own: NodeId,
    /// The nodes that do not answer this one.
    unreachable: BTreeSet<NodeId>,
}

impl Resp {
    pub(super) async fn cluster(&self, call: ClusterCall) -> Reply {
        let view = self.view();
        match call {
            ClusterCall::KeySlot(key) => Reply::Integer(slot(&key).0.into()),
            ClusterCall::CountKeysInSlot(slot) => {
                self.count_in_slot(Slot(slot)).await.unwrap_or_else(|error| error)
            }
            ClusterCall::MyId => Reply::bulk(view.map.node(view.own).map(name).unwrap_or_default()),
            ClusterCall::Info => Reply::Text(self.cluster_info(&view)),
            ClusterCall::Nodes => Reply::Text(view.nodes()),
            ClusterCall::Slots => view.slots(),
            ClusterCall::Shards => view.shards(),
        }
    }

    fn view(&self) -> View {
        let (map, directory) = (self.node.directory().map(), self.node.directory());
        let counts = map.slots.counts();
        let leader = |shard: &ShardInfo| {
            let leader = directory.leader(shard.id).or_else(|| shard.members.first().copied())?;
            Some((shard.id, leader))
        };
        let leaders =
            map.data_shards().filter(|shard| counts.contains_key(&shard.id)).filter_map(leader).collect();
        let unreachable =
            map.nodes.iter().map(|node| node.id).filter(|node| !self.node.is_reachable(*node)).collect();
        View { leaders, own: self.node.id(), unreachable, map }
    }

    fn cluster_info(&self, view: &View) -> String {
        let directory = self.node.directory();
        let counts = view.map.slots.counts();
        let led = counts.iter().filter(|(shard, _)| directory.leader(**shard).is_some());
        let ok: usize = led.map(|(_, count)| *count).sum();
        let state = if ok == usize::from(SLOTS) { "ok" } else { "fail" };
        let mut masters: Vec<&NodeId> = view.leaders.values().collect();
        masters.sort_unstable();
        masters.dedup();
        let (failed, nodes, size, epoch) =
            (usize::from(SLOTS) - ok, view.map.nodes.len(), masters.len(), view.map.epoch);
        format!(
            "cluster_enabled:1\r\ncluster_state:{state}\r\ncluster_slots_assigned:{SLOTS}\r\ncluster_slots_ok:{ok}\r\n\
             cluster_slots_pfail:{failed}\r\ncluster_slots_fail:0\r\ncluster_known_nodes:{nodes}\r\n\
             cluster_size:{size}\r\ncluster_current_epoch:{epoch}\r\ncluster_my_epoch:{epoch}\r\n"
        )
    }
}

/// A node's name, 40 hexadecimal digits: its store and its number.
fn name(node: &NodeInfo) -> String {
    format!("{:032x}{:08x}", node.store.0.as_u128(), node.id.0 & 0xffff_ffff)
}

/// Host and port of a node, if it has an address of this protocol.
fn host_and_port(node: &NodeInfo) -> Option<(&str, u16)> {
    let (host, port) = node.resp.as_deref()?.rsplit_once(':')?;
    Some((host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?))
}

impl View {
    fn runs(&self, of: impl Fn(ShardId) -> bool) -> Vec<Run> {
        let runs = self.map.slots.runs().into_iter().filter(|run| of(run.shard));
        runs.map(|run| (run.first.0, run.last.0)).collect()
    }

    /// A shard's leader, then its members that lead nothing.
    fn members(&self, shard: ShardId) -> Vec<&NodeInfo> {
        let leader = self.leaders.get(&shard);
        let members = self.map.shard(shard).map_or(&[][..], |shard| &shard.members);
        let others = members.iter().filter(|member| !self.leaders.values().any(|leader| leader == *member));
        leader.into_iter().chain(others).filter_map(|node| self.map.node(*node)).collect()
    }

    fn slots(&self) -> Reply {
        let node = |node: &&NodeInfo| {
            let (host, port) = host_and_port(node)?;
            let id = Reply::bulk(name(node));
            let host = Reply::bulk(host.to_owned());
            Some(Reply::Array(vec![host, Reply::Integer(port.into()), id, Reply::Array(vec![])]))
        };
        let run = |run: &keevee_core::slot_table::Run| {
            let members = self.members(run.shard);
            // A client takes the first for the leader: better no answer than a wrong one.
            host_and_port(members.first()?)?;
            let mut told = vec![Reply::Integer(run.first.0.into()), Reply::Integer(run.last.0.into())];
            // A replica that does not answer is of no use to who reads from replicas.
            let is_shown =
                |(at, node): &(usize, &&NodeInfo)| *at == 0 || !self.unreachable.contains(&node.id);
            told.extend(members.iter().enumerate().filter(is_shown).filter_map(|(_, member)| node(member)));
            Some(Reply::Array(told))
        };
        Reply::Array(self.map.slots.runs().iter().filter_map(run).collect())
    }

    fn shards(&self) -> Reply {
        let text = |text: &str| Reply::bulk(text.to_owned());
        let node = |shard: ShardId, node: &NodeInfo| {
            let (host, port) = host_and_port(node)?;
            let role = if self.leaders.get(&shard) == Some(&node.id) { "master" } else { "replica" };
            let fields = [
                ("id", Reply::bulk(name(node))),
                ("port", Reply::Integer(port.into())),
                ("ip", text(host)),
                ("endpoint", text(host)),
                ("role", text(role)),
                ("replication-offset", Reply::Integer(0)),
                ("health", text(if self.unreachable.contains(&node.id) { "fail" } else { "online" })),
            ];
            Some(Reply::Map(fields.into_iter().map(|(name, value)| (text(name), value)).collect()))
        };
        let shard = |shard: &ShardId| {
            let runs = self.runs(|owner| owner == *shard).into_iter();
            let slots = runs.flat_map(|(first, last)| [first, last]).map(|slot| Reply::Integer(slot.into()));
            let nodes = self.members(*shard).into_iter().filter_map(|member| node(*shard, member));
            let slots = Reply::Array(slots.collect());
            Reply::Map(vec![(text("slots"), slots), (text("nodes"), Reply::Array(nodes.collect()))])
        };
        Reply::Array(self.leaders.keys().map(shard).collect())
    }

    fn nodes(&self) -> String {
        let mut lines = String::new();
        for node in &self.map.nodes {
            let Some((host, port)) = host_and_port(node) else { continue };
            let leads: Vec<ShardId> = self
                .leaders
                .iter()
                .filter(|(_, leader)| **leader == node.id)
                .map(|(shard, _)| *shard)
                .collect();
            let mine = if node.id == self.own { "myself," } else { "" };
            let id = name(node);
            let master = if leads.is_empty() { self.master_of(node.id) } else { None };
            let role = if master.is_some() { "slave" } else { "master" };
            let (role, link) = match self.unreachable.contains(&node.id) {
                true => (format!("{role},fail"), "disconnected"),
                false => (role.to_owned(), "connected"),
            };
            let master = master.unwrap_or_else(|| "-".to_owned());
            let epoch = self.map.epoch;
            // Writing to a string can't fail.
            let _ = write!(lines, "{id} {host}:{port}@{port} {mine}{role} {master} 0 0 {epoch} {link}");
            for (first, last) in self.runs(|owner| leads.contains(&owner)) {
                let _ =
                    if first == last { write!(lines, " {first}") } else { write!(lines, " {first}-{last}") };
            }
            lines.push('\n');
        }
        lines
    }

    /// The leader of the first shard that a node holds.
    fn master_of(&self, node: NodeId) -> Option<String> {
        let holds =
            |shard: &&ShardInfo| shard.members.contains(&node) && self.leaders.contains_key(&shard.id);
        let shard = self.map.data_shards().find(holds)?;
        self.map.node(*self.leaders.get(&shard.id)?).map(name)
    }
}

#[cfg(test)]
mod tests {
    use keevee_core::ids::StoreId;
    use keevee_core::shard_map::Consensus;
    use keevee_core::shard_map::change::{Placement, ShardSpec};
    use uuid::Uuid;

    use super::*;

    /// Two shards on three nodes; node 3 does not speak this protocol unless told.
    fn view(leaders: [u64; 2], third: Option<&str>) -> View {
        let node = |id: u64| NodeInfo {
            id: NodeId(id),
            store: StoreId(Uuid::from_u128(id.into())),
            peer: format!("10.0.0.{id}:9001"),
            http: format!("10.0.0.{id}:8001"),
            resp: if id < 3 { Some(format!("10.0.0.{id}:7001")) } else { third.map(str::to_owned) },
        };
        let placement = Placement::Spread { replicas: 3 };
        let spec = ShardSpec { name: None, load_factor: 1, consensus: Consensus::Paxos, placement };
        let nodes = (1..=3).map(node).collect();
        let map = ShardMap::bootstrap(nodes, Consensus::Paxos, &[spec.clone(), spec]).unwrap();
        let leaders = [1, 2].map(ShardId).into_iter().zip(leaders.map(NodeId)).collect();
        View { map: Arc::new(map), leaders, own: NodeId(1), unreachable: BTreeSet::new() }
    }

    /// The ports, in order, of the nodes of each run of slots.
    fn nodes_of_runs(view: &View) -> Vec<Vec<Reply>> {
        let Reply::Array(runs) = view.slots() else { panic!("no array") };
        let hosts = |run: Reply| {
            let Reply::Array(run) = run else { panic!("no run") };
            let host = |node: &Reply| match node {
                Reply::Array(node) => node[0].clone(),
                other => panic!("{other:?}"),
            };
            run[2..].iter().map(host).collect()
        };
        runs.into_iter().map(hosts).collect()
    }

    #[test]
    fn no_node_is_both_master_and_replica() {
        let host = |id| Reply::bulk(format!("10.0.0.{id}"));
        let view = view([1, 2], Some("10.0.0.3:7001"));
        let runs = nodes_of_runs(&view);
        assert!(runs.iter().all(|run| *run == [host(1), host(3)] || *run == [host(2), host(3)]));
        assert!(runs.contains(&vec![host(1), host(3)]) && runs.contains(&vec![host(2), host(3)]));
        let nodes = view.nodes();
        let roles: Vec<&str> = nodes.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(roles, ["myself,master", "master", "slave"]);
        let Reply::Array(shards) = view.shards() else { panic!("no array") };
        assert_eq!(shards.len(), 2);
    }

    #[test]
    fn a_node_that_does_not_answer_is_not_offered_as_a_replica() {
        let mut view = view([1, 2], Some("10.0.0.3:7001"));
        view.unreachable.insert(NodeId(3));
        assert!(nodes_of_runs(&view).iter().all(|run| run.len() == 1));
        let nodes = view.nodes();
        let third = nodes.lines().last().unwrap();
        assert!(third.contains(" slave,fail ") && third.ends_with(" disconnected"), "{third}");
        let health = format!("{:?}", view.shards());
        assert_eq!((health.matches("fail").count(), health.matches("online").count()), (2, 2));
    }

    #[test]
    fn slots_whose_leader_has_no_address_are_left_out() {
        let runs = nodes_of_runs(&view([1, 3], None));
        assert!(
            !runs.is_empty() && runs.iter().all(|run| *run == [Reply::bulk("10.0.0.1")] || run.len() == 2)
        );
        assert_eq!(view([1, 3], None).nodes().lines().count(), 2);
        assert!(view([3, 3], None).slots() == Reply::Array(vec![]));
    }

    #[test]
    fn names_and_addresses_are_as_redis_has_them() {
        let view = view([1, 2], Some("[::1]:7003"));
        let third = view.map.node(NodeId(3)).unwrap();
        assert_eq!(host_and_port(third), Some(("::1", 7003)));
        assert_eq!(name(third), "0000000000000000000000000000000300000003");
    }
}
