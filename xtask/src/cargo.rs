//! cargo, started from here.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{progress, repo, setup};

/// The packages with the two binaries.
pub(crate) const BINARY_PACKAGES: [&str; 2] = ["hatchery-cli", "hatchery-trainer"];

/// The two binaries, as built.
pub(crate) struct Binaries {
    /// `hatchery`: coordinator, agent, command line.
    pub(crate) hatchery: PathBuf,
    /// `hatchery-trainer`: the one that links libtorch.
    pub(crate) trainer: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Release,
    /// Optimised, and without any path of this machine in the trainer.
    Relocatable,
}

/// A cargo command in the clone's root.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(repo::root());
    // What cargo told this program about itself would have build scripts that look at it run again, and with them half of
    // what was built by hand.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Runs cargo; fails if it does.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let status = command(arguments).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}

/// Fetches libtorch if it is not there, and meanwhile builds what does not need it; then builds both binaries.
pub(crate) fn set_up_and_build(profile: Profile) -> Result<Binaries> {
    let mut early = None;
    if !setup::is_done() {
        progress::share_terminal();
        let build = binaries_command(profile, &["--keep-going"]).stdout(Stdio::null()).spawn();
        early = Some(build.context("cannot start cargo")?);
    }
    let set_up = setup::run(&setup::Options::default());
    if let Some(mut early) = early {
        if set_up.is_err() {
            early.kill().context("cannot end cargo")?;
        }
        // Where the fetch took longer than all the rest, libtorch was missing in the end: the build below goes on from there.
        early.wait().context("cannot wait for cargo")?;
    }
    set_up?;
    build_binaries(profile)
}

fn binaries_command(profile: Profile, arguments: &[&str]) -> Command {
    let mut command = command(&[&["build", "--release"], arguments].concat());
    for package in BINARY_PACKAGES {
        command.args(["--package", package]);
    }
    if profile == Profile::Relocatable {
        command.env("HATCHERY_RELOCATABLE", "1");
    }
    command
}

/// Builds both binaries and says where they are, whatever target folder cargo is set to use.
pub(crate) fn build_binaries(profile: Profile) -> Result<Binaries> {
    let command = binaries_command(profile, &["--message-format=json-render-diagnostics"]);
    let messages =
        messages_of(command).with_context(|| format!("building {}", BINARY_PACKAGES.join(" and ")))?;
    let find =
        |name: &str| executable(&messages, name).with_context(|| format!("cargo built no binary {name}"));
    Ok(Binaries { hatchery: find("hatchery")?, trainer: find("hatchery-trainer")? })
}

/// Builds with these arguments of `cargo build`, and says where the binary or example called `name` is.
pub(crate) fn build(arguments: &[&str], name: &str) -> Result<PathBuf> {
    let build = ["build", "--message-format=json-render-diagnostics"];
    build_with(command(&[&build, arguments].concat()), name)
}

/// The same for a whole cargo command, which must print JSON messages.
pub(crate) fn build_with(command: Command, name: &str) -> Result<PathBuf> {
    executable(&messages_of(command)?, name).with_context(|| format!("cargo built no binary {name}"))
}

/// Runs a build to its end, and gives its messages.
fn messages_of(mut command: Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the build failed");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The path of a binary in cargo's JSON messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find_map(
        |message| {
            let target = message.get("target")?;
            let runs = target.get("kind")?.as_array()?.iter().any(|kind| kind == "bin" || kind == "example");
            // A test of the binary's own has its name too.
            let is_test = message.pointer("/profile/test") == Some(&serde_json::Value::Bool(true));
            let is_it = runs && !is_test && target.get("name")? == name;
            is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_is_found_among_the_messages() {
        let messages = "not json\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"lib\"],\"name\":\"hatchery\"},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"bin\"],\"name\":\"hatchery\"},\"profile\":{\"test\":true},\"executable\":\"/t/hatchery-1f\"}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"bin\"],\"name\":\"hatchery\"},\"profile\":{\"test\":false},\"executable\":\"/t/hatchery\"}\n";
        assert_eq!(executable(messages, "hatchery"), Some("/t/hatchery".into()));
        assert_eq!(executable(messages, "hatchery-trainer"), None);
    }
}
