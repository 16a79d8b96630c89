//! `hatchery-trainer answer`: many answers at once, asked for and told line by line; the contract is
//! `hatchery_common::answerer`.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, StdoutLock, Write},
    mem,
    sync::mpsc::{self, Receiver, SyncSender, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use hatchery_common::{
    answerer::{AnswererCommand, AnswererEvent, LINE_BYTES_MAX},
    id::RequestId,
};
use hatchery_trainer::{
    batching::{Batcher, End, Made},
    device, ffi,
};

use crate::args::Answer;

/// Commands that wait while a step is made.
const COMMANDS_MAX: usize = 256;
/// New bytes of an answer are told when there are so many,
const CHUNK_BYTES: usize = 16;
/// or when so much time has passed since the last ones.
const CHUNK_EVERY: Duration = Duration::from_millis(20);

/// Answers until stdin ends.
pub(crate) fn answer(args: &Answer) -> anyhow::Result<()> {
    // From the start: whoever asks may be gone before the device is ready, or while it hangs.
    let (sender, commands) = mpsc::sync_channel(COMMANDS_MAX);
    thread::spawn(move || {
        read_commands(&sender);
        ffi::exit_now(0);
    });
    let device = device::find(args.device.wanted())?;
    let precision = device::precision(args.precision.into(), &device);
    let mut batcher = Batcher::open(&args.checkpoint, &device, precision)?;
    let pace = batcher.pace()?;
    let mut teller = Teller { out: io::stdout().lock(), texts: BTreeMap::new() };
    teller.tell(&AnswererEvent::Ready {
        device: device.device,
        sequences_max: batcher.at_once_max() as u32,
        pace,
    })?;
    loop {
        match next(&commands, batcher.is_empty()) {
            Next::Command(AnswererCommand::Answer { request, order, told }) => {
                if let Err(why) = batcher.begin(request, order, &told) {
                    teller.tell(&AnswererEvent::Failed { request, why })?;
                }
            }
            Next::Command(AnswererCommand::Cancel { request }) => {
                batcher.cancel(request)?;
                teller.texts.remove(&request);
            }
            Next::Step => batcher.step()?.into_iter().try_for_each(|made| teller.keep(made))?,
            Next::End => return Ok(()),
        }
    }
}

enum Next {
    Command(AnswererCommand),
    Step,
    /// Nobody is there any more.
    End,
}

/// A command, if there is one; it is waited for only where nothing else is to be done.
fn next(commands: &Receiver<AnswererCommand>, is_idle: bool) -> Next {
    if is_idle {
        return commands.recv().map_or(Next::End, Next::Command);
    }
    match commands.try_recv() {
        Ok(command) => Next::Command(command),
        Err(TryRecvError::Empty) => Next::Step,
        Err(TryRecvError::Disconnected) => Next::End,
    }
}

/// Reads commands until there are no more.
fn read_commands(sender: &SyncSender<AnswererCommand>) {
    let mut stdin = BufReader::new(io::stdin());
    loop {
        let mut line = Vec::new();
        match stdin.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if !line.ends_with(b"\n") && line.len() == LINE_BYTES_MAX {
            eprintln!("hatchery-trainer: a command is longer than {LINE_BYTES_MAX} bytes");
            // Whoever waits for an answer to it must not wait for good.
            return;
        }
        match serde_json::from_slice(&line) {
            Ok(command) => {
                if sender.send(command).is_err() {
                    return;
                }
            }
            Err(error) => eprintln!("hatchery-trainer: invalid command: {error}"),
        }
    }
}

/// Tells of answers, a few bytes at a time.
struct Teller {
    out: StdoutLock<'static>,
    /// Bytes not told yet, and when the last ones were.
    texts: BTreeMap<RequestId, (Vec<u8>, Instant)>,
}

impl Teller {
    fn keep(&mut self, Made { request, bytes, end }: Made) -> anyhow::Result<()> {
        let is_first = !self.texts.contains_key(&request);
        let (text, told) = self.texts.entry(request).or_insert_with(|| (Vec::new(), Instant::now()));
        text.extend(bytes);
        let is_due = is_first || text.len() >= CHUNK_BYTES || told.elapsed() >= CHUNK_EVERY || end.is_some();
        if is_due && !text.is_empty() {
            let bytes = mem::take(text);
            *told = Instant::now();
            self.tell(&AnswererEvent::Text { request, bytes })?;
        }
        let Some(end) = end else { return Ok(()) };
        self.texts.remove(&request);
        self.tell(&match end {
            End::Finished(finish_reason) => AnswererEvent::Finished { request, finish_reason },
            End::Broken => {
                let why = "the model's output is not a number; its training has diverged".into();
                AnswererEvent::Failed { request, why }
            }
        })
    }

    fn tell(&mut self, event: &AnswererEvent) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(event).context("an event is always JSON")?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        Ok(self.out.flush()?)
    }
}
