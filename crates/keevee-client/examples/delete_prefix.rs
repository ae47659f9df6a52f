//! Deletes by prefix: in one call, and step by step where there is much to delete.
//!
//! `cargo run -p keevee-client --example delete_prefix`, after `keevee cluster start`.

mod endpoints;

use std::error::Error;

use keevee_client::KeyRange;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;
    let fill = async || client.multi_put((0..5000).map(|number| (format!("draft-{number}"), "text"))).await;

    fill().await;
    println!("{} keys deleted", client.delete_prefix("draft-", None).await?);

    // A call has one timeout, a step has it too: so this may take as long as it needs.
    fill().await;
    let mut deletion = client.deletion(KeyRange::of_prefix("draft-"), None)?;
    while deletion.step().await? {
        println!("{} keys deleted so far", deletion.deleted());
    }
    println!("{} keys deleted", deletion.deleted());
    Ok(())
}
