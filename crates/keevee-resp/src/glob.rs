//! Redis's patterns of keys: `*`, `?`, `[a-z]`, `[^a]` and `\` before what stands for itself.

/// True if the pattern matches all of the text.
///
/// Of several `*` only the last one seen is ever tried again: what stood before it has matched already, as early as it
/// could. So the time is at most the product of the lengths, whatever the pattern.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Behind the last `*`: the pattern, and the text that it was tried at last.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', after)) = pattern.split_first() {
            pattern = after;
            retry = Some((after, text));
            continue;
        }
        match (one(pattern, text.first().copied()), text.split_first()) {
            (Some(after), Some((_, rest))) => (pattern, text) = (after, rest),
            (_, None) if pattern.is_empty() => return true,
            _ => match retry {
                Some((after, [_, rest @ ..])) => {
                    (pattern, text) = (after, rest);
                    retry = Some((after, rest));
                }
                _ => return false,
            },
        }
    }
}

/// What follows in the pattern if its first item, which is no `*`, matches this byte.
fn one(pattern: &[u8], byte: Option<u8>) -> Option<&[u8]> {
    let byte = byte?;
    match pattern {
        [] => None,
        [b'?', after @ ..] => Some(after),
        [b'[', class @ ..] => {
            let (is_in, after) = in_class(class, byte);
            is_in.then_some(after)
        }
        [b'\\', literal, after @ ..] | [literal, after @ ..] => (*literal == byte).then_some(after),
    }
}

/// Whether a byte is in the class that begins here, and what follows it. One that does not end goes to the end of the
/// pattern, as with Redis.
fn in_class(class: &[u8], byte: u8) -> (bool, &[u8]) {
    let (is_negated, mut rest) = match class {
        [b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut is_in = false;
    let rest = loop {
        rest = match rest {
            [] => break rest,
            [b']', after @ ..] => break after,
            [b'\\', literal, after @ ..] => {
                is_in |= *literal == byte;
                after
            }
            [first, b'-', last, after @ ..] => {
                is_in |= (*first.min(last)..=*first.max(last)).contains(&byte);
                after
            }
            [literal, after @ ..] => {
                is_in |= *literal == byte;
                after
            }
        };
    };
    (is_in != is_negated, rest)
}

/// What every text begins with that the pattern matches.
pub fn prefix(pattern: &[u8]) -> &[u8] {
    let end = pattern.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(pattern.len());
    &pattern[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h*llo", "hll", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-", "h-", true),
            ("h[a-", "hb", false),
            (r"h\*llo", "h*llo", true),
            (r"h\*llo", "hello", false),
            (r"a\", r"a\", true),
            (r"[\]]", "]", true),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxcxxb", false),
            ("user:*:name", "user:1:name", true),
            ("a*a*", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        // A matcher that tries every star again would not end.
        assert!(!matches("a*".repeat(100).as_bytes(), "a".repeat(50).as_bytes()));
        assert!(!matches(&[&b"*a".repeat(50)[..], b"b"].concat(), "a".repeat(4000).as_bytes()));
    }

    #[test]
    fn what_a_pattern_begins_with_is_known() {
        assert_eq!(prefix(b"user:*"), b"user:");
        assert_eq!(prefix(b"user"), b"user");
        assert_eq!(prefix(br"u\*"), b"u");
        assert_eq!(prefix(b"[ab]"), b"");
    }
}
