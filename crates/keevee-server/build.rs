//! Generates the peer messages from `proto/`, and a client of the public service for tests, without `protoc`.

/// Bytes are readable text in JSON: the field, and the module that writes it.
const BASE64_FIELDS: [(&str, &str); 3] = [
    ("Entry.data", "base64_optional"),
    ("Forward.commands", "base64_list"),
    ("ForwardReply.outcome", "base64_optional"),
];

/// Left out of the JSON where they say nothing.
const QUIET_FIELDS: [(&str, &str); 4] = [
    ("Entry.data", "Option::is_none"),
    ("Entry.noop", "std::ops::Not::not"),
    ("ForwardReply.outcome", "Option::is_none"),
    ("ForwardReply.error", "Option::is_none"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/peer.proto");
    let descriptors = protox::compile(["proto/peer.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // `Bytes` fields share the buffer that they come from: payloads are not copied.
    config.bytes(["."]);
    config.message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]");
    for (field, module) in BASE64_FIELDS {
        let attribute = format!("#[serde(with = \"crate::transport::text::{module}\")]");
        config.field_attribute(format!("keevee.peer.v1.{field}"), attribute);
    }
    for (field, says_nothing) in QUIET_FIELDS {
        let attribute = format!("#[serde(default, skip_serializing_if = \"{says_nothing}\")]");
        config.field_attribute(format!("keevee.peer.v1.{field}"), attribute);
    }
    config.compile_fds(descriptors)?;
    public_client()
}

/// The messages are in `keevee-core`, which has the file too.
fn public_client() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../keevee-core/proto";
    println!("cargo:rerun-if-changed={folder}/kv.proto");
    let descriptors = protox::compile(["kv.proto"], [folder])?;
    let builder = tonic_prost_build::configure().build_server(false);
    builder.extern_path(".keevee.v1", "::keevee_core::kv").compile_fds(descriptors)?;
    Ok(())
}
