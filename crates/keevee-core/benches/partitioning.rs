//! How evenly each method divides keys among members, and how many keys move when members change.
//!
//! ```sh
//! cargo bench -p keevee-core --bench lookup        # first, for the chart of look-ups
//! cargo bench -p keevee-core --bench partitioning -- --write docs/benchmarks
//! ```
//!
//! Without `--write` the tables are printed and nothing is written. A folder that is not absolute is one of
//! the repository. Unless `cargo bench` runs it, it goes through fewer keys, to see that it works.

#![allow(clippy::disallowed_methods, reason = "a benchmark may read arguments and write files")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "partitioning/evenness.rs"]
mod evenness;
#[path = "partitioning/keys.rs"]
mod keys;
#[path = "partitioning/lookups.rs"]
mod lookups;
mod methods;
#[path = "partitioning/movement.rs"]
mod movement;

const COMMAND: &str = "cargo bench -p keevee-core --bench partitioning -- --write docs/benchmarks";

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// One page of results: a table in Markdown, and a plot of it.
struct Page {
    /// The name of both files.
    name: &'static str,
    markdown: String,
    plot: Box<dyn Fn(&Path) -> Fallible>,
}

fn main() -> Fallible {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_full = arguments.iter().any(|argument| argument == "--bench")
        && !arguments.iter().any(|argument| argument == "--test");
    if arguments.iter().any(|argument| argument == "--list") {
        return Ok(());
    }
    let folder = arguments.iter().position(|argument| argument == "--write").map(|at| {
        arguments.get(at + 1).map(|folder| repository().join(folder)).ok_or("--write needs a folder")
    });
    let (keys, moved_keys) = if is_full { (10_000_000, 1_000_000) } else { (2_000, 2_000) };
    let mut pages = vec![evenness::page(keys), movement::page(moved_keys)];
    pages.extend(lookups::page()?);
    for page in &pages {
        println!("{}", page.markdown);
    }
    if let Some(folder) = folder.transpose()? {
        fs::create_dir_all(&folder)?;
        for page in pages {
            let (markdown, plot) = (format!("{}.md", page.name), format!("{}.svg", page.name));
            fs::write(folder.join(markdown), &page.markdown)?;
            (page.plot)(&folder.join(&plot))?;
            // Not as a comment: those of XML may not hold the two hyphens of an option.
            let svg = fs::read_to_string(folder.join(&plot))?;
            let made_by = format!(">\n<desc>Made by: {COMMAND}</desc>");
            fs::write(folder.join(&plot), svg.replacen('>', &made_by, 1) + "\n")?;
        }
        println!("written to {}", folder.display());
    }
    Ok(())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The head of a page.
fn head(title: &str, plot: &str) -> String {
    format!("<!-- Made by: {COMMAND} -->\n\n# {title}\n\n![{title}]({plot}.svg)\n")
}
