//! What the pages say of the repository is there: files, anchors, and no page is longer than a reader's patience.

use std::{collections::BTreeMap, path::Path};

use hatchery_docs::{Page, pages, root};

/// Most bytes of the two pages that everybody reads.
const BYTES_MAX: [(&str, usize); 2] = [("README.md", 8 << 10), ("ARCHITECTURE.md", 16 << 10)];

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let by_path: BTreeMap<_, &Page> =
        pages.iter().map(|page| (canonical(&root().join(&page.path)).expect("it was read"), page)).collect();
    let mut seen = 0;
    for page in &pages {
        let folder = root().join(page.path.parent().unwrap_or(Path::new("")));
        for link in page.links().into_iter().filter(|link| !link.contains("://")) {
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let to = if path.is_empty() { root().join(&page.path) } else { folder.join(path) };
            let to = canonical(&to).unwrap_or_else(|| panic!("{}: {link} is not there", page.path.display()));
            if !anchor.is_empty() {
                let anchors = by_path.get(&to).map(|page| page.anchors()).unwrap_or_default();
                assert!(
                    anchors.contains(anchor),
                    "{}: {link}: no such heading; there are {anchors:?}",
                    page.path.display()
                );
            }
        }
    }
    assert!(seen >= 50, "only {seen} links were found");
}

#[test]
fn every_file_that_is_named_is_there() {
    let top: Vec<String> = root()
        .read_dir()
        .expect("the root can be read")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        // What setup and builds put there is not in a fresh clone.
        .filter(|name| !matches!(&**name, "target" | "libtorch"))
        .collect();
    let (mut seen, mut missing) = (0, Vec::new());
    for page in pages() {
        for code in page.inline_code() {
            let Some((first, rest)) = code.split_once('/') else { continue };
            let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
            if top.iter().any(|name| name == first) && rest.chars().all(is_path) && !rest.starts_with("found")
            {
                seen += 1;
                if !root().join(&code).exists() {
                    missing.push(format!("{}: {code}", page.path.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "these are not there: {missing:#?}");
    assert!(seen >= 50, "only {seen} files were found");
}

#[test]
fn the_two_pages_that_everybody_reads_are_short() {
    for (path, bytes_max) in BYTES_MAX {
        let page = pages().into_iter().find(|page| page.path == Path::new(path)).expect("it is there");
        assert!(page.text.len() <= bytes_max, "{path} has {} bytes, more than {bytes_max}", page.text.len());
    }
}

#[test]
fn every_page_of_docs_is_linked_from_another() {
    let pages = pages();
    let linked: Vec<_> = pages
        .iter()
        .flat_map(|page| {
            let folder = root().join(page.path.parent().unwrap_or(Path::new("")));
            page.links().into_iter().filter_map(move |link| canonical(&folder.join(link.split('#').next()?)))
        })
        .collect();
    for page in pages.iter().filter(|page| page.path.starts_with("docs")) {
        let path = canonical(&root().join(&page.path)).expect("it was read");
        assert!(linked.contains(&path), "no page links to {}", page.path.display());
    }
}

fn canonical(path: &Path) -> Option<std::path::PathBuf> {
    path.canonicalize().ok()
}
