//! The basics: sets a key, reads it, removes it.
//!
//! `cargo run -p keevee-client --example put_get_delete`, after `keevee cluster start`.

mod endpoints;

use std::error::Error;

use keevee_client::{Consistency, Write};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;

    let version = client.put(b"color", "green", Write::default()).await?;
    println!("put: version {version}");

    // Linearizable: it sees every write acknowledged before.
    if let Some(value) = client.get(b"color", Consistency::Linearizable).await? {
        println!("get: {:?}, version {}", value.bytes, value.version);
    }

    // Stale: one replica's own state. It asks nobody else, and may be behind.
    let stale = client.get(b"color", Consistency::Stale).await?;
    println!("stale get: {:?}", stale.map(|value| value.bytes));

    let existed = client.delete(b"color", Write::default()).await?;
    println!("delete: it held a value: {existed}");
    Ok(())
}
