//! One call: attempts at one node after the other under one request id, and one answer that covers them all.
//!
//! A node that does not lead says who does, and the call goes there at once: that is the way and no failure, but it is
//! free only a few times, or nodes that name each other would keep a call running in circles. Everything else that
//! is tried again waits a little and is paid for from the client's budget (`retry.rs`), unless nothing was sent.
//!
//! Once an attempt was ambiguous, a later refusal no longer means that nothing happened: it speaks of its own
//! attempt only (`keevee_replica::attempts` holds the same for nodes that forward).
//!
//! It leaves out where to go (`router.rs`) and how (`link.rs`).

use std::sync::Arc;
use std::time::Duration;

use http::header::DATE;
use keevee_core::error::ErrorKind;
use keevee_core::ids::ShardId;
use keevee_core::kv::{self, request, response};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::answer::Error;
use crate::client::Shared;
use crate::connection::get_once;
use crate::link::{Link, LinkError};
use crate::map::{Apart, Keys, Map};
use crate::retry::Backoff;
use crate::router::Served;

/// Redirects that a call follows at once; more are as good as refusals.
const REDIRECTS_MAX: u32 = 4;
/// The longest first pause, and how often it doubles.
const BACKOFF: (Duration, u32) = (Duration::from_millis(25), 4);

/// The least time that another attempt is given, or an eighth of the call's time if that is less: an attempt that is cut
/// short puts in doubt what was certain before.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// What is to be done.
pub(crate) struct Call {
    pub(crate) operation: request::Operation,
    pub(crate) place: Place,
    pub(crate) effect: Effect,
}

/// Which shard a call goes to.
pub(crate) enum Place {
    /// The one that owns these: all of them must be in one.
    Keys(Keys),
    /// This one.
    Shard(ShardId),
}

/// What a lost answer means, and who may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It may have happened. The request id is one that the client minted, or the caller's own.
    Writes { is_minted: bool },
    /// Nothing was to happen.
    Reads(Served),
}

/// The attempts at one call so far.
pub(crate) struct Attempts<'a> {
    shared: &'a Arc<Shared>,
    call: Call,
    deadline: Instant,
    /// Why the last ambiguous attempt was.
    unknown: Option<Error>,
    /// Who was asked in this round.
    tried: Vec<Arc<Link>>,
    /// Who was named by the last one, as the leader of which shard.
    next: Option<(Arc<Link>, ShardId)>,
    redirects: u32,
    backoff: Backoff,
    /// The map is known to be wrong for this call.
    needs_new_map: bool,
    /// Keys were found apart in a map, and were looked up in a new one since.
    looked_twice: bool,
}

/// What one attempt brought.
enum Verdict {
    /// The answer.
    Done(response::Result),
    /// What no further attempt will change.
    Failed(Error),
    /// Another attempt may do better.
    Again(Error, Price),
}

/// What another attempt costs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Price {
    /// Nothing: it is the same attempt at another place.
    Nothing,
    /// A pause: nothing was sent, and there is no other place.
    Pause,
    /// A pause, and a token of the budget.
    Token,
}

impl<'a> Attempts<'a> {
    pub(crate) fn until(shared: &'a Arc<Shared>, call: Call, deadline: Instant) -> Attempts<'a> {
        Attempts {
            shared,
            call,
            deadline,
            unknown: None,
            tried: Vec::new(),
            next: None,
            redirects: 0,
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            needs_new_map: false,
            looked_twice: false,
        }
    }

    /// The answer to all attempts, at the deadline at the latest.
    pub(crate) async fn run(mut self) -> Result<response::Result, Error> {
        self.shared.budget.earn();
        loop {
            let (error, price) = match self.attempt().await {
                Verdict::Done(result) => return Ok(result),
                Verdict::Failed(error) => return Err(self.covering_all(error)),
                Verdict::Again(error, price) => (error, price),
            };
            if !self.pay(price).await {
                return Err(self.covering_all(error));
            }
        }
    }

    async fn attempt(&mut self) -> Verdict {
        let map = if std::mem::take(&mut self.needs_new_map) {
            self.shared.router.refreshed(self.deadline).await
        } else {
            self.shared.router.map(self.deadline).await
        };
        let map = match map {
            Ok(map) => map,
            Err(error) => return Verdict::Again(error, Price::Pause),
        };
        let shard = match &self.call.place {
            Place::Shard(shard) => *shard,
            Place::Keys(keys) => match map.shard(keys) {
                Ok(shard) => shard,
                Err(apart) => return self.keys_apart(&apart),
            },
        };
        let Some((link, shard)) = self.next.take().or_else(|| self.place(&map, shard)) else {
            return Verdict::Again(Error::new(ErrorKind::Unavailable, "no node is known"), Price::Pause);
        };
        self.tried.push(link.clone());
        let until = self.deadline.min(Instant::now() + self.shared.options.attempt_timeout);
        let answer = link.send(self.call.operation.clone(), map.epoch, until).await.map(|(result, epoch)| {
            if epoch > map.epoch {
                self.shared.router.refresh_soon(Some(&link), epoch);
            }
            result
        });
        match answer {
            Ok(response::Result::Error(error)) => self.refused(&map, shard, &link, error).await,
            Ok(result) => {
                if self.served() == Served::ByLeader {
                    self.shared.router.leads(shard, &link);
                }
                Verdict::Done(result)
            }
            Err(error) => self.unanswered(&map, shard, &link, error),
        }
    }

    fn served(&self) -> Served {
        match self.call.effect {
            Effect::Writes { .. } => Served::ByLeader,
            Effect::Reads(served) => served,
        }
    }

    /// The next node of this round, or the first one of a new round.
    fn place(&mut self, map: &Map, shard: ShardId) -> Option<(Arc<Link>, ShardId)> {
        let new = self.target(map, shard).or_else(|| {
            self.tried.clear();
            self.target(map, shard)
        });
        new.map(|link| (link, shard))
    }

    fn target(&self, map: &Map, shard: ShardId) -> Option<Arc<Link>> {
        self.shared.router.target(map, shard, self.served(), &self.tried)
    }

    /// The map may be old: a newer one decides.
    fn keys_apart(&mut self, apart: &Apart) -> Verdict {
        let [one, two] = &apart.keys;
        let [first, second] = apart.shards;
        let detail = format!(
            "a batch touches one shard, and \"{}\" is in shard {first}, \"{}\" in shard {second}: \
             give both keys the same hash tag, as in {{tag}}one and {{tag}}two, or split the batch",
            one.escape_ascii(),
            two.escape_ascii(),
        );
        let error = Error::new(ErrorKind::Invalid, detail);
        if std::mem::replace(&mut self.looked_twice, true) {
            return Verdict::Failed(error);
        }
        self.needs_new_map = true;
        Verdict::Again(error, Price::Nothing)
    }

    /// The node says why it did not do it.
    async fn refused(&mut self, map: &Map, shard: ShardId, link: &Arc<Link>, wire: kv::Error) -> Verdict {
        let hint = wire.hint.clone();
        let error = Error::from_wire(wire);
        match error.kind {
            ErrorKind::NotLeader | ErrorKind::WrongShard => {
                self.shared.router.leads_no_more(shard, link);
                self.redirected(map, link, error, &hint.unwrap_or_default())
            }
            ErrorKind::OutcomeUnknown | ErrorKind::Fatal => self.lost(error),
            ErrorKind::Unavailable => Verdict::Again(error, Price::Token),
            ErrorKind::RequestExpired
                if self.call.effect == (Effect::Writes { is_minted: true }) && self.unknown.is_none() =>
            {
                self.mint_anew(link, shard, error).await
            }
            _ => Verdict::Failed(error),
        }
    }

    /// The node says who serves it instead.
    fn redirected(&mut self, map: &Map, link: &Arc<Link>, error: Error, hint: &kv::Hint) -> Verdict {
        let router = &self.shared.router;
        if hint.epoch > map.epoch {
            router.refresh_soon(Some(link), hint.epoch);
        }
        let is_behind = hint.epoch < map.epoch && error.kind == ErrorKind::WrongShard;
        let named = hint.address.parse().ok().filter(|_| !is_behind);
        match named {
            Some(endpoint) => {
                let (leader, shard) = (router.link(endpoint), ShardId(hint.shard));
                router.leads(shard, &leader);
                self.next = Some((leader, shard));
            }
            // Who leads is not known to it: the next member is asked, or the same ones later.
            None if error.kind == ErrorKind::NotLeader || is_behind => {
                return Verdict::Again(error, Price::Token);
            }
            None => {
                self.needs_new_map = true;
                self.tried.clear();
            }
        }
        self.redirects += 1;
        let price = if self.redirects <= REDIRECTS_MAX { Price::Nothing } else { Price::Token };
        Verdict::Again(error, price)
    }

    /// Our clock is wrong, not the request: learns the servers' time and issues it anew, once.
    async fn mint_anew(&mut self, link: &Arc<Link>, shard: ShardId, error: Error) -> Verdict {
        self.call.effect = Effect::Writes { is_minted: false };
        let options = &self.shared.options;
        let asked = get_once(link.endpoint(), "/healthz", options.connect_timeout, options.attempt_timeout);
        let answer = timeout_at(self.deadline, asked).await;
        let date = answer.ok().and_then(Result::ok).and_then(|it| it.header(DATE).map(str::to_owned));
        if !date.is_some_and(|date| self.shared.time.learn(&date)) {
            return Verdict::Failed(error);
        }
        let id = Some(self.shared.mint());
        match &mut self.call.operation {
            request::Operation::Put(put) => put.idempotency_key = id,
            request::Operation::Delete(delete) => delete.idempotency_key = id,
            request::Operation::Execute(execute) => execute.idempotency_key = id,
            request::Operation::Get(_) => {}
        }
        self.next = Some((link.clone(), shard));
        Verdict::Again(error, Price::Token)
    }

    /// No answer came.
    fn unanswered(&mut self, map: &Map, shard: ShardId, link: &Arc<Link>, error: LinkError) -> Verdict {
        let detail = error.to_string();
        if let LinkError::TooLarge(..) = error {
            return Verdict::Failed(Error::new(ErrorKind::TooLarge, detail));
        }
        let router = &self.shared.router;
        router.leads_no_more(shard, link);
        router.refresh_soon(None, 0);
        if let LinkError::NoAnswer(..) = error {
            return self.lost(Error::new(ErrorKind::OutcomeUnknown, detail));
        }
        let price = if self.target(map, shard).is_some() { Price::Nothing } else { Price::Pause };
        Verdict::Again(Error::new(ErrorKind::Unavailable, detail), price)
    }

    /// Nobody knows what came of this attempt.
    fn lost(&mut self, error: Error) -> Verdict {
        if let Effect::Writes { .. } = self.call.effect {
            self.unknown = Some(error.clone());
        }
        Verdict::Again(error, Price::Token)
    }

    /// Waits until another attempt may be made; false if there is no time for one.
    async fn pay(&mut self, price: Price) -> bool {
        if price == Price::Nothing {
            return Instant::now() < self.deadline;
        }
        let attempt_min = ATTEMPT_MIN.min(self.shared.options.timeout / 8);
        let mut until = Instant::now() + self.backoff.next();
        loop {
            if until + attempt_min >= self.deadline {
                return false;
            }
            sleep_until(until).await;
            if price == Price::Pause {
                return true;
            }
            match self.shared.budget.spend() {
                Ok(()) => return true,
                Err(wait) => until = Instant::now() + wait,
            }
        }
    }

    /// The error that is true of all attempts. A conflict is, and so is an operation that failed: under the same
    /// request id it is the answer to all of them.
    fn covering_all(&self, last: Error) -> Error {
        match &self.unknown {
            None => read_failure(last),
            Some(_) if last.kind == ErrorKind::Conflict || last.failed.is_some() => last,
            Some(unknown) => {
                let detail = if last == *unknown {
                    last.detail
                } else {
                    format!("{}; the last attempt: {last}", unknown.detail)
                };
                Error { kind: ErrorKind::OutcomeUnknown, detail, ..last }
            }
        }
    }
}

/// Without an attempt whose outcome matters, an answer that got lost is just no answer.
pub(crate) fn read_failure(last: Error) -> Error {
    match last.kind {
        ErrorKind::OutcomeUnknown => Error { kind: ErrorKind::Unavailable, ..last },
        _ => last,
    }
}
