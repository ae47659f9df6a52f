//! Scans keys in order, over all shards: page by page with a cursor, and all of them as a stream.
//!
//! `cargo run -p keevee-client --example scan`, after `keevee cluster start`.

mod endpoints;

use std::error::Error;
use std::pin::pin;

use futures_util::TryStreamExt;
use keevee_client::{KeyRange, Scan};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;
    client.multi_put((0..250).map(|number| (format!("fruit-{number:03}"), "ripe"))).await;

    // A page at a time. The cursor is text: it can be handed on and used later, by another program too.
    let mut scan = Scan::of_prefix("fruit-").limit(100);
    loop {
        let page = client.scan(&scan).await?;
        let (first, last) = (page.entries.first(), page.entries.last());
        if let (Some(first), Some(last)) = (first, last) {
            println!("{} keys, {:?} to {:?}", page.entries.len(), first.key, last.key);
        }
        match page.cursor {
            Some(cursor) => scan = scan.after(cursor),
            None => break,
        }
    }

    // All of them: a page is fetched when the one before is used up.
    let some = KeyRange { start: "fruit-010".into(), end: Some("fruit-020".into()) };
    let mut entries = pin!(client.scan_all(Scan::of_range(some)));
    while let Some(entry) = entries.try_next().await? {
        println!("{:?} = {:?}, version {}", entry.key, entry.value.bytes, entry.value.version);
    }
    Ok(())
}
