//! A process of Hatchery ends when it is told to, also when nobody reads what it says any more.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hatchery_tests::{PATIENCE, binary};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_coordinator_that_nobody_reads_ends_at_the_first_signal() {
    let home = tempfile::tempdir().unwrap();
    let mut child = Command::new(binary("hatchery"))
        .args(["coordinator", "--listen", "127.0.0.1:0"])
        .env("HATCHERY_HOME", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let ready = lines.any(|line| line.unwrap().contains("coordinator ready"));
    // From here on, writing to stderr is an error.
    drop(lines);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let until = Instant::now() + PATIENCE;
    let status = loop {
        let ended = child.try_wait().unwrap();
        if ended.is_some() || Instant::now() >= until {
            break ended;
        }
        thread::sleep(Duration::from_millis(10));
    };
    child.kill().unwrap();
    assert!(ready && status.is_some_and(|status| status.success()), "it ended with {status:?}");
}
