//! A sample of the cluster manager: starts the clusters that a `Config.toml` describes, shows them, starts nodes again that
//! die, and stops all on Ctrl-C.
//!
//! ```sh
//! cargo run --release --bin admin [Config.toml]
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use keevee_cluster::{Cluster, Config};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or("Config.toml".to_owned());
    let config = Config::load(Path::new(&path))?;
    let folder = config.data.clone().unwrap_or(PathBuf::from("./tmp/clusters"));
    let program = program()?;
    let mut cluster = Cluster::open_or_create(&config.plan(folder, program.clone())).await?;
    let result = tokio::select! {
        result = serve(&mut cluster, &program) => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Box::from),
    };
    println!("Stopping.");
    cluster.stop(Duration::from_secs(30)).await?;
    result
}

/// The nodes are `keevee server` processes. Cargo puts keevee beside this program, but `cargo run` does not build it.
fn program() -> Result<PathBuf, Box<dyn Error>> {
    let program = std::env::current_exe()?.with_file_name("keevee");
    if !program.exists() {
        let cargo = std::env::var_os("CARGO").ok_or("keevee is not built: run `cargo build --release`")?;
        let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
        Command::new(cargo).args(["build", "--bin", "keevee"]).args(profile).status()?;
    }
    Ok(program)
}

/// Starts and shows the cluster, then watches it until another program stops it.
async fn serve(cluster: &mut Cluster, program: &Path) -> Result<(), Box<dyn Error>> {
    cluster.start()?;
    cluster.wait_ready(Duration::from_secs(120)).await?;
    Command::new(program).args(["cluster", "status", "--data"]).arg(cluster.folder()).status()?;
    println!("Ctrl-C stops the cluster.");
    Ok(cluster.watch(|event| println!("{event}")).await?)
}
