use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use super::change::{ChangeError, Placement, ShardSpec};
use super::codec::{ShardMapDecodeError, decode, encode};
use super::placement::{place_replicas, spread_leaders};
use super::*;
use crate::codec::DecodeError;
use crate::slot_table::SlotTableError;
use crate::tests::Random;

fn bootstrap(nodes: Vec<NodeInfo>, specs: &[ShardSpec]) -> Result<ShardMap, ChangeError> {
    ShardMap::bootstrap(nodes, Consensus::default(), specs)
}

fn node(id: u64) -> NodeInfo {
    NodeInfo {
        id: NodeId(id),
        store: StoreId(Uuid::from_u128(u128::from(id))),
        peer: format!("10.0.0.{id}:7101"),
        http: format!("10.0.0.{id}:7001"),
        resp: None,
    }
}

fn nodes(count: u64) -> Vec<NodeInfo> {
    (1..=count).map(node).collect()
}

fn spread(replicas: usize) -> ShardSpec {
    ShardSpec {
        name: None,
        load_factor: 1,
        consensus: Consensus::Paxos,
        placement: Placement::Spread { replicas },
    }
}

fn pinned(nodes: &[u64]) -> ShardSpec {
    let nodes = nodes.iter().copied().map(NodeId).collect();
    ShardSpec { placement: Placement::Pinned(nodes), ..spread(0) }
}

fn empty(spec: ShardSpec) -> ShardSpec {
    ShardSpec { load_factor: 0, ..spec }
}

/// Three nodes, shards of both engines and with unequal loads.
fn sample() -> ShardMap {
    let second = ShardSpec {
        name: Some("eu.west_2".to_owned()),
        load_factor: 3,
        consensus: Consensus::Raft,
        ..spread(2)
    };
    ShardMap { ttl_seconds: Some(60), ..bootstrap(nodes(3), &[spread(3), second]).unwrap() }
}

/// The greatest difference between two of these nodes.
fn span(nodes: u64, counted: impl Iterator<Item = NodeId>) -> usize {
    let mut counts: BTreeMap<NodeId, usize> = (1..=nodes).map(|node| (NodeId(node), 0)).collect();
    counted.for_each(|node| *counts.get_mut(&node).unwrap() += 1);
    counts.values().max().unwrap() - counts.values().min().unwrap()
}

fn replicas_span(map: &ShardMap) -> usize {
    span(map.nodes.len() as u64, map.data_shards().flat_map(|shard| shard.members.iter().copied()))
}

fn leaders_span(map: &ShardMap) -> usize {
    span(map.nodes.len() as u64, map.data_shards().map(|shard| shard.members[0]))
}

// ---- Making maps ----

#[test]
fn the_first_map_has_a_system_shard_and_the_shards_asked_for() {
    let map = sample();
    assert_eq!(map.epoch, 1);
    let names: Vec<_> = map.shards.iter().map(|shard| (shard.id.0, shard.name.as_str())).collect();
    assert_eq!(names, [(0, "system"), (1, "shard-1"), (2, "eu.west_2")]);
    assert_eq!(map.shards[0].members.len(), 3);
    assert_eq!((map.shards[2].consensus, map.shards[2].members.len()), (Consensus::Raft, 2));
    let counts = map.slots.counts();
    assert_eq!(counts, BTreeMap::from([(ShardId(1), 4096), (ShardId(2), 12288)]));
}

#[test]
fn the_system_shard_is_on_up_to_five_nodes() {
    for (count, members) in [(1, 1), (3, 3), (5, 5), (9, 5)] {
        let map = bootstrap(nodes(count), &[spread(1)]).unwrap();
        assert_eq!(map.shard(ShardId::SYSTEM).unwrap().members.len(), members);
    }
}

#[test]
fn replicas_and_preferred_leaders_are_spread_to_within_one() {
    let mut random = Random::new(1);
    for _ in 0..300 {
        let count = 1 + random.below(12);
        let replicas = 1 + random.below(count.min(5)) as usize;
        let specs = vec![spread(replicas); 1 + random.below(60) as usize];
        let map = bootstrap(nodes(count), &specs).unwrap();
        let what = format!("{} shards on {replicas} of {count} nodes", specs.len());
        assert!(replicas_span(&map) <= 1, "{what}: replicas");
        assert!(leaders_span(&map) <= 1, "{what}: leaders");
    }
}

#[test]
fn unequal_numbers_of_replicas_are_spread_as_well() {
    let mut random = Random::new(2);
    for _ in 0..100 {
        let count = 3 + random.below(8);
        let specs: Vec<_> = (0..40).map(|_| spread([1, 3][random.below(2) as usize])).collect();
        let map = bootstrap(nodes(count), &specs).unwrap();
        assert!(replicas_span(&map) <= 1);
    }
}

#[test]
fn a_map_does_not_depend_on_the_order_of_the_nodes() {
    let specs = vec![spread(3); 20];
    let reversed = nodes(7).into_iter().rev().collect();
    assert_eq!(bootstrap(nodes(7), &specs), bootstrap(reversed, &specs));
}

#[test]
fn shards_pinned_to_disjoint_nodes_share_nothing() {
    let specs = [pinned(&[1, 2, 3]), pinned(&[4, 5, 6]), pinned(&[1, 2, 3]), pinned(&[4, 5, 6])];
    let map = bootstrap(nodes(6), &specs).unwrap();
    for shard in map.data_shards() {
        let mut members = shard.members.clone();
        members.sort();
        let expected = if shard.id.0 % 2 == 1 { [1, 2, 3] } else { [4, 5, 6] };
        assert_eq!(members, expected.map(NodeId));
    }
    assert!(leaders_span(&map) <= 1);
}

#[test]
fn shards_that_are_not_pinned_go_around_those_that_are() {
    let map = bootstrap(nodes(6), &[spread(3), pinned(&[1, 2, 3])]).unwrap();
    assert_eq!(replicas_span(&map), 0);
}

/// The most even division, found by trying all.
fn least_leads_max(shards: &[Vec<NodeId>]) -> usize {
    let choices: usize = shards.iter().map(Vec::len).product();
    let leads_max = |mut choice: usize| {
        let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
        for members in shards {
            *leads.entry(members[choice % members.len()]).or_default() += 1;
            choice /= members.len();
        }
        leads.into_values().max().unwrap()
    };
    (0..choices).map(leads_max).min().unwrap()
}

#[test]
fn leaders_are_as_even_as_any_members_allow() {
    let mut random = Random::new(3);
    for _ in 0..300 {
        let count = 2 + random.below(5);
        let mut shards: Vec<Vec<NodeId>> = (0..1 + random.below(7))
            .map(|_| {
                let mut members: Vec<_> = (0..3).map(|_| NodeId(1 + random.below(count))).collect();
                members.sort();
                members.dedup();
                members
            })
            .collect();
        let least = least_leads_max(&shards);
        let before = shards.clone();
        spread_leaders(&mut shards);
        let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
        shards.iter().for_each(|members| *leads.entry(members[0]).or_default() += 1);
        assert_eq!(leads.into_values().max().unwrap(), least, "{before:?}");
        shards.iter_mut().for_each(|members| members.sort());
        assert_eq!(shards, before, "only the order changes");
    }
}

#[test]
fn the_least_loaded_nodes_come_first_and_then_the_best_ranked() {
    let replicas = BTreeMap::from([(NodeId(1), 5), (NodeId(2), 0), (NodeId(3), 5), (NodeId(4), 1)]);
    let placed = place_replicas(&replicas, ShardId(7), 3).unwrap();
    assert_eq!(placed[..2], [NodeId(2), NodeId(4)]);
    assert_eq!(place_replicas(&replicas, ShardId(7), 5), None);
}

#[test]
fn what_cannot_be_bootstrapped_is_refused() {
    let refused = |nodes, specs: &[ShardSpec]| bootstrap(nodes, specs).unwrap_err();
    assert_eq!(refused(nodes(3), &[]), ChangeError::Slots(SlotTableError::NoShards));
    assert_eq!(refused(nodes(3), &[empty(spread(3))]), ChangeError::Slots(SlotTableError::NoShards));
    let few = ChangeError::NotEnoughNodes { shard: ShardId(2), replicas: 4, nodes: 3 };
    assert_eq!(refused(nodes(3), &[spread(3), spread(4)]), few);
    let unknown = ShardMapError::UnknownMember { shard: ShardId(1), node: NodeId(9) };
    assert_eq!(refused(nodes(3), &[pinned(&[1, 9])]), unknown.into());
    let twice = ShardMapError::DuplicateMember { shard: ShardId(1), node: NodeId(1) };
    assert_eq!(refused(nodes(3), &[pinned(&[1, 1])]), twice.into());
    assert_eq!(refused(nodes(3), &[pinned(&[])]), ShardMapError::NoMembers(ShardId(1)).into());
    assert_eq!(refused(vec![node(1), node(1)], &[spread(1)]), ShardMapError::DuplicateNode(NodeId(1)).into());
    let named = |name: &str| ShardSpec { name: Some(name.to_owned()), ..spread(1) };
    let taken = ShardMapError::DuplicateName("shard-1".to_owned());
    assert_eq!(refused(nodes(1), &[spread(1), named("shard-1")]), taken.into());
    assert_eq!(refused(nodes(1), &[named("a b")]), ShardMapError::BadName("a b".to_owned()).into());
}

// ---- Changing maps ----

#[test]
fn a_change_gives_the_next_epoch_and_leaves_the_map_alone() {
    let map = sample();
    let next = map.add_node(node(4)).unwrap();
    assert_eq!((map.epoch, next.epoch), (1, 2));
    assert_eq!((map.nodes.len(), next.nodes.len()), (3, 4));
    assert_eq!((&next.shards, &next.slots, next.ttl_seconds), (&map.shards, &map.slots, Some(60)));
}

#[test]
fn a_new_node_must_be_new() {
    let map = sample();
    assert_eq!(map.add_node(node(2)), Err(ShardMapError::DuplicateNode(NodeId(2)).into()));
    let same_store = NodeInfo { id: NodeId(9), ..node(2) };
    let refused = ShardMapError::DuplicateStore(StoreId(Uuid::from_u128(2)));
    assert_eq!(map.add_node(same_store), Err(refused.into()));
}

#[test]
fn no_node_comes_to_the_address_of_another() {
    let map = sample();
    let moved = NodeInfo { peer: "10.0.0.7:7101".to_owned(), ..node(2) };
    assert_eq!(map.set_node(moved.clone()).unwrap().node(NodeId(2)), Some(&moved));
    let taken = Some(node(3).http);
    for wrong in [
        NodeInfo { http: node(3).http, ..node(4) },
        NodeInfo { peer: node(3).peer, ..node(2) },
        NodeInfo { resp: taken, ..node(2) },
    ] {
        let refused = map.set_node(wrong).unwrap_err();
        assert!(matches!(refused, ChangeError::AddressTaken { node: NodeId(3), .. }), "{refused}");
    }
    assert_eq!(map.set_node(node(2)).unwrap().nodes, map.nodes, "its own are its own");
}

#[test]
fn a_new_shard_has_no_slots_and_goes_to_the_least_loaded() {
    let mut map = bootstrap(nodes(3), &[spread(3)]).unwrap();
    for id in 4..=6 {
        map = map.add_node(node(id)).unwrap();
    }
    let next = map.add_shard(&empty(spread(3))).unwrap();
    assert_eq!(next.epoch, map.epoch + 1);
    assert_eq!(next.slots, map.slots);
    let added = next.shard(ShardId(2)).unwrap();
    assert_eq!((added.name.as_str(), added.load_factor), ("shard-2", 0));
    assert!(added.members.iter().all(|member| member.0 > 3));
    // The next ones level the replicas out. Nobody's preferred leader changes for it, so leaders may lag by
    // one.
    let mut last = next;
    for _ in 0..4 {
        last = last.add_shard(&empty(spread(3))).unwrap();
    }
    assert!(replicas_span(&last) <= 1 && leaders_span(&last) <= 2, "{last:?}");
}

#[test]
fn a_new_shard_must_have_a_new_name_and_no_slots() {
    let map = sample();
    let named = ShardSpec { name: Some("eu.west_2".to_owned()), ..empty(spread(3)) };
    let refused = ShardMapError::DuplicateName("eu.west_2".to_owned());
    assert_eq!(map.add_shard(&named), Err(refused.into()));
    let refused = map.add_shard(&spread(3)).unwrap_err();
    let expected = ChangeError::WouldMoveSlots { shard: ShardId(3), load_factor: 1, slots: 3276 };
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("add shards with load factor 0"), "{refused}");
}

#[test]
fn a_load_factor_that_moves_no_slots_is_taken() {
    let map = bootstrap(nodes(3), &[spread(3)]).unwrap();
    let next = map.set_load_factor(ShardId(1), 7).unwrap();
    assert_eq!((next.epoch, next.shards[1].load_factor), (2, 7));
    let zero = map.set_load_factor(ShardId(1), 0);
    assert_eq!(zero, Err(ChangeError::Slots(SlotTableError::NoShards)));
    let map = map.add_shard(&empty(spread(3))).unwrap();
    let refused = ChangeError::WouldMoveSlots { shard: ShardId(2), load_factor: 1, slots: 8192 };
    assert_eq!(map.set_load_factor(ShardId(2), 1), Err(refused));
    assert_eq!(map.set_load_factor(ShardId::SYSTEM, 1), Err(ChangeError::UnknownShard(ShardId::SYSTEM)));
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    let map = sample();
    assert_eq!(map.remove_shard(ShardId(1)), Err(ChangeError::CannotRemoveShard(ShardId(1))));
    assert_eq!(map.remove_shard(ShardId(9)), Err(ChangeError::UnknownShard(ShardId(9))));
    let holds = ChangeError::StillHolds { node: NodeId(1), shard: ShardId::SYSTEM };
    assert_eq!(map.remove_node(NodeId(1)), Err(holds));
    assert_eq!(map.remove_node(NodeId(9)), Err(ChangeError::UnknownNode(NodeId(9))));
}

// ---- Looking things up ----

#[test]
fn an_explanation_says_where_a_key_belongs_and_why() {
    let map = sample();
    let explanation = map.explain(b"foo");
    assert_eq!(explanation.slot, Slot(12182));
    assert_eq!(explanation.shard, map.owner(b"foo"));
    assert_eq!(explanation.replicas, map.shard(explanation.shard).unwrap().members);
    assert_eq!(explanation.scores.len(), 2);
    assert!(explanation.scores[0].score >= explanation.scores[1].score);
    let json = serde_json::to_string(&explanation).unwrap();
    assert!(json.starts_with(r#"{"slot":12182,"shard":"#), "{json}");
}

#[test]
fn the_view_is_the_apis_shape() {
    let map = ShardMap { ttl_seconds: Some(60), ..bootstrap(nodes(1), &[spread(1)]).unwrap() };
    let view = map.carp_view(|shard| (shard == ShardId(1)).then_some(NodeId(1)));
    let json = serde_json::to_string(&view).unwrap();
    assert_eq!(
        json,
        concat!(
            r#"{"epoch":1,"ttl_seconds":60,"shards":["#,
            r#"{"id":0,"name":"system","load_factor":0,"multiplier":0.0,"engine":"paxos","members":[1]},"#,
            r#"{"id":1,"name":"shard-1","load_factor":1,"multiplier":1.0,"engine":"paxos","members":[1],"leader":1}"#,
            r#"],"nodes":[{"id":1,"http":"10.0.0.1:7001"}],"slots":[[0,16383,1]]}"#
        )
    );
    assert_eq!(serde_json::from_str::<view::CarpView>(&json).unwrap(), view);
}

// ---- Validation and bytes ----

#[test]
fn what_is_no_map_is_refused() {
    let refused = |spoil: &dyn Fn(&mut ShardMap)| {
        let mut map = sample();
        spoil(&mut map);
        map.validate().unwrap_err()
    };
    let (one, two) = (ShardId(1), ShardId(2));
    assert_eq!(refused(&|map| map.epoch = 0), ShardMapError::NoEpoch);
    assert_eq!(refused(&|map| map.nodes[0].id = NodeId(0)), ShardMapError::NodeZero);
    assert_eq!(refused(&|map| map.nodes.swap(0, 1)), ShardMapError::DuplicateNode(NodeId(1)));
    assert_eq!(refused(&|map| map.shards.swap(1, 2)), ShardMapError::DuplicateShard(one));
    assert_eq!(refused(&|map| map.shards[0].load_factor = 1), ShardMapError::BadSystemShard);
    assert_eq!(refused(&|map| drop(map.shards.remove(0))), ShardMapError::BadSystemShard);
    assert_eq!(refused(&|map| map.shards.clear()), ShardMapError::BadSystemShard);
    assert_eq!(refused(&|map| map.shards[0].members = vec![NodeId(1); 6]), ShardMapError::BadSystemShard);
    assert_eq!(refused(&|map| map.shards[1].name.clear()), ShardMapError::BadName(String::new()));
    let long = "a".repeat(65);
    assert_eq!(refused(&|map| map.shards[1].name = long.clone()), ShardMapError::BadName(long.clone()));
    let taken = ShardMapError::DuplicateName("system".to_owned());
    assert_eq!(refused(&|map| map.shards[1].name = "system".to_owned()), taken);
    assert_eq!(refused(&|map| map.shards[1].members.clear()), ShardMapError::NoMembers(one));
    let spoil = |map: &mut ShardMap| drop(map.nodes.remove(2));
    assert!(matches!(refused(&spoil), ShardMapError::UnknownMember { node: NodeId(3), .. }));
    let owns_nothing = refused(&|map| map.shards[2].load_factor = 0);
    assert!(matches!(owns_nothing, ShardMapError::BadOwner { shard, .. } if shard == two));
    let unknown = refused(&|map| map.slots = SlotTable::of_one(ShardId(9)));
    assert_eq!(unknown, ShardMapError::BadOwner { slot: Slot(0), shard: ShardId(9) });
    let system = refused(&|map| map.slots = SlotTable::of_one(ShardId::SYSTEM));
    assert_eq!(system, ShardMapError::BadOwner { slot: Slot(0), shard: ShardId::SYSTEM });
}

#[test]
fn a_map_survives_its_encoding() {
    let many = bootstrap(nodes(9), &vec![spread(3); 100]).unwrap();
    let speaks_resp = NodeInfo { resp: Some("10.0.0.2:6379".to_owned()), ..node(2) };
    let with_resp = sample().set_node(speaks_resp).unwrap();
    for map in [sample(), many, with_resp] {
        assert_eq!(decode(encode(&map)), Ok(map));
    }
}

/// Pins the layout: these bytes are in logs.
#[test]
fn bytes_of_format_1_are_read_and_written() {
    let map = ShardMap { ttl_seconds: Some(60), ..bootstrap(nodes(1), &[spread(1)]).unwrap() };
    let bytes = encode(&map);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [
        // Format, epoch, seconds; then a node: id, store, addresses.
        "08011001183c",
        "223208011210000000000000000000000000000000011a0d31302e302e302e313a37313031220d31302e302e302e313a37303031",
        // Two shards: id, name, load factor, consensus, members; nothing is written for 0.
        "2a0d120673797374656d20012a0101",
        "2a120801120773686172642d31180120012a0101",
        // 16384 slots of shard 1.
        "320480800101",
    ];
    assert_eq!(hex, expected.concat());
    assert_eq!(decode(bytes), Ok(map));
}

#[test]
fn unknown_formats_fields_and_kinds_are_refused() {
    let bytes = encode(&sample());
    let with = |more: &[u8]| decode([&bytes[..], more].concat().into()).unwrap_err();
    // Field 15, a varint.
    assert_eq!(with(&[0x78, 1]), DecodeError::UnknownField.into());
    assert_eq!(with(&[0x08, 2]), DecodeError::UnknownFormat(2).into());
    assert_eq!(with(&[0x08, 0]), DecodeError::BadField("format version").into());
    // One slot more, and half a pair.
    assert_eq!(with(&[0x32, 2, 1, 1]), DecodeError::BadField("slots").into());
    assert_eq!(with(&[0x32, 1, 1]), DecodeError::BadField("slots").into());
    // A shard (id 9) of consensus 3, and of none.
    assert_eq!(with(&[0x2a, 4, 0x08, 9, 0x20, 3]), DecodeError::UnknownKind("consensus").into());
    assert_eq!(with(&[0x2a, 2, 0x08, 9]), DecodeError::BadField("consensus").into());
    // A node (id 9) without a store.
    assert_eq!(with(&[0x22, 2, 0x08, 9]), DecodeError::BadField("store id").into());
}

#[test]
fn bytes_of_what_is_no_map_are_refused() {
    let spoiled = ShardMap { epoch: 0, ..sample() };
    assert_eq!(decode(encode(&spoiled)), Err(ShardMapDecodeError::Invalid(ShardMapError::NoEpoch)));
    assert!(matches!(
        decode(Bytes::from_static(&[0xff, 0xff])),
        Err(ShardMapDecodeError::Undecodable(DecodeError::Malformed(_)))
    ));
    assert!(decode(Bytes::new()).is_err());
    let bytes = encode(&sample());
    for end in 0..bytes.len() {
        assert!(decode(bytes.slice(..end)).is_err(), "cut at {end}");
    }
}
