//! Compiles the C++ part against the libtorch that torch-sys links.

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=src/shim.cpp");
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
}
