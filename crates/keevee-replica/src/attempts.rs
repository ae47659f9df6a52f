//! One answer for all attempts at a write.
//!
//! Whoever takes a write from a client tries it at one leader after another until one answers. Once an attempt
//! was ambiguous, a later refusal no longer means that nothing happened: it speaks of its own attempt only. And
//! an ambiguous attempt is repeated only under a request id, or it could take effect twice.
//!
//! It leaves out where the leader is, how it is reached, and how long to wait between attempts and in all.

use std::borrow::Cow;

use keevee_core::command::Outcome;
use keevee_core::error::ErrorKind;

use crate::request::Refusal;

/// What one attempt at a write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It was applied.
    Outcome(Outcome),
    /// Nothing happened, for this reason: try again.
    Retry(String),
    /// Nothing happened, and trying again now does not help.
    Refused {
        /// What the caller may do next.
        kind: ErrorKind,
        /// For people.
        detail: String,
    },
    /// It may have happened, or may yet; why nobody knows.
    Unknown(String),
}

impl From<Result<Outcome, Refusal>> for Attempt {
    /// What this node's own replica answered.
    fn from(result: Result<Outcome, Refusal>) -> Attempt {
        Attempt::forwarded(result.map_err(|refusal| (refusal.kind(), refusal.to_string())))
    }
}

impl Attempt {
    /// What a leader elsewhere answered: an outcome, or a kind of error and its text.
    pub fn forwarded(reply: Result<Outcome, (ErrorKind, String)>) -> Attempt {
        match reply {
            Ok(outcome) => Attempt::Outcome(outcome),
            Err((ErrorKind::NotLeader, detail)) => Attempt::Retry(detail),
            Err((ErrorKind::OutcomeUnknown | ErrorKind::Fatal, detail)) => Attempt::Unknown(detail),
            Err((kind, detail)) => Attempt::Refused { kind, detail },
        }
    }
}

/// The attempts at one write so far, and what is known of them.
#[derive(Clone, Debug)]
pub struct Attempts {
    repeatable: bool,
    /// Why the last ambiguous attempt was.
    ambiguous: Option<String>,
    /// Why the last attempt in vain was.
    last: Cow<'static, str>,
}

impl Attempts {
    /// None yet. `repeatable` is true of a write under a request id.
    pub fn new(repeatable: bool) -> Attempts {
        Attempts { repeatable, ambiguous: None, last: Cow::Borrowed("no leader was found in time") }
    }

    /// The answer after one more attempt; `None` if it is to be tried again.
    ///
    /// # Errors
    ///
    /// A kind of error that is true of all attempts together, and its text.
    pub fn after(&mut self, attempt: Attempt) -> Option<Result<Outcome, (ErrorKind, String)>> {
        match attempt {
            Attempt::Outcome(outcome) => Some(self.settle(outcome)),
            Attempt::Retry(why) => {
                self.last = why.into();
                None
            }
            Attempt::Refused { kind, detail } => Some(Err(self.refused(kind, detail))),
            Attempt::Unknown(why) => {
                self.ambiguous = Some(why);
                (!self.repeatable).then(|| Err(self.give_up()))
            }
        }
    }

    /// The answer if there is no time for another attempt.
    pub fn give_up(&self) -> (ErrorKind, String) {
        self.refused(ErrorKind::Unavailable, self.last.clone().into_owned())
    }

    /// The outcome of the last attempt as the answer to all of them. `apply` may refuse a request whose earlier
    /// attempt took effect and was forgotten since: then nobody can say.
    fn settle(&self, outcome: Outcome) -> Result<Outcome, (ErrorKind, String)> {
        let refused =
            matches!(outcome, Outcome::RequestExpired | Outcome::RequestMemoryFull | Outcome::WrongShard);
        match &self.ambiguous {
            Some(why) if refused => Err((ErrorKind::OutcomeUnknown, why.clone())),
            _ => Ok(outcome),
        }
    }

    fn refused(&self, kind: ErrorKind, detail: String) -> (ErrorKind, String) {
        match &self.ambiguous {
            Some(why) => (ErrorKind::OutcomeUnknown, why.clone()),
            None => (kind, detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(why: &str) -> (ErrorKind, String) {
        (ErrorKind::OutcomeUnknown, why.to_owned())
    }

    /// Attempts of which one was ambiguous.
    fn ambiguous() -> Attempts {
        let mut attempts = Attempts::new(true);
        assert_eq!(attempts.after(Attempt::Unknown("lost".to_owned())), None);
        attempts
    }

    #[test]
    fn a_refusal_by_apply_after_an_ambiguous_attempt_is_unknown() {
        for refused in [Outcome::RequestExpired, Outcome::RequestMemoryFull, Outcome::WrongShard] {
            let attempt = Attempt::Outcome(refused.clone());
            assert_eq!(Attempts::new(true).after(attempt.clone()), Some(Ok(refused)));
            assert_eq!(ambiguous().after(attempt), Some(Err(unknown("lost"))));
        }
    }

    #[test]
    fn what_took_effect_or_found_a_conflict_is_certain_after_any_attempt() {
        let conflict = Outcome::Conflict { precondition: 0, version: Some(3) };
        for certain in [Outcome::Done(Vec::new()), conflict] {
            assert_eq!(ambiguous().after(Attempt::Outcome(certain.clone())), Some(Ok(certain)));
        }
    }

    #[test]
    fn a_refusal_is_certain_only_if_no_attempt_was_ambiguous() {
        let (kind, detail) = (ErrorKind::Unavailable, "full".to_owned());
        let refused = Attempt::Refused { kind, detail: detail.clone() };
        assert_eq!(Attempts::new(true).after(refused.clone()), Some(Err((kind, detail))));
        assert_eq!(ambiguous().after(refused), Some(Err(unknown("lost"))));
    }

    #[test]
    fn an_ambiguous_attempt_is_repeated_only_under_a_request_id() {
        let attempt = Attempt::Unknown("lost".to_owned());
        assert_eq!(Attempts::new(true).after(attempt.clone()), None);
        assert_eq!(Attempts::new(false).after(attempt), Some(Err(unknown("lost"))));
    }

    #[test]
    fn giving_up_tells_why_the_last_attempt_failed_unless_one_was_ambiguous() {
        let mut attempts = Attempts::new(true);
        assert_eq!(attempts.give_up().0, ErrorKind::Unavailable);
        assert_eq!(attempts.after(Attempt::Retry("moved".to_owned())), None);
        assert_eq!(attempts.give_up(), (ErrorKind::Unavailable, "moved".to_owned()));
        assert_eq!(attempts.after(Attempt::Unknown("lost".to_owned())), None);
        assert_eq!(attempts.after(Attempt::Retry("moved again".to_owned())), None);
        assert_eq!(attempts.give_up(), unknown("lost"));
    }

    #[test]
    fn a_leader_that_was_replaced_is_a_reason_to_try_again() {
        let refused = |refusal| Attempt::from(Err(refusal));
        assert_eq!(refused(Refusal::NotLeader(None)), Attempt::Retry("leadership is changing".to_owned()));
        assert_eq!(refused(Refusal::OutcomeUnknown("late")), Attempt::Unknown("late".to_owned()));
        let full = Attempt::Refused { kind: ErrorKind::Unavailable, detail: "full".to_owned() };
        assert_eq!(refused(Refusal::Unavailable("full")), full);
    }

    #[test]
    fn a_leader_that_stops_may_have_carried_it_out() {
        let reply = Err((ErrorKind::Fatal, "the disk".to_owned()));
        assert_eq!(Attempt::forwarded(reply), Attempt::Unknown("the disk".to_owned()));
    }
}
