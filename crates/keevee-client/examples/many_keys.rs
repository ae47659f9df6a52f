//! Many keys at once: sets and reads a thousand, each for itself, over one connection per node.
//!
//! `cargo run -p keevee-client --example many_keys`, after `keevee cluster start`.

mod endpoints;

use std::error::Error;
use std::time::Instant;

use keevee_client::Consistency;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;
    let keys: Vec<String> = (0..1000).map(|number| format!("user-{number}")).collect();

    let started = Instant::now();
    let written = client.multi_put(keys.iter().map(|key| (key.clone(), format!("value of {key}")))).await;
    // Each key has a result of its own, in the order given.
    let failed = written.iter().filter(|result| result.is_err()).count();
    println!("{} written, {failed} failed, {:?}", written.len() - failed, started.elapsed());

    let started = Instant::now();
    let read = client.multi_get(&keys, Consistency::Linearizable).await;
    let found = read.iter().filter(|result| matches!(result, Ok(Some(_)))).count();
    println!("{found} found, {:?}", started.elapsed());
    Ok(())
}
