//! The world in which keevee is proven before anyone trusts it.
//!
//! [`plan::Plan::draw`] draws from a seed all that can be drawn before a run; [`run()`] runs it: production replicas
//! under virtual time, with clients and faults, and the oracles that say whether every rule held. The same plan
//! is the same run, event by event. [`checker`] is a linearizability checker for any history.
//!
//! `docs/testing.md` tells how to read a trace, and how to add a fault, an oracle or a mutant. It leaves out real
//! processes, disks and sockets.

pub mod checker;
pub mod coverage;
pub mod history;
mod oracles;
pub mod plan;
pub mod random;
pub mod run;
pub mod seeds;
pub mod shrink;
mod world;

pub use run::{Report, run};
pub use world::{Trace, Violation};
