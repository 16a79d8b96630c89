//! A trainer as a process: heard, told, stopped, and never left behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{os::unix::process::ExitStatusExt, path::Path, process::ExitStatus, time::Duration};

use hatchery_agent::trainer::{
    process::{Heard, TrainerProcess},
    stderr_log::StderrLog,
    tool,
};
use hatchery_common::{
    device::Device,
    time::BootTime,
    trainer::{Ending, TrainerCommand, TrainerEvent},
};
use support::{PATIENCE, fake_trainer, runs, until, write_order};

struct Running {
    process: TrainerProcess,
    log: StderrLog,
    folder: tempfile::TempDir,
}

fn start(script: &str) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let order = write_order(folder.path(), script);
    let log = StderrLog::open(folder.path()).unwrap();
    let process = TrainerProcess::start(&fake_trainer(), &order, &log, || {}).unwrap();
    Running { process, log, folder }
}

impl Running {
    async fn hear(&mut self) -> Heard {
        tokio::time::timeout(PATIENCE, self.process.hear()).await.expect("it says something or ends")
    }

    /// Everything up to its end.
    async fn hear_all(&mut self) -> (Vec<TrainerEvent>, ExitStatus) {
        let mut events = Vec::new();
        loop {
            match self.hear().await {
                Heard::Event(event) => events.push(event),
                Heard::Exited(status) => return (events, status),
            }
        }
    }

    async fn started(&mut self) {
        assert!(matches!(self.hear().await, Heard::Event(TrainerEvent::Started { step: 0, .. })));
    }
}

#[tokio::test]
async fn a_run_is_heard_to_its_end() {
    let mut running = start("progress 1\nwrite hello\ncheckpoint 2\nprogress 3");
    let (events, status) = running.hear_all().await;
    assert!(status.success());
    assert!(matches!(&events[0], TrainerEvent::Started { device: Device::CPU, .. }));
    assert!(matches!(&events[1], TrainerEvent::Progress(progress) if progress.step == 1));
    let TrainerEvent::Checkpoint { folder, step: 2, .. } = &events[2] else { panic!("{events:?}") };
    assert!(folder.starts_with(running.folder.path()) && folder.join("model.safetensors").is_file());
    assert_eq!(events[4], TrainerEvent::Ended(Ending::Completed));
    assert_eq!(running.log.tail(100), "hello\n");
}

#[tokio::test]
async fn it_stops_when_it_is_told_and_when_its_lease_ends() {
    let mut running = start("wait");
    running.started().await;
    running.process.terminate();
    let (events, status) = running.hear_all().await;
    assert!(status.success());
    assert!(matches!(&events[0], TrainerEvent::Checkpoint { .. }));
    assert_eq!(events[1], TrainerEvent::Ended(Ending::Stopped));

    let mut running = start("wait");
    running.started().await;
    running.process.tell(TrainerCommand::Lease { until: BootTime::now() + Duration::from_millis(20) });
    let (events, _) = running.hear_all().await;
    assert_eq!(events.last(), Some(&TrainerEvent::Ended(Ending::LeaseExpired)));
}

#[tokio::test]
async fn one_that_does_not_listen_is_killed_with_all_that_it_started() {
    let mut running = start("child\ndeaf\nprogress 1\nwait");
    running.started().await;
    assert!(matches!(running.hear().await, Heard::Event(TrainerEvent::Progress(_))));
    let log = running.log.clone();
    until("its child is known", || log.tail(100).contains('\n')).await;
    let child: u32 = log.tail(100).trim().strip_prefix("child ").unwrap().parse().unwrap();
    running.process.terminate();
    let silence = tokio::time::timeout(Duration::from_millis(100), running.process.hear()).await;
    assert!(silence.is_err(), "it pays no heed: {silence:?}");
    assert!(runs(child));
    running.process.kill();
    let (events, status) = running.hear_all().await;
    assert_eq!((events, status.signal()), (vec![], Some(9)));
    until("its child is gone", || !runs(child)).await;
}

#[tokio::test]
async fn a_crash_ends_what_it_started_too() {
    let mut running = start("child\nwrite the last words\ncrash");
    let (events, status) = running.hear_all().await;
    assert_eq!(events.len(), 1);
    assert_eq!(status.signal(), Some(6));
    let output = running.log.tail(1000);
    assert!(output.contains("the last words"), "{output}");
    let child: u32 = output.lines().next().unwrap().strip_prefix("child ").unwrap().parse().unwrap();
    until("its child is gone", || !runs(child)).await;
}

#[tokio::test]
async fn dropping_it_leaves_nothing_behind() {
    let mut running = start("deaf\nwait");
    running.started().await;
    let id = running.process.id();
    assert!(runs(id));
    drop(running);
    until("it is gone", || !runs(id)).await;
}

#[tokio::test]
async fn garbage_and_floods_are_survived() {
    let mut running = start("garbage\nflood 10485760\nwrite the end\nprogress 7");
    let (events, status) = running.hear_all().await;
    assert!(status.success());
    assert_eq!(events.len(), 3, "{events:?}");
    assert_eq!(running.log.tail(8), "the end\n");
    assert!(running.log.end() > 10 << 20);
    let kept = |path: &Path| std::fs::metadata(path).unwrap().len();
    let on_disk: u64 =
        std::fs::read_dir(running.folder.path()).unwrap().map(|entry| kept(&entry.unwrap().path())).sum();
    assert!(on_disk < 3 << 20, "{on_disk} bytes are kept of 10 MiB");
}

#[tokio::test]
async fn the_trainer_answers_questions_and_its_failures_are_understood() {
    let report = tool::doctor(&fake_trainer()).await.unwrap();
    assert_eq!(report.devices[0].device, Device::CPU);
    assert!(tool::calibrate(&fake_trainer(), Device::CPU, 0).await.unwrap().steps_per_sec > 0.0);

    let said = |error: tool::TrainerToolError| error.to_string();
    let missing = said(tool::doctor(Path::new("/nowhere/hatchery-trainer")).await.unwrap_err());
    assert!(missing.contains("no trainer at /nowhere") && missing.contains("HATCHERY_TRAINER"), "{missing}");
    let folder = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let broken =
        script("broken", "#!/bin/sh\necho 'libtorch_cpu.so: cannot open shared object file' >&2\nexit 127\n");
    let failed = said(tool::doctor(&broken).await.unwrap_err());
    assert!(failed.contains("libtorch_cpu.so: cannot open") && failed.contains("127"), "{failed}");
    let strange = script("strange", "#!/bin/sh\necho hello\n");
    let strange = said(tool::doctor(&strange).await.unwrap_err());
    assert!(strange.contains("does not understand"), "{strange}");
}
