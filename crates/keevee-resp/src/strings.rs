//! Commands about values: GET, SET and their kin.

use bytes::Bytes;
use keevee_core::command::{Action, Expiry, ExpiryOnly, Only};

use crate::arguments::{ArgumentError, TimeBase, TimeUnit, integer, is, positive_expiry, time_option};
use crate::data::{Answer, Data};

type Parsed = Result<Data, ArgumentError>;

fn read(key: &Bytes) -> Action {
    Action::Get { key: key.clone() }
}

fn put(key: &Bytes, value: &Bytes) -> Action {
    Action::put(key.clone(), value.clone())
}

pub(crate) fn get(arguments: &[Bytes]) -> Parsed {
    Ok(Data::together([read(&arguments[0])], Answer::Value))
}

pub(crate) fn set(arguments: &[Bytes]) -> Parsed {
    let [key, value, options @ ..] = arguments else { return Err(ArgumentError::Syntax) };
    let (mut only, mut keeps, mut until, mut reads) = (Only::Always, false, None, false);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        if is(option, "NX") && only != Only::IfPresent {
            only = Only::IfAbsent;
        } else if is(option, "XX") && only != Only::IfAbsent {
            only = Only::IfPresent;
        } else if is(option, "GET") {
            reads = true;
        } else if is(option, "KEEPTTL") && until.is_none() {
            keeps = true;
        } else if let Some(time) = time_option(option)
            && !keeps
            // The same one again is not a contradiction.
            && until.is_none_or(|(_, before)| before == time)
            && let Some(argument) = options.next()
        {
            until = Some((argument, time));
        } else {
            return Err(ArgumentError::Syntax);
        }
    }
    // Only now: as with Redis, what is wrong with the options is told first.
    let expires = match until {
        Some((argument, time)) => positive_expiry(argument, time, "set")?,
        None if keeps => Expiry::Keep,
        None => Expiry::Never,
    };
    let put = Action::Put { key: key.clone(), value: value.clone(), expires, only };
    Ok(match reads {
        true => Data::together([read(key), put], Answer::Value),
        false => Data::together([put], Answer::Status),
    })
}

pub(crate) fn setnx(arguments: &[Bytes]) -> Parsed {
    let (key, value) = (arguments[0].clone(), arguments[1].clone());
    let put = Action::Put { key, value, expires: Expiry::Never, only: Only::IfAbsent };
    Ok(Data::together([put], Answer::Count))
}

pub(crate) fn setex(arguments: &[Bytes]) -> Parsed {
    set_for(arguments, TimeUnit::Seconds, "setex")
}

pub(crate) fn psetex(arguments: &[Bytes]) -> Parsed {
    set_for(arguments, TimeUnit::Milliseconds, "psetex")
}

fn set_for(arguments: &[Bytes], unit: TimeUnit, command: &'static str) -> Parsed {
    let expires = positive_expiry(&arguments[1], (unit, TimeBase::Now), command)?;
    let (key, value) = (arguments[0].clone(), arguments[2].clone());
    Ok(Data::together([Action::Put { key, value, expires, only: Only::Always }], Answer::Status))
}

pub(crate) fn getset(arguments: &[Bytes]) -> Parsed {
    let key = &arguments[0];
    Ok(Data::together([read(key), put(key, &arguments[1])], Answer::Value))
}

pub(crate) fn getdel(arguments: &[Bytes]) -> Parsed {
    let key = &arguments[0];
    Ok(Data::together([read(key), Action::Delete { key: key.clone() }], Answer::Value))
}

pub(crate) fn getex(arguments: &[Bytes]) -> Parsed {
    let key = &arguments[0];
    let expires = match &arguments[1..] {
        [] => return get(arguments),
        [option] if is(option, "PERSIST") => Expiry::Never,
        [option, argument] => {
            let time = time_option(option).ok_or(ArgumentError::Syntax)?;
            positive_expiry(argument, time, "getex")?
        }
        _ => return Err(ArgumentError::Syntax),
    };
    // Without an expiry there is nothing to take away: then this is only a read.
    let only = if expires == Expiry::Never { ExpiryOnly::IfSome } else { ExpiryOnly::Always };
    Ok(Data::together([read(key), Action::SetExpiry { key: key.clone(), expires, only }], Answer::Value))
}

pub(crate) fn mget(arguments: &[Bytes]) -> Parsed {
    Ok(Data::of_each(arguments, |key| Action::Get { key }, Answer::Values))
}

pub(crate) fn mset(arguments: &[Bytes]) -> Parsed {
    Ok(Data::together(pairs(arguments, "mset")?, Answer::Status))
}

pub(crate) fn msetnx(arguments: &[Bytes]) -> Parsed {
    let pairs = pairs(arguments, "msetnx")?;
    Ok(Data { if_absent: true, ..Data::together(pairs, Answer::AllDone) })
}

fn pairs<'a>(arguments: &'a [Bytes], name: &str) -> Result<impl Iterator<Item = Action> + 'a, ArgumentError> {
    let (pairs, rest) = arguments.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[key, value]| put(key, value)))
    } else {
        Err(ArgumentError::Count(name.to_owned()))
    }
}

pub(crate) fn append(arguments: &[Bytes]) -> Parsed {
    let action = Action::Append { key: arguments[0].clone(), suffix: arguments[1].clone() };
    Ok(Data::together([action], Answer::Length))
}

pub(crate) fn strlen(arguments: &[Bytes]) -> Parsed {
    Ok(Data::together([read(&arguments[0])], Answer::Length))
}

pub(crate) fn getrange(arguments: &[Bytes]) -> Parsed {
    let (start, end) = (integer(&arguments[1])?, integer(&arguments[2])?);
    Ok(Data::together([read(&arguments[0])], Answer::Part(start, end)))
}

pub(crate) fn setrange(arguments: &[Bytes]) -> Parsed {
    let offset = integer(&arguments[1])?;
    if offset < 0 {
        return Err(ArgumentError::other("offset is out of range"));
    }
    let too_far = |_| ArgumentError::other("string exceeds maximum allowed size (proto-max-bulk-len)");
    let (key, bytes) = (arguments[0].clone(), arguments[2].clone());
    if bytes.is_empty() {
        // Nothing is written, however far away.
        return Ok(Data::together([Action::Get { key }], Answer::Length));
    }
    let offset = u32::try_from(offset).map_err(too_far)?;
    Ok(Data::together([Action::SetRange { key, offset, bytes }], Answer::Length))
}

pub(crate) fn incr(arguments: &[Bytes]) -> Parsed {
    Ok(increment(&arguments[0], 1))
}

pub(crate) fn decr(arguments: &[Bytes]) -> Parsed {
    Ok(increment(&arguments[0], -1))
}

pub(crate) fn incrby(arguments: &[Bytes]) -> Parsed {
    Ok(increment(&arguments[0], integer(&arguments[1])?))
}

pub(crate) fn decrby(arguments: &[Bytes]) -> Parsed {
    let by = integer(&arguments[1])?;
    let by = by.checked_neg().ok_or_else(|| ArgumentError::other("decrement would overflow"))?;
    Ok(increment(&arguments[0], by))
}

fn increment(key: &Bytes, by: i64) -> Data {
    Data::together([Action::Increment { key: key.clone(), by }], Answer::Sum)
}
