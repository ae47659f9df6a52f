//! The keevee command line: reads the arguments, hands over to the command, turns what went wrong into
//! a text and an exit code. How anything is done is in the other crates; the load generator
//! ([`load`]), the checks that the scripts run ([`check`]), faults on real nodes ([`verify`]), backups ([`backup`]) and what is asked beside keys
//! ([`api`]) are at home here.

mod api;
mod backup;
mod check;
mod commands;
mod failure;
mod load;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::failure::Failure;

/// RocksDB and Rust share one allocator that returns memory and does not fragment under this load.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's own default gives every allocation of 8 MiB and more back to the kernel at once: each buffer that a large value
/// goes through would be cleared and faulted in page by page.
#[allow(unsafe_code, reason = "jemalloc reads its settings from a symbol of this name")]
#[unsafe(export_name = "malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8] = b"oversize_threshold:0\0";

/// A distributed, strongly consistent key-value store.
#[derive(Parser)]
#[command(name = "keevee", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  keevee cluster start                 start three nodes on this machine
  keevee put color green               set a key
  keevee get color                     read it back
  keevee scan --prefix user:           list keys in order
  keevee explain color                 which shard and nodes hold it
  keevee node replace 2 --with 4       have node 4 take the place of a dead one
  keevee backup --to ./backup          copy all keys, as of one time
  keevee bench --connections 64        measure
  keevee verify                        faults on real nodes, and proof that nothing is lost

Exit codes:
  0  done
  1  failed in another way than those below
  2  the request or the command line is wrong; nothing happened
  3  the key holds no value
  4  a condition does not hold; nothing happened
  5  unavailable: nothing happened; try again
  6  outcome unknown: it may have happened, or may yet";

#[derive(Subcommand)]
enum Command {
    Server(commands::server::Arguments),
    Init(commands::init::Arguments),
    #[command(subcommand)]
    Cluster(commands::cluster::Command),
    Put(commands::put::Arguments),
    Get(commands::get::Arguments),
    Delete(commands::delete::Arguments),
    Increment(commands::increment::Arguments),
    Batch(commands::batch::Arguments),
    Scan(commands::scan::Arguments),
    Explain(commands::explain::Arguments),
    Node(commands::node::Arguments),
    Shards(commands::shards::Arguments),
    Status(commands::status::Arguments),
    Backup(commands::backup::Arguments),
    Restore(commands::restore::Arguments),
    Recover(commands::recover::Arguments),
    Bench(commands::bench::Arguments),
    Verify(commands::verify::Arguments),
    Completions(commands::completions::Arguments),
}

/// Ends the program, with a word instead of a backtrace, when its output can't be written: a closed pipe is
/// how `| head` ends a listing.
fn end_when_output_is_refused() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or_default();
        if message.starts_with("failed printing to stdout") {
            eprintln!("error: {message}");
            std::process::exit(1);
        }
        report(panic);
    }));
}

fn main() -> ExitCode {
    end_when_output_is_refused();
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Server(arguments) => commands::server::run(arguments),
        Command::Init(arguments) => commands::init::run(arguments),
        Command::Cluster(command) if command.watches() => to_the_end(commands::cluster::run(command)),
        Command::Cluster(command) => interruptible(commands::cluster::run(command)),
        Command::Put(arguments) => interruptible(commands::put::run(arguments)),
        Command::Get(arguments) => interruptible(commands::get::run(arguments)),
        Command::Delete(arguments) => interruptible(commands::delete::run(arguments)),
        Command::Increment(arguments) => interruptible(commands::increment::run(arguments)),
        Command::Batch(arguments) => interruptible(commands::batch::run(arguments)),
        Command::Scan(arguments) => interruptible(commands::scan::run(arguments)),
        Command::Explain(arguments) => interruptible(commands::explain::run(arguments)),
        Command::Node(arguments) => interruptible(commands::node::run(arguments)),
        Command::Shards(arguments) => interruptible(commands::shards::run(arguments)),
        Command::Status(arguments) => interruptible(commands::status::run(arguments)),
        Command::Backup(arguments) => interruptible(commands::backup::run(arguments)),
        Command::Recover(arguments) => commands::recover::run(arguments),
        Command::Restore(arguments) => interruptible(commands::restore::run(arguments)),
        Command::Bench(arguments) => interruptible(commands::bench::run(arguments)),
        Command::Verify(arguments) => interruptible(commands::verify::run(arguments)),
        Command::Completions(arguments) => commands::completions::run(arguments, Arguments::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// Runs a client's command to its end, or until Ctrl-C or SIGTERM: then it is dropped, and with it a
/// temporary cluster that it may have started.
fn interruptible(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    to_the_end(async {
        tokio::select! {
            result = command => result,
            () = commands::server::asked_to_stop() => Err(Failure::other("interrupted")),
        }
    })
}

/// Runs a command to its end: what Ctrl-C does is its own affair.
fn to_the_end(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A load that is still running on its own threads ends with the process.
    runtime.shutdown_background();
    result
}
