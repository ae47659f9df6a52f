//! CARP v1.0 to the letter: draft-vinod-carp-v1-03 (Valloppillil and Ross, February 1998), section 3.
//!
//! All arithmetic on hashes is modulo 2^32, and `rotl` rotates a 32-bit number to the left. The draft has
//! long expired; its formulas are taken from where they are quoted word by word, and agree: the `carp`
//! plugin of Apache Traffic Server (section 3.3), Squid's `carp.cc`, and Wessels (*Web Caching*, O'Reilly
//! 2001, appendix C), whose published numbers the tests hold this module to.
//!
//! Where sources differ:
//!
//! - Squid up to 2.5 shifted where the draft rotates (`url_hash << 19`). Squid from 2.6 on, Traffic Server
//!   and Wessels rotate, as we do.
//! - The draft takes the multipliers for 32-bit floating-point numbers and says nothing of the product;
//!   the three others calculate in doubles. Here multipliers are rounded to 32 bits, and scores are not.
//! - The draft says nothing of equal scores (others take the first in their list), nor of load factors of 0
//!   (Squid leaves such members out). Here the lesser name wins, so that the order of a list means nothing,
//!   and load factor 0 gets nothing.
//! - Bytes above 127 count as 128 to 255. In C they are negative on some machines.
//! - Squid hashes a peer's name, Traffic Server `name:port`. Here a name is what the caller says.
//!
//! It leaves out 64 bits and exact shares: that is [`super::ranking`] and [`crate::slot_table`].

/// Spreads the hashes of names that are similar and combinations of hashes (section 3).
const SPREAD: u32 = 0x6253_1965;

/// The hash of a URL (section 3): for each character `hash += rotl(hash, 19) + character`.
pub fn url_hash(url: &[u8]) -> u32 {
    url.iter()
        .fold(0, |hash: u32, &byte| hash.wrapping_add(hash.rotate_left(19)).wrapping_add(u32::from(byte)))
}

/// The hash of a member's name (section 3): as of a URL, and spread, because names of hosts are often
/// similar.
pub fn member_hash(name: &[u8]) -> u32 {
    spread(url_hash(name))
}

/// The two hashes as one (section 3).
pub fn combine(url_hash: u32, member_hash: u32) -> u32 {
    spread(url_hash ^ member_hash)
}

fn spread(hash: u32) -> u32 {
    hash.wrapping_add(hash.wrapping_mul(SPREAD)).rotate_left(21)
}

/// The load factor multipliers, in the order of the load factors (section 3.3).
///
/// With members in ascending order of their shares `P`, which sum up to 1:
///
/// ```text
/// X_1 = pow(K * P_1, 1 / K)
/// X_k = pow((K - k + 1) * (P_k - P_{k-1}) / (X_1 * ... * X_{k-1}) + pow(X_{k-1}, K - k + 1), 1 / (K - k + 1))
/// ```
///
/// Members with a load factor of 0 get multiplier 0, and are not counted in `K`.
pub fn multipliers(load_factors: &[u32]) -> Vec<f32> {
    let mut ascending: Vec<usize> = (0..load_factors.len()).filter(|&at| load_factors[at] > 0).collect();
    ascending.sort_by_key(|&at| load_factors[at]);
    let total: f64 = load_factors.iter().map(|&load_factor| f64::from(load_factor)).sum();
    let mut multipliers = vec![0.0; load_factors.len()];
    let (mut last_factor, mut last, mut product) = (0, 0.0_f32, 1.0);
    for (at_or_before, &member) in ascending.iter().enumerate() {
        let load_factor = load_factors[member];
        // Equal shares get the same bits: a root of a power would not quite give its base back.
        if load_factor != last_factor {
            let remaining = (ascending.len() - at_or_before) as f64;
            let step = f64::from(load_factor - last_factor) / total;
            let power = remaining * step / product + f64::from(last).powf(remaining);
            last = power.powf(1.0 / remaining) as f32;
            last_factor = load_factor;
        }
        multipliers[member] = last;
        product *= f64::from(last);
    }
    multipliers
}

/// The members of an array, ready to be routed to.
#[derive(Clone, Debug)]
pub struct Router {
    /// In order of their names.
    members: Vec<Member>,
}

#[derive(Clone, Debug)]
struct Member {
    name: String,
    hash: u32,
    multiplier: f32,
}

/// The list of members is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouterError {
    /// Two members of one name would get the same scores.
    #[error("member {0:?} is named twice: give each member a name of its own")]
    DuplicateName(String),
}

impl Router {
    /// Takes names and load factors. Their order does not matter.
    pub fn new(members: &[(&str, u32)]) -> Result<Router, RouterError> {
        let load_factors: Vec<u32> = members.iter().map(|(_, load_factor)| *load_factor).collect();
        let routed = |(&(name, _), multiplier): (&(&str, u32), f32)| Member {
            name: name.to_owned(),
            hash: member_hash(name.as_bytes()),
            multiplier,
        };
        let mut members: Vec<Member> = members.iter().zip(multipliers(&load_factors)).map(routed).collect();
        members.sort_by(|one, other| one.name.cmp(&other.name));
        match members.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(RouterError::DuplicateName(pair[0].name.clone())),
            None => Ok(Router { members }),
        }
    }

    /// The member with the highest score (section 3); `None` if no member has a load factor above 0.
    pub fn route(&self, url: &[u8]) -> Option<&str> {
        let hash = url_hash(url);
        let mut best = None;
        let mut best_score = 0.0;
        for member in self.members.iter().filter(|member| member.multiplier > 0.0) {
            let score = member.score(hash);
            if best.is_none() || score > best_score {
                (best, best_score) = (Some(member.name.as_str()), score);
            }
        }
        best
    }

    /// The members and their scores, best first: whom to ask if the best is down.
    pub fn ranked(&self, url: &[u8]) -> Vec<(&str, f64)> {
        let hash = url_hash(url);
        let routable = self.members.iter().filter(|member| member.multiplier > 0.0);
        let mut ranked: Vec<_> = routable.map(|member| (member.name.as_str(), member.score(hash))).collect();
        // Stable: equal scores stay in the order of names.
        ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        ranked
    }
}

impl Member {
    /// `Combined_Hash * X_k` (section 3.3).
    fn score(&self, url_hash: u32) -> f64 {
        f64::from(combine(url_hash, self.hash)) * f64::from(self.multiplier)
    }
}

#[cfg(test)]
mod tests;
