//! Changes that need no reading before: adds to a counter, appends to a log.
//!
//! `cargo run -p keevee-client --example increment_append`, after `keevee cluster start`.

mod endpoints;

use std::error::Error;

use keevee_client::{OperationError, Write};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;

    let counter = client.increment(b"hits", 1, Write::default()).await?;
    println!("hits: {}, version {}", counter.value, counter.version);

    let appended = client.append(b"log", "started\n", Write::default()).await?;
    println!("log: {} bytes, version {}", appended.length, appended.version);

    // What is no number can't be added to; nothing happens then.
    if let Err(error) = client.increment(b"log", 1, Write::default()).await {
        let is_no_number = error.failed.is_some_and(|failed| failed.error == OperationError::NotAnInteger);
        println!("increment of the log: {error} (is no number: {is_no_number})");
    }
    Ok(())
}
