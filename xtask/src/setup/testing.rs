//! For tests: a wheel made in memory, and a small HTTP server that can be told to misbehave.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::record;

/// A wheel with these files, every second one deflated, and a RECORD that is true of all but `lie_about`.
pub(super) fn wheel(files: &[(&str, &[u8])], lie_about: Option<&str>) -> Vec<u8> {
    let mut lines = String::new();
    for (name, content) in files {
        let content = if lie_about == Some(*name) { b"something else" } else { *content };
        let digest = HEXLOWER.decode(record::sha256(content).unwrap().as_bytes()).unwrap();
        writeln!(lines, "{name},sha256={},{}", BASE64URL_NOPAD.encode(&digest), content.len()).unwrap();
    }
    lines += "x-1.dist-info/RECORD,,\n";
    let metadata = b"Name: x\nRequires-Dist: y==1.0\n\n";
    let mut all = files.to_vec();
    all.extend([("x-1.dist-info/METADATA", metadata.as_slice()), ("x-1.dist-info/RECORD", lines.as_bytes())]);
    zip(&all)
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (index, (name, content)) in files.iter().enumerate() {
        let method = if index % 2 == 0 { CompressionMethod::Stored } else { CompressionMethod::Deflated };
        archive.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// What the server does besides answering well.
#[derive(Clone, Copy, Default)]
pub(super) struct Manners {
    /// Answers range requests with the whole file.
    pub(super) ignores_ranges: bool,
    /// Breaks every body off after so many bytes.
    pub(super) body_bytes_max: Option<usize>,
}

/// Serves files by path, one connection for each request, for as long as the test's process lives.
pub(super) struct Server {
    /// Without a slash at the end.
    pub(super) url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Starts on a port of the system's choice. Files are path, content type and content.
    pub(super) fn start(files: Vec<(&str, &'static str, Vec<u8>)>, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let files: HashMap<String, (&str, Vec<u8>)> =
            files.into_iter().map(|(path, kind, content)| (path.to_owned(), (kind, content))).collect();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away early is no concern of the server's.
                answer(stream.unwrap(), &files, manners, &log).ok();
            }
        });
        Self { url, requests }
    }

    /// The requests so far: `PATH RANGE-HEADER`.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &HashMap<String, (&str, Vec<u8>)>,
    manners: Manners,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = String::new();
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("range: bytes=") {
            value.clone_into(&mut range);
        }
    }
    log.lock().unwrap().push(format!("{path} {range}"));
    let Some((kind, content)) = files.get(&path) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let bounds = range.split_once('-').filter(|_| !manners.ignores_ranges);
    let (status, start, end) = match bounds {
        Some((start, end)) => (
            "206 Partial Content",
            start.parse().unwrap(),
            end.parse::<usize>().unwrap().min(content.len() - 1) + 1,
        ),
        None => ("200 OK", 0, content.len()),
    };
    let body = &content[start..end];
    let total = content.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Content-Range: bytes {start}-{}/{total}\r\nConnection: close\r\n\r\n",
        body.len(),
        end - 1,
    )?;
    stream.write_all(&body[..body.len().min(manners.body_bytes_max.unwrap_or(usize::MAX))])
}
