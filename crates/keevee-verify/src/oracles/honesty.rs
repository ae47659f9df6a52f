//! An answer says what is known: a refused write never takes effect, not even later, and an id that was used
//! for something else does nothing.
//!
//! Redis Cluster's and etcd's "error" may mean anything; ours has a kind for each meaning. (Jepsen, *etcd 3.4.3*,
//! 2020: a failed transaction had taken effect.)

use keevee_core::error::ErrorKind;

use super::Broken;
use crate::history::{Answer, History, Request};

pub(crate) struct Honesty;

impl Honesty {
    pub(crate) const NAME: &str = "refused writes have no effect";

    /// A client is told that its id was used before: then it was.
    pub(crate) fn answered(request: &Request, answer: &Answer) -> Result<(), Broken> {
        if *answer != Answer::Refused(ErrorKind::RequestReused) || request.reuses_id {
            return Ok(());
        }
        Err(format!("request {} is told that its id was used for another", request.number))
    }

    pub(crate) fn at_the_end(history: &History) -> Result<(), Broken> {
        for request in history.iter().filter(|request| !request.is_read()) {
            let number = request.number;
            match &request.answer {
                Some((_, Answer::Refused(kind))) if request.effect.is_some() => {
                    return Err(format!("request {number} was refused ({kind}), and took effect"));
                }
                Some((_, Answer::Done(outcome))) if request.reuses_id => {
                    return Err(format!("request {number} reused an id and was answered {outcome:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
