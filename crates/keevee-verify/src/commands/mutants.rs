//! `keevee-verify mutants`: whether the bugs that are put back on purpose are found, and after how many seeds.

use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use keevee_mutants::Mutant;
use keevee_verify::plan::{EngineKind, Plan};
use keevee_verify::seeds::{self, Catch};
use keevee_verify::{Trace, Violation};
use serde::Serialize;
use serde_json::json;

use super::{
    Failure, Output, cores, count_seeds, mutants_are_built_in, parse_jobs, parse_mutant, parse_seed, print,
    progress_bar, range,
};

/// Put each historical bug back and run seeds until one of them shows it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee-verify mutants
  keevee-verify mutants --mutant stale-read-round --mutant poll-deadlock
  keevee-verify mutants --seeds-max 1000 --time-limit 10m --output json
  keevee-verify mutants --record
  keevee-verify mutants --engine raft --mutant configuration-forgotten --record
  keevee-verify mutants --mutant acknowledgement-across-ballots --rule 'nothing chosen is lost' --record

The recorded seeds are what the tests run. Record them anew when runs have changed their course.")]
pub(crate) struct Arguments {
    /// Which bug, more than one if given again [default: all]
    #[arg(long = "mutant", value_name = "NAME", value_parser = parse_mutant)]
    mutants: Vec<Mutant>,
    /// What the replicas run on; most bugs are put back in Multi-Paxos, or beside both
    #[arg(long, value_enum, default_value_t)]
    engine: EngineKind,
    /// How many seeds to run for each of them at most
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds_max: u64,
    /// The first of the seeds
    #[arg(long, value_name = "SEED", default_value_t = 1, value_parser = parse_seed)]
    from: u64,
    /// How long to look for each of them at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    time_limit: Duration,
    /// Go on until this rule is broken, whichever others are before
    #[arg(long, value_name = "RULE")]
    rule: Option<String>,
    /// How many threads run the seeds [default: as many as there are cores]
    #[arg(long, value_name = "COUNT", default_value_t = cores(), hide_default_value = true, value_parser = parse_jobs)]
    jobs: usize,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Write the seeds to the file that the tests read
    #[arg(long)]
    record: bool,
    /// Where that file is
    #[arg(long, value_name = "FILE", requires = "record", default_value = RECORD, hide_default_value = true)]
    file: PathBuf,
}

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/mutants.txt");

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    mutants_are_built_in()?;
    let range = range(arguments.from, arguments.seeds_max)?;
    let all = arguments.mutants.is_empty();
    let mutants = if all { Mutant::ALL.to_vec() } else { arguments.mutants.clone() };
    let table = Table::new(&mutants);
    if arguments.output == Output::Text {
        print(&table.head());
    }
    let mut hunts = Vec::new();
    for mutant in mutants {
        let hunt = hunt(mutant, range.clone(), arguments);
        if arguments.output == Output::Text {
            print(&table.row(&hunt));
        }
        hunts.push(hunt);
    }
    let median = median(&hunts);
    match (arguments.output, median) {
        (Output::Json, _) => print(&format!("{}\n", json!({ "mutants": hunts, "seeds_median": median }))),
        (Output::Text, Some(median)) => print(&format!("the median is {}\n", count_seeds(median))),
        (Output::Text, None) => print("no median: too many were not caught\n"),
    }
    if arguments.record {
        record(&hunts, arguments.engine, &arguments.file)?;
    }
    judge(&hunts)
}

/// How the search for one mutant ended.
#[derive(Debug, Serialize)]
struct Hunt {
    #[serde(skip)]
    mutant: Mutant,
    bug: &'static str,
    name: &'static str,
    seen_in: &'static str,
    /// How many seeds were run; the last one caught it, if one did.
    seeds: u64,
    seconds: f64,
    seed: Option<u64>,
    violation: Option<Violation>,
}

fn hunt(mutant: Mutant, range: Range<u64>, arguments: &Arguments) -> Hunt {
    let (begin, mut seeds, mut caught) = (Instant::now(), 0, None);
    let length = range.end - range.start;
    let bar = progress_bar(mutant.name(), length, "{prefix} {spinner} {elapsed} {pos}/{len} seeds {per_sec}");
    let work =
        |seed| keevee_verify::run(Plan::draw(seed).on(arguments.engine), Some(mutant), Trace::silent());
    seeds::in_order(range, arguments.jobs, work, |report| {
        seeds += 1;
        bar.inc(1);
        let is_it =
            |violation: &Violation| arguments.rule.as_ref().is_none_or(|rule| rule == violation.oracle);
        caught = report.violation.filter(is_it).map(|violation| (report.plan.seed, violation));
        let done = caught.is_some() || begin.elapsed() > arguments.time_limit;
        if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let (bug, name, seen_in) = (mutant.bug(), mutant.name(), mutant.seen_in());
    let seconds = (begin.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let (seed, violation) = caught.unzip();
    Hunt { mutant, bug, name, seen_in, seeds, seconds, seed, violation }
}

/// The median of how many seeds it took; whatever was not caught took more than all others.
fn median(hunts: &[Hunt]) -> Option<u64> {
    let mut seeds: Vec<u64> =
        hunts.iter().filter(|hunt| hunt.seed.is_some()).map(|hunt| hunt.seeds).collect();
    seeds.sort_unstable();
    seeds.get((hunts.len() - 1) / 2).copied()
}

fn judge(hunts: &[Hunt]) -> Result<(), Failure> {
    let missed: Vec<&str> = hunts.iter().filter(|hunt| hunt.seed.is_none()).map(|hunt| hunt.name).collect();
    if missed.is_empty() {
        return Ok(());
    }
    Err(Failure::Broken(format!("not caught: {}", missed.join(", "))))
}

/// Columns as wide as what is in them.
struct Table {
    name: usize,
    seen_in: usize,
}

impl Table {
    fn new(mutants: &[Mutant]) -> Table {
        let width = |text: fn(Mutant) -> &'static str| mutants.iter().map(|mutant| text(*mutant).len()).max();
        Table { name: width(Mutant::name).unwrap_or(0), seen_in: width(Mutant::seen_in).unwrap_or(0).max(7) }
    }

    fn head(&self) -> String {
        self.line("bug", "mutant", "seen in", ["seeds", "seed", "time"], "oracle")
    }

    fn row(&self, hunt: &Hunt) -> String {
        let oracle = hunt.violation.as_ref().map_or("NOT CAUGHT", |violation| violation.oracle);
        let seed = hunt.seed.map_or("-".to_owned(), |seed| seed.to_string());
        let figures = [&hunt.seeds.to_string(), &seed, &format!("{:.1} s", hunt.seconds)];
        self.line(hunt.bug, hunt.name, hunt.seen_in, figures.map(String::as_str), oracle)
    }

    fn line(&self, bug: &str, name: &str, seen_in: &str, figures: [&str; 3], oracle: &str) -> String {
        let Table { name: names, seen_in: places } = self;
        let [seeds, seed, time] = figures;
        format!("{bug:<4} {name:<names$}  {seen_in:<places$} {seeds:>8} {seed:>8} {time:>10}  {oracle}\n")
    }
}

/// Writes what was caught. The file's lines about other mutants, and about another engine, stay.
fn record(hunts: &[Hunt], engine: EngineKind, file: &Path) -> Result<(), Failure> {
    let refused =
        |what: String| Failure::Other(format!("{}: {what}; name another file by --file", file.display()));
    let mut catches = match file.exists() {
        false => Vec::new(),
        true => {
            let text = fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
            seeds::parse_catches(&text).map_err(|error| refused(error.to_string()))?
        }
    };
    // What was not caught this time keeps the seed that it had.
    let is_anew = |catch: &Catch| hunts.iter().any(|hunt| hunt.mutant == catch.mutant && hunt.seed.is_some());
    catches.retain(|catch| catch.engine != engine || !is_anew(catch));
    for Hunt { mutant, seed, violation, .. } in hunts {
        if let (Some(seed), Some(violation)) = (*seed, violation) {
            catches.push(Catch { engine, mutant: *mutant, seed, oracle: violation.oracle.to_owned() });
        }
    }
    fs::write(file, seeds::catches_text(catches)).map_err(|error| refused(error.to_string()))
}

/// Reads `90s`, `10m`, `1h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err("write a time with its unit: 90s, 10m, 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "not a whole number".to_owned())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or("too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_caught_took_more_seeds_than_all_others() {
        let hunt = |(seeds, caught): (u64, bool)| {
            let (mutant, seed) = (Mutant::ALL[0], caught.then_some(seeds));
            let (bug, name, seen_in) = (mutant.bug(), mutant.name(), mutant.seen_in());
            Hunt { mutant, bug, name, seen_in, seeds, seconds: 0.0, seed, violation: None }
        };
        let median_of = |hunts: [(u64, bool); 3]| median(&hunts.map(hunt));
        assert_eq!(median_of([(9, true), (1, true), (4, true)]), Some(4));
        assert_eq!(median_of([(2, false), (9, true), (1, true)]), Some(9));
        assert_eq!(median_of([(2, false), (2, false), (1, true)]), None);
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3_600)));
        for text in ["", "10", "s", "1d", "-1s", "1.5h", "99999999999999999999s", "9999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
