//! The coordinator, in this process.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    dataset::{DatasetFile, DatasetManifest},
    id::{DatasetId, Name},
    tls::Credentials,
};
use hatchery_coordinator::{CoordinatorSettings, run};
use hatchery_net::{Connect as _, transfer::BlobClient};
use hatchery_proto::client::FleetClient;
use tokio::{runtime::Runtime, sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{LEASE_SECS, PATIENCE};

/// A real coordinator, with its store and TLS.
pub(crate) struct Coordinator {
    settings: CoordinatorSettings,
    home: tempfile::TempDir,
    /// Of its own, so that everything of it ends at once.
    runtime: Runtime,
}

impl Coordinator {
    pub(crate) async fn start() -> Result<Self> {
        let home = tempfile::tempdir()?;
        let listen = "127.0.0.1:0".to_owned();
        let settings =
            CoordinatorSettings { listen, lease_secs: LEASE_SECS, ..CoordinatorSettings::default() };
        let (runtime, address) = begin(&settings, home.path()).await?;
        let settings = CoordinatorSettings { listen: address, ..settings };
        Ok(Self { settings, home, runtime })
    }

    /// Is gone as by a SIGKILL, for so long, and comes back at the same address.
    pub(crate) async fn restart(&mut self, gone: Duration) -> Result<()> {
        // Another one for the moment, in which nothing runs.
        let killed = std::mem::replace(&mut self.runtime, Runtime::new()?);
        end(killed).await?;
        tokio::time::sleep(gone).await;
        let (runtime, _) = begin(&self.settings, self.home.path()).await?;
        std::mem::replace(&mut self.runtime, runtime).shutdown_background();
        Ok(())
    }

    pub(crate) async fn fleet(&self) -> Result<FleetClient> {
        Ok(FleetClient::connect(&Credentials::load(&self.home.path().join("client"))?).await?)
    }

    /// Ends it for good.
    pub(crate) async fn end(self) -> Result<()> {
        end(self.runtime).await
    }

    /// Puts a corpus for everybody.
    pub(crate) async fn dataset(&self) -> Result<DatasetId> {
        let folder = tempfile::tempdir()?;
        let limits = BlobLimits { free_bytes_min: 0, ..BlobLimits::default() };
        let store = BlobStore::open(folder.path(), limits)?;
        let text = b"to be or not to be, that is the question\n".repeat(400);
        let blob = store.put_bytes(&text)?;
        let operator = Credentials::load(&self.home.path().join("client"))?;
        BlobClient::connect(&operator).await?.put(&[blob], &store, |_| {}).await?;
        let file = DatasetFile { path: "hamlet.txt".into(), blob, size_bytes: text.len() as u64 };
        let manifest = DatasetManifest::new(Name::from_lossy("hamlet"), vec![file])?;
        Ok(self.fleet().await?.create_dataset(&manifest).await?.id)
    }
}

async fn begin(settings: &CoordinatorSettings, home: &Path) -> Result<(Runtime, String)> {
    let settings = settings.clone().check(home)?;
    let (on_ready, ready) = oneshot::channel();
    let runtime = Runtime::new()?;
    let running = runtime.spawn(run(settings, CancellationToken::new(), on_ready));
    let Ok(ready) = timeout(PATIENCE, ready).await.context("the coordinator takes too long to start")? else {
        bail!("the coordinator does not start: {:?}", running.await);
    };
    Ok((runtime, ready.address.to_string()))
}

/// Ends all tasks, and waits for the store's thread, which holds the database.
async fn end(runtime: Runtime) -> Result<()> {
    tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await?;
    Ok(())
}
