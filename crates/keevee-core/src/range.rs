//! Ranges of keys, in byte order: what a scan reads, and what a delete by prefix removes.
//!
//! A shard holds the keys of its slots, which lie all over the order of keys. So a range is a question to every shard,
//! and each answers for its own keys; [`crate::scan`] makes one answer of theirs. What one command does is bounded
//! here, by constants and not by settings: replicas that differ in them would diverge.

use std::ops::Bound;

use bytes::Bytes;

use crate::ids::Namespace;

/// Keys that one scan of a shard returns at most.
pub const SCAN_KEYS_MAX: u32 = 1000;
/// Bytes of keys and values that one scan of a shard returns at most, unless the first key alone has more. Asked for
/// less than this, a shard shows no key that has more than it is asked for: it only names it. So whoever asks many
/// shards at once gets no value of each whose page will hold one.
pub const SCAN_BYTES_MAX: u32 = 1 << 20;
/// Keys that one delete of a range removes at most.
pub const DELETE_RANGE_KEYS_MAX: u32 = 1000;
/// Bytes of keys and values that one delete of a range removes at most, unless the first key alone has more: they are
/// read for it, while the shard does nothing else.
pub const DELETE_RANGE_BYTES_MAX: usize = 16 << 20;
/// Keys that one removal of expired keys removes at most.
pub const REMOVE_EXPIRED_KEYS_MAX: u32 = 1000;

/// A key in its namespace, as an ordered map has it.
pub type Place = (Namespace, Bytes);

/// The keys from `start` on that come before `end`, in byte order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key; empty: from the first one that there is.
    pub start: Bytes,
    /// The first key behind the range; `None`: to the last one that there is.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// The keys that begin with these bytes.
    pub fn of_prefix(prefix: impl Into<Bytes>) -> KeyRange {
        let start = prefix.into();
        // Behind all of them: the prefix without its last bytes 0xFF, the byte before these one higher.
        let kept = start.iter().rposition(|byte| *byte != u8::MAX);
        let end = kept.map(|last| {
            let mut end = start[..=last].to_vec();
            end[last] += 1;
            Bytes::from(end)
        });
        KeyRange { start, end }
    }

    /// The part of the range from this key on.
    pub fn rest(&self, start: Bytes) -> KeyRange {
        KeyRange { start, end: self.end.clone() }
    }

    /// True if the key lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// True if no key lies in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// True if every key lies in the range.
    pub fn is_all(&self) -> bool {
        self.start.is_empty() && self.end.is_none()
    }

    /// The same as bounds of an ordered map. Of an empty range they name nothing, and never cross, which such a map
    /// would not take.
    pub fn bounds(&self, namespace: Namespace) -> (Bound<Place>, Bound<Place>) {
        let end = match (&self.end, namespace.0.checked_add(1)) {
            (Some(end), _) => Bound::Excluded((namespace, end.max(&self.start).clone())),
            (None, Some(next)) => Bound::Excluded((Namespace(next), Bytes::new())),
            (None, None) => Bound::Unbounded,
        };
        (Bound::Included((namespace, self.start.clone())), end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn range(start: &'static str, end: Option<&'static str>) -> KeyRange {
        KeyRange { start: start.into(), end: end.map(Bytes::from) }
    }

    #[test]
    fn a_prefix_ends_before_the_first_key_without_it() {
        assert_eq!(KeyRange::of_prefix("ab"), range("ab", Some("ac")));
        let end = |prefix: &'static [u8]| KeyRange::of_prefix(prefix).end;
        assert_eq!(end(b"a\xff\xff"), Some(Bytes::from("b")));
        assert_eq!(end(b"\xff\xff"), None);
        assert!(KeyRange::of_prefix("").is_all());
        let prefix = KeyRange::of_prefix(&b"a\xff"[..]);
        for (key, is_in) in
            [(&b"a\xff"[..], true), (b"a\xff\xff\xff", true), (b"b", false), (b"a\xfe", false)]
        {
            assert_eq!(prefix.contains(key), is_in, "{key:?}");
        }
    }

    #[test]
    fn bounds_name_the_keys_of_one_namespace_and_no_others() {
        let keys = [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (1, "c"), (2, ""), (u32::MAX, "z")];
        let map: BTreeMap<(Namespace, Bytes), ()> =
            keys.into_iter().map(|(namespace, key)| ((Namespace(namespace), key.into()), ())).collect();
        let named = |range: &KeyRange, namespace| -> Vec<Bytes> {
            map.range(range.bounds(Namespace(namespace))).map(|((_, key), ())| key.clone()).collect()
        };
        assert_eq!(named(&range("b", None), 1), ["b", "c"]);
        assert_eq!(named(&range("", Some("b")), 1), ["a"]);
        assert_eq!(named(&KeyRange::default(), u32::MAX), ["z"]);
        for empty in [range("b", Some("b")), range("c", Some("a"))] {
            assert!(empty.is_empty() && !empty.contains(b"b"));
            assert_eq!(named(&empty, 1), Vec::<Bytes>::new());
        }
    }
}
