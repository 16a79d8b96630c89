//! Pages: their links, their headings, and the commands in their code blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use walkdir::WalkDir;

use crate::root;

/// Pages in the root, and folders whose pages count.
const FILES: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
const FOLDERS: [&str; 2] = ["docs", "deploy"];

/// One page.
pub struct Page {
    /// Where it lies, from the repository's root.
    pub path: PathBuf,
    /// Its Markdown.
    pub text: String,
}

/// Every page of the repository.
pub fn pages() -> Vec<Page> {
    let root = root();
    let in_folders = FOLDERS.iter().flat_map(|folder| WalkDir::new(root.join(folder)).sort_by_file_name());
    let found = in_folders.map(|entry| entry.expect("the folders of pages can be read").into_path());
    let files = FILES.iter().map(|file| root.join(file)).chain(found);
    files
        .filter(|file| file.extension().is_some_and(|extension| extension == "md"))
        .map(|file| Page {
            text: fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())),
            path: file.strip_prefix(&root).expect("it was found below the root").to_owned(),
        })
        .collect()
}

impl Page {
    /// Where its links and images lead, as they are written.
    pub fn links(&self) -> Vec<String> {
        let link = |event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some(dest_url.into_string())
            }
            _ => None,
        };
        Parser::new(&self.text).filter_map(link).collect()
    }

    /// The anchors of its headings, as GitHub makes them.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut anchors = BTreeSet::new();
        let mut heading: Option<String> = None;
        for event in Parser::new(&self.text) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    let slug = slug(&heading.take().unwrap_or_default());
                    let times = seen.entry(slug.clone()).or_default();
                    anchors.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
                    *times += 1;
                }
                _ => {}
            }
        }
        anchors
    }

    /// What stands between backticks in its prose and tables.
    pub fn inline_code(&self) -> Vec<String> {
        let code = |event| match event {
            Event::Code(text) => Some(text.into_string()),
            _ => None,
        };
        Parser::new(&self.text).filter_map(code).collect()
    }

    /// The commands in its code blocks that call `program` (one word or two), each as its arguments.
    ///
    /// Blocks that are marked as output (`text`), as TOML and the like hold none.
    pub fn commands(&self, program: &str) -> Vec<Vec<String>> {
        let mut commands = Vec::new();
        let mut in_block = false;
        for event in Parser::new(&self.text) {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    in_block = match kind {
                        CodeBlockKind::Indented => true,
                        CodeBlockKind::Fenced(language) => matches!(&*language, "" | "sh"),
                    };
                }
                Event::End(TagEnd::CodeBlock) => in_block = false,
                Event::Text(text) if in_block => {
                    commands.extend(text.lines().flat_map(|line| commands_of(line, program)));
                }
                _ => {}
            }
        }
        commands
    }
}

/// The calls of `program` in one line of shell: after `;` and `&&`, variables and `sudo ... env`; comments end it.
pub fn commands_of(line: &str, program: &str) -> Vec<Vec<String>> {
    let words = shlex::split(&substituted(line)).unwrap_or_default();
    let program: Vec<&str> = program.split(' ').collect();
    let mut calls = vec![vec![]];
    for word in words {
        let (word, ends) = match word.strip_suffix(';') {
            Some(word) => (word.to_owned(), true),
            None => (word.clone(), matches!(&*word, "&&" | "|" | "||")),
        };
        if let Some(call) = calls.last_mut().filter(|_| !matches!(&*word, "&&" | "|" | "||")) {
            call.push(word);
        }
        if ends {
            calls.push(vec![]);
        }
    }
    let arguments = |call: Vec<String>| {
        let mut rest = &call[..];
        while let Some((first, others)) = rest.split_first() {
            let leads = first.contains('=') || matches!(&**first, "sudo" | "-u" | "env" | "nice");
            if first == "sudo" && others.first().is_some_and(|word| word == "-u") {
                rest = others.get(2..)?;
            } else if leads {
                rest = others;
            } else {
                break;
            }
        }
        let called =
            rest.len() >= program.len() && rest.iter().zip(&program).all(|(word, part)| word == part);
        called.then(|| rest[program.len()..].to_vec())
    };
    calls.into_iter().filter_map(arguments).collect()
}

/// The line with a word in place of each `$(...)`.
fn substituted(line: &str) -> String {
    let mut rest = line;
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once("$(") {
        text.push_str(before);
        text.push_str("substituted");
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text + rest
}

fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_lines_of_shell() {
        let calls = |line| commands_of(line, "hatchery");
        assert_eq!(
            calls("hatchery pause a; hatchery resume 'b c'  # both"),
            [vec!["pause", "a"], vec!["resume", "b c"]]
        );
        assert_eq!(
            calls("sudo -u x env A=b hatchery admin backup /f-$(date +%F).tar"),
            [["admin", "backup", "/f-substituted.tar"]]
        );
        assert!(calls("hatchery-trainer doctor").is_empty());
        assert_eq!(
            commands_of("cargo xtask setup --cuda && cargo xtask dist", "cargo xtask"),
            [vec!["setup", "--cuda"], vec!["dist"]]
        );
    }

    #[test]
    fn anchors_are_those_of_github() {
        let page =
            Page { path: PathBuf::new(), text: "# I1 to I12\n## A `job`'s way\n## A job's way\n".into() };
        assert_eq!(
            page.anchors().into_iter().collect::<Vec<_>>(),
            ["a-jobs-way", "a-jobs-way-1", "i1-to-i12"]
        );
    }
}
