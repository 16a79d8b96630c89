//! The coordinator's settings: as people write them, and checked.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use hatchery_common::field::{FieldError, check_range};
use hatchery_scheduler::Policy;
use serde::{Deserialize, Serialize};

/// The port that a coordinator listens on unless told otherwise.
pub const PORT: u16 = 4747;
/// Shortest and longest lease, in seconds.
const LEASE_SECS: (u64, u64) = (2, 3600);
/// Agents report so many times in one lease, unless told otherwise.
const REPORTS_PER_LEASE: u64 = 5;
/// Agents report at most this often, in milliseconds.
const REPORT_EVERY_MS_MIN: u64 = 50;
/// Least and most bytes kept of what one attempt wrote to stderr.
const LOG_BYTES: (u64, u64) = (256 * 1024, 1 << 30);
/// Longest time for which a blob that nothing names is kept, in seconds: a year.
const COLLECT_GRACE_SECS_MAX: u64 = 365 * 86_400;
/// Most addresses to advertise; a join string holds no more.
const ADVERTISE_MAX: usize = 8;

/// The settings as they are written, not yet checked. Every key has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CoordinatorSettings {
    /// Listen address: `127.0.0.1:4747` for this machine only, `0.0.0.0:4747` for every network.
    pub listen: String,
    /// Addresses under which other machines reach this one, `host` or `host:port`; join strings carry them. Empty:
    /// detected.
    pub advertise: Vec<String>,
    /// State folder; unset: `coordinator` in Hatchery's home.
    pub state: Option<PathBuf>,
    /// Folder for the local operator's credentials; unset: `client` in Hatchery's home.
    pub client: Option<PathBuf>,
    /// Seconds without a report after which a node loses its attempts; 2 to 3600.
    pub lease_secs: u64,
    /// Interval of agents' reports in milliseconds; unset: a fifth of the lease.
    pub report_every_ms: Option<u64>,
    /// Disk space that stays free, in bytes; blobs that would use it are refused.
    pub disk_free_bytes_min: u64,
    /// Maximum total size of blobs in bytes; 0 or unset: the disk's size.
    pub blob_bytes_max: Option<u64>,
    /// Maximum upload rate to nodes in bytes per second; 0: unlimited.
    pub upload_bytes_per_sec_max: u64,
    /// Seconds after its last use until a blob that no checkpoint or dataset references is removed; uploads must be
    /// committed within this time.
    pub collect_grace_secs: u64,
    /// Maximum log size per attempt in bytes, 256 KiB to 1 GiB; the newest output is kept.
    pub log_bytes_max: u64,
    /// Maximum number of running jobs per person; unset: unlimited.
    pub running_per_submitter_max: Option<usize>,
}

impl Default for CoordinatorSettings {
    fn default() -> Self {
        Self {
            listen: format!("127.0.0.1:{PORT}"),
            advertise: Vec::new(),
            state: None,
            client: None,
            lease_secs: 15,
            report_every_ms: None,
            disk_free_bytes_min: 256 << 20,
            blob_bytes_max: None,
            upload_bytes_per_sec_max: 0,
            collect_grace_secs: 3600,
            log_bytes_max: 4 << 20,
            running_per_submitter_max: None,
        }
    }
}

impl CoordinatorSettings {
    /// Checks every setting; the error names the first wrong one. Folders that are not set lie in `home`.
    pub fn check(self, home: &Path) -> Result<Settings, FieldError> {
        let listen = self.listen.parse().map_err(|_| {
            FieldError::new(
                "listen",
                format!("`{}` is not IP:PORT, such as 127.0.0.1:{PORT} or 0.0.0.0:{PORT}", self.listen),
            )
        })?;
        check_range("advertise", self.advertise.len(), 0, ADVERTISE_MAX).map_err(|error| {
            FieldError::new(error.field, format!("the number of addresses {}", error.problem))
        })?;
        let advertise =
            self.advertise.iter().map(|text| Advertised::parse(text)).collect::<Result<_, _>>()?;
        check_range("lease_secs", self.lease_secs, LEASE_SECS.0, LEASE_SECS.1)?;
        let lease_ms = self.lease_secs * 1000;
        let report_every_ms = self.report_every_ms.unwrap_or(lease_ms / REPORTS_PER_LEASE);
        check_range("report_every_ms", report_every_ms, REPORT_EVERY_MS_MIN, lease_ms / 2)?;
        check_range("collect_grace_secs", self.collect_grace_secs, 1, COLLECT_GRACE_SECS_MAX)?;
        check_range("log_bytes_max", self.log_bytes_max, LOG_BYTES.0, LOG_BYTES.1)?;
        let running_per_submitter_max = self.running_per_submitter_max;
        running_per_submitter_max
            .map(|limit| check_range("running_per_submitter_max", limit, 1, usize::MAX))
            .transpose()?;
        Ok(Settings {
            listen,
            advertise,
            state: self.state.unwrap_or_else(|| home.join("coordinator")),
            client: self.client.unwrap_or_else(|| home.join("client")),
            lease: Duration::from_secs(self.lease_secs),
            report_every: Duration::from_millis(report_every_ms),
            disk_free_bytes_min: self.disk_free_bytes_min,
            blob_bytes_max: self.blob_bytes_max.filter(|limit| *limit > 0),
            upload_bytes_per_sec_max: self.upload_bytes_per_sec_max,
            collect_grace: Duration::from_secs(self.collect_grace_secs),
            log_bytes_max: self.log_bytes_max,
            policy: Policy { running_per_submitter_max },
        })
    }
}

/// Settings that were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Vec<Advertised>,
    pub(crate) state: PathBuf,
    pub(crate) client: PathBuf,
    pub(crate) lease: Duration,
    pub(crate) report_every: Duration,
    pub(crate) disk_free_bytes_min: u64,
    pub(crate) blob_bytes_max: Option<u64>,
    pub(crate) upload_bytes_per_sec_max: u64,
    pub(crate) collect_grace: Duration,
    pub(crate) log_bytes_max: u64,
    pub(crate) policy: Policy,
}

impl Settings {
    /// The state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The folder that gets the local operator's credentials.
    pub fn client(&self) -> &Path {
        &self.client
    }

    /// Where to listen; port 0 takes any free one.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }
}

/// A host that other machines know this one by, and a port if it is not the one listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advertised {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl Advertised {
    fn parse(text: &str) -> Result<Self, FieldError> {
        let wrong = || {
            FieldError::new(
                "advertise",
                format!("`{text}` is not HOST or HOST:PORT; write IPv6 as [::1]:{PORT}"),
            )
        };
        // An IPv6 address has colons of its own, so it stands in brackets where a port follows.
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None if text.parse::<std::net::Ipv6Addr>().is_ok() => (text, None),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(good) {
            return Err(wrong());
        }
        let port =
            port.map(|port| port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)).transpose()?;
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_field(change: impl FnOnce(&mut CoordinatorSettings)) -> String {
        let mut settings = CoordinatorSettings::default();
        change(&mut settings);
        settings.check(Path::new("/home/h")).unwrap_err().field
    }

    #[test]
    fn defaults_are_right_and_wrong_values_are_named() {
        let settings = CoordinatorSettings::default().check(Path::new("/home/h")).unwrap();
        assert_eq!(settings.state(), Path::new("/home/h/coordinator"));
        assert_eq!(settings.report_every, Duration::from_secs(3));
        let budget = |limit| {
            let settings = CoordinatorSettings { blob_bytes_max: limit, ..Default::default() };
            settings.check(Path::new("/home/h")).unwrap().blob_bytes_max
        };
        assert_eq!([None, Some(0), Some(1)].map(budget), [None, None, Some(1)], "0 is none");
        assert_eq!(wrong_field(|s| s.listen = "localhost".into()), "listen");
        assert_eq!(wrong_field(|s| s.lease_secs = 1), "lease_secs");
        assert_eq!(wrong_field(|s| s.report_every_ms = Some(8000)), "report_every_ms");
        assert_eq!(wrong_field(|s| s.log_bytes_max = 0), "log_bytes_max");
        assert_eq!(wrong_field(|s| s.collect_grace_secs = 0), "collect_grace_secs");
        assert_eq!(wrong_field(|s| s.advertise = vec!["a b".into()]), "advertise");
        assert_eq!(wrong_field(|s| s.advertise = vec!["host:0".into()]), "advertise");
    }

    #[test]
    fn advertised_hosts_may_name_a_port() {
        let parse = |text| Advertised::parse(text).map(|a| (a.host, a.port)).unwrap();
        assert_eq!(parse("box.lan"), ("box.lan".into(), None));
        assert_eq!(parse("10.0.0.2:99"), ("10.0.0.2".into(), Some(99)));
        assert_eq!(parse("fe80::1"), ("fe80::1".into(), None));
        assert_eq!(parse("[fe80::1]:99"), ("fe80::1".into(), Some(99)));
    }
}
