//! What a query string may ask. A parameter that nobody knows is an error: a misspelt one would
//! otherwise be obeyed by silence.

use std::time::Duration;

use bytes::Bytes;
use keevee_core::ids::ShardId;
use keevee_core::range::{KeyRange, SCAN_KEYS_MAX};

use super::path;
use super::problem::Problem;
use crate::node::Consistency;

/// No request waits longer than this.
pub(crate) const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Of a request about a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// Of reads only.
    pub(super) consistency: Option<Consistency>,
    /// How long the request may take.
    pub(super) timeout: Option<Duration>,
    /// Not in the query, but a header: the caller wants to be told where to go, and not be forwarded.
    pub(super) redirect: bool,
    /// From a header, too: the epoch of the caller's shard map, or 0.
    pub(super) epoch: u64,
}

/// The options of a write.
pub(super) fn of_write(options: Options) -> Result<Options, Problem> {
    match options.consistency {
        None => Ok(options),
        Some(_) => Err(Problem::invalid("`consistency` is for reads: every write is linearizable")),
    }
}

/// Reads the query of a request about a key.
pub(super) fn options(query: Option<&str>) -> Result<Options, Problem> {
    let mut options = Options::default();
    each(query, |name, value| option(&mut options, name, value, "`consistency` and `timeout_ms`"))?;
    Ok(options)
}

/// Takes a parameter in that every request about keys may have.
fn option(options: &mut Options, name: &str, value: Value<'_>, known: &str) -> Result<(), Problem> {
    match name {
        "consistency" => {
            let consistency = match &*value.text()? {
                "linearizable" => Consistency::Linearizable,
                "stale" => Consistency::Stale,
                other => return Err(bad(name, other, "`linearizable` or `stale`")),
            };
            once(name, options.consistency.replace(consistency))
        }
        "timeout_ms" => {
            let value = value.text()?;
            let timeout = value.parse().ok().map(Duration::from_millis);
            let valid = timeout.filter(|timeout| !timeout.is_zero() && *timeout <= TIMEOUT_MAX);
            let timeout = valid.ok_or_else(|| bad(name, &value, "1 to 60000, in milliseconds"))?;
            once(name, options.timeout.replace(timeout))
        }
        _ => Err(unknown(name, known)),
    }
}

/// What a request about a range of keys asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeQuery {
    pub(super) options: Options,
    /// All keys unless the query says otherwise.
    pub(super) range: KeyRange,
    /// Of scans only.
    pub(super) limit: Option<u32>,
    pub(super) cursor: Option<String>,
}

/// Reads the query of a request about a range of keys.
pub(super) fn range(query: Option<&str>) -> Result<RangeQuery, Problem> {
    const KNOWN: &str = "`prefix`, `start`, `end`, `limit`, `cursor`, `consistency` and `timeout_ms`";
    let mut asked = RangeQuery::default();
    let (mut prefix, mut start, mut end) = (None, None, None);
    each(query, |name, value| match name {
        "prefix" => once(name, prefix.replace(value.bytes()?)),
        "start" => once(name, start.replace(value.bytes()?)),
        "end" => once(name, end.replace(value.bytes()?)),
        "limit" => {
            let value = value.text()?;
            let limit = value.parse().ok().filter(|limit| (1..=SCAN_KEYS_MAX).contains(limit));
            once(name, asked.limit.replace(limit.ok_or_else(|| bad(name, &value, "1 to 1000"))?))
        }
        "cursor" => once(name, asked.cursor.replace(value.text()?)),
        _ => option(&mut asked.options, name, value, KNOWN),
    })?;
    asked.range = match (prefix, start, end) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(Problem::invalid("give `prefix`, or `start` and `end`, not both"));
        }
        (Some(prefix), ..) => KeyRange::of_prefix(prefix),
        (None, start, end) => KeyRange { start: start.unwrap_or_default(), end },
    };
    if asked.range.is_empty() {
        return Err(Problem::invalid("no key can be in this range: `end` must be behind `start`"));
    }
    Ok(asked)
}

/// Reads the query of a put: after how long the key is gone, if it says.
pub(super) fn put(query: Option<&str>) -> Result<(Options, Option<Duration>), Problem> {
    let (mut options, mut ttl) = (Options::default(), None);
    each(query, |name, value| match name {
        "ttl" => {
            let value = value.text()?;
            let span = span(&value).filter(|span| !span.is_zero());
            let span =
                span.ok_or_else(|| bad(name, &value, "a number with ms, s, m, h or d, as in `30s`"))?;
            once(name, ttl.replace(span))
        }
        _ => option(&mut options, name, value, "`ttl` and `timeout_ms`"),
    })?;
    Ok((of_write(options)?, ttl))
}

/// Digits and a unit.
fn span(text: &str) -> Option<Duration> {
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(millis).map(Duration::from_millis)
}

/// Reads the query of an increment: how much is added.
pub(super) fn increment(query: Option<&str>) -> Result<(Options, i64), Problem> {
    let (mut options, mut by) = (Options::default(), None);
    each(query, |name, value| match name {
        "by" => {
            let value = value.text()?;
            let number = value.parse().map_err(|_| bad(name, &value, "a 64-bit integer"))?;
            once(name, by.replace(number))
        }
        _ => option(&mut options, name, value, "`by` and `timeout_ms`"),
    })?;
    Ok((of_write(options)?, by.unwrap_or(1)))
}

/// Reads the query of a request about a shard.
pub(super) fn shard(query: Option<&str>) -> Result<Option<ShardId>, Problem> {
    let mut shard = None;
    each(query, |name, value| match name {
        "shard" => {
            let value = value.text()?;
            let id = value.parse().map_err(|_| bad(name, &value, "a shard's number"))?;
            once(name, shard.replace(ShardId(id)))
        }
        _ => Err(unknown(name, "`shard`")),
    })?;
    Ok(shard)
}

/// Reads the query of a request for a cut: of which shard, and as of when.
pub(super) fn cut(query: Option<&str>) -> Result<(ShardId, u64), Problem> {
    let (mut shard, mut time) = (None, None);
    each(query, |name, value| {
        let value = value.text()?;
        match name {
            "shard" => {
                let id = value.parse().map_err(|_| bad(name, &value, "a shard's number"))?;
                once(name, shard.replace(ShardId(id)))
            }
            "time" => {
                let micros =
                    value.parse().map_err(|_| bad(name, &value, "microseconds since the Unix epoch"))?;
                once(name, time.replace(micros))
            }
            _ => Err(unknown(name, "`shard` and `time`")),
        }
    })?;
    shard
        .zip(time)
        .ok_or_else(|| Problem::invalid("say which shard is cut, and as of when: `shard` and `time`"))
}

/// Reads the query of a request that names a key, which may be any bytes.
pub(super) fn key(query: Option<&str>) -> Result<Bytes, Problem> {
    match query.and_then(|query| query.strip_prefix("key=")).filter(|key| !key.contains('&')) {
        Some(key) => path::decode(key, "query").map_err(|error| Problem::invalid(error.to_string())),
        None => Err(Problem::invalid("the query must be `key=` and a key, percent-encoded")),
    }
}

/// An encoded value.
#[derive(Clone, Copy)]
struct Value<'a>(&'a str);

impl Value<'_> {
    fn text(self) -> Result<String, Problem> {
        text(self.0)
    }

    fn bytes(self) -> Result<Bytes, Problem> {
        path::decode(self.0, "query").map_err(|error| Problem::invalid(error.to_string()))
    }
}

fn each(
    query: Option<&str>,
    mut take: impl FnMut(&str, Value<'_>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        take(&text(name)?, Value(value))?;
    }
    Ok(())
}

fn text(encoded: &str) -> Result<String, Problem> {
    let decoded = path::decode(encoded, "query").map_err(|error| Problem::invalid(error.to_string()))?;
    String::from_utf8(decoded.into()).map_err(|_| Problem::invalid("the query is not UTF-8"))
}

fn once<T>(name: &str, earlier: Option<T>) -> Result<(), Problem> {
    match earlier {
        None => Ok(()),
        Some(_) => Err(Problem::invalid(format!("the query parameter `{name}` is given twice"))),
    }
}

fn bad(name: &str, value: &str, allowed: &str) -> Problem {
    Problem::invalid(format!("the query parameter `{name}` is `{value}`, and takes {allowed}"))
}

fn unknown(name: &str, known: &str) -> Problem {
    Problem::invalid(format!("there is no query parameter `{name}` here, only {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_parameters_are_read() {
        let options = |query| options(Some(query)).unwrap();
        assert_eq!(options(""), Options::default());
        assert_eq!(options("consistency=stale").consistency, Some(Consistency::Stale));
        assert_eq!(options("consistency=linearizabl%65").consistency, Some(Consistency::Linearizable));
        let both = options("timeout_ms=1500&consistency=stale");
        assert_eq!(both.timeout, Some(Duration::from_millis(1500)));
        assert_eq!(shard(Some("shard=7")).unwrap(), Some(ShardId(7)));
        assert_eq!(shard(None).unwrap(), None);
    }

    #[test]
    fn a_put_may_say_after_how_long_its_key_is_gone() {
        let ttl = |query| put(Some(query)).map(|(_, ttl)| ttl.map(|ttl| ttl.as_millis()));
        for (query, millis) in [
            ("", None),
            ("ttl=7ms", Some(7)),
            ("ttl=30s&timeout_ms=1", Some(30_000)),
            ("ttl=2m", Some(120_000)),
            ("ttl=1h", Some(3_600_000)),
            ("ttl=2d", Some(172_800_000)),
        ] {
            assert_eq!(ttl(query).unwrap(), millis, "{query}");
        }
        for query in [
            "ttl=",
            "ttl=30",
            "ttl=s",
            "ttl=0s",
            "ttl=-1s",
            "ttl=1.5s",
            "ttl=1w",
            "ttl=99999999999999999999s",
        ] {
            assert!(ttl(query).unwrap_err().detail.contains("`30s`"), "{query}");
        }
        assert!(ttl("ttl=1s&ttl=1s").unwrap_err().detail.contains("twice"));
        assert!(options(Some("ttl=1s")).unwrap_err().detail.contains("`ttl`"), "it is of puts alone");
    }

    #[test]
    fn all_else_is_refused_by_name() {
        for (query, named) in [
            ("consistency=eventual", "`eventual`"),
            ("consistency", "`consistency`"),
            ("timeout_ms=0", "60000"),
            ("timeout_ms=60001", "60000"),
            ("timeout_ms=-1", "60000"),
            ("timeout_ms=1s", "60000"),
            ("timeout_ms=1&timeout_ms=1", "twice"),
            ("constistency=stale", "`constistency`"),
            ("shard=1", "`shard`"),
            ("a%zz=1", "percent"),
            ("%ff=1", "UTF-8"),
        ] {
            let problem = options(Some(query)).unwrap_err();
            assert!(problem.detail.contains(named), "{query}: {}", problem.detail);
        }
        assert!(shard(Some("shard=one")).unwrap_err().detail.contains("`one`"));
        assert!(shard(Some("timeout_ms=1")).unwrap_err().detail.contains("`timeout_ms`"));
    }
}
