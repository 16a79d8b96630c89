//! Generates the wire's Rust code from the .proto files; protox parses them, so no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 5] = [
    "hatchery/v1/types.proto",
    "hatchery/v1/fleet.proto",
    "hatchery/v1/agents.proto",
    "hatchery/v1/blobs.proto",
    "hatchery/v1/peers.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let folder = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(folder.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .btree_map(".") // so that equal messages have equal bytes
        .bytes(".hatchery.v1.Piece.bytes") // so that a received piece is not copied
        .bytes(".hatchery.v1.SwarmPiece.bytes")
        .compile_fds(descriptors)?;
    Ok(())
}
