//! `keevee-verify replay`: one run again, whole or cut down.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::str::FromStr;

use clap::Args;
use keevee_verify::Trace;
use keevee_verify::plan::{Plan, seconds};

use super::{Failure, OneRun, end_if_refused, print, verdict};

/// Run one seed again: its plan, its verdict, the hash of its trace.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee-verify replay --seed 1234
  keevee-verify replay --seed 1234 --trace | less
  keevee-verify replay --seed 1234 --engine raft
  keevee-verify replay --seed 1234 --without 3,7,9-12 --clients 2,5
  keevee-verify replay --seed 1234 --mutant stale-read-round

Faults and clients keep their numbers, whatever is left out.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    one: OneRun,
    /// Print everything that happens, a column for each node
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    cut: Cut,
}

/// What is left of a plan.
#[derive(Args, Default)]
pub(crate) struct Cut {
    /// Leave out the faults with these numbers
    #[arg(long, value_name = "NUMBERS")]
    without: Option<Numbers>,
    /// Keep only the clients with these numbers; `none` for no client
    #[arg(long, value_name = "NUMBERS")]
    clients: Option<Numbers>,
    /// End the faults after so many microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    faulty_micros: Option<u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let plan = arguments.cut.apply(Plan::draw(arguments.one.seed).on(arguments.one.engine))?;
    print(&plan.to_string());
    let trace = if arguments.trace { printed_trace(plan.nodes_max()) } else { Trace::silent() };
    let report = keevee_verify::run(plan, arguments.one.mutant, trace);
    let (events, virtual_seconds) = (report.events, seconds(report.virtual_micros));
    print(&format!("{events} events in {virtual_seconds}, {} requests\n", report.requests));
    // Not on standard output, where the same run prints the same text.
    let took = report.took.as_secs_f64().max(1e-6);
    let (rate, ratio) = (events as f64 / took, report.virtual_micros as f64 / 1e6 / took);
    eprintln!("{rate:.0} events each second, {ratio:.0} times as fast as real time, on one core");
    print(&format!("{}\nhash {:016x}\n", verdict(&report), report.trace_hash));
    match &report.violation {
        None => Ok(()),
        Some(violation) => Err(Failure::Broken(format!("the rule \"{}\" was broken", violation.oracle))),
    }
}

fn printed_trace(nodes: u64) -> Trace {
    let mut output = BufWriter::new(io::stdout());
    Trace::to_lines(nodes, move |line| end_if_refused(writeln!(output, "{line}")))
}

impl Cut {
    /// What leads from the plan that a seed drew to what is left of it.
    pub(crate) fn between(drawn: &Plan, left: &Plan) -> Cut {
        let kept: BTreeSet<u64> = fault_numbers(left).collect();
        let without: BTreeSet<u64> = fault_numbers(drawn).filter(|number| !kept.contains(number)).collect();
        let clients = || left.clients.iter().map(|client| client.number).collect();
        Cut {
            without: (!without.is_empty()).then_some(Numbers(without)),
            clients: (left.clients.len() < drawn.clients.len()).then(|| Numbers(clients())),
            faulty_micros: (left.faulty_micros < drawn.faulty_micros).then_some(left.faulty_micros),
        }
    }

    fn apply(&self, mut plan: Plan) -> Result<Plan, Failure> {
        if let Some(Numbers(without)) = &self.without {
            must_be_there("fault", without, fault_numbers(&plan).collect())?;
            plan.faults.retain(|fault| !without.contains(&(fault.number as u64)));
        }
        if let Some(Numbers(kept)) = &self.clients {
            must_be_there("client", kept, plan.clients.iter().map(|client| client.number).collect())?;
            plan.clients.retain(|client| kept.contains(&client.number));
        }
        if let Some(faulty_micros) = self.faulty_micros {
            plan.faulty_micros = faulty_micros.min(plan.faulty_micros);
        }
        Ok(plan)
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(without) = &self.without {
            write!(formatter, " --without {without}")?;
        }
        if let Some(clients) = &self.clients {
            write!(formatter, " --clients {clients}")?;
        }
        match self.faulty_micros {
            Some(faulty_micros) => write!(formatter, " --faulty-micros {faulty_micros}"),
            None => Ok(()),
        }
    }
}

fn fault_numbers(plan: &Plan) -> impl Iterator<Item = u64> {
    plan.faults.iter().map(|fault| fault.number as u64)
}

/// A number that the plan does not have is a slip, or from another version's plan.
fn must_be_there(what: &str, named: &BTreeSet<u64>, there: BTreeSet<u64>) -> Result<(), Failure> {
    match named.difference(&there).next().copied() {
        None => Ok(()),
        Some(number) => {
            let text = format!("this seed draws no {what} {number}; it draws {}", Numbers(there));
            Err(Failure::Usage(text))
        }
    }
}

/// Numbers as a command line gives them: `3,7,9-12`, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers(BTreeSet<u64>);

/// More than a plan has of anything.
const NUMBER_MAX: u64 = 1_000_000;

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers, String> {
        if text == "none" {
            return Ok(Numbers(BTreeSet::new()));
        }
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.parse::<u64>(), last.parse::<u64>()) {
                (Ok(first), Ok(last)) if first <= last && last <= NUMBER_MAX => numbers.extend(first..=last),
                _ => return Err("write numbers with commas between, ranges with a dash: 3,7,9-12".to_owned()),
            }
        }
        Ok(Numbers(numbers))
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<u64> = self.0.iter().copied().collect();
        let runs = numbers.chunk_by(|one, next| one + 1 == *next).map(|run| match run {
            [one] => one.to_string(),
            [first, .., last] => format!("{first}-{last}"),
            [] => unreachable!("chunks hold something"),
        });
        let runs: Vec<String> = runs.collect();
        formatter.write_str(if runs.is_empty() { "none".to_owned() } else { runs.join(",") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_written() {
        for text in ["none", "3", "3,7,9-12", "1-2"] {
            assert_eq!(text.parse::<Numbers>().expect("numbers").to_string(), text);
        }
        assert_eq!("1,2,3,2".parse::<Numbers>().expect("numbers").to_string(), "1-3");
        for text in ["", "3,", "a", "5-3", "-1", "1-99999999999"] {
            assert!(text.parse::<Numbers>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cut_leads_from_the_drawn_plan_to_what_is_left() {
        let drawn = Plan::draw(1);
        let mut left = drawn.clone();
        left.faults.retain(|fault| fault.number % 3 == 0);
        left.clients.truncate(1);
        left.faulty_micros /= 2;
        let again = Cut::between(&drawn, &left).apply(drawn.clone()).expect("its own numbers");
        assert_eq!(format!("{again:?}"), format!("{left:?}"));
        assert_eq!(Cut::between(&drawn, &drawn).to_string(), "");
    }

    #[test]
    fn a_number_that_was_never_drawn_is_refused() {
        let cut = Cut { clients: Some("1,99".parse().expect("numbers")), ..Cut::default() };
        let refusal = cut.apply(Plan::draw(1)).expect_err("no such client").to_string();
        assert!(refusal.contains("no client 99"), "{refusal}");
    }
}
