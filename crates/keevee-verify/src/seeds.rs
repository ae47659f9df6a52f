//! Seeds: running many of them at once, and those that are kept because of what they found.
//!
//! The kept ones are text files beside the source, one seed in a line. They mean something as long as runs keep
//! their course: any change to what is drawn, or to the replicas, may give a seed another run.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, mpsc};
use std::thread;

use keevee_mutants::Mutant;
use thiserror::Error;

use crate::plan::EngineKind;

/// For each mutant a seed that catches it, as [`parse_catches`] reads them.
pub const MUTANTS: &str = include_str!("../seeds/mutants.txt");
/// Seeds that once broke a rule, as [`parse_regressions`] reads them.
pub const REGRESSIONS: &str = include_str!("../seeds/regressions.txt");

/// Does the work of each seed on one of `jobs` threads, and hands the results out in the order of the seeds, on
/// the caller's thread, until it breaks.
///
/// So what is found first does not depend on which thread is the fastest.
///
/// # Panics
///
/// If the work does.
pub fn in_order<T: Send>(
    seeds: Range<u64>,
    jobs: usize,
    work: impl Fn(u64) -> T + Sync,
    mut take: impl FnMut(T) -> ControlFlow<()>,
) {
    let mut turn = seeds.start;
    let seeds = Mutex::new(seeds);
    let next = || seeds.lock().expect("nothing panics while it holds this").next();
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(seed) = next() {
                    // Nobody receives any more after a break.
                    if sender.send((seed, work(seed))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        for (seed, result) in results {
            early.insert(seed, result);
            while let Some(result) = early.remove(&turn) {
                turn += 1;
                if take(result).is_break() {
                    return;
                }
            }
        }
    });
}

/// A seed at which the simulator sees a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catch {
    /// The engine whose run it is.
    pub engine: EngineKind,
    /// The bug that was put back.
    pub mutant: Mutant,
    /// The seed.
    pub seed: u64,
    /// The rule that was broken there.
    pub oracle: String,
}

/// A seed that once broke a rule in correct code, or in code that was thought so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regression {
    /// The engine whose run it was.
    pub engine: EngineKind,
    /// The seed.
    pub seed: u64,
    /// The bug that it found.
    pub bug: String,
}

/// A line of a file of seeds does not say what it should: correct it, or record the file anew.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line} is not {expected}: {text:?}")]
pub struct Malformed {
    /// Which line, from 1.
    pub line: usize,
    /// What it should hold.
    pub expected: &'static str,
    /// What it holds.
    pub text: String,
}

/// Reads lines of an engine, a mutant's name, a seed, and the name of the rule that was broken. Without an engine it is
/// Multi-Paxos.
pub fn parse_catches(text: &str) -> Result<Vec<Catch>, Malformed> {
    parse(text, "a mutant, a seed and an oracle", |line| {
        let (engine, line) = engine_of(line)?;
        let (name, rest) = line.split_once(' ')?;
        let (seed, oracle) = rest.trim_start().split_once(' ')?;
        let mutant = Mutant::from_name(name)?;
        Some(Catch { engine, mutant, seed: seed.parse().ok()?, oracle: oracle.trim().to_owned() })
    })
}

/// Reads lines of an engine, a seed and the bug that it found. Without an engine it is Multi-Paxos.
pub fn parse_regressions(text: &str) -> Result<Vec<Regression>, Malformed> {
    parse(text, "a seed and the bug that it found", |line| {
        let (engine, line) = engine_of(line)?;
        let (seed, bug) = line.split_once(' ')?;
        Some(Regression { engine, seed: seed.parse().ok()?, bug: bug.trim().to_owned() })
    })
}

/// The engine that a line begins with, and the rest.
fn engine_of(line: &str) -> Option<(EngineKind, &str)> {
    let (first, rest) = line.split_once(' ')?;
    Some(match EngineKind::from_name(first) {
        Some(engine) => (engine, rest.trim_start()),
        None => (EngineKind::Paxos, line),
    })
}

/// All lines but the empty ones and those that begin with `#`.
fn parse<T>(
    text: &str,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Malformed> {
    let lines = text.lines().zip(1..).map(|(text, line)| (text.trim(), line));
    let lines = lines.filter(|(text, _)| !text.is_empty() && !text.starts_with('#'));
    let read = |(text, line): (&str, _)| {
        read(text).ok_or_else(|| Malformed { line, expected, text: text.to_owned() })
    };
    lines.map(read).collect()
}

/// The text that [`parse_catches`] reads, in the order of the mutants.
pub fn catches_text(mut catches: Vec<Catch>) -> String {
    catches.sort_by_key(|catch| (catch.engine.name(), catch.mutant));
    let name = |catch: &Catch| match catch.engine {
        EngineKind::Paxos => catch.mutant.name().to_owned(),
        EngineKind::Raft => format!("{} {}", catch.engine.name(), catch.mutant.name()),
    };
    let name_width = catches.iter().map(|catch| name(catch).len()).max().unwrap_or(0).max(8);
    let seed_width = catches.iter().map(|catch| catch.seed.to_string().len()).max().unwrap_or(0).max(4);
    let mut text = format!("{CATCHES_HEAD}# {:<1$}  ", "mutant", name_width - 2);
    text += &format!("{:>seed_width$}  oracle\n", "seed");
    for catch in catches {
        let (name, Catch { seed, oracle, .. }) = (name(&catch), catch);
        text += &format!("{name:<name_width$}  {seed:>seed_width$}  {oracle}\n");
    }
    text
}

const CATCHES_HEAD: &str = "\
# For each mutant the first seed that catches it, and the rule that is broken there. The tests run them.
# Written by `keevee-verify mutants --record`; again after any change that gives runs another course:
#   cargo run --release -p keevee-verify --features mutants -- mutants --record
#
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_seeds() {
        let (done, last) = mpsc::channel();
        let last = Mutex::new(last);
        // The first seed takes until the last one is done.
        let work = |seed| {
            match seed {
                0 => last.lock().expect("one waits").recv().expect("the last seed is run"),
                99 => done.send(()).expect("the first seed waits"),
                _ => {}
            }
            seed
        };
        let mut taken = Vec::new();
        in_order(0..100, 2, work, |seed| {
            taken.push(seed);
            ControlFlow::Continue(())
        });
        assert_eq!(taken, (0..100).collect::<Vec<u64>>());
    }

    #[test]
    fn nothing_is_taken_after_a_break() {
        let mut taken = Vec::new();
        let take = |seed| {
            taken.push(seed);
            if seed == 7 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        in_order(5..u64::MAX, 3, |seed| seed, take);
        assert_eq!(taken, [5, 6, 7]);
    }

    #[test]
    fn catches_are_read_as_they_are_written() {
        let [first, second, ..] = Mutant::ALL;
        let catch =
            |engine, mutant, seed, oracle: &str| Catch { engine, mutant, seed, oracle: oracle.to_owned() };
        let (paxos, raft) = (EngineKind::Paxos, EngineKind::Raft);
        let expected = [
            catch(paxos, first, 12_345, "no loss"),
            catch(paxos, second, 7, "once"),
            catch(raft, first, 1, "once"),
        ];
        let text = catches_text(expected.iter().rev().cloned().collect());
        assert_eq!(parse_catches(&text).as_deref(), Ok(&expected[..]), "{text}");
    }

    #[test]
    fn a_malformed_line_is_named() {
        let error = parse_regressions("# head\n\n17 a bug\nseventeen\n").expect_err("not a seed");
        assert_eq!(error.to_string(), "line 4 is not a seed and the bug that it found: \"seventeen\"");
        assert!(parse_catches("no-such-mutant 1 once").is_err());
    }

    #[test]
    fn a_regression_without_an_engine_is_one_of_multi_paxos() {
        let regression = |engine, seed| Regression { engine, seed, bug: "a bug".to_owned() };
        let expected = [regression(EngineKind::Paxos, 17), regression(EngineKind::Raft, 4)];
        assert_eq!(parse_regressions("17 a bug\nraft   4  a bug\n").as_deref(), Ok(&expected[..]));
    }

    #[test]
    fn what_is_kept_can_be_read() {
        parse_catches(MUTANTS).expect("seeds/mutants.txt");
        parse_regressions(REGRESSIONS).expect("seeds/regressions.txt");
    }
}
