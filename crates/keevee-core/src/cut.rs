//! A **cut**: all keys of one shard as of one time, as bytes. A node sends it so, and a backup keeps it so.
//!
//! | | |
//! | --- | --- |
//! | head | `keeveeBK`, `[format u32][shard u32][time u64][length u32]`, and the slots that the shard owns, of that length |
//! | a key | `[length u32][length of its value u32][expiry u64]`, the key, its value; expiry 0: never; in ascending order |
//! | end | `[0 u32][keys u64][digest u128]` |
//!
//! Integers are big-endian, times are in microseconds since the Unix epoch. The digest is over all that is before it. It
//! tells damage, not forgery ([`crate::digest`]). Without an end it is no cut: what broke off is not taken for a whole.
//!
//! It leaves out namespaces, of which there is one, and versions, which count the writes of one cluster. When a cut is
//! taken is not decided here.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::apply::VALUE_BYTES_MAX_APPLY;
use crate::digest::Digest;
use crate::ids::ShardId;
use crate::slots::{SlotSet, slot};

/// The version of the layout. A change of it is a new one.
pub const FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"keeveeBK";
const HEAD_BYTES: usize = 8 + 4 + 4 + 8 + 4;
const KEY_HEAD_BYTES: usize = 4 + 4 + 8;
const END_BYTES: usize = 4 + 8 + 16;
/// Far longer than keys may be ([`crate::limits`]), which is a setting.
const KEY_BYTES_MAX: usize = 1 << 20;
/// The longest encoding of a set of slots.
const OWNED_BYTES_MAX: usize = 1 << 12;

/// What a cut says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The shard.
    pub shard: ShardId,
    /// The time: the cut holds what entries with stamps up to it have made.
    pub time: u64,
    /// The slots that the shard owned then. All keys are in them.
    pub owned: SlotSet,
}

/// A key of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// What it holds.
    pub value: Bytes,
    /// When it is gone, if it ever is: later than the time of the cut.
    pub expires: Option<u64>,
}

/// What stands at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// How many keys there were.
    pub keys: u64,
    /// Of the whole.
    pub digest: u128,
}

/// Why bytes are no cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// Something else begins like this.
    #[error("it does not begin as a cut does")]
    NoCut,
    /// A later version made it.
    #[error("it has format {0}, and this version knows {FORMAT}: use a newer keevee")]
    UnknownFormat(u32),
    /// It breaks off.
    #[error("it breaks off: its end is missing")]
    Torn,
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// Writes a cut, piece by piece.
pub struct Encoder {
    digest: Digest,
    keys: u64,
}

impl Encoder {
    /// Begins a cut: appends its head.
    pub fn begin(head: &Head, to: &mut BytesMut) -> Encoder {
        let owned = head.owned.to_bytes();
        to.put_slice(MAGIC);
        to.put_u32(FORMAT);
        to.put_u32(head.shard.0);
        to.put_u64(head.time);
        to.put_u32(owned.len() as u32);
        to.put_slice(&owned);
        Encoder { digest: digest_of(head), keys: 0 }
    }

    /// Appends a key: behind all before it.
    pub fn add(&mut self, key: &[u8], value: &[u8], expires: Option<u64>, to: &mut BytesMut) {
        let expires = expires.unwrap_or(0);
        to.put_u32(key.len() as u32);
        to.put_u32(value.len() as u32);
        to.put_u64(expires);
        to.put_slice(key);
        to.put_slice(value);
        feed(&mut self.digest, key, value, expires);
        self.keys += 1;
    }

    /// Appends the end.
    pub fn end(mut self, to: &mut BytesMut) -> End {
        self.digest.number(self.keys);
        let end = End { keys: self.keys, digest: self.digest.finish() };
        to.put_u32(0);
        to.put_u64(end.keys);
        to.put_u128(end.digest);
        end
    }
}

fn digest_of(head: &Head) -> Digest {
    let mut digest = Digest::new();
    digest.number(FORMAT.into());
    digest.number(head.shard.0.into());
    digest.number(head.time);
    digest.bytes(&head.owned.to_bytes());
    digest
}

fn feed(digest: &mut Digest, key: &[u8], value: &[u8], expires: u64) {
    digest.bytes(key);
    digest.bytes(value);
    digest.number(expires);
}

/// Reads a cut, of which it is given the bytes piece by piece. After an error it must not be used.
#[derive(Default)]
pub struct Decoder {
    bytes: BytesMut,
    head: Option<(Head, Digest)>,
    last_key: Bytes,
    keys: u64,
    end: Option<End>,
}

impl Decoder {
    /// Of no bytes yet.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes in the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The head, once [`Decoder::next_record`] has come past it.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref().map(|(head, _)| head)
    }

    /// How many keys were read.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// The next key. `None` if more bytes are needed, and at the end.
    ///
    /// # Errors
    ///
    /// If the bytes are no cut: [`CutError`].
    pub fn next_record(&mut self) -> Result<Option<Record>, CutError> {
        if self.end.is_some() {
            return if self.bytes.is_empty() {
                Ok(None)
            } else {
                Err(CutError::Damaged("more follows its end"))
            };
        }
        if self.head.is_none() {
            self.head = self.read_head()?;
        }
        let Some((head, digest)) = &mut self.head else { return Ok(None) };
        let Some(length) = peek_length(&self.bytes, 0) else { return Ok(None) };
        if length == 0 {
            return self.read_end();
        }
        let Some(value_length) = peek_length(&self.bytes, 4) else { return Ok(None) };
        // Before room is made for it.
        if length > KEY_BYTES_MAX || value_length > VALUE_BYTES_MAX_APPLY {
            return Err(CutError::Damaged("a key or a value is longer than any can be"));
        }
        let bytes = KEY_HEAD_BYTES + length + value_length;
        if self.bytes.len() < bytes {
            self.bytes.reserve(bytes - self.bytes.len());
            return Ok(None);
        }
        let mut record = self.bytes.split_to(bytes).freeze();
        record.advance(8);
        let expires = record.get_u64();
        let (key, value) = (record.split_to(length), record);
        feed(digest, &key, &value, expires);
        if key <= self.last_key {
            return Err(CutError::Damaged("its keys are out of order"));
        }
        if !head.owned.contains(slot(&key)) {
            return Err(CutError::Damaged("a key is not of this shard"));
        }
        if expires > 0 && expires <= head.time {
            return Err(CutError::Damaged("a key was gone already"));
        }
        self.last_key = key.clone();
        self.keys += 1;
        Ok(Some(Record { key, value, expires: Some(expires).filter(|expires| *expires > 0) }))
    }

    /// What stands at the end. Call it when there are no more bytes, and [`Decoder::next_record`] has none.
    ///
    /// # Errors
    ///
    /// [`CutError::Torn`] if the end was not there.
    pub fn finish(self) -> Result<(Head, End), CutError> {
        self.head.map(|(head, _)| head).zip(self.end).ok_or(CutError::Torn)
    }

    fn read_head(&mut self) -> Result<Option<(Head, Digest)>, CutError> {
        let known = self.bytes.len().min(MAGIC.len());
        if self.bytes[..known] != MAGIC[..known] {
            return Err(CutError::NoCut);
        }
        let (Some(format), Some(owned_length)) =
            (peek_length(&self.bytes, 8), peek_length(&self.bytes, HEAD_BYTES - 4))
        else {
            return Ok(None);
        };
        if format != FORMAT as usize {
            return Err(CutError::UnknownFormat(format as u32));
        }
        if owned_length > OWNED_BYTES_MAX {
            return Err(CutError::Damaged("its slots"));
        }
        if self.bytes.len() < HEAD_BYTES + owned_length {
            return Ok(None);
        }
        self.bytes.advance(12);
        let (shard, time) = (ShardId(self.bytes.get_u32()), self.bytes.get_u64());
        self.bytes.advance(4);
        let owned = SlotSet::from_bytes(&self.bytes.split_to(owned_length));
        let head = Head { shard, time, owned: owned.ok_or(CutError::Damaged("its slots"))? };
        let digest = digest_of(&head);
        Ok(Some((head, digest)))
    }

    fn read_end(&mut self) -> Result<Option<Record>, CutError> {
        let Some((_, digest)) = &mut self.head else { return Ok(None) };
        if self.bytes.len() < END_BYTES {
            return Ok(None);
        }
        self.bytes.advance(4);
        let end = End { keys: self.bytes.get_u64(), digest: self.bytes.get_u128() };
        digest.number(self.keys);
        if end != (End { keys: self.keys, digest: digest.finish() }) {
            return Err(CutError::Damaged("its digest does not match"));
        }
        self.end = Some(end);
        self.next_record()
    }
}

/// The length at this place, if it is there.
fn peek_length(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 4).map(|mut length| length.get_u32() as usize)
}

#[cfg(test)]
mod tests;
