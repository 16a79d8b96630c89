//! Starts that fail, and what they say.

use hatchery_coordinator::{CoordinatorSettings, RunError};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Fixture, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_coordinator_on_the_folder_is_refused() {
    let fixture = Fixture::start().await;
    let settings = CoordinatorSettings { listen: "127.0.0.1:0".into(), ..CoordinatorSettings::default() };
    let settings = settings.check(fixture.folder.path()).unwrap();
    let (on_ready, _ready) = tokio::sync::oneshot::channel();
    let error =
        soon(hatchery_coordinator::run(settings, CancellationToken::new(), on_ready)).await.unwrap_err();
    assert!(matches!(error, RunError::Lock(_)), "{error:?}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    soon(fixture.fleet().await.status()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_a_damaged_database_are_named() {
    let mut fixture = Fixture::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let settings = CoordinatorSettings { listen: taken.to_string(), ..CoordinatorSettings::default() };
    let folder = tempfile::tempdir().unwrap();
    let (on_ready, _ready) = tokio::sync::oneshot::channel();
    let settings = settings.check(folder.path()).unwrap();
    let error =
        soon(hatchery_coordinator::run(settings, CancellationToken::new(), on_ready)).await.unwrap_err();
    assert!(error.to_string().contains(&taken.to_string()), "{error}");

    fixture.submit().await;
    fixture.stop().await;
    let database = fixture.state().join("hatchery.db");
    assert!(!fixture.state().join("hatchery.db-wal").exists(), "a graceful stop leaves no log behind");
    let mut bytes = std::fs::read(&database).unwrap();
    bytes.iter_mut().skip(4096).for_each(|byte| *byte = 0xA5);
    std::fs::write(&database, bytes).unwrap();
    let error = fixture.begin().await.unwrap_err();
    assert!(matches!(error, RunError::Store(_)), "{error:?}");
    assert!(error.to_string().contains("hatchery.db"), "{error}");
}
