//! Compiles the C++ part against the libtorch that torch-sys links.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=src/shim.cpp");
    println!("cargo::rerun-if-changed=src/kernels");
    let library =
        env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the folder of libtorch's libraries");
    let include =
        Path::new(&library).parent().expect("the libraries stand in libtorch's folder").join("include");
    // For this package's own tests.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{library}");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false) // libtorch's headers have theirs
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .file("src/shim.cpp")
        .compile("hatchery_trainer_shim");
    if env::var_os("CARGO_FEATURE_EMULATION").is_some() {
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .flag("-Wno-unused-function")
            .file("src/kernels/emulation.cpp")
            .compile("hatchery_trainer_emulation");
    }
}
