//! Wheels read in parts over HTTP, with all that goes wrong on the way.

use std::path::Path;

use super::archive;
use super::http::Http;
use super::index;
use super::pip::PipConfig;
use super::platform::Platform;
use super::requirement::Requirement;
use super::testing::{Manners, Server, wheel};
use super::wheel::{Source, Wheel};
use crate::progress::Meter;

const PATH: &str = "/files/x-1-py3-none-any.whl";

/// Content that does not compress, so that lengths in the archive are known.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn http() -> Http {
    Http::new(&PipConfig::default()).unwrap()
}

fn open<'a>(http: &'a Http, server: &Server) -> anyhow::Result<Wheel<'a>> {
    let url = format!("{}{PATH}", server.url);
    Wheel::open("x-1-py3-none-any.whl".into(), Source::Remote { http, url, authorization: None })
}

/// Takes all that is below `lib/`; `part` is laid in the download folder beforehand.
fn take(wheel: &Wheel, root: &Path, part: Option<&[u8]>) -> anyhow::Result<()> {
    let downloads = root.join("downloads");
    std::fs::create_dir_all(&downloads).unwrap();
    let mut meter = Meter::new("test", 0);
    for span in archive::spans(wheel.choose(|name| name.starts_with("lib/"))?) {
        if let Some(part) = part {
            let name = format!("{}.{}-{}.part", wheel.filename, span.range.start, span.range.end);
            std::fs::write(downloads.join(name), part).unwrap();
        }
        wheel.take(&span, root, &downloads, &mut meter)?;
    }
    assert_eq!(std::fs::read_dir(&downloads).unwrap().count(), 0, "parts are removed once unpacked");
    Ok(())
}

#[test]
fn only_what_is_wanted_is_fetched() {
    let (a, far, b) = (noise(5_000), noise(2_000_000), noise(70_000));
    let files = [("lib/a.so", &a[..]), ("lib/empty.h", b""), ("other/far", &far), ("lib/sub/b.so", &b)];
    let server = Server::start(vec![(PATH, "application/zip", wheel(&files, None))], Manners::default());
    let (http, root) = (http(), tempfile::tempdir().unwrap());
    let wheel = open(&http, &server).unwrap();
    assert!(wheel.metadata().unwrap().contains("Requires-Dist: y==1.0"));
    let before = server.requests().len();
    take(&wheel, root.path(), None).unwrap();

    assert_eq!(std::fs::read(root.path().join("lib/a.so")).unwrap(), a);
    assert_eq!(std::fs::read(root.path().join("lib/sub/b.so")).unwrap(), b);
    assert_eq!(std::fs::read(root.path().join("lib/empty.h")).unwrap(), b"");
    assert!(!root.path().join("other").exists());
    assert_eq!(server.requests().len() - before, 2, "neighbours share a request, the far one is passed over");
}

fn server(archive: Vec<u8>, manners: Manners) -> Server {
    Server::start(vec![(PATH, "application/zip", archive)], manners)
}

fn ranges(server: &Server, since: usize) -> Vec<u64> {
    let start = |request: &String| request.split([' ', '-']).rev().nth(1).unwrap().parse().unwrap();
    server.requests()[since..].iter().map(start).collect()
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let a = noise(400_000);
    let manners = Manners { body_bytes_max: Some(150_000), ..Manners::default() };
    let server = server(wheel(&[("lib/a.so", &a)], None), manners);
    let (http, root) = (http(), tempfile::tempdir().unwrap());
    let wheel = open(&http, &server).unwrap();
    let before = server.requests().len();
    take(&wheel, root.path(), None).unwrap();
    assert_eq!(std::fs::read(root.path().join("lib/a.so")).unwrap(), a);
    assert_eq!(ranges(&server, before), [0, 150_000, 300_000]);
}

#[test]
fn a_part_of_an_earlier_run_is_continued() {
    let a = noise(100_000);
    let archive = wheel(&[("lib/a.so", &a)], None);
    let part = archive[..60_000].to_vec();
    let server = server(archive, Manners::default());
    let (http, root) = (http(), tempfile::tempdir().unwrap());
    let wheel = open(&http, &server).unwrap();
    let before = server.requests().len();
    take(&wheel, root.path(), Some(&part)).unwrap();
    assert_eq!(std::fs::read(root.path().join("lib/a.so")).unwrap(), a);
    assert_eq!(ranges(&server, before), [60_000]);
}

#[test]
fn a_damaged_part_is_fetched_anew() {
    let a = noise(100_000);
    let archive = wheel(&[("lib/a.so", &a)], None);
    for damaged in [vec![7; 60_000], vec![7; 1_000_000]] {
        let server = server(archive.clone(), Manners::default());
        let (http, root) = (http(), tempfile::tempdir().unwrap());
        take(&open(&http, &server).unwrap(), root.path(), Some(&damaged)).unwrap();
        assert_eq!(std::fs::read(root.path().join("lib/a.so")).unwrap(), a);
        assert_eq!(ranges(&server, 0).last(), Some(&0));
    }
}

#[test]
fn content_other_than_recorded_is_never_put_in_place() {
    let server =
        server(wheel(&[("lib/a.so", b"real"), ("lib/b.so", b"false")], Some("lib/b.so")), Manners::default());
    let (http, root) = (http(), tempfile::tempdir().unwrap());
    let message = take(&open(&http, &server).unwrap(), root.path(), None).unwrap_err().to_string();
    assert!(message.starts_with("lib/b.so: 5 bytes with SHA-256"), "{message}");
    assert!(!root.path().join("lib/b.so").exists());
}

#[test]
fn a_server_that_knows_no_ranges_is_refused() {
    let manners = Manners { ignores_ranges: true, ..Manners::default() };
    let server = server(wheel(&[("lib/a.so", b"a")], None), manners);
    let message = open(&http(), &server).err().unwrap().to_string();
    assert!(message.contains("answers 200 to a request for a range of bytes"), "{message}");
}

#[test]
fn paths_that_lead_out_are_refused() {
    let server = server(wheel(&[("lib/../../a.so", b"a")], None), Manners::default());
    let (http, root) = (http(), tempfile::tempdir().unwrap());
    let message = take(&open(&http, &server).unwrap(), root.path(), None).unwrap_err().to_string();
    assert!(message.contains("unsafe path: lib/../../a.so"), "{message}");
}

#[test]
fn what_is_no_zip_is_said_to_be_none() {
    let server = server(noise(100_000), Manners::default());
    let error = open(&http(), &server).err().unwrap();
    assert!(format!("{error:#}").contains("not a zip file"), "{error:#}");
}

#[test]
fn a_wheel_on_disk_reads_the_same() {
    let (a, root) = (noise(9_000), tempfile::tempdir().unwrap());
    let path = root.path().join("x-1-py3-none-any.whl");
    std::fs::write(&path, wheel(&[("lib/b.so", b"b"), ("lib/a.so", &a)], None)).unwrap();
    let wheel = Wheel::open("x-1-py3-none-any.whl".into(), Source::Local(path)).unwrap();
    take(&wheel, root.path(), None).unwrap();
    assert_eq!(std::fs::read(root.path().join("lib/a.so")).unwrap(), a);
}

#[test]
fn the_first_index_that_has_the_wheel_serves_it() {
    const JSON: &str = "application/vnd.pypi.simple.v1+json";
    let page = br#"{"meta": {"api-version": "1.1"}, "name": "x",
        "files": [{"filename": "x-1-py3-none-any.whl", "url": "../../files/x-1-py3-none-any.whl", "hashes": {}}]}"#;
    let server = Server::start(
        vec![
            ("/old/x/", "text/html", b"<a>x</a>".to_vec()),
            ("/empty/x/", JSON, br#"{"files": []}"#.to_vec()),
            ("/simple/x/", JSON, page.to_vec()),
        ],
        Manners::default(),
    );
    let indexes = |names: &[&str]| PipConfig {
        indexes: names.iter().map(|name| format!("{}/{name}", server.url)).collect(),
        ..PipConfig::default()
    };
    let x = Requirement::parse("x==1").unwrap();
    let all = indexes(&["missing", "old", "empty", "simple"]);
    let offer = index::find(&http(), &all, &x, Platform::LinuxX86_64).unwrap();
    assert_eq!(offer.url, format!("{}{PATH}", server.url));

    let none = index::find(&http(), &indexes(&["missing", "old", "empty"]), &x, Platform::LinuxX86_64);
    let message = none.unwrap_err().to_string();
    for reason in
        ["/missing: ", "answers 404", "\"text/html\" instead of", "/empty has no wheel for Linux x86-64"]
    {
        assert!(message.contains(reason), "{message}");
    }
}
