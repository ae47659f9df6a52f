//! A cluster within one process, as a program that embeds keevee has it in its tests.

use std::time::{Duration, Instant};

use keevee_core::command::{Action, Command, OperationResult, Outcome};
use keevee_server::embedded::EmbeddedCluster;
use keevee_server::node::Context;

fn within() -> Context {
    Context::until(Instant::now() + Duration::from_secs(30))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_in_one_test() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = EmbeddedCluster::start(folder.path(), 3, &[]).await.unwrap();
    let put = Action::put("color", "green");
    cluster.node(1).execute(within(), Command::single(put)).await.unwrap();
    for id in 1..=3 {
        let get = Command::single(Action::Get { key: "color".into() });
        let outcome = cluster.node(id).execute(within(), get).await.unwrap();
        let Outcome::Done(results) = outcome else { panic!("{outcome:?}") };
        let [OperationResult::Value(Some(found))] = &results[..] else { panic!("{results:?}") };
        assert_eq!(found.value, "green");
    }
    cluster.stop().await.unwrap();
}
