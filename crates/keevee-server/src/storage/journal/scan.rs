//! Which records a segment holds: its sectors, read from the front, put together again. Not here: the files.

use super::sector::{RecordShape, SECTOR, Sector};

/// A record that is whole.
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) segment: u32,
    /// Where it begins.
    pub(super) offset: u64,
    pub(super) shape: RecordShape,
}

/// A segment that is being read.
pub(super) struct Scan {
    segment: u32,
    seed: u64,
    /// The next sector's place.
    at: u64,
    /// The record that the sectors before belong to, and how many of it there were.
    begun: Option<(Found, u32)>,
    /// The highest sequence number that any sector has.
    highest: u64,
}

impl Scan {
    /// Of a segment with this seed, from its front.
    pub(super) fn new(segment: u32, seed: u64) -> Scan {
        Scan { segment, seed, at: 0, begun: None, highest: 0 }
    }

    /// Adds the records that end in the next sectors. An error says what is wrong, and at which byte.
    pub(super) fn read(
        &mut self,
        sectors: &[[u8; SECTOR]],
        records: &mut Vec<Found>,
    ) -> Result<(), (&'static str, u64)> {
        for sector in sectors {
            let (at, offset) = (self.at, self.at * SECTOR as u64);
            self.at += 1;
            let sector = Sector::decode(sector, self.seed.wrapping_add(at)).map_err(|what| (what, offset))?;
            let Some(sector) = sector else {
                self.begun = None;
                continue;
            };
            self.highest = self.highest.max(sector.sequence);
            self.begun = match self.begun.take() {
                _ if sector.index == 0 => {
                    let (sequence, segment, shape) = (sector.sequence, self.segment, sector.shape());
                    Some((Found { sequence, segment, offset, shape }, 1))
                }
                Some((found, count)) if (found.sequence, count) == (sector.sequence, sector.index) => {
                    Some((found, count + 1))
                }
                // The rest of a record whose front was written over, or never was.
                _ => None,
            };
            let whole = self.begun.take_if(|(found, count)| *count == found.shape.sectors());
            records.extend(whole.map(|(found, _)| found));
        }
        Ok(())
    }

    /// The highest sequence number that any sector has, perhaps a torn record's.
    pub(super) fn highest(&self) -> u64 {
        self.highest
    }
}

/// The first record that is missing where later ones are there, of records in order that follow the one before them. Behind the last may
/// be one torn record.
pub(super) fn first_missing(records: &[Found], before: u64, highest: u64) -> Option<u64> {
    let last = before + records.len() as u64;
    let gap = records.iter().zip(before + 1..).find(|(record, next)| record.sequence != *next);
    gap.map(|(_, missing)| missing).or((highest > last + 1).then_some(last + 1))
}
