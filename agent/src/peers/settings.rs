//! How a node exchanges blobs with others: the part `peers` of an agent's settings.

use std::net::SocketAddr;

use hatchery_common::{
    field::{FieldError, check_range},
    swarm::PEER_ADDRESSES_MAX,
    tls::check_address,
};
use serde::{Deserialize, Serialize};

/// Most nodes that may fetch from this one at once.
const CHILDREN_MAX: u32 = 64;

/// Exchange of blobs with other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerSettings {
    /// Whether to exchange large blobs with other nodes; otherwise all come from the coordinator.
    pub enabled: bool,
    /// Listen address for other nodes; port 0: any free port. `[::]` includes IPv4.
    pub listen: String,
    /// Addresses under which others reach this machine, `host` or, with another port, `host:port`. Empty: detected.
    pub advertise: Vec<String>,
    /// Maximum number of nodes that fetch from this one at once; 0: chosen by the coordinator.
    pub children_max: u32,
    /// Maximum upload rate to other nodes in bytes per second; 0: unlimited.
    pub upload_bytes_per_sec_max: u64,
    /// Maximum upload rate while a job trains here, in bytes per second; 0: no separate limit.
    pub upload_bytes_per_sec_max_while_training: u64,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: "[::]:0".to_owned(),
            advertise: Vec::new(),
            children_max: 0,
            upload_bytes_per_sec_max: 0,
            upload_bytes_per_sec_max_while_training: 16 << 20,
        }
    }
}

impl PeerSettings {
    /// Checks every setting; the error names the first wrong one.
    pub fn check(&self) -> Result<(), FieldError> {
        self.address()?;
        check_range("children_max", self.children_max, 0, CHILDREN_MAX)?;
        check_range("advertise", self.advertise.len(), 0, PEER_ADDRESSES_MAX).map_err(|error| {
            FieldError::new(error.field, format!("the number of addresses {}", error.problem))
        })?;
        self.advertised(1).iter().try_for_each(|address| check_address("advertise", address))
    }

    /// Where to listen.
    pub(super) fn address(&self) -> Result<SocketAddr, FieldError> {
        self.listen.parse().map_err(|_| {
            FieldError::new("listen", format!("`{}` is not IP:PORT, such as [::]:4748", self.listen))
        })
    }

    /// The addresses that were set, for a node that serves on `port`.
    pub(super) fn advertised(&self, port: u16) -> Vec<String> {
        let has_port = |host: &str| check_address("advertise", host).is_ok();
        let with_port = |host: &String| if has_port(host) { host.clone() } else { format!("{host}:{port}") };
        self.advertise.iter().map(with_port).collect()
    }

    /// The limit on what is sent, while a trainer runs here or not; none: no limit.
    pub(super) fn upload_bytes_per_sec_max(&self, is_training: bool) -> Option<u64> {
        let limits =
            [self.upload_bytes_per_sec_max, self.upload_bytes_per_sec_max_while_training].into_iter();
        limits.take(if is_training { 2 } else { 1 }).filter(|limit| *limit > 0).min()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_limit_that_is_set_counts() {
        let limits = |always, training, is_training| {
            let settings = PeerSettings {
                upload_bytes_per_sec_max: always,
                upload_bytes_per_sec_max_while_training: training,
                ..PeerSettings::default()
            };
            settings.upload_bytes_per_sec_max(is_training)
        };
        assert_eq!(limits(0, 5, false), None);
        assert_eq!(limits(0, 5, true), Some(5));
        assert_eq!(limits(3, 5, true), Some(3));
        assert_eq!(limits(3, 0, true), Some(3));
        assert_eq!(limits(0, 0, true), None);
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        let refused = |settings: PeerSettings| settings.check().unwrap_err().field;
        let peers = PeerSettings::default();
        peers.check().unwrap();
        assert_eq!(refused(PeerSettings { listen: "here".into(), ..peers.clone() }), "listen");
        assert_eq!(refused(PeerSettings { advertise: vec!["a b".into()], ..peers.clone() }), "advertise");
        assert_eq!(refused(PeerSettings { children_max: 1000, ..peers.clone() }), "children_max");
        let set = PeerSettings { advertise: vec!["box.lan".into(), "[::1]:8".into()], ..peers };
        set.check().unwrap();
        assert_eq!(set.advertised(7), ["box.lan:7", "[::1]:8"]);
    }
}
