//! Keys: the same in each run.

use std::fmt::Write as _;

/// What keys look like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// `user:0000000001`, and so on.
    Sequential,
    /// 16 random bytes.
    Random,
    /// Addresses of pages on a thousand hosts.
    Url,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Sequential, Kind::Random, Kind::Url];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Sequential => "sequential",
            Kind::Random => "random",
            Kind::Url => "URL-like",
        }
    }

    /// Goes through so many keys of this kind.
    pub(crate) fn each(self, count: u64, mut visit: impl FnMut(&[u8])) {
        let mut text = String::new();
        for number in 0..count {
            let (one, other) = (mix(2 * number), mix(2 * number + 1));
            text.clear();
            let written = match self {
                Kind::Random => {
                    visit(&[one.to_le_bytes(), other.to_le_bytes()].concat());
                    continue;
                }
                Kind::Sequential => write!(text, "user:{number:010}"),
                Kind::Url => {
                    let (host, section) = (one % 1000, one >> 32 & 0xff);
                    write!(text, "https://www{host}.example.com/{section:x}/page-{other:x}?id={number}")
                }
            };
            written.expect("memory");
            visit(text.as_bytes());
        }
    }
}

/// SplitMix64 (Steele et al., 2014).
fn mix(number: u64) -> u64 {
    let mut bits = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
