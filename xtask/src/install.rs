//! `cargo xtask install` and `uninstall`: a release below a prefix, as far as it concerns one person's machine.
//!
//! ```text
//! PREFIX/lib/hatchery/                 bin/ and libtorch/ of a release, and the list of what was installed
//! PREFIX/bin/                          links to the two programs
//! PREFIX/share/man/man1/               a page of the manual for each command
//! PREFIX/share/bash-completion/completions/  PREFIX/share/zsh/site-functions/  PREFIX/share/fish/vendor_completions.d/
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{self, Profile};
use crate::release::{self, PROGRAMS};

const RELEASE: &str = "lib/hatchery";
const MANUAL: &str = "share/man/man1";
/// Where each shell looks for the completions of a command.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/hatchery"),
    ("zsh", "share/zsh/site-functions/_hatchery"),
    ("fish", "share/fish/vendor_completions.d/hatchery.fish"),
];

/// Flags of both.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder whose `bin`, `lib` and `share` receive the files [default: ~/.local]
    #[arg(long, value_name = "FOLDER")]
    prefix: Option<PathBuf>,
}

impl Options {
    fn prefix(&self) -> Result<PathBuf> {
        match &self.prefix {
            Some(prefix) => std::path::absolute(prefix).context("the prefix is no path"),
            None => Ok(std::env::home_dir().context("HOME is not set: give --prefix")?.join(".local")),
        }
    }
}

/// Builds a release and puts it below the prefix; what an earlier one left over there goes.
pub(crate) fn install(options: &Options) -> Result<()> {
    let prefix = options.prefix()?;
    let binaries = cargo::set_up_and_build(Profile::Release)?;
    // What the programs themselves write is written here first.
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let mut files = Vec::new();
    for file in release::files(&binaries, false)? {
        files.push((file.from, Path::new(RELEASE).join(file.to)));
    }
    release::write_manual(&binaries.hatchery, scratch.path())?;
    for page in fs::read_dir(scratch.path())? {
        let page = page?;
        files.push((page.path(), Path::new(MANUAL).join(page.file_name())));
    }
    for (shell, path) in COMPLETIONS {
        let script = scratch.path().join(shell);
        fs::write(&script, completions(&binaries.hatchery, shell)?)?;
        files.push((script, path.into()));
    }
    place(&prefix, &files)?;
    release::smoke_test(&prefix.join("bin"), &prefix.join(RELEASE).join("libtorch"))?;
    println!("hatchery and hatchery-trainer are in {}", prefix.join("bin").display());
    println!("their manual and completions are in {}", prefix.join("share").display());
    if let Some(advice) = advice(&prefix.join("bin"), std::env::var_os("PATH").as_deref()) {
        println!("{advice}");
    }
    Ok(())
}

/// Takes away what is installed below the prefix, and the folders that this leaves empty.
pub(crate) fn uninstall(options: &Options) -> Result<()> {
    let prefix = options.prefix()?;
    if displace(&prefix)? {
        println!("hatchery was removed from {}; its data is untouched", prefix.display());
    } else {
        println!("hatchery is not installed in {}", prefix.display());
    }
    Ok(())
}

fn completions(hatchery: &Path, shell: &str) -> Result<Vec<u8>> {
    let output = Command::new(hatchery).args(["completions", shell]).output();
    let output = output.context("cannot start hatchery")?;
    if !output.status.success() {
        bail!("`hatchery completions {shell}` failed ({})", output.status);
    }
    Ok(output.stdout)
}

/// The line for a shell's startup file, where it would not look into `bin`.
fn advice(bin: &Path, path: Option<&std::ffi::OsStr>) -> Option<String> {
    let is_there = path.is_some_and(|path| std::env::split_paths(path).any(|folder| folder == bin));
    (!is_there).then(|| {
        format!(
            "{0} is not in PATH; add it, for example with this line in ~/.profile:\n  export \
             PATH=\"{0}:$PATH\"",
            bin.display()
        )
    })
}

/// Puts files, given with their paths below the prefix, and the links to the programs in place, each at once: what runs
/// goes on with the old file.
fn place(prefix: &Path, files: &[(PathBuf, PathBuf)]) -> Result<()> {
    let links = PROGRAMS.map(|program| {
        (Path::new("..").join(RELEASE).join("bin").join(program), Path::new("bin").join(program))
    });
    let paths = files.iter().map(|(_, path)| path).chain(links.iter().map(|(_, path)| path));
    let new: BTreeSet<PathBuf> = paths.cloned().collect();
    let old = Installed::read(prefix)?;
    if let Some(path) = new.difference(&old).find(|path| prefix.join(path).symlink_metadata().is_ok()) {
        bail!("{} already exists, but not from `install`", prefix.join(path).display());
    }
    // Until all is in place, both are to be taken away by `uninstall`.
    Installed::write(prefix, &old.union(&new).cloned().collect())?;
    for (from, path) in files {
        let is_program = path.starts_with(Path::new(RELEASE).join("bin"));
        put(&prefix.join(path), |temporary| {
            // cargo and the linker write programs anew in place, so a link would not do.
            if is_program {
                fs::copy(from, temporary).map(drop).map_err(Into::into)
            } else {
                release::copy(from, temporary)
            }
        })?;
    }
    for (target, path) in &links {
        put(&prefix.join(path), |temporary| symlink(target, temporary).map_err(Into::into))?;
    }
    for path in old.difference(&new) {
        remove(prefix, path)?;
    }
    Installed::write(prefix, &new)
}

/// Makes a file under another name, and then gives it its own.
fn put(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = path.file_name().context("a file has a name")?;
    let temporary = folder.join(format!(".{}.new", name.to_string_lossy()));
    let cannot = || format!("cannot write {}", path.display());
    missing_is_fine(fs::remove_file(&temporary)).with_context(cannot)?;
    make(&temporary).with_context(cannot)?;
    fs::rename(&temporary, path).with_context(cannot)
}

/// Removes all that is installed; false where nothing is.
fn displace(prefix: &Path) -> Result<bool> {
    let installed = Installed::read(prefix)?;
    for path in &installed {
        remove(prefix, path)?;
    }
    Installed::remove(prefix)?;
    Ok(!installed.is_empty())
}

/// Removes a file below the prefix, and the folders that it was the last one in.
fn remove(prefix: &Path, path: &Path) -> Result<()> {
    let file = prefix.join(path);
    missing_is_fine(fs::remove_file(&file)).with_context(|| format!("cannot remove {}", file.display()))?;
    let folders = path.ancestors().skip(1).take_while(|folder| !folder.as_os_str().is_empty());
    for folder in folders {
        // One that holds anything stays.
        if fs::remove_dir(prefix.join(folder)).is_err() {
            break;
        }
    }
    Ok(())
}

fn missing_is_fine(result: std::io::Result<()>) -> std::io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The list of what is installed below a prefix: a path below it in each line.
struct Installed;

impl Installed {
    const FILE: &str = "lib/hatchery/installed";

    fn read(prefix: &Path) -> Result<BTreeSet<PathBuf>> {
        let file = prefix.join(Self::FILE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let paths: BTreeSet<PathBuf> = text.lines().map(PathBuf::from).collect();
        let is_below = |path: &PathBuf| path.components().all(|part| matches!(part, Component::Normal(_)));
        if let Some(path) = paths.iter().find(|path| !is_below(path)) {
            bail!("{} names {}, which is not below the prefix", file.display(), path.display());
        }
        Ok(paths)
    }

    fn write(prefix: &Path, paths: &BTreeSet<PathBuf>) -> Result<()> {
        let lines: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        put(&prefix.join(Self::FILE), |temporary| Ok(fs::write(temporary, lines.join("\n"))?))
    }

    fn remove(prefix: &Path) -> Result<()> {
        remove(prefix, Path::new(Self::FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every file and link below `folder`, by its path.
    fn tree(folder: &Path) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::new();
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                paths.extend(tree(&entry.path()));
            } else {
                paths.insert(entry.path());
            }
        }
        paths
    }

    /// What is to be installed, each file with its path as its text.
    fn files(scratch: &Path, paths: &[&str]) -> Vec<(PathBuf, PathBuf)> {
        let file = |path: &&str| {
            let from = scratch.join(path.replace('/', "-"));
            fs::write(&from, path).unwrap();
            (from, PathBuf::from(path))
        };
        paths.iter().map(file).collect()
    }

    const FIRST: [&str; 4] = [
        "lib/hatchery/bin/hatchery",
        "lib/hatchery/bin/hatchery-trainer",
        "lib/hatchery/libtorch/torch/lib/libold.so",
        "share/man/man1/hatchery.1",
    ];
    const SECOND: [&str; 3] =
        ["lib/hatchery/bin/hatchery", "lib/hatchery/bin/hatchery-trainer", "share/man/man1/hatchery.1"];

    #[test]
    fn what_is_installed_is_taken_away_and_nothing_else() {
        let (scratch, top) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let prefix = top.path().join("prefix");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        fs::write(prefix.join("bin/other"), "").unwrap();
        place(&prefix, &files(scratch.path(), &FIRST)).unwrap();
        let program = prefix.join("bin/hatchery");
        assert_eq!(fs::read_to_string(&program).unwrap(), "lib/hatchery/bin/hatchery");
        assert!(fs::read_link(&program).unwrap().is_relative(), "the prefix may be moved");
        assert!(displace(&prefix).unwrap());
        assert_eq!(tree(top.path()), [prefix.join("bin/other")].into());
        assert!(!prefix.join("lib").exists() && !prefix.join("share").exists());
        assert!(!displace(&prefix).unwrap(), "a second time there is nothing to do");
    }

    #[test]
    fn a_newer_one_replaces_the_older_while_that_is_in_use() {
        let (scratch, prefix) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        place(prefix.path(), &files(scratch.path(), &FIRST)).unwrap();
        let mut in_use = fs::File::open(prefix.path().join("bin/hatchery")).unwrap();
        let newer = files(scratch.path(), &SECOND);
        fs::write(&newer[0].0, "newer").unwrap();
        place(prefix.path(), &newer).unwrap();
        assert_eq!(fs::read_to_string(prefix.path().join("bin/hatchery")).unwrap(), "newer");
        assert_eq!(std::io::read_to_string(&mut in_use).unwrap(), "lib/hatchery/bin/hatchery");
        assert!(!prefix.path().join("lib/hatchery/libtorch").exists(), "what is no longer of it is gone");
    }

    #[test]
    fn what_somebody_else_put_there_is_left_alone() {
        let (scratch, prefix) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(prefix.path().join("bin")).unwrap();
        fs::write(prefix.path().join("bin/hatchery"), "theirs").unwrap();
        let message = place(prefix.path(), &files(scratch.path(), &FIRST)).unwrap_err().to_string();
        assert!(message.contains("bin/hatchery already exists"), "{message}");
        assert!(!displace(prefix.path()).unwrap());
        assert_eq!(fs::read_to_string(prefix.path().join("bin/hatchery")).unwrap(), "theirs");
    }

    #[test]
    fn a_list_that_leads_out_of_the_prefix_is_refused() {
        let prefix = tempfile::tempdir().unwrap();
        fs::create_dir_all(prefix.path().join(RELEASE)).unwrap();
        for path in ["../precious", "/etc/passwd"] {
            fs::write(prefix.path().join(Installed::FILE), format!("{path}\n")).unwrap();
            assert!(displace(prefix.path()).unwrap_err().to_string().contains("not below the prefix"));
        }
    }

    #[test]
    fn the_shell_is_told_of_a_folder_that_it_does_not_know() {
        let bin = Path::new("/home/me/.local/bin");
        assert_eq!(advice(bin, Some("/bin:/home/me/.local/bin".as_ref())), None);
        assert!(
            advice(bin, Some("/bin".as_ref())).unwrap().contains("export PATH=\"/home/me/.local/bin:$PATH\"")
        );
        assert!(advice(bin, None).is_some());
    }
}
