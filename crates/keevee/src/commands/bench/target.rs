//! Where the connections of a load go: which of the nodes that are named, and at which of their addresses.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use keevee_client::{Client, Endpoint, EndpointError, Options};
use prost::Message;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::load::{Protocol, grpc};

/// How long a node may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which nodes get the load.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Target {
    /// All, in turn
    All,
    /// The one that leads when it starts
    Leader,
    /// Those that do not lead when it starts, in turn
    Followers,
}

/// What is named on the command line.
#[derive(Clone, Debug)]
pub(super) struct Place {
    endpoint: Endpoint,
    /// A server of the Redis protocol, whatever else it is; else a node of keevee or etcd, which can be asked.
    is_redis: bool,
}

impl FromStr for Place {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Place, EndpointError> {
        let rest = text.strip_prefix("redis://");
        Ok(Place { endpoint: rest.unwrap_or(text).parse()?, is_redis: rest.is_some() })
    }
}

/// The addresses of the target for this protocol.
pub(super) async fn find(
    protocol: Protocol,
    target: Target,
    places: &[Place],
) -> Result<Vec<Endpoint>, Failure> {
    let endpoints: Vec<Endpoint> = places.iter().map(|place| place.endpoint.clone()).collect();
    if !places.iter().any(|place| place.is_redis) {
        let found = chosen(protocol, target, &endpoints).await?;
        return if protocol == Protocol::Resp { resp_addresses(&found).await } else { Ok(found) };
    }
    if protocol != Protocol::Resp {
        return Err(Failure::usage("redis:// is for --protocol resp: write http://HOST:PORT"));
    }
    if !places.iter().all(|place| place.is_redis) || target != Target::All {
        let text = "redis:// names the very servers to use: no http:// beside it, and no --target";
        return Err(Failure::usage(text));
    }
    Ok(endpoints)
}

/// The nodes of the target, of those that answer: the default names three, and a cluster may have fewer, or one that is
/// down.
async fn chosen(protocol: Protocol, target: Target, nodes: &[Endpoint]) -> Result<Vec<Endpoint>, Failure> {
    let (mut chosen, mut last) = (Vec::new(), None);
    for node in nodes {
        let leads = if protocol == Protocol::Etcd { leads_etcd(node).await } else { leads(node).await };
        let is_wanted = |leads| match target {
            Target::All => true,
            Target::Leader => leads,
            Target::Followers => !leads,
        };
        match leads {
            Ok(leads) if is_wanted(leads) => chosen.push(node.clone()),
            Ok(_) => {}
            Err(failure) => last = Some(failure),
        }
    }
    match (last, target) {
        (Some(failure), _) if chosen.is_empty() => Err(failure),
        (Some(failure), _) => {
            eprintln!("warning: left out a node that does not answer: {failure}");
            Ok(chosen)
        }
        (None, Target::Leader) if chosen.is_empty() => {
            Err(Failure::other("none of the nodes leads; is the cluster running? `keevee cluster start`"))
        }
        (None, _) if chosen.is_empty() => {
            Err(Failure::other("there is no such node: name all of the cluster's"))
        }
        (None, _) => Ok(chosen),
    }
}

/// A client of one node that does not wait long.
fn single(endpoint: &Endpoint) -> Result<Client, Failure> {
    let options = Options { timeout: PATIENCE, attempt_timeout: PATIENCE, connect_timeout: PATIENCE };
    Ok(Client::unrouted(vec![endpoint.clone()], options)?)
}

async fn leads(node: &Endpoint) -> Result<bool, Failure> {
    let client = single(node)?;
    let answer = timeout(PATIENCE, client.is_leader()).await;
    Ok(answer.map_err(|_| Failure::other(format!("{node} does not answer")))??)
}

/// Where nodes listen for the Redis protocol: each knows it of all.
async fn resp_addresses(nodes: &[Endpoint]) -> Result<Vec<Endpoint>, Failure> {
    let mut found = Vec::new();
    for node in nodes {
        let client = single(node)?;
        let own = client.status().await?.node_id;
        let known = client.nodes().await?.into_iter().find(|other| other.id == own);
        let address = known.and_then(|known| known.resp).ok_or_else(|| {
            Failure::other(format!("{node} does not listen for the Redis protocol: give its [node] `resp`"))
        })?;
        found.push(address.parse()?);
    }
    Ok(found)
}

/// What of etcd's `StatusResponse` tells who leads.
#[derive(Message)]
struct EtcdStatus {
    #[prost(message, tag = "1")]
    header: Option<EtcdHeader>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Message)]
struct EtcdHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

async fn leads_etcd(node: &Endpoint) -> Result<bool, Failure> {
    let silent = |error| Failure::other(format!("{node} does not answer as etcd does: {error}"));
    let asked = timeout(PATIENCE, grpc::ask(node, "etcdserverpb.Maintenance/Status")).await;
    let answer = asked.map_err(|_| silent("it takes too long".to_owned()))?;
    let answer = answer.map_err(|error| silent(error.to_string()))?;
    let status = EtcdStatus::decode(&answer[..]).map_err(|error| silent(error.to_string()))?;
    Ok(status.header.is_some_and(|header| header.member_id == status.leader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn servers_of_the_redis_protocol_are_taken_as_they_are() {
        let places = |text: &str| -> Vec<Place> {
            text.split(',').map(|place| place.parse().expect("a place")).collect()
        };
        let redis = places("redis://127.0.0.1:1,redis://127.0.0.1:2");
        let found = find(Protocol::Resp, Target::All, &redis).await.expect("no one is asked");
        assert_eq!(found.iter().map(Endpoint::authority).collect::<Vec<_>>(), ["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(find(Protocol::Http, Target::All, &redis).await.unwrap_err().code, 2);
        assert_eq!(find(Protocol::Resp, Target::Leader, &redis).await.unwrap_err().code, 2);
        let mixed = places("redis://127.0.0.1:1,http://127.0.0.1:2");
        assert_eq!(find(Protocol::Resp, Target::All, &mixed).await.unwrap_err().code, 2);
        assert!("redis://nowhere".parse::<Place>().is_err());
    }
}
