//! Tells the dynamic linker where libtorch is, so that nothing needs `LD_LIBRARY_PATH`.
//!
//! Two places are looked into, in this order:
//! - `../libtorch/torch/lib` beside the binary's own folder: how a release is laid out;
//! - the folder that this build was linked with: the clone's `libtorch/`, or the user's `LIBTORCH`.
//!
//! The trainer and its benchmarks are linked so.
//!
//! `HATCHERY_RELOCATABLE=1` leaves the second out, so that a release holds no path of the machine it was built on.

use std::env;

/// From `bin/hatchery-trainer` to the libraries of a release.
const RELEASE_LIBRARIES: &str = "../libtorch/torch/lib";

fn main() {
    // Nothing else changes the outcome; without a rule every change in the package would run this again.
    println!("cargo::rerun-if-env-changed=HATCHERY_RELOCATABLE");

    let target = env::var("CARGO_CFG_TARGET_OS").expect("cargo names the target's system");
    let origin = if target == "macos" { "@loader_path" } else { "$ORIGIN" };
    search(&format!("{origin}/{RELEASE_LIBRARIES}"));
    let is_relocatable = env::var_os("HATCHERY_RELOCATABLE").is_some_and(|value| value == "1");
    match env::var("DEP_TCH_LIBTORCH_LIB") {
        Ok(linked) if !is_relocatable => search(&linked),
        _ => {}
    }
    if target == "linux" {
        // As DT_RUNPATH, which LD_LIBRARY_PATH goes before: that is how another libtorch is chosen at run time.
        println!("cargo::rustc-link-arg=-Wl,--enable-new-dtags");
    }
}

fn search(folder: &str) {
    println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
}
