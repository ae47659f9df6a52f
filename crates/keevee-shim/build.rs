//! Compiles the object that processes preload, `preload/shim.rs`, for the lib to carry. Elsewhere than on Linux with
//! glibc the lib carries nothing.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["preload/shim.rs", "src/control.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let object = PathBuf::from(env::var("OUT_DIR")?).join("keevee-shim.so");
    let is_linux = env::var("CARGO_CFG_TARGET_OS")? == "linux" && env::var("CARGO_CFG_TARGET_ENV")? == "gnu";
    if !is_linux {
        return Ok(std::fs::write(object, "")?);
    }
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .args(["--crate-type", "cdylib", "--crate-name", "keevee_shim_preload", "--edition", "2024"])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "lto=fat", "-C", "strip=symbols"])
        .args(["--target", &env::var("TARGET")?])
        .arg("-o")
        .arg(&object)
        .arg("preload/shim.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let status = rustc.status()?;
    if status.success() { Ok(()) } else { Err(format!("rustc ended with {status}").into()) }
}
