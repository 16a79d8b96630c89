//! The fuzzer: libFuzzer, with the target that `HATCHERY_FUZZ_TARGET` names. Its seeds go into the folder
//! `HATCHERY_FUZZ_SEEDS` first. `cargo xtask fuzz` builds and runs it.
#![no_main]

use std::{env, fs, path::Path, sync::OnceLock};

use hatchery_fuzz::{Target, target};

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn begin() {
    let name = env::var("HATCHERY_FUZZ_TARGET").expect("HATCHERY_FUZZ_TARGET names the target");
    let target =
        TARGET.get_or_init(|| target(&name).expect("HATCHERY_FUZZ_TARGET names a target that there is"));
    if let Some(folder) = env::var_os("HATCHERY_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).expect("seeds can be written");
        }
    }
}

libfuzzer_sys::fuzz_target!(init: begin(), |bytes: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.check)(bytes);
    }
});
