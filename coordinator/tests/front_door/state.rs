//! A state folder that a real coordinator has made and left, for backups and checks.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use hatchery_common::{
    id::CheckpointId,
    session::{AssignedAttempt, AttemptPhase},
    view::JobView,
};
use hatchery_coordinator::store::{SqliteStore, Store};
use hatchery_proto::client::CallError;
use hatchery_scheduler::{Cluster, Event};

use crate::{
    agent::{Agent, Session, report_of},
    fixture::Fixture,
};

/// A fixture with a node that trains, and what it is at.
pub(crate) struct Busy {
    pub(crate) fixture: Fixture,
    pub(crate) agent: Agent,
    pub(crate) session: Session,
    pub(crate) job: JobView,
    pub(crate) attempt: AssignedAttempt,
    pub(crate) checkpoint: CheckpointId,
}

/// A job runs and has committed its first checkpoint; another one waits.
pub(crate) async fn busy() -> Busy {
    let fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "alder").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    fixture.submit().await;
    let attempt = session.attempt().await;
    session.report(vec![report_of(&attempt, AttemptPhase::Running)], vec![]).await;
    let checkpoint = agent.commit(&job, &attempt, 10, None).await.unwrap();
    Busy { fixture, agent, session, job, attempt, checkpoint }
}

impl Busy {
    /// Lets the coordinator go, and gives its state folder. The fixture keeps it.
    pub(crate) async fn left(mut self) -> (Fixture, PathBuf) {
        drop(self.session);
        self.fixture.stop().await;
        let state = self.fixture.state();
        (self.fixture, state)
    }
}

/// Commits a checkpoint of `step` under `attempt`, whose parent is `parent`.
pub(crate) async fn commit(
    busy: &Busy,
    agent: &Agent,
    attempt: &AssignedAttempt,
    step: u64,
) -> Result<CheckpointId, CallError> {
    agent.commit(&busy.job, attempt, step, Some(busy.checkpoint)).await
}

/// What the tables in a state folder say.
pub(crate) fn load(state: &Path) -> Cluster {
    SqliteStore::open(&state.join("hatchery.db")).unwrap().load().unwrap()
}

/// All changes in a state folder.
pub(crate) fn events(state: &Path) -> Vec<Event> {
    let mut store = SqliteStore::open(&state.join("hatchery.db")).unwrap();
    store.events(0, usize::MAX).unwrap().into_iter().map(|event| event.event).collect()
}

/// What `changes` come to.
pub(crate) fn replayed(events: &[Event]) -> Cluster {
    let mut cluster = Cluster::default();
    for event in events {
        cluster.evolve(event);
    }
    cluster
}

/// The blobs' data files in a state folder.
pub(crate) fn blob_files(state: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for shard in fs::read_dir(state.join("blobs")).unwrap() {
        let shard = shard.unwrap();
        if shard.file_name().len() == 2 {
            let paths = fs::read_dir(shard.path()).unwrap().map(|entry| entry.unwrap().path());
            files.extend(paths.filter(|path| path.extension().is_some_and(|kind| kind == "data")));
        }
    }
    files.sort();
    files
}

/// Changes one byte of a file that nobody should change.
pub(crate) fn flip(path: &Path, place: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[place] ^= 1;
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}
