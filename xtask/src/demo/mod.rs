//! `cargo xtask demo`: the whole main path on this machine, live. A coordinator and two agents, a training job over
//! real text, its checkpoints on both nodes, and an answer from each.

mod corpus;
mod fleet;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use console::style;
use hatchery_test_support::Interrupt;
use serde_json::Value;

use crate::cargo::{self, Binaries, Profile};
use crate::phases::seconds;
use corpus::Corpus;
use fleet::Demo;

const JOB: &str = "demo";
const PROMPT: &str = "# ";
const ANSWER_BYTES: &str = "160";

/// The preset takes a minute on two cores, and the loss falls well below 3.
const PRESET: &str = "tiny";
/// The smallest run that still shows everything.
const SETTINGS_SMALLEST: [&str; 9] = [
    "model.n_layer=2",
    "model.n_embd=32",
    "model.mlp_internal_dim_multiplier=16",
    "train.block=32",
    "train.batch=4",
    "train.steps=60",
    "train.checkpoint_every=20",
    "train.validate_every=20",
    "train.validation_windows=16",
];

/// Flags of `demo`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Train on this file or folder [default: the READMEs and docs of the crates that cargo has unpacked here]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Leave the fleet running, and say what to try next
    #[arg(long)]
    keep: bool,
    /// The smallest model and run that show everything
    #[arg(long)]
    smallest: bool,
}

/// Runs the demo. Whatever happens, nothing is left running unless `--keep` was given.
pub(crate) fn run(options: &Options) -> Result<()> {
    let corpus = corpus::choose(options.data.as_deref(), &corpus::cargo_home()?)?;
    heading("building (release)");
    let binaries = cargo::set_up_and_build(Profile::Release)?;

    let interrupt = Interrupt::listen()?;
    let started = Instant::now();
    let folder =
        tempfile::Builder::new().prefix("hatchery-demo-").tempdir().context("no temporary folder")?;
    let hatchery = binaries.hatchery.display().to_string();
    let demo = start(&binaries, folder.path(), &interrupt)?;
    train(&demo, &corpus, options.smallest)?;
    show_results(&demo)?;
    eprintln!("\nthe demo took {}", seconds(started.elapsed()));

    if options.keep {
        keep(demo, folder, &hatchery);
    } else {
        drop(demo);
        eprintln!("all processes have stopped");
    }
    Ok(())
}

fn heading(text: &str) {
    eprintln!("\n{} {}", style("==").cyan().bold(), style(text).bold());
}

fn start(binaries: &Binaries, folder: &Path, interrupt: &Interrupt) -> Result<Demo> {
    heading("a coordinator and two agents");
    let demo = Demo::start(binaries, folder, interrupt)?;
    eprintln!("the coordinator listens on {}", demo.fleet.address());
    demo.run(&["nodes"])?;
    Ok(demo)
}

fn train(demo: &Demo, corpus: &Corpus, smallest: bool) -> Result<()> {
    heading("a training job");
    let data = corpus.path.display().to_string();
    let mut arguments = vec!["submit", "--preset", PRESET, "--name", JOB, "--wait", "--data", &data];
    if let Some(glob) = corpus.include {
        arguments.extend(["--include", glob]);
    }
    let settings: &[&str] = if smallest { &SETTINGS_SMALLEST } else { &[] };
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    eprintln!("$ hatchery {}", arguments.join(" "));
    demo.run(&arguments).map_err(|error| {
        let logs = demo.command(&["logs", JOB]).output();
        match logs {
            Ok(logs) if !demo.is_interrupted() => {
                error.context(format!("log of the trainers:\n{}", String::from_utf8_lossy(&logs.stdout)))
            }
            _ => error,
        }
    })
}

fn show_results(demo: &Demo) -> Result<()> {
    heading("checkpoints and their nodes");
    demo.run(&["checkpoints", JOB])?;

    heading("an answer from each node");
    let generate = [
        "generate",
        JOB,
        "--prompt",
        PROMPT,
        "--max-bytes",
        ANSWER_BYTES,
        "--temperature",
        "0.6",
        "--seed",
        "1",
        "--all-nodes",
    ];
    let answers = demo.json(&generate)?;
    let answers: &Vec<Value> =
        answers.as_array().context("`hatchery generate --all-nodes` printed no list")?;
    if answers.len() != fleet::NODES.len() {
        bail!("{} of {} nodes answered; see `hatchery checkpoints`", answers.len(), fleet::NODES.len());
    }
    for answer in answers {
        let (node, text) = (answer["node"].as_str().unwrap_or("?"), answer["text"].as_str().unwrap_or(""));
        let latency_ms = answer["latency_ms"].as_f64().unwrap_or(f64::NAN);
        println!("{} in {latency_ms:.0} ms", style(node).bold());
        println!("{}", report::sample(&format!("{PROMPT}{text}")));
    }

    heading("summary");
    println!("{}", report::table(&demo.json(&["job", JOB])?, answers));
    Ok(())
}

fn keep(demo: Demo, folder: tempfile::TempDir, hatchery: &str) {
    let home = demo.fleet.home();
    let pids: Vec<String> = demo.fleet.keep().iter().map(ToString::to_string).collect();
    let folder = folder.keep();
    println!(
        "\nThe fleet goes on. To try next:\n\
         \x20 export HATCHERY_HOME={}\n\
         \x20 alias hatchery={hatchery}\n\
         \x20 hatchery nodes\n\
         \x20 hatchery generate {JOB} --prompt 'The '\n\
         \x20 hatchery submit --preset tiny --data FOLDER --name mine\n\
         \x20 hatchery watch mine\n\
         To end it:\n\
         \x20 kill {} && rm -r {}",
        home.display(),
        pids.join(" "),
        folder.display(),
    );
}
