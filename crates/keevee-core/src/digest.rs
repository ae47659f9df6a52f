//! A 128-bit hash (xxh3) over fields, one after another, without copying them.
//!
//! Numbers are fed as little-endian bytes, byte strings as their length (64 bits) and then themselves:
//! two different lists of fields of one layout never feed the same bytes. It tells corruption and bugs,
//! not forgery: xxh3 resists nobody who looks for collisions.

use xxhash_rust::xxh3::Xxh3;

use crate::requests::RequestId;

/// See the module.
#[derive(Default)]
pub struct Digest(Xxh3);

impl Digest {
    /// Of no fields yet.
    pub fn new() -> Digest {
        Digest::default()
    }

    /// A byte that tells what follows.
    pub fn tag(&mut self, tag: u8) {
        self.0.update(&[tag]);
    }

    /// A number.
    pub fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    /// A number of 128 bits.
    pub fn wide(&mut self, number: u128) {
        self.0.update(&number.to_le_bytes());
    }

    /// A byte string.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    /// A request id.
    pub fn request_id(&mut self, id: RequestId) {
        let (tag, bits) = match id {
            RequestId::Timed(bits) => (1, bits),
            RequestId::Free(bits) => (2, bits),
        };
        self.tag(tag);
        self.wide(bits);
    }

    /// The hash of all fields so far.
    pub fn finish(&self) -> u128 {
        self.0.digest128()
    }
}
