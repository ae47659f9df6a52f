//! Ways to divide keys among members: keevee's, CARP v1, and rivals that are here for comparison only.

use std::fmt::Write as _;

use keevee_core::carp::ranking::Ranking;
use keevee_core::carp::v1;
use keevee_core::ids::ShardId;
use keevee_core::slot_table::SlotTable;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

/// A member: its id and its load factor.
pub(crate) type Member = (u32, u32);

/// A way to find the member of a key.
pub(crate) trait Method {
    /// The id of the member that has the key.
    fn member(&self, key: &[u8]) -> u32;
}

/// Makes a method for some members.
pub(crate) type Make = fn(&[Member]) -> Box<dyn Method>;

/// All methods, by name.
pub(crate) const METHODS: [(&str, Make); 6] = [
    ("carp v1", |members| Box::new(CarpV1::new(members, |id| format!("shard-{id}")))),
    ("carp 64-bit", |members| Box::new(Carp64::new(members))),
    ("slot table", |members| Box::new(SlotTable::compute(None, &shards(members)).expect("members"))),
    ("ring", |members| Box::new(Ring::new(members))),
    ("jump", |members| Box::new(Jump::new(members))),
    ("rendezvous sha256", |members| Box::new(Rendezvous::new(members))),
];

/// So many members of equal load.
pub(crate) fn equal(count: u32) -> Vec<Member> {
    (1..=count).map(|id| (id, 1)).collect()
}

/// So many members with load factors 1, 2, 3, 4, and again.
#[allow(dead_code, reason = "not every benchmark needs it")]
pub(crate) fn unequal(count: u32) -> Vec<Member> {
    (1..=count).map(|id| (id, 1 + (id - 1) % 4)).collect()
}

pub(crate) fn shards(members: &[Member]) -> Vec<(ShardId, u32)> {
    members.iter().map(|&(id, load_factor)| (ShardId(id), load_factor)).collect()
}

/// The draft. Members have names that end in `-` and their id.
pub(crate) struct CarpV1(v1::Router);

impl CarpV1 {
    pub(crate) fn new(members: &[Member], name: impl Fn(u32) -> String) -> CarpV1 {
        let names: Vec<(String, u32)> = members.iter().map(|&(id, load)| (name(id), load)).collect();
        let named: Vec<(&str, u32)> = names.iter().map(|(name, load)| (name.as_str(), *load)).collect();
        CarpV1(v1::Router::new(&named).expect("names differ"))
    }
}

impl Method for CarpV1 {
    fn member(&self, key: &[u8]) -> u32 {
        let name = self.0.route(key).expect("members").bytes();
        let digits = name.rev().take_while(|byte| *byte != b'-').zip(0..);
        digits.map(|(byte, place)| u32::from(byte - b'0') * 10_u32.pow(place)).sum()
    }
}

/// keevee's ranking, without slots: every member is scored for the key's hash.
pub(crate) struct Carp64(Ranking);

impl Carp64 {
    pub(crate) fn new(members: &[Member]) -> Carp64 {
        Carp64(Ranking::new(&shards(members)))
    }
}

impl Method for Carp64 {
    fn member(&self, key: &[u8]) -> u32 {
        self.0.best(xxh3_64(key)).expect("members").0
    }
}

/// keevee: the key's slot, and the slot's owner.
impl Method for SlotTable {
    fn member(&self, key: &[u8]) -> u32 {
        self.owner_of_key(key).0
    }
}

/// Consistent hashing: 160 points for each unit of load, as libketama has. A key belongs to the next point.
pub(crate) struct Ring(Vec<(u64, u32)>);

const POINTS: u32 = 160;

impl Ring {
    pub(crate) fn new(members: &[Member]) -> Ring {
        let mut points = Vec::new();
        let mut name = String::new();
        for &(id, load_factor) in members {
            for point in 0..POINTS * load_factor {
                name.clear();
                write!(name, "shard-{id}-{point}").expect("memory");
                points.push((xxh3_64(name.as_bytes()), id));
            }
        }
        points.sort();
        Ring(points)
    }
}

impl Method for Ring {
    fn member(&self, key: &[u8]) -> u32 {
        let hash = xxh3_64(key);
        let at = self.0.partition_point(|&(point, _)| point < hash);
        self.0[at % self.0.len()].1
    }
}

/// Jump consistent hash (Lamping and Veach, 2014): numbered buckets, which can only be added and dropped at
/// the end. A member has as many buckets as its load factor: first one for each, then the second ones.
pub(crate) struct Jump(Vec<u32>);

impl Jump {
    pub(crate) fn new(members: &[Member]) -> Jump {
        let most = members.iter().map(|&(_, load_factor)| load_factor).max().unwrap_or(0);
        let round =
            |round| members.iter().filter(move |&&(_, load_factor)| load_factor > round).map(|&(id, _)| id);
        Jump((0..most).flat_map(round).collect())
    }
}

impl Method for Jump {
    fn member(&self, key: &[u8]) -> u32 {
        let mut hash = xxh3_64(key);
        let (mut bucket, mut next) = (0_i64, 0_i64);
        while next < self.0.len() as i64 {
            bucket = next;
            hash = hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
            next = ((bucket + 1) as f64 * ((1_u64 << 31) as f64 / ((hash >> 33) + 1) as f64)) as i64;
        }
        self.0[bucket as usize]
    }
}

/// Rendezvous hashing with a cryptographic hash of key and member; weights by logarithms (Resch, 2015).
pub(crate) struct Rendezvous(Vec<Member>);

impl Rendezvous {
    pub(crate) fn new(members: &[Member]) -> Rendezvous {
        Rendezvous(members.to_vec())
    }
}

impl Method for Rendezvous {
    fn member(&self, key: &[u8]) -> u32 {
        let score = |&(id, load_factor): &Member| {
            let digest = Sha256::new().chain_update(key).chain_update(id.to_be_bytes()).finalize();
            let hash = u64::from_be_bytes(digest[..8].try_into().expect("eight bytes"));
            f64::from(load_factor) / -((hash as f64 + 1.0) / (u64::MAX as f64 + 2.0)).ln()
        };
        let scored = self.0.iter().map(|member| (score(member), member.0));
        scored.max_by(|one, other| one.0.total_cmp(&other.0)).expect("members").1
    }
}
