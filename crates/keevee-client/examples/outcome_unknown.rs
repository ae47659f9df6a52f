//! When nobody knows whether a write happened: continues it under its request id, so that it happens once.
//!
//! Kill a node while it runs, and see that the counter counts each step once. `cargo run -p keevee-client --example
//! outcome_unknown`, after `keevee cluster start`.

mod endpoints;

use std::error::Error;

use keevee_client::{ErrorKind, Write};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;
    let before = client.increment(b"steps", 0, Write::default()).await?.value;
    for step in 1..=1000 {
        // The client mints an id for each call by itself. An id of our own outlives the call. A UUIDv7 carries its
        // time, which lets the servers say when it is too old to be known; others are known for ten minutes.
        let id = uuid::Uuid::now_v7().to_string();
        let counter = loop {
            let write = Write { request_id: Some(id.clone()), ..Write::default() };
            match client.increment(b"steps", 1, write).await {
                Ok(counter) => break counter,
                // Nothing happened, or nobody knows: under the same id, both are safe to send again.
                Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::OutcomeUnknown) => {
                    println!("step {step}: {error}; again");
                }
                Err(error) => return Err(error.into()),
            }
        };
        assert_eq!(counter.value, before + step, "each step counts once, if nobody else counts");
    }
    println!("1000 steps, each counted once");
    Ok(())
}
