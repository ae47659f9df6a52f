//! The command line of the simulator: reads the arguments, hands over to the command, turns what was found into
//! a text and an exit code. What a run is and what must hold of it is in the library.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

// A replica is many small allocations, those of openraft's tasks above all.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Run keevee's replicas in a simulated world, where everything fails, and check what must hold.
#[derive(Parser)]
#[command(name = "keevee-verify", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  keevee-verify run --seeds 1000                          what continuous integration does
  keevee-verify run --from 1000000 --seeds 300000         hunt overnight, where nobody has looked
  keevee-verify replay --seed 1234 --trace | less         look at a failure
  keevee-verify shrink --seed 1234                        first leave out what it does not need
  keevee-verify meta --seeds 100                          is a run the same each time?
  keevee-verify mutants                                   does it find the bugs it should?

A seed decides a run to the last bit, on every machine, as long as the code stays the same. The
mutants, which are bugs put back on purpose, are only in a program that was built with them:
  cargo build --release -p keevee-verify --features mutants

Exit codes:
  0  all held
  1  a rule was broken, or a mutant was not caught
  2  the command line is wrong, or asks for what this program does not hold
  3  all held, but over so many seeds something never happened that should have
  4  failed in another way: a file or the output can't be written";

#[derive(Subcommand)]
enum Command {
    Run(commands::run::Arguments),
    Replay(commands::replay::Arguments),
    Shrink(commands::shrink::Arguments),
    Meta(commands::meta::Arguments),
    Mutants(commands::mutants::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(arguments) => commands::run::run(&arguments),
        Command::Replay(arguments) => commands::replay::run(&arguments),
        Command::Shrink(arguments) => commands::shrink::run(&arguments),
        Command::Meta(arguments) => commands::meta::run(&arguments),
        Command::Mutants(arguments) => commands::mutants::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code())
        }
    }
}
