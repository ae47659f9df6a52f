//! Which nodes the examples talk to: `--endpoints URL,URL`, else `KEEVEE_ENDPOINTS`, else what `keevee cluster start`
//! starts.

use std::error::Error;

use keevee_client::{Client, Options};

const DEFAULT: &str = "http://127.0.0.1:8001,http://127.0.0.1:8002,http://127.0.0.1:8003";

/// A client of these nodes.
pub(crate) fn client() -> Result<Client, Box<dyn Error>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--endpoints").skip(1);
    let named = arguments.next().or_else(|| std::env::var("KEEVEE_ENDPOINTS").ok());
    let named = named.unwrap_or_else(|| DEFAULT.to_owned());
    let endpoints = named.split(',').map(str::parse).collect::<Result<_, _>>()?;
    Ok(Client::new(endpoints, Options::default())?)
}
