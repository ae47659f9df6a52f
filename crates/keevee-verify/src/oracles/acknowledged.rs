//! Acknowledged writes survive: what a client was told is done, every replica has applied in the end.
//!
//! etcd#14370 and nats-server#7564 acknowledged before the fsync; a crash took the writes back.

use super::Broken;
use crate::history::{Answer, History, Request};

pub(crate) struct Acknowledged;

impl Acknowledged {
    pub(crate) const NAME: &str = "acknowledged writes survive";

    /// A client is told that its write is done: then some replica has applied it.
    pub(crate) fn answered(request: &Request) -> Result<(), Broken> {
        if request.is_read() || request.effect.is_some() {
            return Ok(());
        }
        Err(format!("request {} was acknowledged, and no replica has applied it", request.number))
    }

    /// All replicas have applied everything up to an index. Agreement says that it is the same everywhere.
    pub(crate) fn at_the_end(history: &History, applied: u64) -> Result<(), Broken> {
        for request in history.iter().filter(|request| !request.is_read()) {
            let Some((_, Answer::Done(outcome))) = &request.answer else { continue };
            let survives = request.effect.is_some_and(|(index, _)| index <= applied);
            if !survives {
                let number = request.number;
                return Err(format!(
                    "request {number} was answered {outcome:?}, and is not in the final log"
                ));
            }
        }
        Ok(())
    }
}
