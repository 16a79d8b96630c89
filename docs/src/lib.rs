//! The pages of this repository as its tests read them, and the reference pages that are written from the code.
//!
//! Nothing that is shipped depends on this crate. `cargo xtask docs` writes the generated pages anew.

mod page;
mod source;
mod table;

use std::{env, fmt::Display, fs, path::PathBuf};

pub use page::{Page, commands_of, pages};
pub use source::Source;
pub use table::tables;

/// The variable that has [`assert_generated`] write a page instead of comparing it.
const WRITE_VARIABLE: &str = "HATCHERY_DOCS_WRITE";

/// The repository's root.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Asserts that the code blocks of all pages call `program` at least `calls_min` times, and that `parse` takes the arguments of
/// each call.
pub fn assert_commands_parse<E: Display>(
    program: &str,
    calls_min: usize,
    parse: impl Fn(Vec<String>) -> Result<(), E>,
) {
    let mut calls = 0;
    for page in pages() {
        for arguments in page.commands(program) {
            calls += 1;
            let shown = arguments.join(" ");
            parse(arguments)
                .unwrap_or_else(|error| panic!("{}: `{program} {shown}`: {error}", page.path.display()));
        }
    }
    assert!(calls >= calls_min, "the pages call {program} {calls} times, fewer than {calls_min}");
}

/// Asserts that the page at `path`, from the root, is `text`; `cargo xtask docs` makes it so.
pub fn assert_generated(path: &str, text: &str) {
    let file = root().join(path);
    if env::var_os(WRITE_VARIABLE).is_some() {
        fs::write(&file, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
        return;
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).find(|(found, text)| found != text);
    assert!(
        found == text,
        "{path} is stale: run `cargo xtask docs` and commit it; first difference: {differs:?}"
    );
}
