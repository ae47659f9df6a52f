//! `keevee verify`: proof that anybody can run.

use std::collections::BTreeSet;
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use keevee_shim::Shim;

use crate::commands::cluster::Consensus;
use crate::commands::{Output, parse_duration};
use crate::failure::Failure;
use crate::verify::{Kind, Plan, page, run as verify};

/// Have a cluster of its own suffer faults under load, and check that it kept every promise.
///
/// Starts nodes on this machine, has clients of all three protocols read and write, and kills, pauses, cuts off and
/// restarts nodes meanwhile, as drawn from the seed. Then checks that the history of every key is linearizable, that every
/// acknowledged write is there and no refused one is, and that the replicas agree. Nothing is left but the report; if
/// something does not hold, the nodes' folders and logs too.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee verify
  keevee verify --consensus raft --duration 10m --seed 7
  keevee verify --nodes 5 --shards 4
  keevee verify --faults kill,pause,one-way --duration 30s
  keevee verify --output json --report report.html

Exit code 0 only if everything holds and every kind of fault asked for really happened.")]
pub(crate) struct Arguments {
    /// How the nodes agree
    #[arg(long, value_enum, default_value_t = Consensus::Paxos)]
    consensus: Consensus,
    /// How many nodes hold each shard; to change members, one more node takes part
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=5))]
    nodes: u64,
    /// How many data shards
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: u16,
    /// How long faults go on
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Which faults are drawn; another one each time if nothing is said
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Which kinds of faults, with commas between; all that this system can have if nothing is said
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    faults: Vec<Kind>,
    /// How many clients
    #[arg(long, value_name = "COUNT", default_value_t = 24, value_parser = clap::value_parser!(u16).range(3..=96))]
    clients: u16,
    /// How many operations per second, all clients together
    #[arg(long, value_name = "NUMBER", default_value_t = 6000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Where to write the report for people, one HTML page; among the system's temporary files if nothing is said
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How to print the report
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { consensus, nodes, shards, duration, seed, faults, clients, rate, report: path, output } =
        arguments;
    let kinds: BTreeSet<Kind> = if faults.is_empty() {
        Kind::value_variants()
            .iter()
            .copied()
            .filter(|kind| Shim::is_supported() || !kind.needs_shim())
            .collect()
    } else {
        faults.into_iter().collect()
    };
    let seed = seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let plan = Plan {
        consensus: consensus.name().to_owned(),
        nodes,
        shards,
        seed,
        duration,
        kinds,
        clients: clients.into(),
        rate,
        shows_progress: std::io::stderr().is_terminal(),
    };
    let folder = std::env::temp_dir().join(format!("keevee-verify-{}-{seed}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let left = |failure: Failure| {
        Failure::other(format!("{failure}; seed {seed}, and what is left is in {}", folder.display()))
    };
    let report = verify(&plan, &folder).await.map_err(left)?;
    let path = path.unwrap_or_else(|| std::env::temp_dir().join(format!("keevee-verify-{seed}.html")));
    fs::write(&path, page(&report))
        .map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
    match output {
        Output::Text => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string(&report).map_err(Failure::other)?),
    }
    eprintln!("the report is in {}", path.display());
    if !report.passed {
        return Err(left(Failure::other("not everything holds")));
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}
