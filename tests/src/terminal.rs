//! A command typed in a terminal: it sees one, and the keys that are pressed there reach it as they would reach it from a
//! keyboard.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command},
    sync::mpsc::{self, Receiver},
    thread,
    time::Instant,
};

use rustix::{
    fs::OFlags,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::{fleet::Run, process::PATIENCE};

/// The key of the letter C together with the control key.
pub const CTRL_C: &[u8] = b"\x03";

/// A terminal in which one command runs. The command ends with it.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// Every byte that was written to the screen.
    written: Vec<u8>,
}

impl Terminal {
    /// Starts `command` in a session of its own, whose terminal this is.
    pub fn start(command: &Command) -> Self {
        let (keyboard, terminal) = open();
        let side = || terminal.try_clone().expect("an open file can be cloned");
        let mut typed = Command::new("setsid");
        typed.arg("--ctty").arg(command.get_program()).args(command.get_args());
        typed.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => typed.env(name, value),
                None => typed.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            typed.current_dir(folder);
        }
        typed.stdin(side()).stdout(side()).stderr(side());
        let child = typed.spawn().unwrap_or_else(|error| panic!("cannot start {typed:?}: {error}"));
        let mut screen = keyboard.try_clone().expect("an open file can be cloned");
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // When nobody has the other side open any more, reading is an error.
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                if send.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, keyboard, screen: receive, written: Vec::new() }
    }

    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("a terminal takes keys");
    }

    /// Waits until everything in `texts` has been on the screen.
    pub fn wait_for(&mut self, texts: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(lacking) = texts.iter().find(|text| !self.text().contains(**text)) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.written.extend(bytes),
                Err(error) => panic!("the screen never showed {lacking:?} ({error}):\n{}", self.text()),
            }
        }
    }

    /// All that was written to the screen so far, without the movements of the cursor and the colours.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.written);
        let mut parts = text.split("\x1b[");
        let first = parts.next().unwrap_or_default().to_owned();
        // Such a sequence ends with its first letter.
        parts.fold(first, |plain, part| {
            let end = part.find(|letter: char| letter.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
            plain + &part[end..]
        })
    }

    /// Whether the cursor was moved or a colour was set.
    pub fn is_painted(&self) -> bool {
        self.written.contains(&b'\x1b')
    }

    /// Waits for the command's end; what was on the screen is its stdout.
    pub fn finish(&mut self) -> Run {
        let deadline = Instant::now() + PATIENCE;
        // The screen ends when the command does.
        while let Ok(bytes) = self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.written.extend(bytes);
        }
        assert!(Instant::now() < deadline, "the command does not end; the screen:\n{}", self.text());
        let status = self.child.wait().expect("a child can be waited for");
        Run { code: status.code().unwrap_or(-1), stdout: self.text(), stderr: String::new() }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both sides of a terminal: the one of the person, and the one of the command.
fn open() -> (File, File) {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
    let person = person.expect("the system has a terminal to give");
    grantpt(&person).expect("its other side is ours");
    unlockpt(&person).expect("its other side can be opened");
    let size = Winsize { ws_row: 30, ws_col: 110, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&person, size).expect("a terminal has a size");
    let path = ptsname(&person, Vec::new()).expect("its other side has a name").into_string();
    let no_ctty = OFlags::NOCTTY.bits().cast_signed();
    let command =
        OpenOptions::new().read(true).write(true).custom_flags(no_ctty).open(path.expect("in ASCII"));
    (person.into(), command.expect("its other side can be opened"))
}
