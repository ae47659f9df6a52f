//! Compare-and-set: changes a value only if nobody else did meanwhile, and begins anew if somebody did.
//!
//! `cargo run -p keevee-client --example compare_and_set`, after `keevee cluster start`.

mod endpoints;

use std::error::Error;

use keevee_client::{Consistency, ErrorKind, Expect, Write};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = endpoints::client()?;
    let key = b"visitors";
    loop {
        let held = client.get(key, Consistency::Linearizable).await?;
        let (list, expect) = match held {
            Some(value) => {
                (String::from_utf8_lossy(&value.bytes).into_owned(), Expect::Version(value.version))
            }
            None => (String::new(), Expect::Absent),
        };
        match client.put(key, list + "one more\n", Write::only_if(expect)).await {
            Ok(version) => {
                println!("written: version {version}");
                return Ok(());
            }
            // The key has another version by now.
            Err(error) if error.kind == ErrorKind::Conflict => println!("{error}; once more"),
            Err(error) => return Err(error.into()),
        }
    }
}
