//! Several operations as one: a transfer between two accounts, which happens as a whole or not at all.
//!
//! The keys share the hash tag `bank`, so they are in one shard. `cargo run -p keevee-client --example batch`, after
//! `keevee cluster start`.

mod endpoints;

use std::error::Error;

use keevee_client::{Batch, ErrorKind, Expect, OperationResult};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;

    // Opens both accounts, unless they are there.
    let open = Batch::new()
        .only_if("{bank}alice", Expect::Absent)
        .only_if("{bank}bob", Expect::Absent)
        .put("{bank}alice", "100")
        .put("{bank}bob", "100");
    match client.execute(open, None).await {
        Ok(_) => println!("opened"),
        Err(error) if error.kind == ErrorKind::Conflict => println!("the accounts are there"),
        Err(error) => return Err(error.into()),
    }

    let transfer = Batch::new().increment("{bank}alice", -10).increment("{bank}bob", 10).get("{bank}alice");
    for result in client.execute(transfer, None).await? {
        match result {
            OperationResult::Incremented(counter) => println!("balance {}", counter.value),
            OperationResult::Value(Some(value)) => println!("alice reads {:?}", value.bytes),
            other => println!("{other:?}"),
        }
    }

    // Keys without a common hash tag may be in different shards, where nothing can happen as one.
    let apart = Batch::new().put("alice", "1").put("bob", "1");
    match client.execute(apart, None).await {
        Ok(_) => println!("alice and bob happen to be in one shard"),
        Err(error) => println!("{error}"),
    }
    Ok(())
}
