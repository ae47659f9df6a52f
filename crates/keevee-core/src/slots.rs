//! Slots: the unit in which keys are spread over shards.
//!
//! They are Redis Cluster's slots, so that its clients can route to keevee: the CRC16 (XMODEM) of the
//! key, or of its hash tag, modulo 16384. It leaves out which shard owns a slot: that is the slot
//! table's to say, and [`SlotSet`] in the state of each shard fences it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// How many slots there are.
pub const SLOTS: u16 = 16384;

/// A bitmap of all slots, in bytes.
const BITMAP_BYTES: usize = SLOTS as usize / 8;

/// A slot, below [`SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct Slot(pub u16);

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The slot of a key.
///
/// If the key holds a `{` and the first `}` after the first of them leaves something between the two,
/// only that part counts: keys with the same *hash tag* share a slot.
pub fn slot(key: &[u8]) -> Slot {
    Slot(crc16(hash_tag(key).unwrap_or(key)) % SLOTS)
}

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    // Most keys have none, and this looks at a word at a time.
    if !key.contains(&b'{') {
        return None;
    }
    let open = key.iter().position(|&byte| byte == b'{')?;
    let inside = &key[open + 1..];
    let close = inside.iter().position(|&byte| byte == b'}')?;
    (close > 0).then(|| &inside[..close])
}

/// So many bytes are looked up at once, since their look-ups need not wait for each other ("slicing by 8", Intel 2006).
const BLOCK_BYTES: usize = 8;

/// In table `t`, the checksum of each byte with `t` zeros behind it.
static CRC16_TABLES: [[u16; 256]; BLOCK_BYTES] = crc16_tables();

const fn crc16_tables() -> [[u16; 256]; BLOCK_BYTES] {
    let mut tables = [[0; 256]; BLOCK_BYTES];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = crc16_step((byte as u16) << 8);
        let mut zeros = 0;
        while zeros < BLOCK_BYTES {
            tables[zeros][byte] = crc;
            crc = crc16_step(crc);
            zeros += 1;
        }
        byte += 1;
    }
    tables
}

/// Eight bits of CRC16-XMODEM: polynomial 0x1021, initial value 0, not reflected.
const fn crc16_step(mut crc: u16) -> u16 {
    let mut bit = 0;
    while bit < 8 {
        crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        bit += 1;
    }
    crc
}

fn crc16(bytes: &[u8]) -> u16 {
    let (head, blocks) = bytes.as_rchunks::<BLOCK_BYTES>();
    let look_up = |crc: u16, (byte, table): (&u8, &[u16; 256])| crc ^ table[usize::from(*byte)];
    let head = head.iter().rev().zip(&CRC16_TABLES).fold(0, look_up);
    blocks.iter().fold(head, |crc, block| {
        let mut block = *block;
        block[0] ^= (crc >> 8) as u8;
        block[1] ^= crc as u8;
        block.iter().rev().zip(&CRC16_TABLES).fold(0, look_up)
    })
}

/// A set of slots.
///
/// Cloning shares the bitmap, since a shard's meta is cloned for each entry; the first change of a
/// clone copies it.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotSet {
    /// Slot `s` is bit `s % 8`, from the lowest, of byte `s / 8`.
    bitmap: Arc<[u8; BITMAP_BYTES]>,
    /// How many bits are set.
    count: u16,
}

/// The first byte of an encoded set: what follows.
const NONE: u8 = 0;
const ALL: u8 = 1;
const BITMAP: u8 = 2;

impl SlotSet {
    /// Every slot.
    pub fn all() -> SlotSet {
        SlotSet { bitmap: Arc::new([0xff; BITMAP_BYTES]), count: SLOTS }
    }

    /// No slot.
    pub fn none() -> SlotSet {
        SlotSet { bitmap: Arc::new([0; BITMAP_BYTES]), count: 0 }
    }

    /// True if the slot is in the set.
    pub fn contains(&self, slot: Slot) -> bool {
        slot.0 < SLOTS && self.bitmap[slot.0 as usize / 8] & bit(slot) != 0
    }

    /// Adds a slot; true if it was not in the set.
    ///
    /// # Panics
    ///
    /// If there is no such slot.
    pub fn insert(&mut self, slot: Slot) -> bool {
        assert!(slot.0 < SLOTS, "slot {slot} does not exist");
        let is_new = !self.contains(slot);
        if is_new {
            Arc::make_mut(&mut self.bitmap)[slot.0 as usize / 8] |= bit(slot);
            self.count += 1;
        }
        is_new
    }

    /// Removes a slot; true if it was in the set.
    pub fn remove(&mut self, slot: Slot) -> bool {
        let was_there = self.contains(slot);
        if was_there {
            Arc::make_mut(&mut self.bitmap)[slot.0 as usize / 8] &= !bit(slot);
            self.count -= 1;
        }
        was_there
    }

    /// How many slots are in the set.
    pub fn len(&self) -> usize {
        self.count.into()
    }

    /// True if no slot is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True if every slot is in the set.
    pub fn is_all(&self) -> bool {
        self.count == SLOTS
    }

    /// The slots, in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..SLOTS).map(Slot).filter(|slot| self.contains(*slot))
    }

    /// The set as bytes: a byte that says what follows (0 no slot, 1 all slots, 2 a bitmap), then the
    /// bitmap if there is one.
    pub fn to_bytes(&self) -> Bytes {
        match self.marker() {
            NONE => Bytes::from_static(&[NONE]),
            ALL => Bytes::from_static(&[ALL]),
            marker => [&[marker], self.bitmap.as_slice()].concat().into(),
        }
    }

    /// The set that [`SlotSet::to_bytes`] wrote; `None` if no set is written so.
    pub fn from_bytes(bytes: &[u8]) -> Option<SlotSet> {
        let (&marker, rest) = bytes.split_first()?;
        match marker {
            NONE if rest.is_empty() => Some(SlotSet::none()),
            ALL if rest.is_empty() => Some(SlotSet::all()),
            BITMAP => {
                let bitmap: [u8; BITMAP_BYTES] = rest.try_into().ok()?;
                let count = bitmap.iter().map(|byte| byte.count_ones() as u16).sum();
                Some(SlotSet { bitmap: Arc::new(bitmap), count })
            }
            _ => None,
        }
    }

    /// The encoding in two parts, for a reader that need not join them.
    pub(crate) fn parts(&self) -> (u8, &[u8]) {
        match self.marker() {
            BITMAP => (BITMAP, self.bitmap.as_slice()),
            marker => (marker, &[]),
        }
    }

    fn marker(&self) -> u8 {
        match self.count {
            0 => NONE,
            SLOTS => ALL,
            _ => BITMAP,
        }
    }
}

fn bit(slot: Slot) -> u8 {
    1 << (slot.0 % 8)
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> SlotSet {
        let mut set = SlotSet::none();
        for slot in slots {
            set.insert(slot);
        }
        set
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SlotSet({} of {SLOTS})", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc16_xmodem() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
    }

    /// As the definition has it, bit by bit.
    fn crc16_by_bits(bytes: &[u8]) -> u16 {
        bytes.iter().fold(0, |crc, byte| crc16_step(crc ^ u16::from(*byte) << 8))
    }

    #[test]
    fn blocks_have_the_checksum_of_their_bits() {
        // Every length up to some blocks, each with bytes of its own.
        let mut state = 7_u64;
        for length in (0..4 * BLOCK_BYTES).chain([127, 1000]) {
            for _ in 0..256 {
                let mut random = || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 56) as u8
                };
                let bytes: Vec<u8> = (0..length).map(|_| random()).collect();
                assert_eq!(crc16(&bytes), crc16_by_bits(&bytes), "{bytes:?}");
            }
        }
    }

    #[test]
    fn keys_have_redis_cluster_slots() {
        assert_eq!(slot(b"foo"), Slot(12182));
        assert_eq!(slot(b"bar"), Slot(5061));
        assert_eq!(slot(b"user1000"), Slot(3443));
        assert_eq!(slot(b""), Slot(0));
    }

    #[test]
    fn keys_with_one_hash_tag_share_a_slot() {
        assert_eq!(slot(b"{user1000}.following"), Slot(3443));
        assert_eq!(slot(b"{user1000}.followers"), Slot(3443));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
    }

    #[test]
    fn an_empty_or_unclosed_hash_tag_counts_for_nothing() {
        for key in [&b"foo{}{bar}"[..], b"foo{bar", b"foo}bar", b"{}"] {
            assert_eq!(slot(key), Slot(crc16(key) % SLOTS));
        }
    }

    #[test]
    fn a_hash_tag_ends_at_the_first_closing_brace() {
        assert_eq!(slot(b"foo{{bar}}zap"), Slot(crc16(b"{bar") % SLOTS));
        assert_eq!(slot(b"}{bar}"), slot(b"bar"));
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = SlotSet::none();
        assert!(set.insert(Slot(7)) && set.insert(Slot(16383)) && !set.insert(Slot(7)));
        assert!(set.contains(Slot(7)) && set.contains(Slot(16383)) && !set.contains(Slot(8)));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Slot(7), Slot(16383)]);
        assert_eq!(set.len(), 2);
        assert!(set.remove(Slot(7)) && !set.remove(Slot(7)));
        assert_eq!(set, [Slot(16383)].into_iter().collect());
    }

    #[test]
    fn a_slot_that_does_not_exist_is_in_no_set() {
        assert!(!SlotSet::all().contains(Slot(SLOTS)));
        assert!(!SlotSet::all().remove(Slot(u16::MAX)));
    }

    #[test]
    fn a_clone_does_not_see_later_changes() {
        let mut set = SlotSet::all();
        let clone = set.clone();
        assert!(set.remove(Slot(1)));
        assert!(clone.is_all() && clone.contains(Slot(1)));
        assert_eq!(set.len(), SLOTS as usize - 1);
    }

    #[test]
    fn a_set_survives_its_encoding() {
        let some: SlotSet = (0..SLOTS).step_by(3).map(Slot).collect();
        for (set, size) in [(SlotSet::all(), 1), (SlotSet::none(), 1), (some, 2049)] {
            let bytes = set.to_bytes();
            assert_eq!(bytes.len(), size);
            assert_eq!(SlotSet::from_bytes(&bytes), Some(set));
        }
    }

    #[test]
    fn bytes_that_are_no_set_are_refused() {
        for bytes in [&[][..], &[3], &[1, 0], &[2, 0, 0], &[2; 2050]] {
            assert_eq!(SlotSet::from_bytes(bytes), None);
        }
    }
}
