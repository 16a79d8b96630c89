//! Where things are on this machine: one folder for everything, `~/.hatchery` or `HATCHERY_HOME`.

use std::path::{Path, PathBuf};

use hatchery_common::tls::Credentials;
use hatchery_net::Connect;
use hatchery_proto::client::FleetClient;

use crate::exit::{Code, Failure};

/// The folder that holds this machine's state: `coordinator/`, `agent/` and `client/`.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    folder: PathBuf,
    coordinator: Option<String>,
}

impl Home {
    /// Takes the folder given, or the default; `coordinator` overrides the saved address.
    pub(crate) fn new(folder: Option<PathBuf>, coordinator: Option<String>) -> Result<Self, Failure> {
        let folder = match folder {
            Some(folder) => folder,
            None => std::env::home_dir()
                .map(|home| home.join(".hatchery"))
                .ok_or_else(|| Failure::usage("this account has no home folder; set HATCHERY_HOME"))?,
        };
        let folder = std::path::absolute(&folder)
            .map_err(|error| Failure::usage(format!("{}: {error}", folder.display())))?;
        Ok(Self { folder, coordinator })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.folder.join("agent")
    }

    /// The credentials of the person at this terminal.
    pub(crate) fn client(&self) -> PathBuf {
        self.folder.join("client")
    }

    /// The person's credentials, with the address that the command line gave, if any.
    pub(crate) fn credentials(&self) -> Result<Credentials, Failure> {
        let mut credentials = Credentials::load(&self.client()).map_err(|error| {
            Failure::new(
                Code::Unreachable,
                format!(
                    "{error}\nno coordinator is known on this machine: start one with `hatchery up`, or \
                     connect to one elsewhere with `hatchery login 'JOIN STRING'` (from `hatchery token \
                     create --scope operator` there)"
                ),
            )
        })?;
        if let Some(address) = &self.coordinator {
            credentials.addresses = vec![address.clone()];
        }
        Ok(credentials)
    }

    /// A connection to the coordinator as the person at this terminal.
    pub(crate) async fn fleet(&self) -> Result<FleetClient, Failure> {
        Ok(FleetClient::connect(&self.credentials()?).await?)
    }
}
