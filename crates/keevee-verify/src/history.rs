//! What the clients of a run asked, what they were told, and what became of it in the log.
//!
//! The world knows more than any client: it sees where a command stands in the log and when it first took
//! effect. Oracles use that to judge requests whose clients never learned their outcome.

use std::collections::BTreeMap;

use bytes::Bytes;
use keevee_core::command::{Action, Command, Outcome};
use keevee_core::error::ErrorKind;
use keevee_core::requests::RequestId;

/// What a client was told at last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This became of it.
    Done(Outcome),
    /// Nothing happened, and nothing will.
    Refused(ErrorKind),
    /// Nobody knows.
    Unknown,
}

/// One request of one client, however often it was sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// From 1, in the order in which they were first sent; written into every value that the request writes.
    pub number: u64,
    /// Who asked.
    pub client: u64,
    /// What was asked.
    pub command: Command,
    /// True if its request id was used before, for another command: it must be refused.
    pub reuses_id: bool,
    /// When it was first sent, in microseconds.
    pub called: u64,
    /// When the answer came, and which.
    pub answer: Option<(u64, Answer)>,
    /// The indexes of the chosen entries that hold it, in the log of the shard that owns its keys.
    pub places: Vec<u64>,
    /// The index at which it was executed, and when a replica first did that.
    pub effect: Option<(u64, u64)>,
}

impl Request {
    /// True if it names a key.
    pub fn names(&self, key: &Bytes) -> bool {
        self.command.keys().any(|named| named == key)
    }

    /// True if it changes nothing.
    pub fn is_read(&self) -> bool {
        self.command.is_read_only()
    }
}

/// All requests of a run.
#[derive(Debug, Default)]
pub struct History {
    requests: Vec<Request>,
    by_id: BTreeMap<RequestId, Vec<u64>>,
}

impl History {
    /// The number that the next request gets.
    pub fn next_number(&self) -> u64 {
        self.requests.len() as u64 + 1
    }

    /// Notes a request that is about to be sent.
    pub fn begin(&mut self, now: u64, client: u64, command: Command, reuses_id: bool) -> u64 {
        let number = self.next_number();
        if let Some(id) = command.request_id {
            self.by_id.entry(id).or_default().push(number);
        }
        self.requests.push(Request {
            number,
            client,
            command,
            reuses_id,
            called: now,
            answer: None,
            places: Vec::new(),
            effect: None,
        });
        number
    }

    /// One request.
    pub fn get(&self, number: u64) -> &Request {
        &self.requests[number as usize - 1]
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> &mut Request {
        &mut self.requests[number as usize - 1]
    }

    /// All of them, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter()
    }

    /// Which request a command of the log is. `None` if it is not a client's.
    pub fn find(&self, command: &Command) -> Option<u64> {
        match command.request_id {
            Some(id) => {
                let same = |number: &&u64| self.get(**number).command == *command;
                self.by_id.get(&id)?.iter().find(same).copied()
            }
            None => command.operations.iter().find_map(|operation| tag(&operation.action)),
        }
    }

    /// The request that was first sent under an id.
    pub fn first_with_id(&self, id: RequestId) -> Option<u64> {
        self.by_id.get(&id)?.first().copied()
    }
}

/// The number of the request that writes this.
fn tag(action: &Action) -> Option<u64> {
    let value = match action {
        Action::Put { value, .. } => value,
        Action::Append { suffix, .. } => suffix,
        _ => return None,
    };
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit());
    let number = digits.fold(0, |number, digit| 10 * number + u64::from(digit - b'0'));
    (number > 0).then_some(number)
}
