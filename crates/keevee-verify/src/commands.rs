//! The commands, one file each, and what several of them share: arguments, failures, texts.

pub(crate) mod meta;
pub(crate) mod mutants;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod shrink;

use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::thread;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keevee_mutants::Mutant;
use keevee_verify::plan::{EngineKind, seconds};
use keevee_verify::{Report, Violation};
use thiserror::Error;

/// Why the program ends with an exit code, as `keevee-verify --help` lists them.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) enum Failure {
    /// A rule was broken, or a mutant was not caught.
    Broken(String),
    /// The command line is wrong, or asks for what there is not.
    Usage(String),
    /// Something never happened that should have.
    Unseen(String),
    /// A file or the output can't be written.
    Other(String),
}

impl Failure {
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Broken(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unseen(_) => 3,
            Failure::Other(_) => 4,
        }
    }
}

/// One run: what it takes to have it again.
#[derive(Args, Clone, Copy)]
pub(crate) struct OneRun {
    /// The seed, as `keevee-verify run` prints it
    #[arg(long, value_name = "SEED", value_parser = parse_seed)]
    pub(crate) seed: u64,
    /// What makes the replicas agree
    #[arg(long, value_enum, default_value_t)]
    pub(crate) engine: EngineKind,
    /// Put this bug back for the run
    #[arg(long, value_name = "NAME", value_parser = parse_mutant)]
    pub(crate) mutant: Option<Mutant>,
}

impl OneRun {
    /// What to type for a command about this run.
    pub(crate) fn command_line(&self, command: &str) -> String {
        let program = std::env::args().next().unwrap_or("keevee-verify".to_owned());
        let mutant = self.mutant.map(|mutant| format!(" --mutant {}", mutant.name())).unwrap_or_default();
        let engine = match self.engine {
            EngineKind::Paxos => String::new(),
            EngineKind::Raft => format!(" --engine {}", self.engine.name()),
        };
        format!("{program} {command} --seed {}{engine}{mutant}", self.seed)
    }
}

/// Many seeds.
#[derive(Args)]
pub(crate) struct ManySeeds {
    /// How many seeds
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "SEED", default_value_t = 1, value_parser = parse_seed)]
    from: u64,
    /// What makes the replicas agree
    #[arg(long, value_enum, default_value_t)]
    pub(crate) engine: EngineKind,
    /// How many threads run them [default: as many as there are cores]
    #[arg(long, value_name = "COUNT", default_value_t = cores(), hide_default_value = true, value_parser = parse_jobs)]
    pub(crate) jobs: usize,
}

impl ManySeeds {
    pub(crate) fn range(&self) -> Result<Range<u64>, Failure> {
        range(self.from, self.seeds)
    }
}

/// How to print what was found.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// One JSON document
    Json,
}

/// So many seeds, from this one on.
pub(crate) fn range(from: u64, count: u64) -> Result<Range<u64>, Failure> {
    let end = from.checked_add(count);
    let end =
        end.ok_or_else(|| Failure::Usage(format!("no {count} seeds come after {from}: start lower")))?;
    Ok(from..end)
}

pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

pub(crate) fn parse_jobs(text: &str) -> Result<usize, String> {
    let jobs = text.parse().ok().filter(|jobs| (1..=1_024).contains(jobs));
    jobs.ok_or("a number of threads is from 1 to 1024".to_owned())
}

pub(crate) fn parse_seed(text: &str) -> Result<u64, String> {
    let fix = "a seed is a whole number, as `keevee-verify run` prints it: 1234";
    text.parse().map_err(|_| fix.to_owned())
}

pub(crate) fn parse_mutant(text: &str) -> Result<Mutant, String> {
    mutants_are_built_in().map_err(|failure| failure.to_string())?;
    Mutant::from_name(text).ok_or_else(|| {
        let names = Mutant::ALL.map(Mutant::name).join(", ");
        format!("no mutant has this name; there are {names}")
    })
}

/// The mutants are no part of a usual build.
pub(crate) fn mutants_are_built_in() -> Result<(), Failure> {
    if cfg!(feature = "mutants") {
        return Ok(());
    }
    let fix = "cargo build --release -p keevee-verify --features mutants";
    Err(Failure::Usage(format!("this program was built without the mutants; build it with `{fix}`")))
}

/// What a run came to, in one sentence.
pub(crate) fn verdict(report: &Report) -> String {
    match &report.violation {
        None => "every rule held".to_owned(),
        Some(Violation { oracle, at_micros, what }) => {
            format!("the rule \"{oracle}\" was broken at {}: {what}", seconds(*at_micros))
        }
    }
}

/// A bar on a terminal that somebody watches; none in a pipe or in continuous integration.
pub(crate) fn progress_bar(prefix: &str, length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let watched = io::stderr().is_terminal() && std::env::var_os("CI").is_none();
    bar.set_draw_target(if watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(prefix.to_owned());
    bar
}

/// A number of seeds in words.
pub(crate) fn count_seeds(count: u64) -> String {
    if count == 1 { "1 seed".to_owned() } else { format!("{count} seeds") }
}

/// Prints to standard output.
pub(crate) fn print(text: &str) {
    let mut output = io::stdout().lock();
    end_if_refused(output.write_all(text.as_bytes()).and_then(|()| output.flush()));
}

/// Ends the program when its output can't be written; without a word if that is a closed pipe, which is how
/// `| head` ends a listing.
pub(crate) fn end_if_refused(written: io::Result<()>) {
    if let Err(error) = written {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("error: the output can't be written: {error}");
        }
        std::process::exit(i32::from(Failure::Other(String::new()).code()));
    }
}
