//! One ordered page of keys out of the pages of many shards, and the cursor that goes on behind it.
//!
//! A [`Merge`] says which shards are to be asked for what, takes their answers in, and yields keys only while it knows
//! of every shard what comes next there: so a page is in order and leaves nothing out, whatever the shards hold. It
//! asks each for its share and asks again only those that run out, since a page of each would mostly be thrown away.
//! A value that does not fit a share is named only, and asked for by itself when it is next on the page: so what one
//! page moves and keeps in memory is bounded by the page and the shares, however large values are.
//!
//! A scan is no snapshot: shards, and the pages of one, are read at different moments. Each key is shown as it was at
//! one moment during the scan, and a key that is there from its beginning to its end is shown exactly once.
//!
//! It leaves out asking: the node does so for HTTP, the client for itself.

use std::collections::{BTreeMap, VecDeque};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use crate::command::{Action, ScannedKey};
use crate::digest::Digest;
use crate::ids::ShardId;
use crate::range::{KeyRange, SCAN_BYTES_MAX, SCAN_KEYS_MAX};

/// Keys and bytes that a shard is asked for beside its share: few keys are spread less evenly than many.
const KEYS_BESIDE_SHARE: usize = 8;
const BYTES_BESIDE_SHARE: usize = 16 << 10;

/// An ordered part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The keys that hold values, in order.
    pub keys: Vec<ScannedKey>,
    /// Where the rest begins; `None` if there is none.
    pub next: Option<Bytes>,
}

/// What a shard is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The shard.
    pub shard: ShardId,
    /// Which of its keys.
    pub range: KeyRange,
    /// How many at most.
    pub limit: u32,
    /// How many bytes at most.
    pub bytes_max: u32,
}

impl Ask {
    /// The same as an action.
    pub fn action(&self) -> Action {
        Action::Scan { range: self.range.clone(), limit: self.limit, bytes_max: self.bytes_max }
    }
}

/// A shard's answer that answers something else. The shard's node is at fault: ask another one, or upgrade it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer of shard {0} to a scan is out of order, or of another range: upgrade its nodes")]
pub struct Disordered(pub ShardId);

/// Makes one page. Invariant: of each shard, what is read and not yet on the page lies before what is unread.
#[derive(Debug)]
pub struct Merge {
    shards: BTreeMap<ShardId, Part>,
    keys_max: usize,
    bytes_max: usize,
    keys: Vec<ScannedKey>,
    bytes: usize,
}

/// What is known of one shard.
#[derive(Debug)]
struct Part {
    read: VecDeque<ScannedKey>,
    /// What is unread; `None` if there is nothing more.
    unread: Option<KeyRange>,
    /// True if the unread range begins with a key that is there.
    is_next_known: bool,
    /// That key has more bytes than this.
    exceeds: usize,
}

impl Part {
    /// The next key, as far as it is known.
    fn front(&self) -> Option<&Bytes> {
        let unread = || self.unread.as_ref().map(|range| &range.start);
        self.read.front().map(|found| &found.key).or_else(unread)
    }
}

impl Merge {
    /// A page of up to so many keys of a range, which these shards hold; never more than [`SCAN_KEYS_MAX`] keys, and
    /// than [`SCAN_BYTES_MAX`] bytes unless the first key alone has more.
    pub fn new(range: &KeyRange, shards: impl IntoIterator<Item = ShardId>, limit: u32) -> Merge {
        let unread = || Some(range.clone());
        let part = || Part { read: VecDeque::new(), unread: unread(), is_next_known: false, exceeds: 0 };
        Merge {
            shards: shards.into_iter().map(|shard| (shard, part())).collect(),
            keys_max: limit.clamp(1, SCAN_KEYS_MAX) as usize,
            bytes_max: SCAN_BYTES_MAX as usize,
            keys: Vec::new(),
            bytes: 0,
        }
    }

    /// Goes as far as it can, and says what must be asked to go on. The page is done if that is nothing.
    pub fn asks(&mut self) -> Vec<Ask> {
        let unknown = self.out_of_keys(|part| !part.is_next_known);
        if !unknown.is_empty() {
            return self.shares(&unknown);
        }
        while self.keys.len() < self.keys_max {
            let fronts = self.shards.iter().filter_map(|(shard, part)| Some((part.front()?, *shard)));
            let Some((_, first)) = fronts.min() else { break };
            let left = self.bytes_max.saturating_sub(self.bytes);
            let Some(part) = self.shards.get_mut(&first) else { break };
            let Some(found) = part.read.front() else { return self.ask_for_more(first, left) };
            let size = found.bytes();
            if !self.keys.is_empty() && size > left {
                break;
            }
            let Some(key) = part.read.pop_front() else { break };
            // Two shards may have told of one key only if it moved between them meanwhile.
            if self.keys.last().is_none_or(|last| last.key < key.key) {
                self.bytes += size;
                self.keys.push(key);
            }
        }
        Vec::new()
    }

    /// What is to be asked when the next key of the page is known by its name only.
    fn ask_for_more(&self, first: ShardId, left: usize) -> Vec<Ask> {
        let Some(Part { unread: Some(range), exceeds, .. }) = self.shards.get(&first) else {
            return Vec::new();
        };
        match *exceeds {
            // By themselves the others would be asked one after the other.
            0 if left > 0 => self.shares(&self.out_of_keys(|part| part.exceeds == 0)),
            exceeds if exceeds < left => {
                let (range, bytes_max) = (range.clone(), left as u32);
                vec![Ask { shard: first, range, limit: 1, bytes_max }]
            }
            // It is the first of the next page.
            _ => Vec::new(),
        }
    }

    /// The shards of which nothing is read that is not on the page, but something is unread.
    fn out_of_keys(&self, is_meant: impl Fn(&Part) -> bool) -> Vec<ShardId> {
        let has_run_out = |part: &Part| part.read.is_empty() && part.unread.is_some() && is_meant(part);
        self.shards.iter().filter(|(_, part)| has_run_out(part)).map(|(shard, _)| *shard).collect()
    }

    fn shares(&self, shards: &[ShardId]) -> Vec<Ask> {
        let share = |left: usize, beside: usize| left.min(left / shards.len() * 5 / 4 + beside).max(1) as u32;
        let limit = share(self.keys_max - self.keys.len(), KEYS_BESIDE_SHARE);
        let bytes_max = share(self.bytes_max.saturating_sub(self.bytes), BYTES_BESIDE_SHARE);
        let ask = |shard: &ShardId| {
            let range = self.shards.get(shard)?.unread.clone()?;
            Some(Ask { shard: *shard, range, limit, bytes_max })
        };
        shards.iter().filter_map(ask).collect()
    }

    /// Takes in what a shard answered, which came from outside and may be anything.
    ///
    /// # Errors
    ///
    /// If it is no answer to what was asked; it counts for nothing then.
    pub fn take_in(
        &mut self,
        ask: &Ask,
        keys: Vec<ScannedKey>,
        next: Option<Bytes>,
    ) -> Result<(), Disordered> {
        let is_in_range = keys.iter().map(|key| &key.key).chain(&next).all(|key| ask.range.contains(key));
        let is_in_order = keys.windows(2).all(|pair| pair[0].key < pair[1].key);
        let is_behind = match (&next, keys.last()) {
            (Some(next), Some(last)) => last.key < *next,
            // With room for a page it would be asked the same for ever.
            (Some(_), None) => ask.bytes_max < SCAN_BYTES_MAX,
            (None, _) => true,
        };
        let part = self.shards.get_mut(&ask.shard).ok_or(Disordered(ask.shard))?;
        if !(is_in_range && is_in_order && is_behind) || part.unread.as_ref() != Some(&ask.range) {
            return Err(Disordered(ask.shard));
        }
        part.exceeds = if keys.is_empty() { ask.bytes_max as usize } else { 0 };
        part.is_next_known = true;
        part.read.extend(keys);
        part.unread = next.map(|next| ask.range.rest(next));
        Ok(())
    }

    /// The page, once nothing is to be asked any more.
    pub fn finish(self) -> Page {
        let next = self.shards.values().filter_map(Part::front).min().cloned();
        // Of a key that moved meanwhile, another shard may still have to tell.
        let next = next.map(|next| match self.keys.last() {
            Some(last) if next <= last.key => [&last.key[..], &[0]].concat().into(),
            _ => next,
        });
        Page { keys: self.keys, next }
    }
}

/// A text that is no cursor of this scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cursor belongs to another range, or is damaged: give it back as it came, with the same range, or begin anew \
     without it"
)]
pub struct BadCursor;

const CURSOR_FORMAT: u8 = 1;
const CHECK_BYTES: usize = 8;

/// Where the rest of a range begins, as a text for whoever scans it.
pub fn cursor(range: &KeyRange, next: &Bytes) -> String {
    URL_SAFE_NO_PAD.encode([&[CURSOR_FORMAT][..], &check(range, next), next].concat())
}

/// The rest of the range that a cursor was made for.
///
/// # Errors
///
/// If it was made for another range, or by something else.
pub fn rest(range: &KeyRange, cursor: &str) -> Result<KeyRange, BadCursor> {
    let bytes = Bytes::from(URL_SAFE_NO_PAD.decode(cursor).map_err(|_| BadCursor)?);
    if bytes.first() != Some(&CURSOR_FORMAT) || bytes.len() < 1 + CHECK_BYTES {
        return Err(BadCursor);
    }
    let next = bytes.slice(1 + CHECK_BYTES..);
    if bytes[1..=CHECK_BYTES] != check(range, &next) || !range.contains(&next) {
        return Err(BadCursor);
    }
    Ok(range.rest(next))
}

/// Tells a cursor that was cut short, or that another scan gave. It is no secret.
fn check(range: &KeyRange, next: &[u8]) -> [u8; CHECK_BYTES] {
    let mut digest = Digest::new();
    digest.bytes(&range.start);
    digest.tag(u8::from(range.end.is_some()));
    digest.bytes(range.end.as_deref().unwrap_or_default());
    digest.bytes(next);
    (digest.finish() as u64).to_be_bytes()
}

#[cfg(test)]
mod tests;
