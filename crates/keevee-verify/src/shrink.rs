//! Cuts a failing plan down while it fails: what is left over is what a person has to understand.
//!
//! This is delta debugging (Zeller and Hildebrandt 2002, section 3), with complements only: a part alone is rarely
//! enough. Each part that is left out gives the run another course from there on, so the result is small, not the
//! smallest, and the rule may be broken for another reason than before.

use keevee_mutants::Mutant;

use crate::plan::{Plan, SECOND};
use crate::run::{Report, run};
use crate::world::Trace;

/// The time in which faults happen is not cut finer than this.
const FAULTY_STEP: u64 = SECOND / 4;

/// Leaves out faults, then clients, then time, again and again until nothing more can go without the failure:
/// a violation of the same rule. `None` if the plan breaks no rule.
///
/// `watch` is shown the smallest failing run so far after each run.
pub fn shrink(plan: Plan, mutant: Option<Mutant>, watch: impl FnMut(&Report)) -> Option<Report> {
    let smallest = run(plan, mutant, Trace::silent());
    let oracle = smallest.violation.as_ref()?.oracle;
    let mut shrinking = Shrinking { smallest, oracle, mutant, watch };
    while shrinking.pass() {}
    Some(shrinking.smallest)
}

struct Shrinking<W> {
    smallest: Report,
    oracle: &'static str,
    mutant: Option<Mutant>,
    watch: W,
}

impl<W: FnMut(&Report)> Shrinking<W> {
    /// Tries to leave out everything once. True if something went.
    fn pass(&mut self) -> bool {
        let Plan { faults, clients, faulty_micros, .. } = self.smallest.plan.clone();
        let before = (faults.len(), clients.len(), faulty_micros);
        needed(faults, |faults| self.fails(|plan| plan.faults = faults.to_vec()));
        needed(clients, |clients| self.fails(|plan| plan.clients = clients.to_vec()));
        let mut step = self.smallest.plan.faulty_micros / 2;
        while step >= FAULTY_STEP {
            let shorter = self.smallest.plan.faulty_micros.checked_sub(step);
            if !shorter.is_some_and(|shorter| self.fails(|plan| plan.faulty_micros = shorter)) {
                step /= 2;
            }
        }
        let Plan { faults, clients, faulty_micros, .. } = &self.smallest.plan;
        (faults.len(), clients.len(), *faulty_micros) != before
    }

    /// Runs the smallest plan so far with a change, which stays if the run fails like the first one.
    fn fails(&mut self, change: impl FnOnce(&mut Plan)) -> bool {
        let mut plan = self.smallest.plan.clone();
        change(&mut plan);
        let report = run(plan, self.mutant, Trace::silent());
        let fails = report.violation.as_ref().is_some_and(|violation| violation.oracle == self.oracle);
        if fails {
            self.smallest = report;
        }
        (self.watch)(&self.smallest);
        fails
    }
}

/// What is left of a list when halves of it, quarters, and so on down to single items are left out wherever it
/// still fails without them.
fn needed<T: Clone>(mut items: Vec<T>, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut size = items.len().div_ceil(2);
    while size > 0 {
        let mut begin = 0;
        while begin < items.len() {
            let end = (begin + size).min(items.len());
            let rest = [&items[..begin], &items[end..]].concat();
            if fails(&rest) {
                items = rest;
            } else {
                begin = end;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of 0 to 99 where a list fails if this holds, and how many lists were tried.
    fn left(fails: impl Fn(&[u32]) -> bool) -> (Vec<u32>, usize) {
        let mut tries = 0;
        let left = needed((0..100).collect(), |items| {
            tries += 1;
            fails(items)
        });
        (left, tries)
    }

    #[test]
    fn only_what_a_failure_needs_is_left() {
        let (left, tries) = left(|items| [3, 50, 99].iter().all(|item| items.contains(item)));
        assert_eq!(left, [3, 50, 99]);
        assert!(tries < 60, "{tries}");
    }

    #[test]
    fn nothing_is_left_of_what_fails_anyway() {
        assert_eq!(left(|_| true), (vec![], 2));
    }

    #[test]
    fn everything_is_left_where_all_is_needed() {
        assert_eq!(left(|_| false).0.len(), 100);
    }

    #[test]
    fn a_plan_that_breaks_no_rule_is_not_shrunk() {
        let mut plan = Plan::draw(1);
        (plan.faulty_micros, plan.faults) = (SECOND, Vec::new());
        assert!(shrink(plan, None, |_| ()).is_none());
    }
}
