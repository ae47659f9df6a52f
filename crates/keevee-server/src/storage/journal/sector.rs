//! How a record of the journal lies in sectors: the layout on disk.
//!
//! A sector of 512 bytes is the least that a disk writes whole or not at all:
//! `[payload 492][sequence u64][index u32][checksum u64]`, big-endian. The checksum is XXH3-64 of what is before it; its
//! seed is made of the store id and the sector's place, so that a sector of another folder or another place is not taken.
//! Payloads one after another are
//! `[length u32][record][zeros]`. A record has a multiple of eight sectors, since disks with larger blocks write
//! no less. Not here: which records there are.

use keevee_core::ids::StoreId;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a sector.
pub(super) const SECTOR: usize = 512;
/// What a write to the disk begins and ends at, in bytes.
pub(super) const ALIGNED: usize = 4096;

const PAYLOAD: usize = 492;
const INDEX: usize = PAYLOAD + 8;
const CHECKSUM: usize = INDEX + 4;
const LENGTH: usize = 4;

/// The seed of the checksums of a segment's sectors, each of which adds its place in the segment.
pub(super) fn segment_seed(store: StoreId, number: u32) -> u64 {
    xxh3_64(&[store.0.as_bytes().as_slice(), &number.to_be_bytes()].concat())
}

/// How a record of some length is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordShape {
    length: u32,
}

impl RecordShape {
    pub(super) fn of(length: usize) -> RecordShape {
        RecordShape { length: u32::try_from(length).expect("a batch is bounded far below that") }
    }

    pub(super) fn sectors(self) -> u32 {
        let sectors = (LENGTH as u64 + u64::from(self.length)).div_ceil(PAYLOAD as u64);
        let whole = sectors.next_multiple_of((ALIGNED / SECTOR) as u64);
        // At most 1.05 times the length over 512.
        whole as u32
    }

    pub(super) fn bytes(self) -> u64 {
        u64::from(self.sectors()) * SECTOR as u64
    }

    /// Lays a record out at the front of `bytes`, which are zeros. The seed is the first sector's.
    pub(super) fn encode(self, record: &[u8], sequence: u64, seed: u64, bytes: &mut [u8]) {
        let length = self.length.to_be_bytes();
        let (front, rest) = record.split_at(record.len().min(PAYLOAD - LENGTH));
        let mut payloads = rest.chunks(PAYLOAD);
        let (sectors, _) = bytes.as_chunks_mut::<SECTOR>();
        for (index, sector) in (0..self.sectors()).zip(sectors) {
            if index == 0 {
                sector[..LENGTH].copy_from_slice(&length);
                sector[LENGTH..LENGTH + front.len()].copy_from_slice(front);
            } else if let Some(payload) = payloads.next() {
                sector[..payload.len()].copy_from_slice(payload);
            }
            sector[PAYLOAD..INDEX].copy_from_slice(&sequence.to_be_bytes());
            sector[INDEX..CHECKSUM].copy_from_slice(&index.to_be_bytes());
            let checksum = xxh3_64_with_seed(&sector[..CHECKSUM], seed.wrapping_add(index.into()));
            sector[CHECKSUM..].copy_from_slice(&checksum.to_be_bytes());
        }
    }

    /// The record in its sectors, each of which was decoded before.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<u8> {
        let (sectors, _) = bytes.as_chunks::<SECTOR>();
        let mut record = Vec::with_capacity(bytes.len());
        for (index, sector) in sectors.iter().enumerate() {
            record.extend_from_slice(&sector[if index == 0 { LENGTH } else { 0 }..PAYLOAD]);
        }
        record.truncate(self.length as usize);
        record
    }
}

/// What one sector says.
pub(super) struct Sector<'a> {
    /// The record's sequence number.
    pub(super) sequence: u64,
    /// Which of the record's sectors it is.
    pub(super) index: u32,
    payload: &'a [u8],
}

impl Sector<'_> {
    /// Reads a sector; `None` if nothing was ever written there.
    pub(super) fn decode(bytes: &[u8; SECTOR], seed: u64) -> Result<Option<Sector<'_>>, &'static str> {
        if *bytes == [0; SECTOR] {
            return Ok(None);
        }
        let (content, checksum) = bytes.split_at(CHECKSUM);
        if checksum != xxh3_64_with_seed(content, seed).to_be_bytes() {
            return Err("a wrong checksum");
        }
        let (payload, trailer) = content.split_at(PAYLOAD);
        let (sequence, index) = trailer.split_at(INDEX - PAYLOAD);
        Ok(Some(Sector {
            sequence: u64::from_be_bytes(sequence.try_into().expect("eight bytes")),
            index: u32::from_be_bytes(index.try_into().expect("four bytes")),
            payload,
        }))
    }

    /// The shape of the record whose first sector this is.
    pub(super) fn shape(&self) -> RecordShape {
        let (length, _) = self.payload.split_at(LENGTH);
        RecordShape { length: u32::from_be_bytes(length.try_into().expect("four bytes")) }
    }
}
