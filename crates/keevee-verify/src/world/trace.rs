//! What happened, for people and for comparison: one line for each message, disk event and fault, in the column
//! of its node; and a hash over all events, equal for equal runs.

/// Characters of a node's column. What is longer is cut, so that columns stay in line.
const COLUMN: usize = 44;

/// A run's trace.
#[derive(Default)]
pub struct Trace {
    hash: u64,
    lines: Option<Lines>,
}

struct Lines {
    nodes: u64,
    write: Box<dyn FnMut(&str)>,
}

impl Trace {
    /// A trace that keeps its hash only.
    pub fn silent() -> Trace {
        Trace::default()
    }

    /// A trace that also hands out its lines, in columns for so many nodes.
    pub fn to_lines(nodes: u64, mut write: impl FnMut(&str) + 'static) -> Trace {
        let heads = (1..=nodes).map(|node| format!("│ {:<COLUMN$}", format!("node {node}")));
        write(&format!("{:>12} {}", "seconds", heads.collect::<String>()));
        Trace { hash: 0, lines: Some(Lines { nodes, write: Box::new(write) }) }
    }

    /// The hash over everything folded in so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Folds a number into the hash.
    pub(crate) fn fold(&mut self, number: u64) {
        // The finaliser of SplitMix64: enough to tell runs apart.
        let mut z = (self.hash ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.hash = z ^ (z >> 27);
    }

    /// Folds a text into the hash.
    pub(crate) fn fold_text(&mut self, text: &str) {
        for bytes in text.as_bytes().chunks(8) {
            self.fold(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        }
    }

    /// A line about the world: a fault, a client, the end.
    pub(crate) fn note(&mut self, now: u64, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            (lines.write)(&format!("{} ══ {}", seconds(now), line()));
        }
    }

    /// A line in the column of a node.
    pub(crate) fn at(&mut self, now: u64, node: u64, line: impl FnOnce() -> String) {
        let Some(lines) = &mut self.lines else { return };
        let text = fitted(line());
        let column = |column: u64| match column == node {
            true => format!("│ {text:<COLUMN$}"),
            false => format!("│ {:<COLUMN$}", ""),
        };
        let columns: String = (1..=lines.nodes).map(column).collect();
        (lines.write)(format!("{} {columns}", seconds(now)).trim_end());
    }
}

/// A text as wide as a column at most.
fn fitted(text: String) -> String {
    match text.char_indices().nth(COLUMN - 1) {
        Some((end, letter)) if end + letter.len_utf8() < text.len() => format!("{}…", &text[..end]),
        _ => text,
    }
}

fn seconds(now: u64) -> String {
    format!("{:>5}.{:06}", now / 1_000_000, now % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_the_width_of_a_column() {
        let of = |letters: usize| "→".repeat(letters);
        assert_eq!(fitted(of(COLUMN)), of(COLUMN));
        assert_eq!(fitted(of(COLUMN + 1)), format!("{}…", of(COLUMN - 1)));
    }
}
