//! Generates the codec's messages from `proto/`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/command.proto");
    let descriptors = protox::compile(["proto/command.proto"], ["proto"])?;
    // `Bytes` fields share the buffer they are decoded from: values are not copied.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
