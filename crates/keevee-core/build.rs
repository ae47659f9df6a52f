//! Generates the messages from `proto/`, without `protoc`: those of the codecs, and the public ones.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["proto/command.proto", "proto/kv.proto", "proto/shard_map.proto"] {
        println!("cargo:rerun-if-changed={file}");
        let descriptors = protox::compile([file], ["proto"])?;
        // `Bytes` fields share the buffer they are decoded from: values are not copied.
        let mut config = prost_build::Config::new();
        // Few errors have one, and errors are returned by value.
        config.bytes(["."]).boxed(".keevee.v1.Error.hint").compile_fds(descriptors)?;
    }
    Ok(())
}
