//! Holds keevee against etcd, Redis and what the machine can do at all (the [`ceiling`]), for `scripts/compare.sh`: the
//! [`comparison`]. One program, which starts itself for the parts of the ceiling.
//!
//! It is no part of the product: what only it needs, the other crates do not depend on.

mod ceiling;
mod comparison;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// As keevee has it, so that no difference comes from there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Holds keevee against etcd, Redis, and what the machine could do without consensus.
#[derive(Parser)]
#[command(name = "keevee-compare", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(comparison::Arguments),
    /// The ceiling's leader
    Leader(ceiling::leader::Arguments),
    /// A follower of the ceiling
    Follower(ceiling::follower::Arguments),
    /// A server that only answers
    Echo(ceiling::echo::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(arguments) => comparison::run(&arguments),
        Command::Leader(arguments) => ceiling::leader::run(&arguments),
        Command::Follower(arguments) => ceiling::follower::run(&arguments),
        Command::Echo(arguments) => ceiling::echo::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
