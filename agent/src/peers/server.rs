//! The port on which other nodes fetch from this one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use hatchery_common::{
    swarm::PeerReach,
    tls::{self, Credentials},
};
use hatchery_net::{
    swarm::PeerService,
    transport::{TlsIncoming, server_builder},
};
use hatchery_proto::services;
use tokio::{net::lookup_host, sync::watch, time::timeout};

use super::PeerSettings;
use crate::platform::Platform;

/// How long until the port is tried again that cannot be had.
const LISTEN_AGAIN: Duration = Duration::from_secs(30);
/// How long the coordinator's name may take to be found.
const LOOKUP_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Server {
    pub(super) platform: Arc<dyn Platform>,
    pub(super) settings: PeerSettings,
    pub(super) service: PeerService,
    pub(super) credentials: watch::Receiver<Credentials>,
    /// Where it is told how this node is reached.
    pub(super) reach: watch::Sender<PeerReach>,
}

impl Server {
    /// Serves, with the newest certificate, for as long as the agent lives.
    pub(super) async fn run(mut self, mut address: SocketAddr) {
        loop {
            let credentials = self.credentials.borrow_and_update().clone();
            match self.serve(&mut address, &credentials).await {
                // There is a newer certificate.
                Ok(()) => {}
                Err(problem) => {
                    tracing::warn!(%address, problem, "cannot serve peers; they fetch from other nodes");
                    self.reach.send_replace(PeerReach::default());
                    // Or until there is a new certificate: either way it is tried again.
                    let _either = timeout(LISTEN_AGAIN, self.credentials.changed()).await;
                }
            }
        }
    }

    /// Serves until the credentials change.
    async fn serve(&mut self, address: &mut SocketAddr, credentials: &Credentials) -> Result<(), String> {
        let listener = match self.platform.listen(*address).await {
            // A system without IPv6.
            Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                self.platform.listen(address).await
            }
            listening => listening,
        };
        let listener = listener.map_err(|error| error.to_string())?;
        let bound = listener.local_addr().map_err(|error| error.to_string())?;
        // Others know this port from now on.
        address.set_port(bound.port());
        let config = tls::server_config(&credentials.certificate(), &credentials.authority_pem)
            .map_err(|error| error.to_string())?;
        let reach = self.reach_of(bound, credentials).await;
        tracing::info!(port = bound.port(), addresses = ?reach.addresses, "serving blobs to peers");
        self.reach.send_replace(reach);
        let server = server_builder()
            .add_service(services::peers(self.service.clone()))
            .serve_with_incoming(TlsIncoming::new(listener, config));
        tokio::select! {
            ended = server => Err(ended.err().map_or("it stopped unexpectedly".to_owned(), |error| error.to_string())),
            Ok(()) = self.credentials.changed() => Ok(()),
        }
    }

    async fn reach_of(&self, bound: SocketAddr, credentials: &Credentials) -> PeerReach {
        let mut addresses = self.settings.advertised(bound.port());
        if addresses.is_empty() {
            let own = if bound.ip().is_unspecified() {
                outward_ip(credentials, bound.ip()).await
            } else {
                Some(bound.ip())
            };
            let own = own.filter(|ip| !ip.is_loopback());
            addresses.extend(own.map(|ip| SocketAddr::new(ip, bound.port()).to_string()));
        }
        let children_max = (self.settings.children_max > 0).then_some(self.settings.children_max);
        PeerReach { port: Some(bound.port()), addresses, children_max }
    }
}

/// This machine's address on the way to the coordinator, by which nodes in the same network reach it. A UDP socket that
/// is "connected" sends nothing: it only asks the routing table.
async fn outward_ip(credentials: &Credentials, bound: IpAddr) -> Option<IpAddr> {
    for address in &credentials.addresses {
        let Ok(Ok(found)) = timeout(LOOKUP_WITHIN, lookup_host(address)).await else { continue };
        // A listener for IPv6 takes IPv4 too; one for IPv4 does not take IPv6.
        for coordinator in found.filter(|found| bound.is_ipv6() || found.is_ipv4()) {
            let unspecified: IpAddr = match coordinator {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let asked = UdpSocket::bind((unspecified, 0)).and_then(|socket| {
                socket.connect(coordinator)?;
                socket.local_addr()
            });
            if let Ok(own) = asked {
                return Some(own.ip());
            }
        }
    }
    None
}
