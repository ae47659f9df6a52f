//! The servers' clock, as far as a client needs it: request ids carry the time of their issue, and one
//! that the servers take for too old, or for later than now, is refused. A client whose own clock is wrong
//! learns by how much from the `Date` of that refusal.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::{NoContext, Timestamp, Uuid};

/// This machine's clock and how far the servers' is ahead of it.
#[derive(Debug, Default)]
pub(crate) struct ServerTime {
    ahead_seconds: AtomicI64,
}

impl ServerTime {
    /// A new request id, issued at the servers' time.
    pub(crate) fn mint(&self) -> Uuid {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = now.as_secs().saturating_add_signed(self.ahead_seconds.load(Ordering::Relaxed));
        Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.subsec_nanos()))
    }

    /// Learns from a `Date` header. False if it can't be read.
    pub(crate) fn learn(&self, date: &str) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let Some(theirs) = parse_date(date) else { return false };
        self.ahead_seconds.store(theirs as i64 - now as i64, Ordering::Relaxed);
        true
    }
}

/// Seconds since the Unix epoch of an IMF-fixdate (RFC 9110, section 5.6.7), the only form that senders may use.
fn parse_date(text: &str) -> Option<u64> {
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = names.iter().position(|name| *name == month)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || parts.next()? != "GMT" {
        return None;
    }
    // Days before the year and month, the year taken to begin in March so that leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days_to_epoch = 719_468;
    (days - days_to_epoch).checked_mul(86_400)?.checked_add(hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Tue, 29 Feb 2000 23:59:59 GMT", 951_868_799),
            ("Wed, 01 Mar 2000 00:00:00 GMT", 951_868_800),
        ] {
            assert_eq!(parse_date(text), Some(seconds), "{text}");
        }
        for text in ["", "yesterday", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }

    #[test]
    fn ids_carry_the_servers_time() {
        let time = ServerTime::default();
        assert!(time.learn("Sun, 06 Nov 1994 08:49:37 GMT"));
        let (seconds, _) = time.mint().get_timestamp().expect("version 7").to_unix();
        assert!((784_111_777..784_111_787).contains(&seconds), "{seconds}");
        assert!(!time.learn("soon"));
    }
}
