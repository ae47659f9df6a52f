//! The comparison: every system in turn, on fresh folders, with the same load, in rounds; the medians.
//!
//! In rounds, so that a slow minute of the machine is nobody's alone. One system at a time, since all of them have the
//! same cores. What is measured with is `keevee bench` for all, which shares those cores as well.
//!
//! - [`systems`]: what is compared, and how it is started;
//! - [`process`]: what runs, and what it takes of the machine;
//! - [`load`]: what is asked of it;
//! - [`sweep`]: the same with larger values, more connections, more keys: of keevee only;
//! - [`machine`]: on what, and with which versions;
//! - [`page`], [`plots`]: what came out.

mod load;
mod machine;
mod page;
mod plots;
mod process;
mod sweep;
mod systems;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::Fallible;
use load::{Case, Figures, Loader};
use sweep::Sweep;
use systems::{Running, System};

/// Measure all systems in turn, and write compare.md and its plots
#[derive(Args)]
#[command(after_help = "\
About 40 minutes with the defaults, 8 of them for the sweeps. A quick look, which is no measurement:
  scripts/compare.sh --seconds 1 --rounds 1 --memory-keys 10000 --sweep-keys-max 10000 --write /tmp/look")]
pub(crate) struct Arguments {
    /// The keevee program
    #[arg(long, value_name = "FILE")]
    keevee: PathBuf,
    /// Where compare.md and its plots go
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
    write: PathBuf,
    /// How long each measurement takes
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// How often each is repeated: the medians count
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// With how many keys memory is measured, beside at rest and under load
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    memory_keys: u64,
    /// Up to how many keys keevee is measured with, in steps of ten: 10000000 take 6 GB of disk and 5 minutes more
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(load::KEYS..))]
    sweep_keys_max: u64,
    /// Which systems, with commas between
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = System::ALL)]
    systems: Vec<System>,
}

/// All that was measured.
#[derive(Default)]
struct Results {
    figures: BTreeMap<Series, BTreeMap<Case, Vec<Figures>>>,
    /// Of one round.
    sweeps: BTreeMap<(Sweep, System, Case), Figures>,
    memory: BTreeMap<System, Memory>,
    /// How each system was started, as typed in a shell.
    commands: BTreeMap<System, Vec<String>>,
    /// The load of one case, the same way.
    load_command: String,
    failures: Vec<String>,
}

/// A system by one of its protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    system: System,
    protocol: &'static str,
}

/// Resident bytes of all processes of a system; the last is of `--memory-keys`.
#[derive(Clone, Copy, Default)]
struct Memory {
    at_rest: u64,
    under_load: u64,
    with_keys: u64,
}

impl Results {
    /// The medians of the rounds, each figure for itself.
    fn median(&self, series: Series, case: Case) -> Option<Figures> {
        Figures::median(self.figures.get(&series)?.get(&case)?)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Fallible {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        // What runs is ended when it is dropped.
        tokio::select! {
            result = compare(arguments) => result,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            _ = terminated.recv() => Err("terminated".into()),
        }
    })
}

async fn compare(arguments: &Arguments) -> Fallible {
    let keevee = arguments.keevee.as_path();
    let loader = Loader { keevee: keevee.to_owned(), seconds: arguments.seconds };
    let mut results = Results::default();
    for round in 1..=arguments.rounds {
        for system in &arguments.systems {
            eprintln!("round {round} of {}: {}", arguments.rounds, system.name());
            let memory_keys = (round == 1).then_some(arguments.memory_keys);
            let mut measured = measure(*system, keevee, &loader, memory_keys, &mut results).await;
            if round == 1 && system.is_keevee() && measured.is_ok() {
                let keys_max = arguments.sweep_keys_max;
                measured = sweep::measure(*system, keevee, &loader, keys_max, &mut results).await;
            }
            if let Err(error) = measured {
                eprintln!("error: {error}");
                results.failures.push(format!("{}: {error}", system.name()));
            }
        }
    }
    let machine = machine::describe(keevee)?;
    page::write(&arguments.write, arguments, &machine, &results)?;
    plots::write(&arguments.write, &results)?;
    println!("written to {}", arguments.write.join("compare.md").display());
    if results.failures.is_empty() { Ok(()) } else { Err("some of it failed; the page says what".into()) }
}

/// One system in one round.
async fn measure(
    system: System,
    keevee: &Path,
    loader: &Loader,
    memory_keys: Option<u64>,
    results: &mut Results,
) -> Fallible {
    let folder = tempfile::tempdir()?;
    let running: Running = system.start(keevee, folder.path()).await?;
    loader.wait_ready(&running).await?;
    let memory = results.memory.entry(system).or_default();
    memory.at_rest = memory.at_rest.max(process::resident_bytes(&running.pids));
    for place in &running.places {
        let series = Series { system, protocol: place.protocol };
        loader.fill(place, load::KEYS, load::VALUE_BYTES).await?;
        for case in load::cases(place.protocol) {
            let (figures, peak_bytes, command) = loader.measure(place, case, &running.pids).await?;
            eprintln!("  {} {case}: {:.0} each second", place.protocol, figures.per_second);
            let memory = results.memory.entry(system).or_default();
            memory.under_load = memory.under_load.max(peak_bytes);
            results.figures.entry(series).or_default().entry(case).or_default().push(figures);
            results.load_command = command;
        }
    }
    if let (Some(keys), Some(place), true) = (memory_keys, running.places.first(), system.stores()) {
        eprintln!("  {keys} keys");
        loader.fill(place, keys, load::VALUE_BYTES).await?;
        results.memory.entry(system).or_default().with_keys = process::resident_bytes(&running.pids);
    }
    results.commands.insert(system, running.commands.clone());
    Ok(())
}
