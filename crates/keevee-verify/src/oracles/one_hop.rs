//! One hop: a node forwards only what a client has sent to it, and not without end. Whoever a command is forwarded to
//! carries it out or refuses.
//!
//! redisraft#13: while leadership moved, followers forwarded to each other what had been forwarded to them, and
//! commands went round in circles.

use super::Broken;

pub(crate) struct OneHop;

impl OneHop {
    pub(crate) const NAME: &str = "one hop";

    /// A node forwards a command. `attempted` tells how often it has tried so far, if a client has sent it there, of
    /// `attempts_max` times that there is time for.
    pub(crate) fn forwarded(node: u64, attempted: Option<usize>, attempts_max: usize) -> Result<(), Broken> {
        match attempted {
            Some(attempted) if attempted <= attempts_max => Ok(()),
            Some(attempted) => Err(format!("node {node} tries a command for the {attempted}th time")),
            None => Err(format!("node {node} forwards a command that no client has sent to it")),
        }
    }
}
