//! `keevee-verify shrink`: a failure with as little around it as possible.

use clap::Args;
use keevee_verify::Report;
use keevee_verify::plan::{Plan, seconds};
use keevee_verify::shrink::shrink;

use super::replay::Cut;
use super::{Failure, OneRun, print, progress_bar, verdict};

/// Leave out of a failing run what its failure does not need: faults, clients, time.
///
/// What is left breaks the same rule; whether for the same reason is for its reader to see.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee-verify shrink --seed 1234
  keevee-verify shrink --seed 1234 --engine raft
  keevee-verify shrink --seed 1234 --mutant stale-read-round

Prints what to type to replay what is left.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    one: OneRun,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let one = arguments.one;
    let drawn = Plan::draw(one.seed).on(one.engine);
    let bar = progress_bar("shrinking", 0, "{prefix} {spinner} {elapsed} {pos} runs, left: {msg}");
    let smallest = shrink(drawn.clone(), one.mutant, |smallest| {
        bar.inc(1);
        bar.set_message(size(&drawn, smallest));
    });
    let runs = bar.position();
    bar.finish_and_clear();
    let Some(smallest) = smallest else {
        // All held: that is no failure of this program's.
        print(&format!("seed {} breaks no rule: there is nothing to shrink\n", one.seed));
        return Ok(());
    };
    let replay = one.command_line("replay");
    let cut = Cut::between(&drawn, &smallest.plan);
    print(&format!(
        "{}\nleft after {runs} runs: {}\nreplay: {replay}{cut} --trace\n",
        verdict(&smallest),
        size(&drawn, &smallest)
    ));
    Ok(())
}

fn size(drawn: &Plan, report: &Report) -> String {
    let Plan { faults, clients, faulty_micros, .. } = &report.plan;
    format!(
        "{} of {} faults, {} of {} clients, faults for {}, {} events",
        faults.len(),
        drawn.faults.len(),
        clients.len(),
        drawn.clients.len(),
        seconds(*faulty_micros),
        report.events
    )
}
