//! Tells whether a history of operations is linearizable: whether each operation can be thought to
//! take effect at one moment between its call and its return, so that all results come out as a
//! sequential execution would give them (Herlihy and Wing, 1990).
//!
//! What operations mean is a [`Model`]'s business; [`key`] is the one of a single keevee key. Keys are
//! independent of one another and linearizability is local, so a history of many keys is checked key
//! by key ([`partition`]): this is what makes long histories feasible.
//!
//! The search is in `search`. It leaves out how histories are recorded, and operations over more than
//! one key.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hash;

pub mod key;
mod search;
mod timeline;

/// How many operations that returned may be under way at the same time.
pub const CONCURRENCY_MAX: usize = 128;

/// What operations mean: a sequential specification.
///
/// [`Model::initial`] and [`Model::step`] say all of it, as long as a state is one state. [`Model::idle`] is for those
/// whose states stand for several. [`Model::is_neutral`] and [`Model::place`] say nothing new: they spare the search
/// work, without which it would often not come to an end.
pub trait Model {
    /// All that decides what comes next. It may stand for several states between which no result has told
    /// yet; then nothing may be possible in it that is possible in none of them.
    type State: Clone + Eq + Hash;
    /// What an operation asks.
    type Input;
    /// What it was told.
    type Output;

    /// The state before the first operation.
    fn initial(&self) -> Self::State;

    /// The state after an operation, or `None` if it can't have this output in `state`. Without output it is not
    /// known what the operation was told: then the state after it has taken effect.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// Where `state` stands for several states, an operation of unknown output may have taken effect in
    /// some of them and not in others. Then this is the state if it has not, and [`Model::step`] gives
    /// the state if it has.
    fn idle(&self, state: &Self::State, input: &Self::Input) -> Option<Self::State> {
        let _ = (state, input);
        None
    }

    /// True only if the operation changes no state that it is possible in, though it may tell of several
    /// states which it was.
    fn is_neutral(&self, input: &Self::Input, output: Option<&Self::Output>) -> bool {
        let _ = (input, output);
        false
    }

    /// A number that the output gives the operation, if it gives one. [`Model::step`] must be such that no operation
    /// is possible after one of a larger number, whatever comes between the two.
    fn place(&self, input: &Self::Input, output: &Self::Output) -> Option<u64> {
        let _ = (input, output);
        None
    }
}

/// One operation of a history. Times are in virtual microseconds.
///
/// An operation is *mandatory* if and only if it returned: it takes effect, once, from `called` to
/// `returned`. One that never returned takes effect once at any time after `called`, or never.
///
/// A mandatory operation without output is one of which it is known that it was carried out by then, but
/// not what it was told. One that may have been refused is not mandatory: let it never return.
///
/// Of two operations, one comes before the other only if it returned at an *earlier* time than the other
/// was called: at equal times they are concurrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// What it asked.
    pub input: I,
    /// What it was told; `None` if that is unknown.
    pub output: Option<O>,
    /// When it was called.
    pub called: u64,
    /// When it returned; `None` if never.
    pub returned: Option<u64>,
}

/// A history that is linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// How often the model was asked for a step.
    pub steps: u64,
}

/// Why a history was not found to be linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation<S> {
    /// There is no order in which its operations can have taken effect.
    NotLinearizable(Obstacle<S>),
    /// Nothing is known: the steps allowed did not suffice.
    GaveUp(Obstacle<S>),
}

/// How far the search came: the most operations that it could put in an order, and what stood in the
/// way of the next. Operations are named by their index in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle<S> {
    /// The operations that can have taken effect one after another.
    pub linearized: Vec<usize>,
    /// The state that they lead to.
    pub state: S,
    /// The operations of which one had to come next, and none could: those that returned, were called
    /// before any of the others returned, and are not in `linearized`.
    pub blocked: Vec<usize>,
    /// How often the model was asked for a step.
    pub steps: u64,
}

/// Checks that a history is linearizable: that its mandatory operations, and any of the others, can be
/// put in an order that respects the times and in which `model` allows each.
///
/// Operations may be given in any order. The verdict, the count of steps and the obstacle depend on the
/// arguments only.
///
/// # Errors
///
/// [`Violation::NotLinearizable`] if there is no such order; [`Violation::GaveUp`] if none was found
/// in `steps_max` steps of the model.
///
/// # Panics
///
/// If an operation returned before it was called, or more than [`CONCURRENCY_MAX`] operations that returned
/// were under way at one time.
pub fn check<M: Model>(
    model: &M,
    history: &[Operation<M::Input, M::Output>],
    steps_max: u64,
) -> Result<Checked, Violation<M::State>> {
    search::Search::new(model, history, steps_max).run()
}

/// Splits the operations of many keys into one history for each key. Within a key they stay in the order
/// given.
pub fn partition<K: Ord, I, O>(
    operations: impl IntoIterator<Item = (K, Operation<I, O>)>,
) -> BTreeMap<K, Vec<Operation<I, O>>> {
    let mut histories: BTreeMap<K, Vec<Operation<I, O>>> = BTreeMap::new();
    for (key, operation) in operations {
        histories.entry(key).or_default().push(operation);
    }
    histories
}

impl<S> Violation<S> {
    /// How far the search came.
    pub fn obstacle(&self) -> &Obstacle<S> {
        match self {
            Violation::NotLinearizable(obstacle) | Violation::GaveUp(obstacle) => obstacle,
        }
    }
}

impl<S: fmt::Debug> std::error::Error for Violation<S> {}

impl<S: fmt::Debug> fmt::Display for Violation<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Obstacle { linearized, state, blocked, steps } = self.obstacle();
        let verdict = match self {
            Violation::NotLinearizable(_) => "not linearizable",
            Violation::GaveUp(_) => "neither proven nor refuted: allow more steps",
        };
        // The end of a long history is what a reader needs.
        let shown = linearized.len().saturating_sub(20);
        let earlier = if shown > 0 { format!("{shown} earlier, ") } else { String::new() };
        let last = &linearized[shown..];
        let count = linearized.len();
        write!(
            formatter,
            "{verdict} ({steps} steps): {count} operations in order ({earlier}then {last:?}) lead to {state:?}, \
             where none of {blocked:?} can come next"
        )
    }
}
