//! How libtorch's threads wait for one another.

use std::{env, os::unix::process::CommandExt, process::Command};

/// The setting that every OpenMP runtime reads.
const POLICY: &str = "OMP_WAIT_POLICY";
/// Settings of single runtimes that say the same; who sets one of them knows better.
const OTHER_SETTINGS: [&str; 2] = ["GOMP_SPINCOUNT", "KMP_BLOCKTIME"];

/// Makes threads sleep at barriers instead of spinning, unless the environment says how they wait.
///
/// A spinning thread keeps a core from the thread it waits for as soon as there are fewer free cores than threads: a step
/// then takes up to nine times as long. A machine that also runs an agent, a server or a browser is such a machine.
///
/// The runtime reads the setting when it is loaded, which is before `main`; so this starts the program anew, as the same
/// process. Where that fails, all goes on as it was, only slower.
pub fn sleep_at_barriers() {
    if [POLICY].iter().chain(&OTHER_SETTINGS).any(|setting| env::var_os(setting).is_some()) {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).env(POLICY, "PASSIVE").exec();
    eprintln!("training may be slow: cannot start anew with {POLICY} set: {error}");
}
