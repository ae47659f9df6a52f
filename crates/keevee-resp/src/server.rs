//! Commands about the connection, the server and the cluster.

use bytes::Bytes;

use crate::arguments::{ArgumentError, integer, is, shown};
use crate::command::{Call, ClusterCall, Hello, Local, ServerCall, Transaction};
use crate::reply::Version;

type Parsed = Result<Call, ArgumentError>;

/// What a client may be called, in bytes.
const NAME_BYTES_MAX: usize = 1024;

pub(crate) fn ping(arguments: &[Bytes]) -> Parsed {
    match arguments {
        [] => Ok(Call::Local(Local::Ping(None))),
        [message] => Ok(Call::Local(Local::Ping(Some(message.clone())))),
        _ => Err(ArgumentError::Count("ping".to_owned())),
    }
}

pub(crate) fn echo(arguments: &[Bytes]) -> Parsed {
    Ok(Call::Local(Local::Echo(arguments[0].clone())))
}

pub(crate) fn hello(arguments: &[Bytes]) -> Parsed {
    let mut hello = Hello { version: None, name: None };
    let Some((version, mut options)) = arguments.split_first() else {
        return Ok(Call::Local(Local::Hello(hello)));
    };
    let version = integer(version)
        .map_err(|_| ArgumentError::other("Protocol version is not an integer or out of range"))?;
    hello.version = Some(match version {
        2 => Version::Resp2,
        3 => Version::Resp3,
        _ => return Err(ArgumentError::Other("NOPROTO unsupported protocol version".to_owned())),
    });
    loop {
        options = match options {
            [] => return Ok(Call::Local(Local::Hello(hello))),
            [option, user, _, rest @ ..] if is(option, "AUTH") => {
                check_user(user)?;
                rest
            }
            [option, name, rest @ ..] if is(option, "SETNAME") => {
                check_name(name)?;
                hello.name = Some(name.clone());
                rest
            }
            [option, ..] => {
                let option = shown(option, 128);
                return Err(ArgumentError::other(format!("Syntax error in HELLO option '{option}'")));
            }
        };
    }
}

pub(crate) fn auth(arguments: &[Bytes]) -> Parsed {
    match arguments {
        [_] => Err(ArgumentError::other(
            "AUTH <password> called without any password configured for the default user. Are you sure your \
             configuration is correct?",
        )),
        [user, _] => {
            check_user(user)?;
            Ok(Call::Local(Local::Nothing))
        }
        _ => Err(ArgumentError::Syntax),
    }
}

/// There is one user, who needs no password.
fn check_user(user: &Bytes) -> Result<(), ArgumentError> {
    if user == "default" {
        return Ok(());
    }
    let text = "WRONGPASS invalid username-password pair or user is disabled.";
    Err(ArgumentError::Other(text.to_owned()))
}

pub(crate) fn select(arguments: &[Bytes]) -> Parsed {
    match integer(&arguments[0])? {
        0 => Ok(Call::Local(Local::Nothing)),
        _ => Err(ArgumentError::other("SELECT is not allowed in cluster mode")),
    }
}

pub(crate) fn quit(_: &[Bytes]) -> Parsed {
    Ok(Call::Quit)
}

/// What strangers send who speak HTTP: a browser may be made to send it by a page from anywhere.
pub(crate) fn http(_: &[Bytes]) -> Parsed {
    Ok(Call::Http)
}

pub(crate) fn client(arguments: &[Bytes]) -> Parsed {
    let (subcommand, rest) = (&arguments[0], &arguments[1..]);
    let local = match (known(subcommand, &["id", "getname", "setname", "setinfo", "info", "no-evict"]), rest)
    {
        (Some("id"), []) => Local::ClientId,
        (Some("getname"), []) => Local::ClientName,
        (Some("info"), []) => Local::ClientInfo,
        (Some("setname"), [name]) => {
            check_name(name)?;
            Local::SetClientName(name.clone())
        }
        // Libraries tell their names; a newer Redis notes them.
        (Some("setinfo"), [_, _]) => Local::Nothing,
        // Nobody is evicted.
        (Some("no-evict"), [switch]) if is(switch, "ON") || is(switch, "OFF") => Local::Nothing,
        (Some("no-evict"), [_]) => return Err(ArgumentError::Syntax),
        (Some(known), _) => return Err(ArgumentError::Count(format!("client|{known}"))),
        (None, _) => return Err(unknown("CLIENT", subcommand)),
    };
    Ok(Call::Local(local))
}

fn check_name(name: &Bytes) -> Result<(), ArgumentError> {
    if name.len() <= NAME_BYTES_MAX && name.iter().all(u8::is_ascii_graphic) {
        return Ok(());
    }
    Err(ArgumentError::other("Client names cannot contain spaces, newlines or special characters."))
}

pub(crate) fn command(arguments: &[Bytes]) -> Parsed {
    let Some((subcommand, rest)) = arguments.split_first() else {
        return Ok(Call::Local(Local::CommandInfo(None)));
    };
    let local = match (known(subcommand, &["count", "info", "list", "docs", "getkeys"]), rest) {
        (Some("count"), []) => Local::CommandCount,
        (Some("list"), []) => Local::CommandList,
        (Some("info"), []) => Local::CommandInfo(None),
        (Some("info"), names) => Local::CommandInfo(Some(names.to_vec())),
        (Some("docs"), _) => Local::CommandDocs,
        (Some("getkeys"), [_, ..]) => Local::CommandKeys(rest.to_vec()),
        (Some(known), _) => return Err(ArgumentError::Count(format!("command|{known}"))),
        (None, _) => return Err(unknown("COMMAND", subcommand)),
    };
    Ok(Call::Local(local))
}

pub(crate) fn config(arguments: &[Bytes]) -> Parsed {
    match (known(&arguments[0], &["get"]), &arguments[1..]) {
        (Some("get"), patterns @ [_, ..]) => Ok(Call::Local(Local::ConfigGet(patterns.to_vec()))),
        (Some(known), _) => Err(ArgumentError::Count(format!("config|{known}"))),
        (None, _) => Err(unknown("CONFIG", &arguments[0])),
    }
}

pub(crate) fn time(_: &[Bytes]) -> Parsed {
    Ok(Call::Local(Local::Time))
}

pub(crate) fn readonly(_: &[Bytes]) -> Parsed {
    Ok(Call::Local(Local::ReadOnly(true)))
}

pub(crate) fn readwrite(_: &[Bytes]) -> Parsed {
    Ok(Call::Local(Local::ReadOnly(false)))
}

pub(crate) fn multi(_: &[Bytes]) -> Parsed {
    Ok(Call::Transaction(Transaction::Multi))
}

pub(crate) fn exec(_: &[Bytes]) -> Parsed {
    Ok(Call::Transaction(Transaction::Exec))
}

pub(crate) fn discard(_: &[Bytes]) -> Parsed {
    Ok(Call::Transaction(Transaction::Discard))
}

pub(crate) fn watch(arguments: &[Bytes]) -> Parsed {
    Ok(Call::Transaction(Transaction::Watch(arguments.to_vec())))
}

pub(crate) fn unwatch(_: &[Bytes]) -> Parsed {
    Ok(Call::Local(Local::Unwatch))
}

pub(crate) fn info(arguments: &[Bytes]) -> Parsed {
    let sections = arguments.iter().map(|section| shown(section, 32).to_ascii_lowercase()).collect();
    Ok(Call::Server(ServerCall::Info(sections)))
}

pub(crate) fn wait(arguments: &[Bytes]) -> Parsed {
    integer(&arguments[0])?;
    let timeout = integer(&arguments[1])
        .map_err(|_| ArgumentError::other("timeout is not an integer or out of range"))?;
    if timeout < 0 {
        return Err(ArgumentError::other("timeout is negative"));
    }
    Ok(Call::Server(ServerCall::Wait))
}

pub(crate) fn cluster(arguments: &[Bytes]) -> Parsed {
    let subcommands = ["info", "nodes", "slots", "shards", "myid", "keyslot", "countkeysinslot"];
    let call = match (known(&arguments[0], &subcommands), &arguments[1..]) {
        (Some("info"), []) => ClusterCall::Info,
        (Some("nodes"), []) => ClusterCall::Nodes,
        (Some("slots"), []) => ClusterCall::Slots,
        (Some("shards"), []) => ClusterCall::Shards,
        (Some("myid"), []) => ClusterCall::MyId,
        (Some("keyslot"), [key]) => ClusterCall::KeySlot(key.clone()),
        (Some("countkeysinslot"), [slot]) => {
            let slot = integer(slot)?;
            let slot = u16::try_from(slot).ok().filter(|slot| *slot < keevee_core::slots::SLOTS);
            ClusterCall::CountKeysInSlot(slot.ok_or_else(|| ArgumentError::other("Invalid slot"))?)
        }
        (Some(known), _) => return Err(ArgumentError::Count(format!("cluster|{known}"))),
        (None, _) => return Err(unknown("CLUSTER", &arguments[0])),
    };
    Ok(Call::Server(ServerCall::Cluster(call)))
}

fn known(subcommand: &Bytes, all: &[&'static str]) -> Option<&'static str> {
    all.iter().copied().find(|name| is(subcommand, name))
}

fn unknown(command: &'static str, subcommand: &Bytes) -> ArgumentError {
    ArgumentError::UnknownSubcommand { command, subcommand: shown(subcommand, 128) }
}
