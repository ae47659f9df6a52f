//! Commands about keys: whether they are there, how long they live, and which there are.

use bytes::Bytes;
use keevee_core::command::{Action, Expiry, ExpiryOnly};

use crate::arguments::{ArgumentError, TimeBase, TimeUnit, expiry, integer, is, shown};
use crate::command::{Call, Keyspace};
use crate::data::{Answer, Data};

type Parsed = Result<Data, ArgumentError>;

pub(crate) fn del(arguments: &[Bytes]) -> Parsed {
    Ok(Data::of_each(arguments, |key| Action::Delete { key }, Answer::Count))
}

pub(crate) fn exists(arguments: &[Bytes]) -> Parsed {
    Ok(Data::look_up(arguments))
}

fn look(arguments: &[Bytes], answer: Answer) -> Parsed {
    Ok(Data::together([Action::Get { key: arguments[0].clone() }], answer))
}

pub(crate) fn type_of(arguments: &[Bytes]) -> Parsed {
    look(arguments, Answer::Type)
}

pub(crate) fn ttl(arguments: &[Bytes]) -> Parsed {
    look(arguments, Answer::Remaining(TimeUnit::Seconds.micros()))
}

pub(crate) fn pttl(arguments: &[Bytes]) -> Parsed {
    look(arguments, Answer::Remaining(TimeUnit::Milliseconds.micros()))
}

pub(crate) fn expiretime(arguments: &[Bytes]) -> Parsed {
    look(arguments, Answer::Expires(TimeUnit::Seconds.micros()))
}

pub(crate) fn pexpiretime(arguments: &[Bytes]) -> Parsed {
    look(arguments, Answer::Expires(TimeUnit::Milliseconds.micros()))
}

pub(crate) fn expire(arguments: &[Bytes]) -> Parsed {
    expire_as(arguments, (TimeUnit::Seconds, TimeBase::Now), "expire")
}

pub(crate) fn pexpire(arguments: &[Bytes]) -> Parsed {
    expire_as(arguments, (TimeUnit::Milliseconds, TimeBase::Now), "pexpire")
}

pub(crate) fn expireat(arguments: &[Bytes]) -> Parsed {
    expire_as(arguments, (TimeUnit::Seconds, TimeBase::UnixEpoch), "expireat")
}

pub(crate) fn pexpireat(arguments: &[Bytes]) -> Parsed {
    expire_as(arguments, (TimeUnit::Milliseconds, TimeBase::UnixEpoch), "pexpireat")
}

fn expire_as(arguments: &[Bytes], time: (TimeUnit, TimeBase), command: &'static str) -> Parsed {
    let [key, number, options @ ..] = arguments else { return Err(ArgumentError::Syntax) };
    let only = expiry_only(options)?;
    let expires = expiry(number, time, command)?;
    Ok(Data::together([Action::SetExpiry { key: key.clone(), expires, only }], Answer::Count))
}

fn expiry_only(options: &[Bytes]) -> Result<ExpiryOnly, ArgumentError> {
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for option in options {
        let known = [("NX", &mut nx), ("XX", &mut xx), ("GT", &mut gt), ("LT", &mut lt)];
        let Some((_, found)) = known.into_iter().find(|(name, _)| is(option, name)) else {
            return Err(ArgumentError::other(format!("Unsupported option {}", shown(option, 128))));
        };
        *found = true;
    }
    if nx && (xx || gt || lt) {
        return Err(ArgumentError::other("NX and XX, GT or LT options at the same time are not compatible"));
    }
    match (nx, xx, gt, lt) {
        (_, _, true, true) => {
            Err(ArgumentError::other("GT and LT options at the same time are not compatible"))
        }
        (true, ..) => Ok(ExpiryOnly::IfNone),
        // A key that stays is later than all: GT asks for an expiry by itself.
        (_, _, true, _) => Ok(ExpiryOnly::IfLater),
        (_, true, _, true) => Ok(ExpiryOnly::IfSomeAndSooner),
        (_, _, _, true) => Ok(ExpiryOnly::IfSooner),
        (_, true, ..) => Ok(ExpiryOnly::IfSome),
        _ => Ok(ExpiryOnly::Always),
    }
}

pub(crate) fn persist(arguments: &[Bytes]) -> Parsed {
    let (key, expires, only) = (arguments[0].clone(), Expiry::Never, ExpiryOnly::IfSome);
    Ok(Data::together([Action::SetExpiry { key, expires, only }], Answer::Count))
}

/// How many keys SCAN looks at if nothing is said.
const SCAN_COUNT_DEFAULT: u32 = 10;

pub(crate) fn scan(arguments: &[Bytes]) -> Result<Keyspace, ArgumentError> {
    let cursor = std::str::from_utf8(&arguments[0]).ok().and_then(|text| text.parse().ok());
    let cursor = cursor.ok_or_else(|| ArgumentError::other("invalid cursor"))?;
    let (mut pattern, mut count, mut shows) = (None, SCAN_COUNT_DEFAULT, true);
    let mut options = arguments[1..].iter();
    while let Some(option) = options.next() {
        let Some(argument) = options.next() else { return Err(ArgumentError::Syntax) };
        if is(option, "COUNT") {
            let number = integer(argument)?;
            if number < 1 {
                return Err(ArgumentError::Syntax);
            }
            count = u32::try_from(number).unwrap_or(u32::MAX);
        } else if is(option, "MATCH") {
            pattern = Some(argument.clone());
        } else if is(option, "TYPE") {
            // There are no others.
            shows = is(argument, "string");
        } else {
            return Err(ArgumentError::Syntax);
        }
    }
    Ok(Keyspace::Scan { cursor, pattern, count, shows })
}

pub(crate) fn flush(arguments: &[Bytes]) -> Result<Call, ArgumentError> {
    match arguments {
        [] => Ok(Call::Keyspace(Keyspace::Flush)),
        [option] if is(option, "ASYNC") || is(option, "SYNC") => Ok(Call::Keyspace(Keyspace::Flush)),
        _ => Err(ArgumentError::Syntax),
    }
}
