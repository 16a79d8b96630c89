//! What a training run loses while its node serves a checkpoint to others.
//!
//! The node that trains and serves has processors of its own, all others share the rest: what is measured is what the
//! serving takes from the training on one machine, and not what a whole fleet on one machine does. The trainer's node is
//! under the default limit for such times; the coordinator sends too, no faster.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hatchery_test_support::{GLANCE, binary};
use serde_json::Value;

use super::fleet::{Fleet, Trains, Wish};
use super::network::{Link, Network};
use super::report::{Outcome, mean};
use super::{Bench, say};

/// The scenario's name in the report.
pub(super) const NAME: &str = "training while its node serves";
/// Nodes to which the checkpoint goes, one after the other.
const RECEIVERS: usize = 4;
/// So large that serving it takes some seconds.
const MEGABYTES: u64 = 300;
/// What the coordinator may send: about as much as the trainer's node may.
const COORDINATOR_BYTES_PER_SEC: &str = "16000000";
/// What those may send that have it already: little, so that it comes from the trainer's node each time.
const OTHERS_BYTES_PER_SEC: &str = "1000000";
/// The program that trains.
const TRAINER: &str = "hatchery-trainer";
/// The run that is measured.
const JOB: &str = "busy";
const PRESET: &str = "tiny";
const TEXT: &str = include_str!("training.rs");
const TEXT_REPEATS: usize = 8;
/// Steps before anything is measured.
const WARM_STEPS: u64 = 50;
const WARM_WAIT: Duration = Duration::from_mins(2);
/// How long the trainer is watched while nothing is sent.
const QUIET: Duration = Duration::from_secs(10);
/// How long one receiver may take.
const RECEIVED_WAIT: Duration = Duration::from_mins(2);

/// The steps of a run as they are told.
struct Steps {
    told: Receiver<(Instant, u64)>,
    watcher: Child,
}

impl Steps {
    fn watch(fleet: &Fleet) -> Result<Self> {
        let mut command = fleet.command(&["watch", JOB, "--output", "json"]);
        let mut watcher = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = watcher.stdout.take().context("a pipe was asked for")?;
        let (tell, told) = channel();
        // It ends with the watcher, which ends with this.
        thread::spawn(move || read(lines, |step| tell.send((Instant::now(), step)).is_ok()));
        Ok(Self { told, watcher })
    }

    /// Steps a second until `is_over`, between the first and the last report within.
    fn rate(&self, bench: &Bench, mut is_over: impl FnMut() -> Result<bool>) -> Result<f64> {
        while self.told.try_recv().is_ok() {}
        let (mut first, mut last) = (None, None);
        while !is_over()? {
            bench.interrupt.check()?;
            match self.told.recv_timeout(GLANCE) {
                Ok(report) => {
                    first.get_or_insert(report);
                    last = Some(report);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the run is not told of any more"),
            }
        }
        let ((begun, from), (ended, to)) = first.zip(last).context("no step was told of")?;
        ensure!(to > from, "the run makes no steps");
        Ok((to - from) as f64 / (ended - begun).as_secs_f64())
    }

    fn wait_for(&self, bench: &Bench, step: u64) -> Result<()> {
        let deadline = Instant::now() + WARM_WAIT;
        loop {
            bench.interrupt.check()?;
            ensure!(
                Instant::now() < deadline,
                "the run does not come to step {step} in {} s",
                WARM_WAIT.as_secs()
            );
            if self.told.recv_timeout(GLANCE).is_ok_and(|(_, reached)| reached >= step) {
                return Ok(());
            }
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        // One that has ended already is what is wanted.
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

/// Hands on each step that a line tells of, until nobody wants it.
fn read(lines: ChildStdout, mut hand_on: impl FnMut(u64) -> bool) {
    for line in BufReader::new(lines).lines().map_while(Result::ok) {
        let step = serde_json::from_str::<Value>(&line).ok().and_then(|job| job["progress"]["step"].as_u64());
        if step.is_some_and(|step| !hand_on(step)) {
            return;
        }
    }
}

/// Measures it, with as many pairs of quiet and serving as there are receivers.
pub(super) fn run(bench: &Bench) -> Result<Outcome> {
    let processors = thread::available_parallelism()?.get();
    ensure!(processors >= 2, "the trainer's node takes a processor of its own, and there is only one");
    let trainer = binary(TRAINER)?;
    let network = Network::build(&[Link(None); RECEIVERS + 2])?;
    let wish = Wish {
        megabytes: MEGABYTES,
        seed: 1,
        peers: true,
        late: &BTreeSet::new(),
        odd: None,
        trains: Some(Trains {
            trainer: &trainer,
            own_processors: format!("0-{}", processors / 2 - 1),
            other_processors: format!("{}-{}", processors / 2, processors - 1),
            coordinator_bytes_per_sec: COORDINATOR_BYTES_PER_SEC,
            others_bytes_per_sec: OTHERS_BYTES_PER_SEC,
        }),
    };
    let fleet = Fleet::start(&network, &bench.programs, &bench.interrupt, &wish)?;
    receive(bench, &fleet, 1)?;
    let text = fleet.scratch().join("text.txt");
    fs::write(&text, TEXT.repeat(TEXT_REPEATS))?;
    let data = text.display().to_string();
    let endless =
        ["train.steps=100000000", "train.checkpoint_every=100000000", "train.validate_every=100000000"];
    let settings = endless.iter().flat_map(|setting| ["--set", setting]);
    let submit = ["submit", "--preset", PRESET, "--data", &data, "--name", JOB, "--node", "node-1"];
    fleet.json(&submit.into_iter().chain(settings).collect::<Vec<_>>())?;
    let steps = Steps::watch(&fleet)?;
    steps.wait_for(bench, WARM_STEPS)?;

    let mut quiet = vec![steps.rate(bench, over_in(QUIET))?];
    let (mut serving, mut served_bytes, mut secs) = (Vec::new(), 0, 0.0);
    for receiver in 2..RECEIVERS + 2 {
        let (before, begun) = (sent_bytes(&fleet)?, Instant::now());
        fleet.push_to(receiver)?;
        serving.push(steps.rate(bench, || {
            ensure!(begun.elapsed() < RECEIVED_WAIT, "node-{receiver} does not get the checkpoint");
            Ok(fleet.has_fetched(receiver))
        })?);
        secs += begun.elapsed().as_secs_f64();
        quiet.push(steps.rate(bench, over_in(QUIET))?);
        served_bytes += sent_bytes(&fleet)? - before;
        say(&format!(
            "{NAME}: {:.2} steps/s, then {:.2}",
            serving[serving.len() - 1],
            quiet[quiet.len() - 1]
        ));
    }
    // Each time of serving stands beside the two quiet ones around it, since a machine's pace drifts.
    let falls: Vec<f64> = serving
        .iter()
        .zip(quiet.windows(2))
        .map(|(serving, around)| 100.0 * (1.0 - serving / mean(around)))
        .collect();
    let figures = vec![
        ("quiet steps/s", mean(&quiet)),
        ("serving steps/s", mean(&serving)),
        ("mean fall %", mean(&falls)),
        ("least %", falls.iter().copied().fold(f64::INFINITY, f64::min)),
        ("most %", falls.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        ("served MB/s", served_bytes as f64 / 1e6 / secs),
    ];
    Ok(Outcome { scenario: NAME.to_owned(), contender: "swarm", figures })
}

/// True once so much time has passed since this was made.
fn over_in(time: Duration) -> impl FnMut() -> Result<bool> {
    let begun = Instant::now();
    move || Ok(begun.elapsed() >= time)
}

/// Has a node fetch the checkpoint and waits until it has.
fn receive(bench: &Bench, fleet: &Fleet, machine: usize) -> Result<()> {
    fleet.push_to(machine)?;
    let begun = Instant::now();
    while !fleet.has_fetched(machine) {
        bench.interrupt.check()?;
        ensure!(begun.elapsed() < RECEIVED_WAIT, "node-{machine} does not get the checkpoint");
        thread::sleep(GLANCE);
    }
    Ok(())
}

/// What the trainer's node has sent to others so far.
fn sent_bytes(fleet: &Fleet) -> Result<u64> {
    fleet.json(&["node", "node-1"])?["peers"]["sent_bytes"]
        .as_u64()
        .context("the node does not say what it has sent")
}
