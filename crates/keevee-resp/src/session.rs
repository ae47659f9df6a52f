//! One connection's state: what it speaks, its transaction, what it watches. Says what each request is for it.
//!
//! A request either has its reply at once, or is a [`Step`] that whoever has the store takes. A transaction is held here
//! until EXEC makes one [`Batch`] of it. What is held is bounded, and copied: an argument is a slice of the buffer that it
//! was read into, which it would keep in memory.

use std::net::SocketAddr;

use bytes::Bytes;
use keevee_core::command::{Expect, OperationResult};
use keevee_core::limits::Limits;

use crate::REDIS_VERSION;
use crate::arguments::ArgumentError;
use crate::command::{self, COMMANDS, Call, Hello, Keyspace, Local, ServerCall, Transaction};
use crate::data::Data;
use crate::glob;
use crate::parser::Request;
use crate::reply::{Reply, Version};

/// Keys that a connection watches at once.
const WATCHED_MAX: usize = 1024;
/// Larger arguments have a buffer nearly to themselves.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// What holds of all connections.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the store's commands.
    pub limits: Limits,
    /// What CONFIG GET tells.
    pub config: Vec<(&'static str, String)>,
}

/// What a request comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is answered.
    Reply(Reply),
    /// To be carried out; commands that follow each other may be carried out together.
    Data(Data),
    /// To be carried out as one.
    Batch(Batch),
    /// To be looked up for [`Session::watch`].
    Watch(Vec<Bytes>),
    /// To be looked for in all shards.
    Keyspace(Keyspace),
    /// To be told by the node.
    Server(ServerCall),
    /// To be answered, and then the connection ends.
    Close(Reply),
    /// The connection ends without an answer: this is HTTP.
    CutOff,
}

/// A transaction that is to be carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order.
    pub queue: Vec<Queued>,
    /// What must be as it was.
    pub watched: Vec<(Bytes, Expect)>,
}

/// A command of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queued {
    /// Its results make a reply.
    Data(Data),
    /// It is answered already.
    Reply(Reply),
}

impl Batch {
    /// The reply that these results make, which are those of all operations in order.
    pub fn reply(&self, results: &[OperationResult], now: fn() -> u64) -> Reply {
        let mut results = results;
        let mut next = |queued: &Queued| match queued {
            Queued::Reply(reply) => reply.clone(),
            Queued::Data(data) => {
                let (own, rest) = results.split_at(data.operations.len().min(results.len()));
                results = rest;
                data.answer.reply(own, now)
            }
        };
        Reply::Array(self.queue.iter().map(&mut next).collect())
    }
}

/// A transaction between MULTI and EXEC.
#[derive(Debug, Default)]
struct Open {
    queue: Vec<Held>,
    operations: usize,
    bytes: usize,
    /// Something was refused: then nothing is carried out.
    is_spoilt: bool,
}

#[derive(Debug)]
enum Held {
    Data(Data),
    Local(Local),
    Reply(Reply),
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The connection's number.
    pub id: u64,
    /// Where the client is.
    pub address: SocketAddr,
    /// Where it has connected to.
    pub own: SocketAddr,
    /// When it did, in microseconds since the Unix epoch.
    pub since: u64,
}

/// See the module. Small, since most connections are idle most of the time.
#[derive(Debug)]
pub struct Session {
    peer: Peer,
    version: Version,
    name: Option<Bytes>,
    is_readonly: bool,
    open: Option<Box<Open>>,
    watched: Vec<(Bytes, Expect)>,
}

impl Session {
    /// A new connection's.
    pub fn new(peer: Peer) -> Session {
        Session {
            peer,
            version: Version::Resp2,
            name: None,
            is_readonly: false,
            open: None,
            watched: Vec::new(),
        }
    }

    /// What replies are encoded for.
    pub fn version(&self) -> Version {
        self.version
    }

    /// True if the client takes what a replica has applied, however old.
    pub fn is_readonly(&self) -> bool {
        self.is_readonly
    }

    /// Notes what was found of keys to watch.
    pub fn watch(&mut self, found: impl IntoIterator<Item = (Bytes, Expect)>) {
        for (key, expect) in found {
            // What was seen first counts.
            if !self.watched.iter().any(|(known, _)| *known == key) {
                self.watched.push((key, expect));
            }
        }
    }

    /// What a request comes to, and which of [`COMMANDS`] it is. `now` tells the time, in microseconds since the Unix
    /// epoch. `refuse` tells why a command can't be part of a transaction.
    pub fn take(
        &mut self,
        request: Request,
        now: fn() -> u64,
        settings: &Settings,
        refuse: &dyn Fn(&Data) -> Option<Reply>,
    ) -> (Option<usize>, Step) {
        let position = match command::find(&request) {
            Ok(position) => position,
            Err(error) if request.first().is_some_and(|name| name.eq_ignore_ascii_case(b"exec")) => {
                return (None, self.abort(&error));
            }
            Err(error) => return (None, self.refuse(&error)),
        };
        let spec = &COMMANDS[position];
        let is_held = self.open.is_some() || spec.name == "watch";
        let request = if is_held { copied(request) } else { request };
        let step = match spec.parse(&request) {
            Ok(call) => self.step(call, now, settings, refuse),
            // Redis finds it when the command is carried out.
            Err(error) if self.open.is_some() => {
                self.hold(Held::Reply(Reply::Error(error.to_string())), settings)
            }
            Err(error) => Step::Reply(Reply::Error(error.to_string())),
        };
        (Some(position), step)
    }

    fn refuse(&mut self, error: &ArgumentError) -> Step {
        self.refuse_with(Reply::Error(error.to_string()))
    }

    /// An EXEC that is wrong ends the transaction all the same.
    fn abort(&mut self, error: &ArgumentError) -> Step {
        (self.open, self.watched) = (None, Vec::new());
        let error = error.to_string();
        let error = error.strip_prefix("ERR ").unwrap_or(&error);
        Step::Reply(Reply::Error(format!("EXECABORT Transaction discarded because of: {error}")))
    }

    /// A transaction that lacks a command is not carried out.
    fn refuse_with(&mut self, reply: Reply) -> Step {
        if let Some(open) = &mut self.open {
            open.is_spoilt = true;
        }
        Step::Reply(reply)
    }

    fn step(
        &mut self,
        call: Call,
        now: fn() -> u64,
        settings: &Settings,
        refuse: &dyn Fn(&Data) -> Option<Reply>,
    ) -> Step {
        match call {
            Call::Quit => Step::Close(Reply::OK),
            Call::Http => Step::CutOff,
            Call::Transaction(transaction) => self.transaction(transaction, now, settings),
            Call::Data(mut data) => match data.check(&settings.limits) {
                Ok(()) if self.open.is_none() => Step::Data(data),
                Ok(()) if data.if_absent => self.not_in_transaction(),
                Ok(()) => match refuse(&data) {
                    Some(reply) => self.refuse_with(reply),
                    None => self.hold(Held::Data(data), settings),
                },
                Err(error) if self.open.is_none() => Step::Reply(error),
                Err(error) => self.hold(Held::Reply(error), settings),
            },
            Call::Local(Local::Hello(_)) if self.open.is_some() => self.not_in_transaction(),
            Call::Local(local) if self.open.is_some() => self.hold(Held::Local(local), settings),
            Call::Local(local) => Step::Reply(self.local(local, now, settings)),
            _ if self.open.is_some() => self.not_in_transaction(),
            Call::Keyspace(keyspace) => Step::Keyspace(keyspace),
            Call::Server(call) => Step::Server(call),
        }
    }

    fn not_in_transaction(&mut self) -> Step {
        self.refuse_with(Reply::error("Command not allowed inside a transaction"))
    }

    fn hold(&mut self, held: Held, settings: &Settings) -> Step {
        let limits = &settings.limits;
        let Some(open) = &mut self.open else { return Step::Reply(Reply::error("no transaction is open")) };
        if let Held::Data(data) = &held {
            open.operations += data.operations.len();
            open.bytes += data.bytes();
        }
        let has_room = open.queue.len() < limits.operations_max
            && open.operations <= limits.operations_max
            && open.bytes <= limits.command_bytes_max;
        if !has_room {
            // What was held is of no use any more.
            open.queue = Vec::new();
            return self.refuse_with(Reply::error("transaction too large"));
        }
        if !open.is_spoilt {
            open.queue.push(held);
        }
        Step::Reply(Reply::Simple("QUEUED"))
    }

    fn transaction(&mut self, transaction: Transaction, now: fn() -> u64, settings: &Settings) -> Step {
        match (transaction, self.open.take()) {
            (Transaction::Multi, None) => {
                self.open = Some(Box::default());
                Step::Reply(Reply::OK)
            }
            (Transaction::Watch(keys), None) if self.watched.len() + keys.len() > WATCHED_MAX => {
                Step::Reply(Reply::error(format!("more than {WATCHED_MAX} keys are watched")))
            }
            (Transaction::Watch(keys), None) => Step::Watch(keys),
            (Transaction::Exec, None) => Step::Reply(Reply::error("EXEC without MULTI")),
            (Transaction::Discard, None) => Step::Reply(Reply::error("DISCARD without MULTI")),
            (Transaction::Discard, Some(_)) => {
                self.watched = Vec::new();
                Step::Reply(Reply::OK)
            }
            (Transaction::Exec, Some(open)) => {
                let watched = std::mem::take(&mut self.watched);
                if open.is_spoilt {
                    let text = "EXECABORT Transaction discarded because of previous errors.";
                    return Step::Reply(Reply::Error(text.to_owned()));
                }
                let mut queue = Vec::with_capacity(open.queue.len());
                for held in open.queue {
                    queue.push(match held {
                        Held::Data(data) => Queued::Data(data),
                        Held::Reply(reply) => Queued::Reply(reply),
                        Held::Local(local) => Queued::Reply(self.local(local, now, settings)),
                    });
                }
                Step::Batch(Batch { queue, watched })
            }
            (again, open) => {
                self.open = open;
                Step::Reply(match again {
                    Transaction::Watch(_) => Reply::error("WATCH inside MULTI is not allowed"),
                    _ => Reply::error("MULTI calls can not be nested"),
                })
            }
        }
    }

    fn local(&mut self, local: Local, now: fn() -> u64, settings: &Settings) -> Reply {
        match local {
            Local::Ping(None) => Reply::Simple("PONG"),
            Local::Ping(Some(message)) | Local::Echo(message) => Reply::Bulk(message),
            Local::Nothing => Reply::OK,
            Local::Hello(hello) => self.hello(hello),
            Local::ClientId => Reply::Integer(self.peer.id as i64),
            Local::ClientName => self.name.clone().map_or(Reply::Null, Reply::Bulk),
            Local::SetClientName(name) => {
                self.name = Some(copy(&name)).filter(|name| !name.is_empty());
                Reply::OK
            }
            Local::ClientInfo => self.info(now),
            Local::CommandCount => Reply::Integer(COMMANDS.len() as i64),
            Local::CommandList => Reply::Array(COMMANDS.iter().map(|spec| Reply::bulk(spec.name)).collect()),
            Local::CommandInfo(None) => Reply::Array(COMMANDS.iter().map(command::Spec::info).collect()),
            Local::CommandInfo(Some(names)) => {
                let info = |name: &Bytes| {
                    command::position(name).map_or(Reply::NullArray, |position| COMMANDS[position].info())
                };
                Reply::Array(names.iter().map(info).collect())
            }
            Local::CommandDocs => Reply::Map(Vec::new()),
            Local::CommandKeys(request) => command_keys(&request),
            Local::ConfigGet(patterns) => {
                let is_asked = |name: &str| {
                    patterns
                        .iter()
                        .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
                };
                let known = settings.config.iter().filter(|(name, _)| is_asked(name));
                Reply::Map(
                    known.map(|(name, value)| (Reply::bulk(*name), Reply::bulk(value.clone()))).collect(),
                )
            }
            Local::Time => {
                let now = now();
                let number = |number: u64| Reply::bulk(number.to_string());
                Reply::Array(vec![number(now / 1_000_000), number(now % 1_000_000)])
            }
            Local::ReadOnly(is_readonly) => {
                self.is_readonly = is_readonly;
                Reply::OK
            }
            Local::Unwatch => {
                self.watched = Vec::new();
                Reply::OK
            }
        }
    }

    fn hello(&mut self, hello: Hello) -> Reply {
        self.version = hello.version.unwrap_or(self.version);
        if let Some(name) = hello.name {
            self.name = Some(copy(&name)).filter(|name| !name.is_empty());
        }
        let proto = if self.version == Version::Resp3 { 3 } else { 2 };
        let pairs = [
            ("server", Reply::bulk("redis")),
            ("version", Reply::bulk(REDIS_VERSION)),
            ("proto", Reply::Integer(proto)),
            ("id", Reply::Integer(self.peer.id as i64)),
            ("mode", Reply::bulk("cluster")),
            ("role", Reply::bulk("master")),
            ("modules", Reply::Array(Vec::new())),
        ];
        Reply::Map(pairs.into_iter().map(|(name, value)| (Reply::bulk(name), value)).collect())
    }

    /// All fields that Redis has, since clients ask for them by name. What is not counted here is 0.
    fn info(&self, now: fn() -> u64) -> Reply {
        let name = self.name.as_ref().map(|name| String::from_utf8_lossy(name)).unwrap_or_default();
        let proto = if self.version == Version::Resp3 { 3 } else { 2 };
        let Peer { id, address, own, since } = self.peer;
        let age = now().saturating_sub(since) / 1_000_000;
        let flags = if self.is_readonly { "r" } else { "N" };
        Reply::Text(format!(
            "id={id} addr={address} laddr={own} fd=-1 name={name} age={age} idle=0 flags={flags} db=0 sub=0 psub=0 \
             ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 \
             events=r cmd=client|info user=default redir=-1 resp={proto}\n"
        ))
    }
}

fn command_keys(request: &[Bytes]) -> Reply {
    match command::find(&request.to_vec()) {
        Err(ArgumentError::UnknownCommand { .. }) => Reply::error("Invalid command specified"),
        Err(_) => Reply::error("Invalid number of arguments specified for command"),
        Ok(position) => match COMMANDS[position].keys(request) {
            keys if keys.is_empty() => Reply::error("The command has no key arguments"),
            keys => Reply::Array(keys.into_iter().map(|key| Reply::Bulk(key.clone())).collect()),
        },
    }
}

fn copied(request: Request) -> Request {
    request.into_iter().map(|argument| copy(&argument)).collect()
}

fn copy(argument: &Bytes) -> Bytes {
    if argument.len() <= COPIED_BYTES_MAX { Bytes::copy_from_slice(argument) } else { argument.clone() }
}

#[cfg(test)]
mod tests;
