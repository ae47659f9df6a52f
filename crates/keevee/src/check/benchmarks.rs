//! Each kind of operation through each node, one after the other, with its times.

use std::sync::Arc;

use clap::Args;
use keevee_client::Endpoint;

use crate::check::{ClusterArguments, prefix};
use crate::failure::Failure;
use crate::load::{self, Latencies, Progress, Report, Workload};

/// Measure each kind of operation through each node.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee cluster check benchmarks
  keevee cluster check benchmarks --operations 10000 --connections 16")]
pub(crate) struct Arguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    /// How many operations of each kind through each node
    #[arg(long, value_name = "COUNT", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    operations: u64,
    /// How many connections to the node
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    connections: u32,
    /// How many bytes a value has
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    value_size: usize,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let subject = arguments.cluster.subject().await?;
    println!("{:>16}{}  each second", "", Latencies::HEAD.trim_start_matches(' '));
    for endpoint in subject.endpoints() {
        println!("{endpoint}");
        measure_node(&arguments, endpoint).await?;
    }
    Ok(())
}

async fn measure_node(arguments: &Arguments, endpoint: Endpoint) -> Result<(), Failure> {
    let nodes = vec![endpoint.clone()];
    let put = Workload {
        connections: arguments.connections as usize,
        value_size: arguments.value_size,
        ..Workload::over_http(nodes, prefix("benchmarks"), arguments.operations)
    };
    let get = Workload { reads: 1.0, ..put.clone() };
    let stale_get = Workload { stale: true, ..get.clone() };
    let delete = Workload { deletes: 1.0, ..put.clone() };
    for (name, workload) in [("put", put), ("get", get), ("stale get", stale_get), ("delete", delete)] {
        let workload = Arc::new(workload);
        let report =
            tokio::task::spawn_blocking(move || load::run(&workload, &Arc::new(Progress::default())));
        let report: Report = report.await.map_err(Failure::other)?;
        let latencies = report.get.as_ref().or(report.put.as_ref()).or(report.delete.as_ref());
        if let Some(latencies) = latencies {
            println!("  {name:<14}{latencies}  {:>11}", report.operations_per_second);
        }
        if report.operations != arguments.operations {
            let (done, wanted) = (report.operations, arguments.operations);
            let text = format!("{name} through {endpoint}: {done} of {wanted} done: {:?}", report.errors);
            return Err(Failure::other(text));
        }
    }
    Ok(())
}
