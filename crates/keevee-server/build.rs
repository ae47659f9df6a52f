//! Generates the peer messages and their gRPC service from `proto/`, and a client of the public service for tests,
//! without `protoc`.

/// Bytes are readable text in JSON: the field, and the module that writes it.
const BASE64_FIELDS: [(&str, &str); 7] = [
    ("Entry.data", "base64_optional"),
    ("RaftEntry.data", "base64_optional"),
    ("Forward.commands", "base64_list"),
    ("ForwardReply.outcome", "base64_optional"),
    ("SnapshotChunk.keys", "base64_list"),
    ("SnapshotChunk.values", "base64_list"),
    ("SnapshotChunk.mark", "base64_optional"),
];

/// Left out of the JSON where they say nothing.
const QUIET_FIELDS: [(&str, &str); 10] = [
    ("Alive.short_of_room", "std::ops::Not::not"),
    ("Entry.data", "Option::is_none"),
    ("Entry.noop", "std::ops::Not::not"),
    ("Entry.configuration", "Option::is_none"),
    ("Configuration.next", "Vec::is_empty"),
    ("Configuration.learners", "Vec::is_empty"),
    ("ForwardReply.outcome", "Option::is_none"),
    ("ForwardReply.error", "Option::is_none"),
    ("ForwardFailure.leader", "Option::is_none"),
    ("SnapshotChunk.mark", "Option::is_none"),
];

/// What travels as JSON too; the rest is gRPC's alone.
const JSON_FILES: [&str; 2] = ["peer.proto", "raft.proto"];

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    watch("proto")?;
    let descriptors =
        protox::compile(["proto/peer.proto", "proto/raft.proto", "proto/peer_service.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // `Bytes` fields share the buffer that they come from: payloads are not copied.
    config.bytes(["."]);
    for file in descriptors.file.iter().filter(|file| JSON_FILES.contains(&file.name())) {
        for message in &file.message_type {
            let path = format!(".keevee.peer.v1.{}", message.name());
            config.message_attribute(path, "#[derive(serde::Serialize, serde::Deserialize)]");
        }
    }
    // In JSON the path says which kind a message is.
    let kind = "#[derive(serde::Serialize)] #[serde(untagged)]";
    config.enum_attribute(".keevee.peer.v1.Message.kind", kind);
    config.enum_attribute(".keevee.peer.v1.Raft.kind", "#[derive(serde::Serialize, serde::Deserialize)]");
    for (field, module) in BASE64_FIELDS {
        let attribute = format!("#[serde(with = \"crate::transport::http_json::text::{module}\")]");
        config.field_attribute(format!("keevee.peer.v1.{field}"), attribute);
    }
    for (field, says_nothing) in QUIET_FIELDS {
        let attribute = format!("#[serde(default, skip_serializing_if = \"{says_nothing}\")]");
        config.field_attribute(format!("keevee.peer.v1.{field}"), attribute);
    }
    tonic_prost_build::configure().build_transport(false).compile_fds_with_config(descriptors, config)?;
    public_client()
}

/// The messages are in `keevee-core`, which has the file too.
fn public_client() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../keevee-core/proto";
    watch(&format!("{folder}/kv.proto"))?;
    let descriptors = protox::compile(["kv.proto"], [folder])?;
    let builder = tonic_prost_build::configure().build_server(false);
    builder.extern_path(".keevee.v1", "::keevee_core::kv").compile_fds(descriptors)?;
    Ok(())
}

/// By its absolute path: the fuzz targets run this from another package, of which a relative one would be taken to be.
fn watch(path: &str) -> std::io::Result<()> {
    println!("cargo:rerun-if-changed={}", std::fs::canonicalize(path)?.display());
    Ok(())
}
