//! The search for a linearization: depth first over which operation comes next (Wing and Gong, 1993), with
//! calls and returns in a linked list from which an operation is lifted and put back (Lowe, "Testing for
//! linearizability", 2017), and a memory of what has failed.
//!
//! **What a configuration is.** Lowe remembers the set of all operations linearized so far, which grows with
//! the history. Here a set is said by what it lacks: the *frontier*, which is the first return of an
//! operation not linearized, and the operations *waiting*, which are called before the frontier and not
//! linearized; everything else before it is. Operations under way at one time have different *slots*, so
//! those waiting are a few bits, however long the history is and however long one of them takes.
//!
//! **Operations that never returned** may take effect at any time after their call, or never. They pile up as a
//! history grows, so they are tried only where the operations that returned lead nowhere, and a configuration
//! fails if it failed with a subset of the same ones used up: those not used need not be. A history with many
//! of them that is not linearizable may still take more steps than there is time for.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::rc::Rc;

use super::timeline::{Horizon, Timeline};
use super::{Checked, Model, Obstacle, Operation, Violation};

pub(super) struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Input, M::Output>],
    steps_max: u64,
    steps: u64,
    /// The operations that returned and are not taken.
    timeline: Timeline,
    /// The operations that never returned, taken or not, with the positions of their calls, in order.
    unreturned: Vec<(u32, u32)>,
    /// The configuration at hand.
    here: Configuration<M::State>,
    spent: Spent,
    /// The operations taken that led to it.
    stack: Vec<Frame<M::State>>,
    /// How many of them returned.
    returned_count: usize,
    /// What failed, and with which unreturned operations used up.
    failed: HashMap<Configuration<M::State>, Vec<Spent>, BuildHasherDefault<DefaultHasher>>,
    farthest: Farthest<M::State>,
}

/// What decides what can still happen, but for unreturned operations.
#[derive(PartialEq, Eq, Hash)]
struct Configuration<S> {
    horizon: Horizon,
    state: S,
}

/// A bit for each unreturned operation that is taken.
#[derive(Clone)]
struct Spent(Rc<[u64]>);

/// One operation taken, and how things were before.
struct Frame<S> {
    choice: Choice,
    before: Configuration<S>,
    spent: Spent,
    /// True if nothing is gained by taking another one instead.
    is_only_choice: bool,
}

/// An operation that may come next.
#[derive(Clone, Copy)]
enum Choice {
    /// One that returned, by the position of its call; `is_idle` if as in [`Model::idle`].
    Returned { call: u32, is_idle: bool },
    /// One that never returned, by its index in `unreturned`.
    Unreturned(u32),
}

/// The longest order found so far.
struct Farthest<S> {
    operations: Vec<u32>,
    /// How many of them the stack begins with.
    shared: usize,
    returned_count: usize,
    state: S,
    /// Those that returned, of which one had to come next.
    blocked: Vec<u32>,
}

impl<'a, M: Model> Search<'a, M> {
    pub(super) fn new(
        model: &'a M,
        history: &'a [Operation<M::Input, M::Output>],
        steps_max: u64,
    ) -> Search<'a, M> {
        let timeline = Timeline::new(history, |operation| {
            operation.output.as_ref().and_then(|output| model.place(&operation.input, output))
        });
        let changes = |(operation, _): &(u32, u32)| {
            let operation = &history[*operation as usize];
            !model.is_neutral(&operation.input, operation.output.as_ref())
        };
        let unreturned: Vec<(u32, u32)> = timeline.unreturned().filter(changes).collect();
        let farthest = Farthest {
            operations: Vec::new(),
            shared: 0,
            returned_count: 0,
            state: model.initial(),
            blocked: timeline.calls().map(|call| timeline.operation(call)).collect(),
        };
        Search {
            model,
            history,
            steps_max,
            steps: 0,
            here: Configuration { horizon: timeline.horizon(), state: model.initial() },
            spent: Spent::nothing(unreturned.len()),
            timeline,
            unreturned,
            stack: Vec::new(),
            returned_count: 0,
            failed: HashMap::default(),
            farthest,
        }
    }

    pub(super) fn run(mut self) -> Result<Checked, Violation<M::State>> {
        let mut choice = self.first_choice();
        loop {
            if self.timeline.is_empty() {
                return Ok(Checked { steps: self.steps });
            }
            if self.steps >= self.steps_max {
                return Err(Violation::GaveUp(self.obstacle()));
            }
            match choice {
                Some(this) if self.take(this) => choice = self.first_choice(),
                Some(this) => choice = self.choice_after(this),
                None => match self.take_back() {
                    Some(failed) => choice = self.choice_after(failed),
                    None => return Err(Violation::NotLinearizable(self.obstacle())),
                },
            }
        }
    }

    fn first_choice(&self) -> Option<Choice> {
        let call = self.timeline.first_call()?;
        Some(Choice::Returned { call, is_idle: false })
    }

    /// What to try once a choice has failed.
    fn choice_after(&self, choice: Choice) -> Option<Choice> {
        match choice {
            Choice::Returned { call, is_idle: false } if self.operation(call).output.is_none() => {
                Some(Choice::Returned { call, is_idle: true })
            }
            Choice::Returned { call, .. } => match self.timeline.call_after(call) {
                Some(call) => Some(Choice::Returned { call, is_idle: false }),
                None => self.unreturned_below(self.unreturned_called()),
            },
            Choice::Unreturned(index) => self.unreturned_below(index),
        }
    }

    /// The last called first: what is long gone has rarely waited until now.
    fn unreturned_below(&self, index: u32) -> Option<Choice> {
        Some(Choice::Unreturned(index.checked_sub(1)?))
    }

    /// How many of `unreturned` are called before the frontier.
    fn unreturned_called(&self) -> u32 {
        let frontier = self.here.horizon.frontier;
        self.unreturned.partition_point(|(_, called)| *called < frontier) as u32
    }

    fn operation(&self, call: u32) -> &'a Operation<M::Input, M::Output> {
        &self.history[self.timeline.operation(call) as usize]
    }

    /// Makes the choice, unless it is impossible, useless, or leads to what has failed before.
    fn take(&mut self, choice: Choice) -> bool {
        match choice {
            Choice::Returned { call, is_idle } => self.take_returned(call, is_idle),
            Choice::Unreturned(index) => self.take_unreturned(index),
        }
    }

    fn take_returned(&mut self, call: u32, is_idle: bool) -> bool {
        if !self.timeline.is_in_place(call, &self.here.horizon) {
            return false;
        }
        let Operation { input, output, .. } = self.operation(call);
        self.steps += 1;
        let after = if is_idle {
            self.model.idle(&self.here.state, input)
        } else {
            self.model.step(&self.here.state, input, output.as_ref())
        };
        let Some(state) = after else { return false };
        // Later it could do no more than it does here, and here it is in nobody's way.
        let is_only_choice = state == self.here.state && self.model.is_neutral(input, output.as_ref());
        self.timeline.lift(call);
        let after = Configuration { horizon: self.timeline.horizon(), state };
        let entered =
            self.enter(Choice::Returned { call, is_idle }, after, self.spent.clone(), is_only_choice);
        if !entered {
            self.timeline.put_back(call);
        }
        entered
    }

    fn take_unreturned(&mut self, index: u32) -> bool {
        if self.spent.has(index) {
            return false;
        }
        let (operation, _) = self.unreturned[index as usize];
        let Operation { input, output, .. } = &self.history[operation as usize];
        self.steps += 1;
        match self.model.step(&self.here.state, input, output.as_ref()) {
            Some(state) if state != self.here.state => {
                let after = Configuration { horizon: self.here.horizon, state };
                self.enter(Choice::Unreturned(index), after, self.spent.and(index), false)
            }
            _ => false,
        }
    }

    /// Goes on to a configuration, unless it has failed before.
    fn enter(
        &mut self,
        choice: Choice,
        after: Configuration<M::State>,
        spent: Spent,
        is_only_choice: bool,
    ) -> bool {
        // Most histories are accepted without a failure: they need no hash.
        let failures = if self.failed.is_empty() { None } else { self.failed.get(&after) };
        if failures.is_some_and(|failures| failures.iter().any(|failure| failure.is_within(&spent))) {
            return false;
        }
        self.stack.push(Frame {
            choice,
            before: std::mem::replace(&mut self.here, after),
            spent: std::mem::replace(&mut self.spent, spent),
            is_only_choice,
        });
        self.returned_count += usize::from(choice.has_returned());
        true
    }

    /// Remembers that the configuration at hand has failed, goes back to one where another choice could have
    /// been made, and says which choice was made there. `None` if there is no such configuration.
    fn take_back(&mut self) -> Option<Choice> {
        self.note_farthest();
        loop {
            let Frame { choice, before, spent, is_only_choice } = self.stack.pop()?;
            self.farthest.shared = self.farthest.shared.min(self.stack.len());
            self.returned_count -= usize::from(choice.has_returned());
            let failed = std::mem::replace(&mut self.here, before);
            let spent = std::mem::replace(&mut self.spent, spent);
            let failures = self.failed.entry(failed).or_default();
            failures.retain(|failure| !spent.is_within(failure));
            failures.push(spent);
            if let Choice::Returned { call, .. } = choice {
                self.timeline.put_back(call);
            }
            if !is_only_choice {
                return Some(choice);
            }
        }
    }

    /// Keeps the order at hand if it is the longest. What it shares with the one kept before is not copied
    /// again, or the cost would grow with the square of the history.
    fn note_farthest(&mut self) {
        let farthest = &mut self.farthest;
        if self.returned_count <= farthest.returned_count {
            return;
        }
        farthest.operations.truncate(farthest.shared);
        farthest.operations.extend(self.stack[farthest.shared..].iter().map(|frame| match frame.choice {
            Choice::Returned { call, .. } => self.timeline.operation(call),
            Choice::Unreturned(index) => self.unreturned[index as usize].0,
        }));
        farthest.shared = self.stack.len();
        farthest.returned_count = self.returned_count;
        farthest.state = self.here.state.clone();
        farthest.blocked = self.timeline.calls().map(|call| self.timeline.operation(call)).collect();
    }

    fn obstacle(mut self) -> Obstacle<M::State> {
        self.note_farthest();
        let indexes = |operations: Vec<u32>| operations.into_iter().map(|one| one as usize).collect();
        Obstacle {
            linearized: indexes(self.farthest.operations),
            state: self.farthest.state,
            blocked: indexes(self.farthest.blocked),
            steps: self.steps,
        }
    }
}

impl Choice {
    fn has_returned(self) -> bool {
        matches!(self, Choice::Returned { .. })
    }
}

impl Spent {
    fn nothing(unreturned_count: usize) -> Spent {
        Spent(vec![0; unreturned_count.div_ceil(64)].into())
    }

    fn has(&self, index: u32) -> bool {
        self.0[index as usize / 64] >> (index % 64) & 1 == 1
    }

    fn and(&self, index: u32) -> Spent {
        let mut used = self.0.to_vec();
        used[index as usize / 64] |= 1 << (index % 64);
        Spent(used.into())
    }

    /// True if nothing is spent that is not spent in `other` too.
    fn is_within(&self, other: &Spent) -> bool {
        let is_subset = || self.0.iter().zip(&*other.0).all(|(one, other)| one & !other == 0);
        Rc::ptr_eq(&self.0, &other.0) || is_subset()
    }
}
