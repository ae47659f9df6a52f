//! `keevee-verify meta`: whether a seed means the same run each time. Everything else rests on that.

use std::ops::ControlFlow;
use std::thread;

use clap::Args;
use keevee_verify::plan::{EngineKind, Plan};
use keevee_verify::{Report, Trace, seeds};

use super::{Failure, ManySeeds, count_seeds, print, progress_bar, verdict};

/// Run every seed twice, on two threads, and compare the traces and verdicts.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee-verify meta --seeds 100
  keevee-verify meta --seeds 1 --from 1234
  keevee-verify meta --seeds 100 --engine raft")]
pub(crate) struct Arguments {
    #[command(flatten)]
    many: ManySeeds,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let range = arguments.many.range()?;
    let count = range.end - range.start;
    let bar = progress_bar("seeds, twice", count, "{prefix} {bar:40} {pos}/{len} {per_sec} {eta} left");
    let mut difference = None;
    let engine = arguments.many.engine;
    seeds::in_order(
        range,
        arguments.many.jobs,
        |seed| twice(seed, engine),
        |[first, second]| {
            bar.inc(1);
            if is_same(&first, &second) {
                return ControlFlow::Continue(());
            }
            difference = Some([first, second]);
            ControlFlow::Break(())
        },
    );
    bar.finish_and_clear();
    match difference {
        None => {
            print(&format!("{}, each run twice: the same traces, the same verdicts\n", count_seeds(count)));
            Ok(())
        }
        Some([first, second]) => {
            let seed = first.plan.seed;
            let text = format!("seed {seed} differs:\n  {}\n  {}", outcome(&first), outcome(&second));
            Err(Failure::Broken(text))
        }
    }
}

/// The second time on a thread of its own: what one run leaves behind on its thread must not reach the next.
fn twice(seed: u64, engine: EngineKind) -> [Report; 2] {
    let once = move || keevee_verify::run(Plan::draw(seed).on(engine), None, Trace::silent());
    let first = once();
    let second = thread::spawn(once).join();
    [first, second.unwrap_or_else(|panic| std::panic::resume_unwind(panic))]
}

fn is_same(first: &Report, second: &Report) -> bool {
    first.trace_hash == second.trace_hash
        && first.violation == second.violation
        && first.events == second.events
        && first.coverage == second.coverage
}

fn outcome(report: &Report) -> String {
    format!("hash {:016x}, {} events, {}", report.trace_hash, report.events, verdict(report))
}
