//! Generates the peer messages as `keevee-server` does, for its source that is read here.

#[path = "../crates/keevee-server/build.rs"]
mod server;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    std::env::set_current_dir("../crates/keevee-server")?;
    server::main()
}
