//! How a new node joins a cluster: it formats its folder, tells any node where it is, and keeps the shard map that it
//! gets in return. It holds no replicas until a shard is placed on it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use keevee_core::ids::NodeId;
use keevee_core::shard_map::change::ChangeError;
use keevee_core::shard_map::{ShardMap, codec};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::http::cluster::Joining;
use crate::storage::{DataFolder, FolderError};

/// How long a cluster may take to take the node in.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its folder can't be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The folder is of another node or cluster than the configuration says.
    #[error(
        "the folder is of node {node} of cluster {cluster}: name another folder, or correct the configuration"
    )]
    OtherFolder {
        /// The node.
        node: u64,
        /// Its cluster.
        cluster: uuid::Uuid,
    },
    /// The cluster does not want it.
    #[error("{address} refuses this node: {detail}")]
    Refused {
        /// Who was asked.
        address: String,
        /// What it said.
        detail: String,
    },
    /// Nobody answered in time.
    #[error(
        "{address} does not take this node in: {cause}; is it a node of the cluster, and has that a majority?"
    )]
    Unanswered {
        /// Who was asked.
        address: String,
        /// What was seen last.
        cause: String,
    },
}

/// Joins through the node at `address` (`host:port`), unless the folder is a member's already.
pub async fn join(config: &Config, address: &str) -> Result<(), JoinError> {
    let path = &config.node.data;
    let identity = match DataFolder::identity(path)? {
        Some(identity) => identity,
        None => DataFolder::format(path, config.cluster.id, config.node_id())?,
    };
    if identity.node_id != config.node_id() || identity.cluster_id != config.cluster.id {
        return Err(JoinError::OtherFolder { node: identity.node_id.0, cluster: identity.cluster_id });
    }
    if DataFolder::is_member(path)? {
        return Ok(());
    }
    let joining = Joining::new(config.cluster.id, config.own_node(identity.store_id));
    let map = ask_until_answered(&config.cluster.secret, address, &joining).await?;
    Ok(DataFolder::join(path, &map)?)
}

async fn ask_until_answered(secret: &str, address: &str, joining: &Joining) -> Result<ShardMap, JoinError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let attempt = tokio::time::timeout(ATTEMPT_TIMEOUT, ask(secret, address, joining)).await;
        let cause = match attempt {
            Ok(Ok((StatusCode::OK, body))) => match codec::decode(body) {
                Ok(map) => return Ok(map),
                Err(error) => error.to_string(),
            },
            Ok(Ok((StatusCode::GONE, _))) => {
                let detail = ChangeError::Removed(NodeId(joining.id)).to_string();
                return Err(JoinError::Refused { address: address.to_owned(), detail });
            }
            Ok(Ok((status, body))) => {
                let detail = String::from_utf8_lossy(&body).into_owned();
                // It is starting, another change came first, or nobody knows.
                if !status.is_server_error() && status != StatusCode::CONFLICT {
                    return Err(JoinError::Refused { address: address.to_owned(), detail });
                }
                detail
            }
            Ok(Err(cause)) => cause,
            Err(_) => format!("no answer within {ATTEMPT_TIMEOUT:?}"),
        };
        if Instant::now() + PAUSE >= until {
            return Err(JoinError::Unanswered { address: address.to_owned(), cause });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks the node at an address once to take a node in, or to note its new addresses.
pub(crate) async fn ask(
    secret: &str,
    address: &str,
    joining: &Joining,
) -> Result<(StatusCode, Bytes), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let driver = tokio::spawn(connection);
    let body = serde_json::to_vec(joining).map_err(|error| text(&error))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/cluster/nodes")
        .header(HOST, address)
        .header(AUTHORIZATION, format!("Bearer {secret}"))
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| text(&error))?;
    let response = sender.send_request(request).await.map_err(|error| text(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| text(&error))?.to_bytes();
    driver.abort();
    Ok((status, body))
}
