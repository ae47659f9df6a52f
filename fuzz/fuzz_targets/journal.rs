//! A segment of the journal with damage anywhere: it is refused, or what is read of it is what was written.
#![no_main]

use keevee_fuzz::journal::{Damage, damage_is_found};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((count, input)) = input.split_first() else { return };
    let (lengths, damage) = input.split_at(input.len().min(usize::from(count % 4) * 2));
    let lengths: Vec<u16> = numbers(lengths).map(|length| length % 9_000).collect();
    let damage: Vec<Damage> = damage
        .chunks_exact(6)
        .map(|bytes| {
            let mut numbers = numbers(&bytes[1..5]);
            let (first, second) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            match bytes[0] % 3 {
                0 => Damage::Flip { place: first, byte: second, bits: bytes[5] },
                1 => Damage::Empty { place: first },
                _ => Damage::Misdirect { from: first, to: second },
            }
        })
        .collect();
    damage_is_found(&lengths, &damage);
});

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}
