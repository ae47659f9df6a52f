//! Which node is asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keevee_client::{Client, Consistency, ErrorKind, Options, Write};
use tokio::task::JoinSet;

use crate::fake::*;

async fn put(client: &Client, key: &[u8]) -> u64 {
    client.put(key, "value", Write::default()).await.expect("a write")
}

#[tokio::test]
async fn requests_go_straight_to_the_leaders() {
    let nodes = [
        Node::with_steps([written(1)]).await,
        Node::with_steps([written(2)]).await,
        Node::with_steps([written(3)]).await,
    ];
    let [seed, low, high] = &nodes;
    let members: &[&Node] = &[seed, low, high];
    seed.tells(&carp(1, &[(1, members, Some(low)), (2, members, Some(high))], HALVES));
    let client = patient(&[seed]);
    for _ in 0..10 {
        assert_eq!((put(&client, LOW).await, put(&client, HIGH).await), (2, 3));
    }
    assert_eq!((seed.count(), low.count(), high.count()), (0, 10, 10));
    assert_eq!((seed.carp_asked(), low.carp_asked(), high.carp_asked()), (1, 0, 0));
    assert_eq!((low.streams(), high.streams()), (1, 1));
    assert_eq!(low.asked_to_redirect(), [true]);
}

#[tokio::test]
async fn a_leader_that_the_map_does_not_name_is_found_and_remembered() {
    let leader = Node::with_steps([written(7)]).await;
    let preferred = Node::with_steps([redirects(ErrorKind::NotLeader, 1, 1, Some(&leader))]).await;
    preferred.tells(&carp(1, &[(1, &[&preferred, &leader], None)], ALL_IN_1));
    let client = patient(&[&preferred]);
    for _ in 0..5 {
        assert_eq!(put(&client, LOW).await, 7);
    }
    assert_eq!((preferred.count(), leader.count()), (1, 5));
    assert_eq!(preferred.ids()[0], leader.ids()[0], "it is the same write");
}

#[tokio::test]
async fn an_old_map_ends_up_right() {
    let new = Node::with_steps([written(7)]).await;
    let old = Node::with_steps([redirects(ErrorKind::WrongShard, 2, 2, Some(&new))]).await;
    old.tells(&carp(1, &[(1, &[&old], Some(&old))], ALL_IN_1));
    let client = patient(&[&old]);
    put(&client, LOW).await;
    let map = carp(2, &[(1, &[&old], Some(&old)), (2, &[&new], Some(&new))], &[(8191, 2), (16383, 1)]);
    old.tells(&map);
    new.tells(&map);
    // The hint led there at once; the map follows.
    until(|| old.carp_asked() + new.carp_asked() >= 2).await;
    let mut asked = old.count();
    // A fetch under way may still tell the old map once.
    loop {
        put(&client, LOW).await;
        if old.count() == asked {
            break;
        }
        asked = old.count();
        assert!(asked < 100, "the new map is never taken");
    }
}

#[tokio::test]
async fn a_key_that_moved_says_nothing_of_the_others() {
    let new = Node::with_steps([written(2)]).await;
    let old = Node::with_steps([redirects(ErrorKind::WrongShard, 2, 2, Some(&new)), written(1)]).await;
    // Nobody knows the new map yet.
    let map = carp(1, &[(1, &[&old], Some(&old))], ALL_IN_1);
    old.tells(&map);
    new.tells(&map);
    let client = patient(&[&old]);
    assert_eq!(put(&client, LOW).await, 2);
    assert_eq!(put(&client, HIGH).await, 1);
    assert_eq!((old.count(), new.count()), (2, 1));
}

#[tokio::test]
async fn a_wrong_shard_without_an_address_waits_for_the_new_map() {
    let new = Node::with_steps([written(7)]).await;
    let old = Node::with_steps([redirects(ErrorKind::WrongShard, 2, 2, None)]).await;
    let map = carp(2, &[(1, &[&old], Some(&old)), (2, &[&new], Some(&new))], &[(8191, 2), (16383, 1)]);
    new.tells(&map);
    // The node that is asked first does not know better, and is asked again in vain.
    old.tells(&carp(1, &[(1, &[&old, &new], Some(&old))], ALL_IN_1));
    let client = client(&[&old]);
    assert_eq!(put(&client, LOW).await, 7);
    let asked = old.count();
    assert_eq!(put(&client, LOW).await, 7);
    assert_eq!(old.count(), asked);
}

#[tokio::test]
async fn a_map_that_is_older_than_the_present_one_is_not_taken() {
    let node = Node::with_steps([written(7)]).await;
    let other = Node::with_steps([written(8)]).await;
    node.tells(&carp(5, &[(1, &[&node], Some(&node))], ALL_IN_1));
    let client = client(&[&node]);
    put(&client, LOW).await;
    node.tells(&carp(4, &[(1, &[&other], Some(&other))], ALL_IN_1));
    let asked = node.carp_asked();
    // An unreachable node is a reason to fetch the map.
    node.does(|number, _| if number == 1 { Step::Break } else { written(7) });
    put(&client, LOW).await;
    until(|| node.carp_asked() > asked).await;
    put(&client, LOW).await;
    assert_eq!(other.count(), 0);
}

#[tokio::test]
async fn nodes_that_name_each_other_keep_nobody_busy() {
    let (one, two) = (Node::with_steps([Step::Hang]).await, Node::with_steps([Step::Hang]).await);
    let (to_two, to_one) = (
        redirects(ErrorKind::NotLeader, 1, 1, Some(&two)),
        redirects(ErrorKind::NotLeader, 1, 1, Some(&one)),
    );
    one.does(move |_, _| to_two.clone());
    two.does(move |_, _| to_one.clone());
    one.tells(&carp(1, &[(1, &[&one, &two], None)], ALL_IN_1));
    let error = client(&[&one]).put(LOW, "value", Write::default()).await.expect_err("no leader");
    assert_eq!(error.kind, ErrorKind::NotLeader);
    let asked = one.count() + two.count();
    // Two seconds of pauses, and a few redirects that need none.
    assert!((5..100).contains(&asked), "{asked} requests");
}

#[tokio::test]
async fn a_node_that_dies_is_left_for_the_next_leader() {
    let (old, new) = (Node::with_steps([written(1)]).await, Node::with_steps([written(2)]).await);
    let elected = Arc::new(AtomicBool::new(false));
    let (is_elected, nobody) = (elected.clone(), redirects(ErrorKind::NotLeader, 1, 1, None));
    let asked_in_vain = Arc::new(Mutex::new(0));
    let in_vain = asked_in_vain.clone();
    new.does(move |_, _| {
        if is_elected.load(Ordering::SeqCst) {
            return written(2);
        }
        *in_vain.lock().expect("no panic") += 1;
        nobody.clone()
    });
    let map = carp(1, &[(1, &[&old, &new], Some(&old))], ALL_IN_1);
    old.tells(&map);
    new.tells(&map);
    let client = client(&[&old]);
    assert_eq!(put(&client, LOW).await, 1);
    old.die().await;
    let call = tokio::spawn({
        let client = client.clone();
        async move { put(&client, LOW).await }
    });
    until(|| *asked_in_vain.lock().expect("no panic") > 0).await;
    elected.store(true, Ordering::SeqCst);
    assert_eq!(call.await.expect("no panic"), 2);
    assert_eq!(put(&client, LOW).await, 2);
}

#[tokio::test]
async fn a_hint_of_an_unknown_epoch_is_a_reason_to_fetch_the_map() {
    let leader = Node::with_steps([written(7)]).await;
    let node = Node::with_steps([redirects(ErrorKind::NotLeader, 1, 9, Some(&leader)), written(1)]).await;
    node.tells(&carp(1, &[(1, &[&node, &leader], Some(&node))], ALL_IN_1));
    let client = patient(&[&node]);
    put(&client, LOW).await;
    until(|| node.carp_asked() == 2).await;
}

#[tokio::test]
async fn nodes_without_a_map_serve_every_key() {
    let nodes = [Node::with_steps([written(1)]).await, Node::with_steps([written(2)]).await];
    let client = patient(&[&nodes[0], &nodes[1]]);
    for key in [LOW, HIGH, LOW, HIGH] {
        assert_eq!(put(&client, key).await, 1);
    }
    assert_eq!((nodes[0].carp_asked(), nodes[1].carp_asked()), (1, 0));
    assert_eq!((nodes[0].count(), nodes[1].count()), (4, 0));
    nodes[0].die().await;
    assert_eq!(put(&client, LOW).await, 2);
}

#[tokio::test]
async fn a_client_that_does_not_route_uses_its_endpoints_alone() {
    let (mine, other) = (Node::with_steps([written(1)]).await, Node::with_steps([written(2)]).await);
    mine.tells(&carp(1, &[(1, &[&other], Some(&other))], ALL_IN_1));
    let client = Client::unrouted(vec![mine.endpoint.clone()], options()).expect("an endpoint");
    assert_eq!(put(&client, LOW).await, 1);
    assert_eq!((mine.carp_asked(), other.count()), (0, 0));
    assert_eq!(mine.asked_to_redirect(), [false]);
}

#[tokio::test]
async fn a_map_that_is_of_no_use_is_looked_for_elsewhere() {
    let good = Node::with_steps([written(7)]).await;
    let sound = carp(1, &[(1, &[&good], Some(&good))], ALL_IN_1);
    good.tells(&sound);
    for bad in [
        "".to_owned(),
        "[]".to_owned(),
        "{\"epoch\":".to_owned(),
        sound.replace("16383", "16382"),
        sound.replace("16383", "40000"),
        sound.replace("[0,16383,1]", "[0,16383,2]"),
        sound.replace(good.endpoint.authority(), "nowhere"),
        sound.replace("\"epoch\":1", "\"epoch\":-1"),
    ] {
        assert_ne!(bad, sound);
        let node = Node::with_steps([written(1)]).await;
        node.tells(&bad);
        assert_eq!(put(&client(&[&node, &good]), LOW).await, 7, "{bad}");
        let hurried = Options { timeout: Duration::from_millis(300), ..options() };
        let client = client_with(&[&node], hurried);
        let error = client.put(LOW, "value", Write::default()).await.expect_err("no map");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.detail.contains("shard map"), "{error}");
        assert_eq!(node.count(), 0);
    }
}

#[tokio::test]
async fn calls_that_need_the_map_share_one_fetch() {
    let node = Node::with_steps([written(7)]).await;
    node.tells(&carp(1, &[(1, &[&node], Some(&node))], ALL_IN_1));
    let client = patient(&[&node]);
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        calls.spawn(async move { put(&client, LOW).await });
    }
    assert_eq!(calls.join_all().await, [7; 100]);
    assert_eq!((node.carp_asked(), node.streams()), (1, 1));
}

#[tokio::test]
async fn an_aged_map_is_fetched_again() {
    let node = Node::with_steps([written(7)]).await;
    let map = carp(1, &[(1, &[&node], Some(&node))], ALL_IN_1);
    node.tells(&map.replace("\"ttl_seconds\":60", "\"ttl_seconds\":0"));
    let client = client(&[&node]);
    let calls = async {
        while node.carp_asked() < 2 {
            put(&client, LOW).await;
        }
    };
    tokio::time::timeout(DEADLINE, calls).await.expect("it is fetched in time");
}

#[tokio::test]
async fn a_stale_read_asks_a_member_that_the_caller_named() {
    let (leader, mine) =
        (Node::with_steps([found(2, "new")]).await, Node::with_steps([found(1, "old")]).await);
    let map = carp(1, &[(1, &[&leader, &mine], Some(&leader))], ALL_IN_1);
    mine.tells(&map);
    let client = patient(&[&mine]);
    let read =
        async |consistency| client.get(LOW, consistency).await.expect("a read").expect("a value").bytes;
    assert_eq!(read(Consistency::Stale).await, "old");
    assert_eq!(read(Consistency::Linearizable).await, "new");
    // That one answered does not make it a leader.
    assert_eq!(read(Consistency::Stale).await, "old");
    assert_eq!(read(Consistency::Linearizable).await, "new");
}
