//! `keevee scan`: keys in order, of all shards.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use keevee_client::{Entry, KeyRange, Page, Scan};
use keevee_core::json;
use serde_json::json;

use crate::commands::table::table;
use crate::commands::{ClientArguments, Consistency, Output};
use crate::failure::Failure;

/// Keys of a page, where no other limit is given.
const LIMIT: u32 = 100;
/// Keys that are asked for at once where all are wanted.
const LIMIT_OF_ALL: u32 = 1000;
/// Characters of a key or value that people are shown.
const SHOWN: usize = 60;

/// List keys in byte order, over all shards: a page, or all of them.
///
/// It is no snapshot: each key is shown as it was at one moment during the scan.
#[derive(Args)]
#[command(after_help = "\
Examples:
  keevee scan --prefix user:
  keevee scan --start a --end b --limit 10
  keevee scan --prefix user: --cursor AQ...   the page behind the one that showed this cursor
  keevee scan --all --output json > all.json  keys and values; base64 where they are not UTF-8")]
pub(crate) struct Arguments {
    #[command(flatten)]
    range: RangeArguments,
    /// How many keys at most: 1 to 1,000 [default: 100]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
    /// Go on behind the page that showed this cursor, with the same range
    #[arg(long)]
    cursor: Option<String>,
    /// All keys of the range, not only a page
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// How fresh they must be
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    #[command(flatten)]
    client: ClientArguments,
}

/// Which keys.
#[derive(Args)]
pub(crate) struct RangeArguments {
    /// The keys that begin with this
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
    /// The keys from this one on
    #[arg(long, value_name = "KEY")]
    start: Option<OsString>,
    /// The keys before this one
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
}

impl RangeArguments {
    /// True if something is said.
    pub(crate) fn is_given(&self) -> bool {
        [&self.prefix, &self.start, &self.end].into_iter().any(Option::is_some)
    }

    /// The range; all keys if nothing is said.
    pub(crate) fn range(self) -> Result<KeyRange, Failure> {
        let range = match self.prefix {
            Some(prefix) => KeyRange::of_prefix(prefix.into_vec()),
            None => KeyRange {
                start: self.start.unwrap_or_default().into_vec().into(),
                end: self.end.map(|end| end.into_vec().into()),
            },
        };
        if range.is_empty() {
            return Err(Failure::usage("no key can be in this range: --end must be behind --start"));
        }
        Ok(range)
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.client.client()?;
    let limit = if arguments.all { LIMIT_OF_ALL } else { arguments.limit.unwrap_or(LIMIT) };
    let scan = Scan::of_range(arguments.range.range()?).limit(limit);
    let mut scan = scan.consistency(arguments.consistency.into());
    if let Some(cursor) = arguments.cursor {
        scan = scan.after(cursor);
    }
    let mut listing = Listing { output: arguments.client.output, shown: 0 };
    loop {
        let Page { entries, cursor } = client.scan(&scan).await?;
        listing.show(&entries)?;
        match cursor {
            Some(cursor) if arguments.all => scan = scan.after(cursor),
            cursor => {
                listing.end(cursor.as_deref());
                return Ok(());
            }
        }
    }
}

/// What is printed, page by page.
struct Listing {
    output: Output,
    shown: usize,
}

impl Listing {
    fn show(&mut self, entries: &[Entry]) -> Result<(), Failure> {
        let is_first = self.shown == 0;
        match self.output {
            Output::Json => {
                print!("{}", if is_first { "{\"entries\":[" } else { "" });
                for (number, Entry { key, value }) in entries.iter().enumerate() {
                    let separator = if self.shown + number == 0 { "" } else { "," };
                    let entry = json::Entry::new(key, value.version, &value.bytes, value.expires_ms);
                    print!("{separator}{}", serde_json::to_string(&entry).map_err(Failure::other)?);
                }
            }
            Output::Text => {
                let row = |Entry { key, value }: &Entry| {
                    [shortened(key), value.version.to_string(), shortened(&value.bytes)]
                };
                let rows: Vec<_> = entries.iter().map(row).collect();
                let text = table(["key", "version", "value"], &rows);
                let header = if is_first { 0 } else { 1 };
                text.lines().skip(header).for_each(|line| println!("{line}"));
            }
        }
        self.shown += entries.len();
        Ok(())
    }

    fn end(&self, cursor: Option<&str>) {
        match (self.output, cursor) {
            (Output::Json, _) => println!("],\"cursor\":{}}}", json!(cursor)),
            (Output::Text, Some(cursor)) => {
                eprintln!("{} keys; there are more: --cursor {cursor}, or --all", self.shown);
            }
            (Output::Text, None) => eprintln!("{} keys", self.shown),
        }
    }
}

/// Bytes for people, on one line.
fn shortened(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().flat_map(plain).take(SHOWN + 1).collect();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A character as it is, unless it would move the cursor or worse.
fn plain(character: char) -> impl Iterator<Item = char> {
    let escaped = character.is_control().then(|| character.escape_default());
    let kept = if escaped.is_none() { Some(character) } else { None };
    escaped.into_iter().flatten().chain(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_see_is_one_short_line() {
        assert_eq!(shortened("grün".as_bytes()), "grün");
        assert_eq!(shortened(b"a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(shortened(&[b'x'; 61]), format!("{}…", "x".repeat(60)));
        assert_eq!(shortened(&[b'x'; 60]), "x".repeat(60));
    }
}
