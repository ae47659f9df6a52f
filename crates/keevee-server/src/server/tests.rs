//! A node alone, of which a part fails.

use std::future::pending;
use std::path::Path;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// The configuration of a cluster of one, whose folder is ready.
fn alone(folder: &Path) -> Config {
    let cluster = uuid::Uuid::from_u128(7);
    let identity = DataFolder::format(folder, cluster, NodeId(1)).unwrap();
    DataFolder::set_first_members(folder, &[(identity.node_id, identity.store_id)]).unwrap();
    let addresses = "http = \"127.0.0.1:0\"\npeer = \"127.0.0.1:0\"";
    let text = format!(
        "[cluster]\nid = \"{cluster}\"\nsecret = \"a secret of sixteen\"\n\
         [node]\nid = 1\ndata = {folder:?}\n{addresses}\n[[member]]\nid = 1\n{addresses}\n"
    );
    Config::parse(&text, &folder.join("keevee.toml")).unwrap()
}

fn disk_error() -> StorageError {
    StorageError::Io { what: "flushing the state", cause: "no".to_owned() }
}

/// Runs the node until it stops by itself.
async fn end(server: Server) -> ServerError {
    timeout(DEADLINE, server.run(pending())).await.expect("the node stops in time").unwrap_err()
}

/// Nothing uses the folder any more.
async fn start_again(config: &Config) -> Server {
    Server::start(config).await.unwrap()
}

#[tokio::test]
async fn a_failed_flush_stops_the_node() {
    let temp = TempDir::new().unwrap();
    let config = alone(temp.path());
    let mut server = start_again(&config).await;
    let failing = Flusher::start(|| Err(disk_error()), Duration::from_millis(1)).unwrap();
    let flusher = std::mem::replace(&mut server.threads.flusher, failing);
    flusher.stop(false);
    flusher.worker.join().unwrap();
    let error = end(server).await;
    assert!(matches!(&error, ServerError::Storage(error) if *error == disk_error()), "{error}");

    let server = start_again(&config).await;
    timeout(DEADLINE, server.run(async {})).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failed_executor_stops_the_node_and_its_other_threads() {
    let temp = TempDir::new().unwrap();
    let config = alone(temp.path());
    let failed = || Err(FatalError::Log(disk_error()));
    let failures: [fn() -> Result<(), FatalError>; 2] = [failed, || panic!("as the test wants")];
    for failure in failures {
        let mut server = start_again(&config).await;
        server.node.stop(Instant::now());
        (&mut server.threads.executor.ended).await.unwrap_err();
        let failing = Worker::start("executor", failure).unwrap();
        std::mem::replace(&mut server.threads.executor, failing).join().unwrap();
        let error = end(server).await;
        assert!(matches!(error, ServerError::Fatal(_) | ServerError::Panicked), "{error}");
    }
    start_again(&config).await.run(async {}).await.unwrap();
}

#[tokio::test]
async fn a_node_that_cannot_start_leaves_its_folder_free() {
    let temp = TempDir::new().unwrap();
    let mut config = alone(temp.path());
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    config.node.peer = taken.local_addr().unwrap().to_string();
    let error = Server::start(&config).await.err().unwrap();
    assert!(matches!(error, ServerError::Listen { .. }), "{error}");
    config.node.peer = "127.0.0.1:0".to_owned();
    start_again(&config).await.run(async {}).await.unwrap();
}
