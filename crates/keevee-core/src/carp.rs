//! CARP, the Cache Array Routing Protocol: every member of an array gets a score for an item, made of
//! the hashes of both and of the member's load factor, and the highest score has the item. It is
//! rendezvous hashing with weights: a member that comes or goes takes or leaves its own items only.
//!
//! - [`v1`] is the protocol of the draft (draft-vinod-carp-v1-03), as caches speak it.
//! - [`membership`] is the draft's table of members, as text.
//! - [`ranking`] is what keevee places by: the same idea in 64 bits.
//!
//! It leaves out who owns what: scores only rank. [`crate::slot_table`] decides, and is the authority.

pub mod membership;
pub mod ranking;
pub mod v1;
