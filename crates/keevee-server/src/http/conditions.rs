//! `If-Match`, `If-None-Match`, `Idempotency-Key` and `Keevee-Expires`.
//!
//! A write's conditions become preconditions of its command, so `apply` decides them. Those that a
//! precondition can't say (lists, weak tags, "any version but this one") are refused rather than guessed.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use keevee_core::command::{Expect, Expiry, Precondition, Versioned};
use keevee_core::requests::RequestId;

use super::problem::Problem;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// `Keevee-Redirect: 1` asks not to be forwarded.
const REDIRECT: HeaderName = HeaderName::from_static("keevee-redirect");

/// Of a request: the epoch of the shard map that the caller routes by. Of a response: that of the node's.
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("keevee-epoch");

/// When the key is gone, in milliseconds since the Unix epoch. A date would lose the milliseconds, or need a reader of its
/// own on every client.
pub(super) const EXPIRES: HeaderName = HeaderName::from_static("keevee-expires");

/// A time in microseconds that the store can count with, and add to.
fn at_most(micros: Option<u64>) -> Result<u64, Problem> {
    micros.filter(|micros| *micros <= u64::MAX / 2).ok_or_else(|| {
        Problem::invalid(
            "the key would be gone after the year 294,000, which is too far away: give none to keep it",
        )
    })
}

/// When the key shall be gone, if the caller says: `ttl` is what the query says.
pub(super) fn expiry(headers: &HeaderMap, ttl: Option<Duration>) -> Result<Expiry, Problem> {
    let at = match single(headers, &EXPIRES)? {
        None => None,
        Some(text) => {
            let wrong =
                || Problem::invalid("`Keevee-Expires` is a time in milliseconds since the Unix epoch");
            Some(text.parse::<u64>().map_err(|_| wrong())?)
        }
    };
    match (at, ttl) {
        (None, None) => Ok(Expiry::Never),
        (Some(millis), None) => at_most(millis.checked_mul(1_000)).map(Expiry::At),
        (None, Some(ttl)) => at_most(u64::try_from(ttl.as_micros()).ok()).map(Expiry::After),
        (Some(_), Some(_)) => Err(Problem::invalid("give `ttl` or `Keevee-Expires`, not both")),
    }
}

/// Tells when the key is gone, if it ever is.
pub(super) fn tell_expiry(headers: &mut HeaderMap, value: &Versioned) {
    if let Some(millis) = value.expires_unix_ms() {
        headers.insert(EXPIRES, HeaderValue::from(millis));
    }
}

/// The epoch of the shard map that the caller routes by; 0 if it does not say.
pub(crate) fn epoch(headers: &HeaderMap) -> Result<u64, Problem> {
    let Some(value) = headers.get(EPOCH) else { return Ok(0) };
    let epoch = value.to_str().ok().and_then(|text| text.parse().ok());
    epoch.ok_or_else(|| Problem::invalid("`Keevee-Epoch` is the number of a shard map's epoch"))
}

/// Whether the caller wants to be told where to go.
pub(crate) fn redirect(headers: &HeaderMap) -> Result<bool, Problem> {
    match headers.get(REDIRECT).map(HeaderValue::as_bytes) {
        None | Some(b"0") => Ok(false),
        Some(b"1") => Ok(true),
        Some(_) => Err(Problem::invalid("`Keevee-Redirect` is 1 or 0")),
    }
}

/// What a read answers if its conditions do not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmet {
    /// The caller has this version already: 304.
    NotModified,
    /// The caller wanted another version: 412.
    Conflict,
}

/// The version as an entity tag.
pub(super) fn etag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).expect("quotes and digits are visible ASCII")
}

/// Refuses conditions where a request is about more than one key.
pub(super) fn none(headers: &HeaderMap) -> Result<(), Problem> {
    match [&IF_MATCH, &IF_NONE_MATCH].into_iter().find(|name| headers.contains_key(*name)) {
        None => Ok(()),
        Some(name) => Err(Problem::invalid(format!("`{name}` is for requests about one key"))),
    }
}

/// The conditions of a write to a key.
pub(super) fn of_write(headers: &HeaderMap, key: &Bytes) -> Result<Vec<Precondition>, Problem> {
    let mut preconditions = Vec::new();
    if let Some(text) = single(headers, &IF_MATCH)? {
        preconditions.push(Precondition { key: key.clone(), expect: if_match(text)? });
    }
    match single(headers, &IF_NONE_MATCH)? {
        None => {}
        Some("*") => preconditions.push(Precondition { key: key.clone(), expect: Expect::Absent }),
        Some(other) => {
            let detail = format!("a write takes `If-None-Match: *` (the key is absent), not `{other}`");
            return Err(Problem::invalid(detail));
        }
    }
    Ok(preconditions)
}

/// What the conditions of a read say of what the key holds.
pub(super) fn of_read(headers: &HeaderMap, version: Option<u64>) -> Result<Option<Unmet>, Problem> {
    if let Some(text) = single(headers, &IF_MATCH)? {
        let holds = match if_match(text)? {
            Expect::Version(expected) => version == Some(expected),
            _ => version.is_some(),
        };
        if !holds {
            return Ok(Some(Unmet::Conflict));
        }
    }
    let Some(version) = version else { return Ok(None) };
    let known = single(headers, &IF_NONE_MATCH)?.is_some_and(|text| {
        let tag = format!("\"{version}\"");
        // Weak or strong makes no difference here, and tags that this server never gave match nothing.
        let matches = |given: &str| given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag;
        text.split(',').map(str::trim).any(matches)
    });
    Ok(known.then_some(Unmet::NotModified))
}

/// The request id, if the caller gave one.
pub(super) fn request_id(headers: &HeaderMap) -> Result<Option<RequestId>, Problem> {
    let Some(value) = only(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    if value.is_empty() {
        return Err(Problem::invalid("the header `idempotency-key` is empty"));
    }
    Ok(Some(RequestId::from_idempotency_key(value.as_bytes())))
}

fn if_match(text: &str) -> Result<Expect, Problem> {
    if text == "*" {
        return Ok(Expect::Present);
    }
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let version = digits.and_then(|digits| digits.parse().ok());
    // Exactly as this server writes it: `parse` alone would take `+1` and `01`.
    match version.filter(|version| Some(u64::to_string(version).as_str()) == digits) {
        Some(version) => Ok(Expect::Version(version)),
        None => {
            let detail =
                format!("`If-Match` takes `*` or one ETag that this server gave, like `\"7\"`, not `{text}`");
            Err(Problem::invalid(detail))
        }
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let Some(value) = only(headers, name)? else { return Ok(None) };
    match value.to_str() {
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(Problem::invalid(format!("the header `{name}` is not visible ASCII"))),
    }
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(Problem::invalid(format!("the header `{name}` is given twice")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use keevee_core::error::ErrorKind;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_writes_conditions_become_preconditions() {
        let expect = |pairs: &[_]| -> Vec<Expect> {
            let preconditions = of_write(&headers(pairs), &"k".into()).unwrap();
            preconditions.into_iter().map(|condition| condition.expect).collect()
        };
        assert_eq!(expect(&[]), []);
        assert_eq!(expect(&[("if-match", "\"7\"")]), [Expect::Version(7)]);
        assert_eq!(expect(&[("if-match", " * ")]), [Expect::Present]);
        assert_eq!(expect(&[("if-none-match", "*")]), [Expect::Absent]);
        let both = [("if-none-match", "*"), ("if-match", "\"0\"")];
        assert_eq!(expect(&both), [Expect::Version(0), Expect::Absent]);
    }

    #[test]
    fn what_a_precondition_cannot_say_is_refused() {
        for bad in [
            "",
            "7",
            "\"7",
            "7\"",
            "\"\"",
            "\"seven\"",
            "\"+7\"",
            "\"07\"",
            "W/\"7\"",
            "\"7\", \"8\"",
            "\"*\"",
            "\"18446744073709551616\"",
        ] {
            let problem = of_write(&headers(&[("if-match", bad)]), &"k".into()).unwrap_err();
            assert_eq!(problem.kind, ErrorKind::Invalid, "{bad}");
        }
        for bad in ["", "\"7\"", "W/\"7\"", "*, *"] {
            let problem = of_write(&headers(&[("if-none-match", bad)]), &"k".into()).unwrap_err();
            assert_eq!(problem.kind, ErrorKind::Invalid, "{bad}");
        }
        for name in ["if-match", "if-none-match"] {
            let twice = of_write(&headers(&[(name, "*"), (name, "*")]), &"k".into()).unwrap_err();
            assert!(twice.detail.contains("twice"), "{}", twice.detail);
        }
    }

    #[test]
    fn a_reads_conditions_look_at_the_version() {
        let unmet = |name, value, version| of_read(&headers(&[(name, value)]), version).unwrap();
        for known in ["\"7\"", "W/\"7\"", "*", "\"6\", \"7\""] {
            assert_eq!(unmet("if-none-match", known, Some(7)), Some(Unmet::NotModified), "{known}");
            assert_eq!(unmet("if-none-match", known, None), None, "{known}");
        }
        for other in ["\"8\"", "\"77\"", "\"abc\"", "7", ""] {
            assert_eq!(unmet("if-none-match", other, Some(7)), None, "{other}");
        }
        assert_eq!(unmet("if-match", "\"7\"", Some(7)), None);
        assert_eq!(unmet("if-match", "*", Some(7)), None);
        assert_eq!(unmet("if-match", "\"8\"", Some(7)), Some(Unmet::Conflict));
        assert_eq!(unmet("if-match", "*", None), Some(Unmet::Conflict));
        assert!(of_read(&headers(&[("if-match", "7")]), Some(7)).is_err());
    }

    #[test]
    fn an_idempotency_key_is_one_and_not_empty() {
        assert_eq!(request_id(&headers(&[])).unwrap(), None);
        let id = request_id(&headers(&[("idempotency-key", "once")])).unwrap();
        assert_eq!(id, Some(RequestId::from_idempotency_key(b"once")));
        assert!(request_id(&headers(&[("idempotency-key", "")])).is_err());
        let twice = [("idempotency-key", "a"), ("idempotency-key", "a")];
        assert!(request_id(&headers(&twice)).is_err());
    }
}
