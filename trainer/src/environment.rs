//! Settings that libraries read from the environment when they are loaded, which is before `main`.

use std::{env, os::unix::process::CommandExt, process::Command};

/// A variable, its value, and other variables that say the same: who sets one of them knows better.
type Setting = (&'static str, &'static str, &'static [&'static str]);

const SETTINGS: &[Setting] = &[
    // OpenMP's threads sleep at barriers instead of spinning. A spinning thread keeps a core from the thread it waits for
    // as soon as there are fewer free cores than threads: a step then takes up to nine times as long. A machine that also
    // runs an agent, a server or a browser is such a machine.
    ("OMP_WAIT_POLICY", "PASSIVE", &["GOMP_SPINCOUNT", "KMP_BLOCKTIME"]),
    // CUDA counts the GPUs as the driver does, by their place on the PCI bus, and not the fastest first.
    ("CUDA_DEVICE_ORDER", "PCI_BUS_ID", &[]),
    // glibc cuts a few bytes off every large aligned block. Kept in its thread cache they never join the block again, so
    // that the next one of the same size does not fit in its place: the heap grows by half.
    #[cfg(target_env = "gnu")]
    ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0", &[]),
];

/// Starts the program anew, as the same process, with the settings that a training needs and the environment does not
/// have. Where that fails, all goes on as it was, only slower.
pub fn apply() {
    let is_set = |name: &str| env::var_os(name).is_some();
    let mut missing = SETTINGS
        .iter()
        .filter(|(name, _, others)| !is_set(name) && !others.iter().any(|name| is_set(name)))
        .peekable();
    if missing.peek().is_none() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).envs(missing.map(|(name, value, _)| (name, value))).exec();
    eprintln!(
        "cannot restart with the right environment: {error}; training may be slow, and GPUs may be \
         numbered fastest first"
    );
}
