//! Calls and returns in the order of their times, as a linked list from which operations are lifted.
//!
//! Operations that never returned are not in the list: they could stay in it for ever, and each walk
//! would pass them. It leaves out what operations mean.

use super::{CONCURRENCY_MAX, Operation};

/// The list. Invariant: it begins with the calls that may come next, then the first return.
pub(super) struct Timeline {
    /// By position: all calls and returns, in the list or not.
    events: Vec<Event>,
    /// By position; the last one, [`Timeline::end`], is before the first event and after the last.
    next: Vec<u32>,
    previous: Vec<u32>,
}

struct Event {
    operation: u32,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Call {
        /// The position of the operation's return.
        returned: u32,
        /// A bit of [`Horizon::waiting`], which no other operation has that is under way at the same time.
        slot: u8,
        /// The operation's place ([`super::Model::place`]), or [`NO_PLACE`].
        place: u64,
    },
    Return,
    /// The call of an operation that never returned.
    Unreturned,
}

/// An operation without a place waits for no other.
const NO_PLACE: u64 = u64::MAX;

/// The front of the list: what may come next, up to the first return.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Horizon {
    /// The position of the first return.
    pub(super) frontier: u32,
    /// The slots of the calls before it.
    pub(super) waiting: u128,
    /// The smallest place among them.
    place_min: u64,
}

impl Timeline {
    /// All that returned is in the list. `place` says where an operation stands among others, if it does.
    pub(super) fn new<I, O>(
        history: &[Operation<I, O>],
        place: impl Fn(&Operation<I, O>) -> Option<u64>,
    ) -> Timeline {
        let mut timeline = Timeline { events: Vec::new(), next: Vec::new(), previous: Vec::new() };
        let mut slots = Slots::default();
        let mut call_of = vec![0; history.len()];
        for (operation, is_return) in in_order(history) {
            let position = timeline.events.len() as u32;
            let asked = &history[operation as usize];
            let kind = if is_return {
                let call: u32 = call_of[operation as usize];
                if let Kind::Call { returned, slot, .. } = &mut timeline.events[call as usize].kind {
                    *returned = position;
                    slots.give_back(*slot);
                }
                Kind::Return
            } else if asked.returned.is_some() {
                call_of[operation as usize] = position;
                let place = place(asked).unwrap_or(NO_PLACE);
                Kind::Call { returned: 0, slot: slots.take(), place }
            } else {
                Kind::Unreturned
            };
            timeline.events.push(Event { operation, kind });
        }
        timeline.link();
        timeline
    }

    fn link(&mut self) {
        let end = self.end();
        let listed =
            (0..end).filter(|position| !matches!(self.events[*position as usize].kind, Kind::Unreturned));
        let listed: Vec<u32> = listed.chain([end]).collect();
        self.next = vec![end; self.events.len() + 1];
        self.previous = vec![end; self.events.len() + 1];
        let mut before = end;
        for position in listed {
            self.next[before as usize] = position;
            self.previous[position as usize] = before;
            before = position;
        }
    }

    /// The place before the first event and after the last.
    fn end(&self) -> u32 {
        self.events.len() as u32
    }

    /// The operations that never returned and the positions of their calls, in order.
    pub(super) fn unreturned(&self) -> impl Iterator<Item = (u32, u32)> {
        let events = (0..).zip(&self.events);
        events
            .filter(|(_, event)| matches!(event.kind, Kind::Unreturned))
            .map(|(position, event)| (event.operation, position))
    }

    /// What may come next.
    pub(super) fn horizon(&self) -> Horizon {
        let mut horizon = Horizon { frontier: self.end(), waiting: 0, place_min: NO_PLACE };
        let mut position = self.next[self.end() as usize];
        while let Some(Event { kind: Kind::Call { slot, place, .. }, .. }) =
            self.events.get(position as usize)
        {
            horizon.waiting |= 1 << slot;
            horizon.place_min = horizon.place_min.min(*place);
            position = self.next[position as usize];
        }
        horizon.frontier = position;
        horizon
    }

    /// False if another operation that may come next has a smaller place and so must come before this one.
    pub(super) fn is_in_place(&self, call: u32, horizon: &Horizon) -> bool {
        match self.events[call as usize].kind {
            Kind::Call { place, .. } => place == NO_PLACE || place == horizon.place_min,
            Kind::Return | Kind::Unreturned => true,
        }
    }

    /// True if nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.next[self.end() as usize] == self.end()
    }

    /// The first call that may come next: none only if the list is empty.
    pub(super) fn first_call(&self) -> Option<u32> {
        self.call_at(self.next[self.end() as usize])
    }

    /// The next call that may come next, after another one.
    pub(super) fn call_after(&self, call: u32) -> Option<u32> {
        self.call_at(self.next[call as usize])
    }

    fn call_at(&self, position: u32) -> Option<u32> {
        let event = self.events.get(position as usize)?;
        matches!(event.kind, Kind::Call { .. }).then_some(position)
    }

    /// The calls that may come next.
    pub(super) fn calls(&self) -> impl Iterator<Item = u32> {
        std::iter::successors(self.first_call(), |call| self.call_after(*call))
    }

    /// The operation called at a position.
    pub(super) fn operation(&self, call: u32) -> u32 {
        self.events[call as usize].operation
    }

    /// Takes an operation's call and return out of the list.
    pub(super) fn lift(&mut self, call: u32) {
        self.unlink(call);
        self.unlink(self.return_of(call));
    }

    /// Puts them back. What was lifted last is put back first.
    pub(super) fn put_back(&mut self, call: u32) {
        self.relink(self.return_of(call));
        self.relink(call);
    }

    fn return_of(&self, call: u32) -> u32 {
        match self.events[call as usize].kind {
            Kind::Call { returned, .. } => returned,
            _ => unreachable!("only calls of operations that returned are lifted"),
        }
    }

    fn unlink(&mut self, position: u32) {
        let (previous, next) = (self.previous[position as usize], self.next[position as usize]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
    }

    fn relink(&mut self, position: u32) {
        let (previous, next) = (self.previous[position as usize], self.next[position as usize]);
        self.next[previous as usize] = position;
        self.previous[next as usize] = position;
    }
}

/// Calls (false) and returns (true) by time. At one time calls come first: then all of them are concurrent.
fn in_order<I, O>(history: &[Operation<I, O>]) -> impl Iterator<Item = (u32, bool)> + use<I, O> {
    let mut events = Vec::with_capacity(2 * history.len());
    for (operation, Operation { called, returned, .. }) in (0u32..).zip(history) {
        events.push((*called, false, operation));
        if let Some(returned) = returned {
            assert!(called <= returned, "operation {operation} returned before it was called");
            events.push((*returned, true, operation));
        }
    }
    events.sort_unstable();
    events.into_iter().map(|(_, is_return, operation)| (operation, is_return))
}

/// Bits that are in use.
#[derive(Default)]
struct Slots(u128);

impl Slots {
    fn take(&mut self) -> u8 {
        let slot = self.0.trailing_ones() as usize;
        assert!(slot < CONCURRENCY_MAX, "more than {CONCURRENCY_MAX} operations are under way at one time");
        self.0 |= 1 << slot;
        slot as u8
    }

    fn give_back(&mut self, slot: u8) {
        self.0 &= !(1 << slot);
    }
}
