//! Generates the peer messages from `proto/`, without `protoc`.

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
    Ok(())
}
