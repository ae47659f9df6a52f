//! The protocol does no I/O, and the same inputs give the same outputs. `clippy.toml` bans single items with a
//! reason; this bans whole modules and crates, which clippy cannot.

use std::path::Path;

const BANNED: [&str; 9] = [
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "tokio",
    "HashMap",
    "HashSet",
    "Instant",
];

#[test]
#[expect(clippy::disallowed_methods, reason = "a test may read files")]
fn sources_name_no_clock_file_socket_or_thread() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = 0;
    for entry in std::fs::read_dir(sources).expect("the sources") {
        let path = entry.expect("a source").path();
        let text = std::fs::read_to_string(&path).expect("a readable source");
        files += 1;
        for (line, number) in text.lines().zip(1..) {
            let code = line.split("//").next().unwrap_or_default();
            for banned in BANNED {
                assert!(!code.contains(banned), "{}:{number}: {banned}", path.display());
            }
        }
    }
    assert!(files > 5, "the sources moved");
}
