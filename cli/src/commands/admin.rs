//! `admin`: backup, restore and check of a coordinator's state folder.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hatchery_coordinator::admin::{
    self, AdminError, BackupOptions, BackupSummary, Finding, FindingState, FsckReport, RestoreSummary,
    Watcher,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::serve::state_folder;
use crate::{
    args::{AdminCommand, BackupArgs, FsckArgs, RestoreArgs},
    exit::{Code, Failure, Outcome},
    home::Home,
    human,
    output::{Output, facts, is_interactive, table},
};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);
/// A digest has so many digits, and people are shown so many of them.
const DIGEST_LEN: usize = 64;
const DIGEST_SHOWN_LEN: usize = 12;

/// `hatchery admin`.
pub(crate) async fn run(command: AdminCommand, home: &Home, output: Output) -> Outcome {
    match command {
        AdminCommand::Backup(args) => backup(args, home, output).await,
        AdminCommand::Restore(args) => restore(args, home, output).await,
        AdminCommand::Fsck(args) => fsck(args, home, output).await,
    }
}

async fn backup(args: BackupArgs, home: &Home, output: Output) -> Outcome {
    let state = state_or_usual(args.state, home)?;
    let options = BackupOptions { with_blobs: args.with_blobs };
    let summary = at_work(output, move |watcher| admin::backup(&state, &args.file, options, watcher)).await?;
    for lost in &summary.lost {
        eprintln!("not in the backup: {lost}");
    }
    if summary.blobs_missing > summary.lost.len() as u64 && options.with_blobs {
        eprintln!("not in the backup: {} blobs in total; see `hatchery admin fsck`", summary.blobs_missing);
    }
    output.print(&summary, |summary| {
        let BackupSummary { jobs, nodes, checkpoints, blobs, .. } = summary;
        facts(&[
            ("file", Some(summary.file.display().to_string())),
            ("size", Some(human::bytes(summary.size_bytes))),
            ("events", Some(summary.last_event.to_string())),
            ("holds", Some(format!("{jobs} jobs, {nodes} nodes, {checkpoints} checkpoints"))),
            ("blobs", Some(if options.with_blobs { blobs.to_string() } else { "none".to_owned() })),
        ])
    })
}

async fn restore(args: RestoreArgs, home: &Home, output: Output) -> Outcome {
    let to = std::path::absolute(&args.to).map_err(Failure::usage)?;
    let start = if state_folder(home)? == to {
        "hatchery coordinator".to_owned()
    } else {
        format!("HATCHERY_COORDINATOR__STATE='{}' hatchery coordinator", to.display())
    };
    let summary =
        at_work(output, move |watcher| admin::restore(&args.file, &to, args.replace, watcher)).await?;
    output.print(&summary, |summary| {
        let RestoreSummary { jobs, nodes, checkpoints, leases_ended, blobs_missing, .. } = summary;
        let missing = match blobs_missing {
            0 => String::new(),
            count => {
                format!("; {count} missing: nodes upload those of the checkpoints they hold")
            }
        };
        facts(&[
            ("folder", Some(summary.folder.display().to_string())),
            ("created", Some(format!("{} ({})", summary.made_at, human::ago(summary.made_at)))),
            ("events", Some(summary.last_event.to_string())),
            ("holds", Some(format!("{jobs} jobs, {nodes} nodes, {checkpoints} checkpoints"))),
            ("attempts", Some(format!("{leases_ended} were running in the backup and have ended"))),
            ("blobs", Some(format!("{}{missing}", summary.blobs))),
            ("set aside", summary.put_aside.as_ref().map(|aside| aside.display().to_string())),
            ("start with", Some(start)),
        ])
    })
}

async fn fsck(args: FsckArgs, home: &Home, output: Output) -> Outcome {
    let state = state_or_usual(args.state, home)?;
    let report = at_work(output, move |watcher| admin::fsck(&state, args.repair, watcher)).await?;
    output.print(&report, findings)?;
    if report.is_sound() {
        return Ok(());
    }
    let count = |state| report.findings.iter().filter(|finding| finding.state == state).count();
    let (open, repairable) = (count(FindingState::Open), count(FindingState::Repairable));
    Err(Failure::failed(match (open, repairable) {
        (open, 0) => format!("{open} problems need manual repair"),
        (0, repairable) => format!("--repair would fix {repairable} problems"),
        (open, repairable) => {
            format!("--repair would fix {repairable} problems; {open} need manual repair")
        }
    }))
}

/// What was looked at, and what was found.
fn findings(report: &FsckReport) -> String {
    let looked = format!(
        "checked {} events and {} blobs ({}) in {}",
        report.last_event,
        report.blobs,
        human::bytes(report.blob_bytes),
        report.folder.display()
    );
    if report.findings.is_empty() {
        return format!("{looked}: no problems found");
    }
    let shown = |subject: &str| {
        let is_digest = subject.len() == DIGEST_LEN && subject.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_digest { format!("blob {}", &subject[..DIGEST_SHOWN_LEN]) } else { subject.to_owned() }
    };
    let row = |finding: &Finding| {
        let Finding { state, subject, problem, remedy, .. } = finding;
        vec![state.to_string(), shown(subject), problem.clone(), remedy.clone()]
    };
    let more = match report.findings_left_out {
        0 => String::new(),
        count => format!("\nand {count} more"),
    };
    format!(
        "{looked}\n\n{}{more}",
        table(&["state", "what", "problem", "remedy"], report.findings.iter().map(row))
    )
}

fn state_or_usual(given: Option<PathBuf>, home: &Home) -> Result<PathBuf, Failure> {
    given.map_or_else(|| state_folder(home), Ok)
}

/// Does work that waits for the disk beside a bar that shows how far it is. Ctrl-C ends it cleanly, and a second one at once.
async fn at_work<T: Send + 'static>(
    output: Output,
    work: impl FnOnce(&mut dyn Watcher) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let is_visible = output == Output::Text && is_interactive();
    let mut bar = Bar { shown: ProgressBar::hidden(), is_visible, stop: Arc::clone(&stop) };
    let mut working = tokio::task::spawn_blocking(move || {
        let done = work(&mut bar);
        bar.shown.finish_and_clear();
        done
    });
    loop {
        tokio::select! {
            done = &mut working => return Ok(done.map_err(Failure::failed)??),
            _ = tokio::signal::ctrl_c() => {
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(Code::Interrupted as i32);
                }
            }
        }
    }
}

struct Bar {
    shown: ProgressBar,
    is_visible: bool,
    stop: Arc<AtomicBool>,
}

impl Watcher for Bar {
    fn phase(&mut self, what: &'static str, bytes_total: Option<u64>) {
        self.shown.finish_and_clear();
        if !self.is_visible {
            return;
        }
        let template = match bytes_total {
            Some(_) => "{msg} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}",
            None => "{msg} {spinner}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.shown = bytes_total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        self.shown.set_style(style);
        self.shown.set_message(what);
        if bytes_total.is_none() {
            self.shown.enable_steady_tick(TICK);
        }
    }

    fn advance(&mut self, bytes: u64) -> bool {
        self.shown.inc(bytes);
        !self.stop.load(Ordering::Relaxed)
    }
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        let code = match &error {
            AdminError::NoState { .. } => Code::NotFound,
            AdminError::Interrupted => Code::Interrupted,
            AdminError::Exists { .. }
            | AdminError::NotEmpty { .. }
            | AdminError::Unfinished { .. }
            | AdminError::Damaged { .. }
            | AdminError::TooNew { .. }
            | AdminError::TooLarge { .. }
            | AdminError::Lock(_) => Code::Refused,
            _ => Code::Failed,
        };
        Self::new(code, error)
    }
}
