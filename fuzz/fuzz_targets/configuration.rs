//! `keevee.toml` and `Config.toml`: taken or refused with a reason. What is taken of the first comes back the same, and
//! makes a first shard map or says why not.
#![no_main]

use std::path::Path;

use keevee_core::ids::{NodeId, StoreId};
use keevee_fuzz::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let path = Path::new("/etc/keevee.toml");
    match Config::parse(text, path) {
        Ok(config) => {
            let again = toml::to_string(&config).expect("TOML");
            let again = Config::parse(&again, path).expect("what was written");
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
            let _ = (config.timing(), config.limits(), config.io_threads());
            let store = StoreId(config.cluster.id);
            let stores: Vec<_> = config.members.iter().map(|member| (NodeId(member.id), store)).collect();
            let _ = (config.first_map(&stores, &[]), config.own_node(store));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match keevee_cluster::Config::parse(text, path) {
        Ok(config) => drop(config.seeds()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
