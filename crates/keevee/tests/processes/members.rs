//! Members that change while the cluster serves: nodes that are added, drained, replaced and removed.

use std::fs;
use std::process::Command;

use keevee_client::{Consistency, Endpoint};
use keevee_cluster::{TemporaryCluster, until};
use serde_json::{Value, json};

use crate::joining::{Joiner, ask, post};
use crate::load::{Load, all_there};
use crate::{PATIENCE, client, endpoint_of, get, program, put, start};

with_both_engines! {
    nodes_are_added_and_the_first_is_removed_under_load
    a_dead_node_is_replaced
    a_change_goes_on_though_every_node_is_killed_in_the_middle
    newcomers_go_on_when_the_node_dies_through_which_they_joined
    a_node_frees_what_has_moved_away_and_may_get_it_back
    a_node_that_was_down_hears_that_it_was_drained
    a_removed_node_stops_and_says_why
}

/// Runs `keevee node` with these arguments, at a node: what it prints.
pub(crate) async fn node(there: &Endpoint, arguments: &[&str]) -> String {
    let mut command = Command::new(program());
    let there = there.to_string();
    command.arg("node").args(arguments).args(["--endpoint", &there, "--timeout", "30s", "--patience", "60s"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it runs");
    let output = output.expect("the program");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "keevee node {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Who decides in each shard, as the leader says that a node knows of.
pub(crate) async fn voters(there: &Endpoint, shard: u64) -> Option<Vec<u64>> {
    let status = ask(there, "/v1/cluster/status").await?;
    let shards = status["shards"].as_array()?.clone();
    let found = shards.into_iter().find(|one| one["shard"] == shard)?;
    found["members"]["voters"].as_array()?.iter().map(Value::as_u64).collect()
}

fn joiner(cluster: &mut TemporaryCluster, id: u64) -> Joiner {
    let one = endpoint_of(cluster, 1);
    let mut joiner = Joiner::new(cluster, id, None);
    joiner.start(&["--join", one.authority()]);
    joiner
}

/// Until a node is in the map that another has.
pub(crate) async fn is_known(there: &Endpoint, id: u64) {
    let known = until(PATIENCE, async || {
        let nodes = ask(there, "/v1/cluster/nodes").await?;
        nodes.as_array()?.iter().any(|node| node["id"] == id).then_some(())
    });
    assert!(known.await.is_some(), "node {id} does not join");
}

/// Until the map that a node has says so of it.
async fn hears_that_it_holds_nothing(there: &Endpoint, id: u64) {
    let has_heard = until(PATIENCE, async || {
        let shards = ask(there, "/v1/cluster/shards").await?;
        let is_elsewhere =
            |shard: &Value| shard["members"].as_array().is_some_and(|list| !list.contains(&json!(id)));
        shards.as_array()?.iter().all(is_elsewhere).then_some(())
    });
    has_heard.await.expect("it hears that it holds nothing");
}

async fn nodes_are_added_and_the_first_is_removed_under_load(engine: &str) {
    let mut cluster = start(3, engine).await;
    let (one, two) = (endpoint_of(&mut cluster, 1), endpoint_of(&mut cluster, 2));
    put(&client(cluster.endpoints()), "early", "x").await;
    let load = Load::start(&cluster.endpoints()[1..], 4);
    load.acknowledges(50).await;
    let mut joined = [joiner(&mut cluster, 4), joiner(&mut cluster, 5)];
    for id in [4, 5] {
        is_known(&two, id).await;
    }
    let planned = node(&two, &["add", "4", "--dry-run"]).await;
    assert!(planned.contains("shard 0 would move onto node 4 as well"), "{planned}");
    for id in ["4", "5"] {
        node(&two, &["add", id]).await;
        load.acknowledges(50).await;
    }
    assert_eq!(voters(&two, 0).await, Some(vec![1, 2, 3, 4, 5]));
    let said = node(&two, &["remove", "1"]).await;
    assert!(said.contains("node 1 is removed"), "{said}");
    load.acknowledges(50).await;
    // It is not needed for anything any more.
    cluster.kill(1).await.expect("killed");
    load.acknowledges(100).await;
    let (written, failed) = load.stop_and_count().await;
    assert_eq!(failed, 0, "no write failed with its retries");
    for there in [&two, &joined[0].endpoint(), &joined[1].endpoint()] {
        all_there(&client(vec![there.clone()]), &written, Consistency::Linearizable).await;
    }
    assert_eq!(get(&client(vec![joined[1].endpoint()]), "early").await.as_deref(), Some("x"));
    let nodes = ask(&two, "/v1/cluster/nodes").await.expect("nodes");
    assert!(nodes.as_array().expect("a list").iter().all(|node| node["id"] != 1), "{nodes}");
    assert!(ask(&one, "/healthz").await.is_none(), "it is gone");
    joined.iter_mut().for_each(Joiner::kill);
}

async fn a_dead_node_is_replaced(engine: &str) {
    let mut cluster = start(3, engine).await;
    let (one, two) = (endpoint_of(&mut cluster, 1), endpoint_of(&mut cluster, 2));
    put(&client(cluster.endpoints()), "key", "before").await;
    cluster.kill(3).await.expect("killed");
    let mut spare = joiner(&mut cluster, 4);
    is_known(&one, 4).await;
    node(&one, &["replace", "3", "--with", "4"]).await;
    for shard in [0, 1] {
        let told = until(PATIENCE, async || {
            let voters = voters(&spare.endpoint(), shard).await?;
            (voters == [1, 2, 4]).then_some(())
        });
        assert!(told.await.is_some(), "shard {shard}");
    }
    // Two of the three that there are now.
    cluster.kill(2).await.expect("killed");
    put(&client(vec![one.clone(), spare.endpoint()]), "key", "after").await;
    assert_eq!(get(&client(vec![spare.endpoint()]), "key").await.as_deref(), Some("after"));
    cluster.start_node(2).expect("started");
    // The dead node can be forgotten, and its number is not given again to another folder.
    node(&one, &["remove", "3"]).await;
    assert_eq!(get(&client(vec![two]), "key").await.as_deref(), Some("after"));
    let (status, problem) = post(&one, "/v1/cluster/nodes/3/drain", &json!({})).await;
    assert_eq!(status, 400, "{problem}");
    spare.kill();
}

async fn a_change_goes_on_though_every_node_is_killed_in_the_middle(engine: &str) {
    let mut cluster = start(3, engine).await;
    let one = endpoint_of(&mut cluster, 1);
    put(&client(cluster.endpoints()), "key", "value").await;
    let mut spare = joiner(&mut cluster, 4);
    is_known(&one, 4).await;
    node(&one, &["replace", "2", "--with", "4", "--no-wait"]).await;
    // Dead, it can't catch up: the change stands where it learns.
    spare.kill();
    let learns = until(PATIENCE, async || {
        let status = ask(&one, "/v1/cluster/status").await?;
        let shards = status["shards"].as_array()?.clone();
        let is_learning = |shard: &Value| shard["members"]["learners"] == json!([4]);
        shards.iter().all(is_learning).then_some(())
    });
    learns.await.expect("the change has begun");
    cluster.kill_all().await.expect("killed");
    cluster.start().expect("started");
    spare.start(&[]);
    let done = until(PATIENCE, async || {
        let shards = ask(&one, "/v1/cluster/shards").await?;
        let has =
            |shard: &Value, id| shard["members"].as_array().is_some_and(|list| list.contains(&json!(id)));
        let is_done = |shard: &Value| shard["next"].is_null() && has(shard, 4) && !has(shard, 2);
        shards.as_array()?.iter().all(is_done).then_some(())
    });
    done.await.expect("the change goes on");
    cluster.kill(2).await.expect("killed");
    assert_eq!(get(&client(vec![one, spare.endpoint()]), "key").await.as_deref(), Some("value"));
    spare.kill();
}

async fn newcomers_go_on_when_the_node_dies_through_which_they_joined(engine: &str) {
    let mut cluster = start(1, engine).await;
    let one = endpoint_of(&mut cluster, 1);
    put(&client(cluster.endpoints()), "key", "value").await;
    let mut joined = Vec::new();
    for id in [2, 3] {
        joined.push(joiner(&mut cluster, id));
        is_known(&one, id).await;
        node(&one, &["add", &id.to_string(), "--replicas", "3"]).await;
    }
    // Before they have asked it for the map that says that they take part.
    cluster.kill(1).await.expect("killed");
    let there = client(joined.iter().map(Joiner::endpoint).collect());
    put(&there, "key", "after").await;
    // The map can be changed as well.
    let said = node(&joined[0].endpoint(), &["drain", "1", "--fewer-replicas"]).await;
    assert!(said.contains("off node 1"), "{said}");
    assert_eq!(get(&there, "key").await.as_deref(), Some("after"));
    joined.iter_mut().for_each(Joiner::kill);
}

async fn a_node_frees_what_has_moved_away_and_may_get_it_back(engine: &str) {
    let mut cluster = start(3, engine).await;
    let (one, two) = (endpoint_of(&mut cluster, 1), endpoint_of(&mut cluster, 2));
    let there = client(cluster.endpoints());
    for key in ["a", "b"] {
        put(&there, key, "early").await;
    }
    let mut spare = joiner(&mut cluster, 4);
    is_known(&one, 4).await;
    node(&one, &["replace", "2", "--with", "4"]).await;
    put(&there, "b", "late").await;
    hears_that_it_holds_nothing(&two, 2).await;
    // What it has applied is in data/ then, where a crash could leave it in the log alone.
    cluster.stop_node(2, PATIENCE).await.expect("stopped");
    cluster.start_node(2).expect("started");
    let log = cluster.node(2).expect("a node").config().with_file_name("keevee.log");
    let is_freed = until(PATIENCE, async || {
        fs::read_to_string(&log).expect("a log").contains("its state is removed here shard=1").then_some(())
    });
    is_freed.await.expect("the room is free");
    node(&one, &["replace", "4", "--with", "2"]).await;
    spare.kill();
    cluster.kill(3).await.expect("killed");
    let there = client(vec![two]);
    assert_eq!(get(&there, "a").await.as_deref(), Some("early"));
    assert_eq!(get(&there, "b").await.as_deref(), Some("late"));
}

/// Also if the leader goes on of which it knew: that one has nothing to say to it any more.
async fn a_node_that_was_down_hears_that_it_was_drained(engine: &str) {
    let mut cluster = start(3, engine).await;
    let one = endpoint_of(&mut cluster, 1);
    let _spare = joiner(&mut cluster, 4);
    is_known(&one, 4).await;
    let status = ask(&one, "/v1/cluster/status").await.expect("a status");
    let system = status["shards"].as_array().and_then(|shards| shards.iter().find(|one| one["shard"] == 0));
    let down = if system.expect("there is one")["leader"] == 2 { 3 } else { 2 };
    cluster.kill(down).await.expect("killed");
    node(&one, &["drain", &down.to_string()]).await;
    cluster.start_node(down).expect("started");
    hears_that_it_holds_nothing(&endpoint_of(&mut cluster, down), down).await;
}

async fn a_removed_node_stops_and_says_why(engine: &str) {
    let mut cluster = start(3, engine).await;
    let one = endpoint_of(&mut cluster, 1);
    let (mut up, mut away) = (joiner(&mut cluster, 4), joiner(&mut cluster, 5));
    for id in [4, 5] {
        is_known(&one, id).await;
        node(&one, &["add", &id.to_string()]).await;
    }
    away.kill();
    for id in ["4", "5"] {
        node(&one, &["remove", id]).await;
    }
    for joiner in [&mut up, &mut away] {
        for _ in 0..2 {
            joiner.start_unless_running(&[]);
            let said = joiner.refusal().await;
            assert!(said.contains("was removed from the cluster"), "{said}");
        }
    }
}
