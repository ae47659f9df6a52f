//! What is compared: three nodes of etcd, one Redis, the ceiling, the echo servers, and three nodes of keevee with each
//! engine. All with their defaults, but that Redis syncs each write before it answers.

use std::path::Path;

use clap::ValueEnum;
use keevee_cluster::{Choices, TemporaryCluster, free_ports};

use super::process::Process;
use crate::Fallible;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum System {
    Etcd,
    Redis,
    Ceiling,
    EchoResp,
    EchoHttp,
    Paxos,
    Raft,
}

/// Where a system is asked, and how.
pub(super) struct Place {
    /// As `keevee bench --protocol` names it.
    pub(super) protocol: &'static str,
    /// A server's, or those of all nodes, of which one leads.
    pub(super) endpoints: String,
}

/// A system that runs. Ended when dropped.
pub(super) struct Running {
    pub(super) places: Vec<Place>,
    pub(super) pids: Vec<u32>,
    pub(super) commands: Vec<String>,
    _processes: Vec<Process>,
    _cluster: Option<TemporaryCluster>,
}

impl System {
    pub(super) const ALL: [System; 7] = [
        System::Etcd,
        System::Redis,
        System::Ceiling,
        System::EchoResp,
        System::EchoHttp,
        System::Paxos,
        System::Raft,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            System::Etcd => "etcd",
            System::Redis => "Redis",
            System::Ceiling => "ceiling",
            System::EchoResp => "echo, tokio",
            System::EchoHttp => "echo, axum",
            System::Paxos => "keevee, Paxos",
            System::Raft => "keevee, Raft",
        }
    }

    /// False of what only echoes.
    pub(super) fn stores(self) -> bool {
        !matches!(self, System::EchoResp | System::EchoHttp)
    }

    pub(super) fn is_keevee(self) -> bool {
        matches!(self, System::Paxos | System::Raft)
    }

    pub(super) async fn start(self, keevee: &Path, folder: &Path) -> Fallible<Running> {
        match self {
            System::Etcd => etcd(folder),
            System::Redis => redis(folder),
            System::Ceiling => ceiling(folder),
            System::EchoResp => echo("resp", "redis", folder),
            System::EchoHttp => echo("http", "http", folder),
            System::Paxos => cluster("paxos", keevee).await,
            System::Raft => cluster("raft", keevee).await,
        }
    }
}

impl Running {
    fn of(processes: Vec<Process>, protocol: &'static str, endpoints: String) -> Running {
        Running {
            places: vec![Place { protocol, endpoints }],
            pids: processes.iter().map(Process::pid).collect(),
            commands: processes.iter().map(|process| process.command.clone()).collect(),
            _processes: processes,
            _cluster: None,
        }
    }
}

fn etcd(folder: &Path) -> Fallible<Running> {
    let port = free_ports(6);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let members: Vec<String> = (0..3).map(|node| format!("e{node}={}", url(port + 3 + node))).collect();
    let mut nodes = Vec::new();
    for node in 0..3 {
        let (client, peer) = (url(port + node), url(port + 3 + node));
        let name = format!("e{node}");
        let arguments = [
            ("--name", name.as_str()),
            ("--data-dir", &name),
            ("--initial-cluster", &members.join(",")),
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
        ];
        let arguments: Vec<&str> = arguments.iter().flat_map(|(option, value)| [*option, *value]).collect();
        nodes.push(Process::start("etcd", &arguments, folder, &name)?);
    }
    let endpoints: Vec<String> = (0..3).map(|node| url(port + node)).collect();
    Ok(Running::of(nodes, "etcd", endpoints.join(",")))
}

fn redis(folder: &Path) -> Fallible<Running> {
    let port = free_ports(1).to_string();
    let arguments = [
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
    ];
    let server = Process::start("redis-server", &arguments, folder, "redis")?;
    Ok(Running::of(vec![server], "resp", format!("redis://127.0.0.1:{port}")))
}

fn ceiling(folder: &Path) -> Fallible<Running> {
    let program = std::env::current_exe()?;
    let program = program.to_string_lossy();
    let (mut processes, mut followers) = (Vec::new(), Vec::new());
    for name in ["follower1", "follower2"] {
        let mut follower = Process::start(&program, &["follower", "--data", name], folder, name)?;
        followers.push(follower.listens_at()?);
        processes.push(follower);
    }
    let followers = followers.join(",");
    let arguments = ["leader", "--data", "leader", "--followers", &followers];
    let mut leader = Process::start(&program, &arguments, folder, "leader")?;
    let address = leader.listens_at()?;
    processes.push(leader);
    Ok(Running::of(processes, "resp", format!("redis://{address}")))
}

fn echo(protocol: &'static str, scheme: &str, folder: &Path) -> Fallible<Running> {
    let program = std::env::current_exe()?;
    let mut server =
        Process::start(&program.to_string_lossy(), &["echo", "--protocol", protocol], folder, "echo")?;
    let endpoint = format!("{scheme}://{}", server.listens_at()?);
    Ok(Running::of(vec![server], protocol, endpoint))
}

async fn cluster(engine: &str, keevee: &Path) -> Fallible<Running> {
    let choices = Choices { consensus: Some(engine.to_owned()), ..Choices::default() };
    let mut cluster = TemporaryCluster::start_with(keevee, 3, &choices).await?;
    let endpoints: Vec<String> = cluster.endpoints().iter().map(ToString::to_string).collect();
    let place = |protocol| Place { protocol, endpoints: endpoints.join(",") };
    let places = ["resp", "http", "grpc"].map(place).into();
    let pids = cluster.nodes().iter_mut().filter_map(keevee_cluster::Node::pid).collect();
    let commands = vec![format!("keevee cluster start --nodes 3 --shards 1 --consensus {engine}")];
    Ok(Running { places, pids, commands, _processes: Vec::new(), _cluster: Some(cluster) })
}
