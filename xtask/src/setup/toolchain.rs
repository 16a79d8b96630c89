//! What must be installed before anything can be built, and the command that installs what is missing.

use std::process::Command;

use anyhow::{Context, Result, bail};
use console::style;

use crate::repo;

/// A system, as far as it matters for installing something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum System {
    Macos,
    Debian,
    Fedora,
    Arch,
    Suse,
    Other,
}

/// A thing that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Rust,
    CxxCompiler,
    Python,
    Pip,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::CxxCompiler => "C++ compiler",
            Self::Python => "python3",
            Self::Pip => "pip",
        }
    }

    /// The command that installs it.
    fn remedy(self, system: System) -> String {
        use System::{Arch, Debian, Fedora, Macos, Other, Suse};
        use Tool::{CxxCompiler, Pip, Python, Rust};
        let package = match (self, system) {
            (Rust, _) => {
                return "curl https://sh.rustup.rs -sSf | sh   (or, with rustup: rustup update)".to_owned();
            }
            (_, Other) => return format!("install {} with this system's package manager", self.name()),
            (CxxCompiler, Macos) => return "xcode-select --install".to_owned(),
            (CxxCompiler, Debian) => "g++",
            (CxxCompiler, Arch) => "gcc",
            (CxxCompiler, Fedora | Suse) => "gcc-c++",
            (Python, Arch) => "python",
            (Pip, Arch) => "python-pip",
            (Pip, Debian | Fedora | Suse) => "python3-pip",
            (Python | Pip, _) => "python3",
        };
        let install = match system {
            Macos => "brew install",
            Debian => "sudo apt-get install",
            Fedora => "sudo dnf install",
            Arch => "sudo pacman -S",
            Suse => "sudo zypper install",
            Other => "install",
        };
        format!("{install} {package}")
    }
}

/// Looks for every tool; prints what is there; fails naming what is missing and how to get it.
/// Python and pip are not strictly needed: without them the default index is used, and there is no second way to
/// fetch from it.
pub(crate) fn check() -> Result<()> {
    let system = system();
    let mut missing = 0;
    for tool in [Tool::Rust, Tool::CxxCompiler, Tool::Python, Tool::Pip] {
        let is_needed = matches!(tool, Tool::Rust | Tool::CxxCompiler);
        match find(tool) {
            Ok(found) => eprintln!("{} {:<13} {found}", style("ok     ").green(), tool.name()),
            Err(error) => {
                missing += u32::from(is_needed);
                let mark = if is_needed { style("missing").red() } else { style("missing").yellow() };
                eprintln!("{mark} {:<13} {error:#}: {}", tool.name(), tool.remedy(system));
            }
        }
    }
    if missing > 0 {
        bail!("the toolchain is incomplete: install what is missing above and run this again");
    }
    Ok(())
}

fn find(tool: Tool) -> Result<String> {
    match tool {
        Tool::Rust => {
            let found = first_line(Command::new("rustc").arg("--version"))?;
            let toolchain = std::fs::read_to_string(repo::root().join("rust-toolchain.toml"))
                .context("the clone has no rust-toolchain.toml")?;
            let wanted = wanted_rust(&toolchain)?;
            if !is_recent_enough(&found, &wanted) {
                bail!("{found}, {wanted} is needed");
            }
            Ok(found)
        }
        Tool::CxxCompiler => {
            let set = std::env::var("CXX").ok().filter(|command| !command.is_empty());
            let commands: Vec<String> = match set {
                Some(command) => vec![command],
                None => ["c++", "g++", "clang++"].map(str::to_owned).to_vec(),
            };
            let found =
                commands.iter().find_map(|command| first_line(Command::new(command).arg("--version")).ok());
            found.with_context(|| format!("none of {} starts", commands.join(", ")))
        }
        Tool::Python => first_line(Command::new("python3").arg("--version")),
        Tool::Pip => {
            let found = first_line(Command::new("python3").args(["-m", "pip", "--version"]))?;
            Ok(found.split(" from ").next().unwrap_or(&found).to_owned())
        }
    }
}

fn first_line(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} does not start"))?;
    if !output.status.success() {
        bail!("{program} is there but fails");
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned())
}

fn wanted_rust(toolchain: &str) -> Result<String> {
    let parsed: toml::Table = toolchain.parse().context("rust-toolchain.toml cannot be read")?;
    let channel =
        parsed.get("toolchain").and_then(|table| table.get("channel")).and_then(toml::Value::as_str);
    Ok(channel.context("rust-toolchain.toml names no channel")?.to_owned())
}

/// Compares `rustc 1.95.0 (...)` with `1.95.0`; a channel without a number accepts everything.
fn is_recent_enough(found: &str, wanted: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        let digits = text.split(['-', ' ']).next().unwrap_or_default();
        digits.split('.').filter_map(|part| part.parse().ok()).collect()
    };
    let found = found.strip_prefix("rustc ").unwrap_or(found);
    numbers(found) >= numbers(wanted)
}

fn system() -> System {
    if cfg!(target_os = "macos") {
        return System::Macos;
    }
    distribution(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
}

/// The family of a distribution, from the `ID` and `ID_LIKE` lines of its os-release.
fn distribution(os_release: &str) -> System {
    let field = |name: &str| os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let names =
        [field("ID"), field("ID_LIKE")].into_iter().flatten().collect::<Vec<_>>().join(" ").replace('"', "");
    let families = [
        ("debian", System::Debian),
        ("ubuntu", System::Debian),
        ("fedora", System::Fedora),
        ("rhel", System::Fedora),
        ("arch", System::Arch),
        ("suse", System::Suse),
    ];
    let family =
        |name: &str| families.iter().find(|(start, _)| name.starts_with(start)).map(|(_, system)| *system);
    names.split_whitespace().find_map(family).unwrap_or(System::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_known_by_their_family() {
        assert_eq!(distribution("NAME=\"x\"\nID=debian\n"), System::Debian);
        assert_eq!(distribution("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), System::Debian);
        assert_eq!(distribution("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"), System::Fedora);
        assert_eq!(distribution("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n"), System::Suse);
        assert_eq!(distribution("ID=arch\n"), System::Arch);
        assert_eq!(distribution("ID=nixos\n"), System::Other);
    }

    #[test]
    fn the_remedy_is_a_command_of_the_system() {
        assert_eq!(Tool::CxxCompiler.remedy(System::Debian), "sudo apt-get install g++");
        assert_eq!(Tool::CxxCompiler.remedy(System::Macos), "xcode-select --install");
        assert_eq!(Tool::Pip.remedy(System::Fedora), "sudo dnf install python3-pip");
        assert_eq!(Tool::Python.remedy(System::Arch), "sudo pacman -S python");
        assert!(Tool::Rust.remedy(System::Other).contains("rustup"));
    }

    #[test]
    fn rust_is_compared_by_number() {
        assert_eq!(wanted_rust("[toolchain]\nchannel = \"1.95.0\"\n").unwrap(), "1.95.0");
        assert!(is_recent_enough("rustc 1.95.0 (abc 2026-01-01)", "1.95.0"));
        assert!(is_recent_enough("rustc 1.100.0-nightly (abc)", "1.95.0"));
        assert!(!is_recent_enough("rustc 1.94.9 (abc)", "1.95.0"));
        assert!(is_recent_enough("rustc 1.95.0", "stable"));
    }
}
