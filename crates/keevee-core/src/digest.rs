//! A 128-bit hash (xxh3) over fields, one after another, without copying them.
//!
//! Numbers are fed as little-endian bytes, byte strings as their length (64 bits) and then themselves:
//! two different lists of fields of one layout never feed the same bytes. It tells corruption and bugs,
//! not forgery: xxh3 resists nobody who looks for collisions.

use xxhash_rust::xxh3::Xxh3;

use crate::requests::RequestId;

pub(crate) struct Digest(Xxh3);

impl Digest {
    pub(crate) fn new() -> Digest {
        Digest(Xxh3::new())
    }

    pub(crate) fn tag(&mut self, tag: u8) {
        self.0.update(&[tag]);
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(crate) fn wide(&mut self, number: u128) {
        self.0.update(&number.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub(crate) fn request_id(&mut self, id: RequestId) {
        let (tag, bits) = match id {
            RequestId::Timed(bits) => (1, bits),
            RequestId::Free(bits) => (2, bits),
        };
        self.tag(tag);
        self.wide(bits);
    }

    pub(crate) fn finish(&self) -> u128 {
        self.0.digest128()
    }
}
