//! Agreement on a log of opaque bytes, by Multi-Paxos.
//!
//! A group of nodes agrees on one value for each index of a log. A node's part in it is a [`Replica`]: a
//! state machine that moves only by [`Replica::step`] and does no I/O. Time, randomness and disk results
//! are inputs; messages, writes and chosen entries are outputs, which the caller carries out.
//!
//! # The protocol, in the papers' words
//!
//! **One value** (Lamport, *Paxos Made Simple*, 2001). Proposers put values to acceptors under numbered
//! ballots; a value is *chosen* once a quorum of acceptors accepted it at one ballot. In phase 1 a proposer
//! asks for promises not to accept at lower ballots, and learns what was accepted so far. In phase 2 it
//! proposes: the value accepted at the highest ballot reported, or, if none was, a value of its own.
//!
//! **A log** (van Renesse and Altinbuken, *Paxos Made Moderately Complex*, 2015). Every index is an
//! instance of the above, and one ballot serves them all: a leader runs phase 1 once, over all indexes not
//! known to be chosen (a promise is a list of accepted entries, sent in pages), and from then on phase 2
//! only, pipelined. A ballot is a pair `(round, node)`, so that no two nodes ever propose at the same one.
//! The three roles of the papers (proposer or leader, acceptor, learner or replica) live in one process
//! here, as in most systems.
//!
//! **Quorums** (Howard, Malkhi and Spiegelman, *Flexible Paxos*, 2016). All that safety asks is that every
//! phase-1 quorum meets every phase-2 quorum. [`QuorumSystem`] is the one predicate that says which sets
//! are quorums.
//!
//! **Who leads** (Ng, Haridi and Carbone, *Omni-Paxos*, 2023). Safety never depends on it; progress does. A
//! node leads because it is connected to a quorum, not because its log is the longest: phase 1 brings it
//! whatever it lacks. Before it raises a ballot it polls, which changes nothing anywhere. So a node that
//! cannot lead does not disturb one that does, and a network that is cut in part settles on a node that
//! reaches a quorum.
//!
//! # Why each step is safe
//!
//! 1. *A value chosen at ballot b is the only one that any ballot above b proposes.* A leader above b has
//!    promises from a phase-1 quorum. It meets the phase-2 quorum that chose the value in some acceptor,
//!    which accepted before it promised (afterwards it would have refused), and therefore reports the
//!    value. By induction every ballot from b on that proposed at this index proposed this value, so the
//!    report of the highest ballot carries it. Hence: adopt the highest, wait for the *last* page of a
//!    quorum, and re-propose at one's own ballot.
//! 2. *A hole may be filled with a no-op* only where no member of that quorum reports anything. An index
//!    that somebody reports chosen is never filled: its value is adopted as chosen, from that report.
//! 3. *What an acceptor says, its disk knows.* A promise, or an acceptance, that is forgotten in a crash
//!    breaks step 1. Messages that state one are handed out inside [`Persist::then_send`], with the write
//!    that they wait for. The answer to a heartbeat speaks only of what is synced already. The candidate's
//!    own promise counts only once it is on disk, as anyone's; so a ballot is never used twice.
//! 4. *An acknowledgement covers a prefix, at one ballot.* `Accepted { ballot, through }` says: each index
//!    up to `through` is accepted at `ballot`, or known to be chosen. Entries of older ballots in between
//!    end the prefix: they may hold other values. A leader sends everything above a follower's chosen index
//!    at its own ballot, chosen values included, so that the prefix can grow.
//! 5. *A follower marks chosen* only as much of what the leader calls chosen as it accepted at that same
//!    ballot.
//! 6. *An entry is handed out* once it is chosen and on this node's own disk: what was applied is never
//!    missing from the log that replays it.
//! 7. *A read sees every write acknowledged before it came.* The leader first applies the no-op of its own
//!    ballot: everything acknowledged under earlier leaders lies below it. Then it fixes the index and asks
//!    a quorum whether a higher ballot was promised, by messages sent after the read came: if not, no later
//!    leader had anything chosen before it came. No clock is trusted.
//! 8. *Refusals are not acknowledgements.* A leader that is refused goes above the refusal without a poll
//!    only while the others still form a quorum that answered at its ballot within the minimum timeout. A
//!    leader that wakes from a long pause has no such answers, and steps down.
//! 9. *An index is dropped from the log* once this node has applied it to a state that survives a crash, and either
//!    every member has, so that none ever asks for it, or the caller says that the log is too long. Who asks then is told
//!    so, and needs a snapshot: the state of another node, which stands for every value chosen up to its index. It forgets
//!    nothing that it accepted above that index, nor its promise.
//!
//! # Which function is which step
//!
//! | step | where |
//! | --- | --- |
//! | poll, grant | `election.rs`: `poll`, `on_poll`, `on_poll_reply` |
//! | phase 1a, *Prepare* | `election.rs`: `prepare`, `resend_prepare` |
//! | phase 1b, *Promise* | `acceptor.rs`: `on_prepare`, `promise_page`, `raise_promise` |
//! | adoption, hole filling, re-proposal | `election.rs`: `on_promise`, `take_page`, `take_chosen`, `lead_if_promised` |
//! | phase 2a, *Accept* | `leader.rs`: `propose`, `replicate` |
//! | phase 2b, *Accepted* | `acceptor.rs`: `on_accept`, `accept`, `extend_prefix` |
//! | choosing | `leader.rs`: `on_acknowledgement`, `choose` |
//! | learning | `acceptor.rs`: `learn`; `replica.rs`: `deliver` |
//! | heartbeats, step-down, refusals | `leader.rs`: `heartbeat`, `tick_leader`, `on_refused`; `acceptor.rs`: `on_heartbeat`, `refuse` |
//! | read barrier | `reads.rs` |
//! | handing over | `leader.rs`: `transfer`, `hand_over`; `election.rs`: `on_take_over` |
//! | durability of what is sent | `replica.rs`: `send_when_synced`, `persist`, `synced_through` |
//! | truncation | `leader.rs`: `flushed_everywhere`; `replica.rs`: `drop_flushed` |
//! | snapshots | `leader.rs`: `tell_dropped`; `acceptor.rs`: `on_dropped`; `replica.rs`: `adopt_snapshot` |
//!
//! # What the caller owes
//!
//! - [`Persist`]s are written and synced in order; each is atomic, and visible to [`LogRead`] at once.
//!   After a failed sync the node must stop: what its disk holds is no longer known.
//! - [`Config::seed`] differs between nodes *and between starts of a node*: it also numbers the questions
//!   of a life.
//! - A message to the node itself is delivered like any other; the network may lose, delay, repeat and
//!   reorder the rest.
//! - The caller bounds what it proposes and how many reads wait. A replica holds in memory: every entry
//!   that is not applied, up to [`Config::cache_bytes_max`] of applied ones, and per follower the sizes of
//!   what is in flight. A candidate also holds what the others report above its own chosen prefix, as far
//!   as they do not know it to be chosen.
//! - [`Output::proposed`] names an index, not an outcome. The proposal is chosen if the entry handed out at
//!   that index carries its bytes; under another leader it may carry something else, or come later.
//!
//! # What is left out
//!
//! - *Which change of members comes next.* [`Input::ProposeConfiguration`] takes each step.
//! - *How snapshots are made and brought.* [`Output::needs_snapshot`] says when only one would help, and who has one.
//! - *Leases.* Every linearizable read costs a round of heartbeats, shared by all reads that waited for it.
//!
//! The scenarios of `tests/scripts/` show each step with its whole trace; `tests/random_schedules.rs` looks
//! for what they miss.

mod acceptor;
mod ballot;
mod configurations;
mod election;
mod leader;
mod log;
mod message;
mod quorum;
mod reads;
mod replica;

pub use ballot::{Ballot, Index, NodeId};
pub use message::{
    Entry, HardState, Input, LogRead, Message, Output, Persist, ReadId, Record, Restored, Timing, Value,
};
pub use quorum::{Configuration, QuorumSystem};
pub use replica::{Config, Replica, RoleName, Status};
