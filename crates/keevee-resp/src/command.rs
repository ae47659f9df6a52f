//! The commands: their names, how many arguments they take, what they ask for.

use bytes::Bytes;

pub use crate::arguments::ArgumentError;
use crate::arguments::shown;
use crate::data::Data;
use crate::parser::Request;
use crate::reply::{Reply, Version};
use crate::{keys, server, strings};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Something of keys that it names.
    Data(Data),
    /// Something of all keys.
    Keyspace(Keyspace),
    /// Something that the connection knows by itself.
    Local(Local),
    /// Something of a transaction.
    Transaction(Transaction),
    /// Something of the node or the cluster.
    Server(ServerCall),
    /// The end of the connection, in peace.
    Quit,
    /// HTTP: the end of the connection at once.
    Http,
}

/// Of all keys that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keyspace {
    /// SCAN
    Scan {
        /// Where to go on; 0 at the beginning.
        cursor: u64,
        /// Which keys are shown.
        pattern: Option<Bytes>,
        /// How many keys are looked at.
        count: u32,
        /// False if another type is asked for than the one there is.
        shows: bool,
    },
    /// KEYS
    Keys(Bytes),
    /// DBSIZE
    Size,
    /// FLUSHDB
    Flush,
}

/// Of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// PING
    Ping(Option<Bytes>),
    /// ECHO
    Echo(Bytes),
    /// HELLO
    Hello(Hello),
    /// What is fine and changes nothing: AUTH, SELECT 0, CLIENT SETINFO.
    Nothing,
    /// CLIENT ID
    ClientId,
    /// CLIENT GETNAME
    ClientName,
    /// CLIENT SETNAME
    SetClientName(Bytes),
    /// CLIENT INFO
    ClientInfo,
    /// COMMAND COUNT
    CommandCount,
    /// COMMAND LIST
    CommandList,
    /// COMMAND, COMMAND INFO: of all, or of these.
    CommandInfo(Option<Vec<Bytes>>),
    /// COMMAND DOCS
    CommandDocs,
    /// COMMAND GETKEYS
    CommandKeys(Vec<Bytes>),
    /// CONFIG GET
    ConfigGet(Vec<Bytes>),
    /// TIME
    Time,
    /// READONLY, READWRITE
    ReadOnly(bool),
    /// UNWATCH
    Unwatch,
}

/// HELLO
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What to speak from now on.
    pub version: Option<Version>,
    /// The client's name.
    pub name: Option<Bytes>,
}

/// Of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// MULTI
    Multi,
    /// EXEC
    Exec,
    /// DISCARD
    Discard,
    /// WATCH
    Watch(Vec<Bytes>),
}

/// Of the node or the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerCall {
    /// INFO: all sections, or these.
    Info(Vec<String>),
    /// WAIT
    Wait,
    /// CLUSTER
    Cluster(ClusterCall),
}

/// CLUSTER
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterCall {
    /// CLUSTER INFO
    Info,
    /// CLUSTER NODES
    Nodes,
    /// CLUSTER SLOTS
    Slots,
    /// CLUSTER SHARDS
    Shards,
    /// CLUSTER MYID
    MyId,
    /// CLUSTER KEYSLOT
    KeySlot(Bytes),
    /// CLUSTER COUNTKEYSINSLOT
    CountKeysInSlot(u16),
}

/// A command.
#[derive(Debug)]
pub struct Spec {
    /// Its name, in small letters.
    pub name: &'static str,
    /// The name as [`packed`] has it.
    packed: u128,
    /// How many arguments, the name counted: exactly, or at least so many if it is negative.
    pub arity: i8,
    /// The position of the first key; 0 if there is none.
    first_key: i8,
    /// The position of the last key; -1 for the last argument.
    last_key: i8,
    /// From a key to the next.
    step: i8,
    flag: &'static str,
    parse: Parse,
}

#[derive(Debug)]
enum Parse {
    Data(fn(&[Bytes]) -> Result<Data, ArgumentError>),
    Call(fn(&[Bytes]) -> Result<Call, ArgumentError>),
}

const fn data(
    name: &'static str,
    arity: i8,
    flag: &'static str,
    (first_key, last_key, step): (i8, i8, i8),
    parse: fn(&[Bytes]) -> Result<Data, ArgumentError>,
) -> Spec {
    Spec { name, packed: packed(name), arity, first_key, last_key, step, flag, parse: Parse::Data(parse) }
}

const fn call(name: &'static str, arity: i8, parse: fn(&[Bytes]) -> Result<Call, ArgumentError>) -> Spec {
    Spec {
        name,
        packed: packed(name),
        arity,
        first_key: 0,
        last_key: 0,
        step: 0,
        flag: "fast",
        parse: Parse::Call(parse),
    }
}

const ONE: (i8, i8, i8) = (1, 1, 1);
const ALL: (i8, i8, i8) = (1, -1, 1);
const PAIRS: (i8, i8, i8) = (1, -1, 2);
const READ: &str = "readonly";
const WRITE: &str = "write";

/// Every command, in order of their names.
pub static COMMANDS: &[Spec] = &[
    data("append", 3, WRITE, ONE, strings::append),
    call("auth", -2, server::auth),
    call("client", -2, server::client),
    call("cluster", -2, server::cluster),
    call("command", -1, server::command),
    call("config", -2, server::config),
    call("dbsize", 1, |_| Ok(Call::Keyspace(Keyspace::Size))),
    data("decr", 2, WRITE, ONE, strings::decr),
    data("decrby", 3, WRITE, ONE, strings::decrby),
    data("del", -2, WRITE, ALL, keys::del),
    call("discard", 1, server::discard),
    call("echo", 2, server::echo),
    call("exec", 1, server::exec),
    data("exists", -2, READ, ALL, keys::exists),
    data("expire", -3, WRITE, ONE, keys::expire),
    data("expireat", -3, WRITE, ONE, keys::expireat),
    data("expiretime", 2, READ, ONE, keys::expiretime),
    call("flushdb", -1, keys::flush),
    data("get", 2, READ, ONE, strings::get),
    data("getdel", 2, WRITE, ONE, strings::getdel),
    data("getex", -2, WRITE, ONE, strings::getex),
    data("getrange", 4, READ, ONE, strings::getrange),
    data("getset", 3, WRITE, ONE, strings::getset),
    call("hello", -1, server::hello),
    call("host:", -1, server::http),
    data("incr", 2, WRITE, ONE, strings::incr),
    data("incrby", 3, WRITE, ONE, strings::incrby),
    call("info", -1, server::info),
    call("keys", 2, |arguments| Ok(Call::Keyspace(Keyspace::Keys(arguments[0].clone())))),
    data("mget", -2, READ, ALL, strings::mget),
    data("mset", -3, WRITE, PAIRS, strings::mset),
    data("msetnx", -3, WRITE, PAIRS, strings::msetnx),
    call("multi", 1, server::multi),
    data("persist", 2, WRITE, ONE, keys::persist),
    data("pexpire", -3, WRITE, ONE, keys::pexpire),
    data("pexpireat", -3, WRITE, ONE, keys::pexpireat),
    data("pexpiretime", 2, READ, ONE, keys::pexpiretime),
    call("ping", -1, server::ping),
    call("post", -1, server::http),
    data("psetex", 4, WRITE, ONE, strings::psetex),
    data("pttl", 2, READ, ONE, keys::pttl),
    call("quit", -1, server::quit),
    call("readonly", 1, server::readonly),
    call("readwrite", 1, server::readwrite),
    call("scan", -2, |arguments| keys::scan(arguments).map(Call::Keyspace)),
    call("select", 2, server::select),
    data("set", -3, WRITE, ONE, strings::set),
    data("setex", 4, WRITE, ONE, strings::setex),
    data("setnx", 3, WRITE, ONE, strings::setnx),
    data("setrange", 4, WRITE, ONE, strings::setrange),
    data("strlen", 2, READ, ONE, strings::strlen),
    call("time", 1, server::time),
    data("touch", -2, READ, ALL, keys::exists),
    data("ttl", 2, READ, ONE, keys::ttl),
    data("type", 2, READ, ONE, keys::type_of),
    data("unlink", -2, WRITE, ALL, keys::del),
    call("unwatch", 1, server::unwatch),
    call("wait", 3, server::wait),
    Spec {
        name: "watch",
        packed: packed("watch"),
        arity: -2,
        first_key: 1,
        last_key: -1,
        step: 1,
        flag: "fast",
        parse: Parse::Call(server::watch),
    },
];

/// What a packed name has room for.
const NAME_BYTES_MAX: usize = 16;

/// A name as a number: in the order of names, and compared at once.
const fn packed(name: &str) -> u128 {
    let (name, mut bytes, mut at) = (name.as_bytes(), [0; NAME_BYTES_MAX], 0);
    while at < name.len() {
        bytes[at] = name[at];
        at += 1;
    }
    u128::from_be_bytes(bytes)
}

/// Where in [`COMMANDS`] a name is, in whatever case.
pub fn position(name: &[u8]) -> Option<usize> {
    let mut small = [0; NAME_BYTES_MAX];
    small.get_mut(..name.len())?.copy_from_slice(name);
    small.make_ascii_lowercase();
    let packed = u128::from_be_bytes(small);
    let position = COMMANDS.binary_search_by_key(&packed, |spec| spec.packed).ok()?;
    // Zeros behind a name do not show in the number.
    (COMMANDS[position].name.len() == name.len()).then_some(position)
}

/// The command of a request, if it takes so many arguments.
pub fn find(request: &Request) -> Result<usize, ArgumentError> {
    let [name, arguments @ ..] = &request[..] else { return Err(ArgumentError::Syntax) };
    let position = position(name).ok_or_else(|| unknown(name, arguments))?;
    let spec = &COMMANDS[position];
    let (count, arity) = (request.len(), usize::from(spec.arity.unsigned_abs()));
    let fits = if spec.arity < 0 { count >= arity } else { count == arity };
    if fits { Ok(position) } else { Err(ArgumentError::Count(spec.name.to_owned())) }
}

impl Spec {
    /// What a request for which [`find`] has found this command asks for.
    pub fn parse(&self, request: &Request) -> Result<Call, ArgumentError> {
        let arguments = &request[1..];
        match self.parse {
            Parse::Data(parse) => parse(arguments).map(Call::Data),
            Parse::Call(parse) => parse(arguments),
        }
    }

    /// The keys of a request, as the table says.
    pub fn keys<'a>(&self, request: &'a [Bytes]) -> Vec<&'a Bytes> {
        if self.first_key == 0 {
            return Vec::new();
        }
        let last = if self.last_key < 0 { request.len() - 1 } else { self.last_key as usize };
        let keys = (self.first_key as usize..=last).step_by(self.step as usize);
        keys.filter_map(|at| request.get(at)).collect()
    }

    /// As COMMAND INFO tells it.
    pub fn info(&self) -> Reply {
        let number = |number: i8| Reply::Integer(number.into());
        Reply::Array(vec![
            Reply::bulk(self.name),
            number(self.arity),
            Reply::Array(vec![Reply::Simple(self.flag)]),
            number(self.first_key),
            number(self.last_key),
            number(self.step),
            Reply::Array(vec![]),
            Reply::Array(vec![]),
            Reply::Array(vec![]),
            Reply::Array(vec![]),
        ])
    }
}

fn unknown(name: &Bytes, arguments: &[Bytes]) -> ArgumentError {
    const SHOWN_BYTES: usize = 128;
    let mut told = String::new();
    for argument in arguments {
        if told.len() >= SHOWN_BYTES {
            break;
        }
        told += &format!("'{}' ", shown(argument, SHOWN_BYTES - told.len()));
    }
    ArgumentError::UnknownCommand { name: shown(name, SHOWN_BYTES), arguments: told }
}

#[cfg(test)]
mod tests;
