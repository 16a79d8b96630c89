//! A real server over TLS on a free port of loopback, and credentials for it.

use std::{net::SocketAddr, sync::LazyLock};

use hatchery_common::{
    id::{Name, NodeId},
    tls::{Authority, Credentials, Identity, KeyedCertificate, Role, install_provider, server_config},
};
use hatchery_net::transport::{HANDSHAKE_TIMEOUT, TlsIncoming, server_builder};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::service::Routes;

static FLEET: LazyLock<Authority> = LazyLock::new(|| {
    install_provider();
    let folder = tempfile::tempdir().unwrap();
    Authority::create_or_load(folder.path()).unwrap()
});

/// The authority of every server here.
pub(crate) fn authority() -> &'static Authority {
    &FLEET
}

/// An operator's credentials for a server at `address`.
pub(crate) fn credentials(address: SocketAddr) -> Credentials {
    let identity = Identity::new(Role::Operator(Name::new("name", "ada").unwrap()));
    let keyed = FLEET.issue_client_with_key(&identity).unwrap();
    Credentials::new(vec![address.to_string()], FLEET.certificate_pem(), keyed)
}

/// A node's credentials, for a coordinator at `address`.
pub(crate) fn credentials_of(identity: &Identity, address: SocketAddr) -> Credentials {
    let keyed = FLEET.issue_client_with_key(identity).unwrap();
    Credentials::new(vec![address.to_string()], FLEET.certificate_pem(), keyed)
}

/// A running server; it stops when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    pub(crate) async fn start(routes: Routes) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), routes).await
    }

    pub(crate) async fn start_at(address: SocketAddr, routes: Routes) -> Self {
        Self::start_with(address, &FLEET.issue_server(&[]).unwrap(), routes).await
    }

    /// A node's own server.
    pub(crate) async fn start_as(node: NodeId, routes: Routes) -> Self {
        let keyed = FLEET.issue_client_with_key(&Identity::new(Role::Agent(node))).unwrap();
        Self::start_with("127.0.0.1:0".parse().unwrap(), &keyed, routes).await
    }

    async fn start_with(address: SocketAddr, keyed: &KeyedCertificate, routes: Routes) -> Self {
        let config = server_config(keyed, FLEET.certificate_pem()).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (members, strangers) = TlsIncoming::with_strangers(listener, config, HANDSHAKE_TIMEOUT);
        let incoming = futures::stream::select(members, strangers);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = server_builder().add_routes(routes);
        let served = tokio::spawn(server.serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        }));
        Self { address, stop: Some(stop), served }
    }

    /// Stops after the calls that are under way.
    pub(crate) async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.served).await.unwrap().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.served.abort();
    }
}
