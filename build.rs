//! Compiles the admin API without protoc, and keeps its descriptors for reflection.

use std::{error::Error, path::PathBuf};

use protox::prost::Message as _;

// Each file by name: naming the folder would rebuild on every change of a .rs beside it.
const PROTOS: &[&str] = &[
    "proto/jtnt/admin/v1/agent.proto",
    "proto/jtnt/admin/v1/audit.proto",
    "proto/jtnt/admin/v1/cache.proto",
    "proto/jtnt/admin/v1/cert.proto",
    "proto/jtnt/admin/v1/job.proto",
    "proto/jtnt/admin/v1/policy.proto",
];

#[expect(clippy::disallowed_methods, reason = "a build script is no part of the agent")]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("admin.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
