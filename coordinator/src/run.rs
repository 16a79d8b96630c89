//! A coordinator from its start to its end.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hatchery_common::{
    blob::{BlobError, BlobLimits, BlobStore},
    durable::{self, FileError, FolderLock, LockError},
    open_files,
    time::Timestamp,
    tls::{self, Authority, TlsError},
};
use hatchery_net::{
    RateLimit, blocking,
    swarm::{PeerService, Shares},
    transfer::BlobService,
    transport::{HANDSHAKE_TIMEOUT, Listener, TlsIncoming, server_builder, stranger_server_builder},
};
use hatchery_proto::{
    DESCRIPTORS, services,
    v1::{
        agents_server::AgentsServer, blobs_server::BlobsServer, fleet_server::FleetServer,
        peers_server::PeersServer,
    },
};
use hatchery_scheduler::violations;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    addresses,
    admin::{AUTHORITY_FOLDER, AdminError, BLOBS_FOLDER, DATABASE_FILE, UNFINISHED_FOLDER},
    api::{AgentsService, FleetService, authorization::AccessLayer, context::Context},
    collect,
    core::{
        event_loop::{EventLoop, LoopError},
        handle::Input,
        store_thread::{self, StoreCalls},
    },
    local_operator::{self, CredentialsError},
    platform::{Host, Platform},
    sessions::{generations::Generations, logs::Logs, registry::Sessions, tracking::Tracking},
    settings::Settings,
    store::StoreError,
};

/// Calls under way have so long to finish when the coordinator stops.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What is known once the coordinator answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    pub address: SocketAddr,
    /// The folder that holds the local operator's credentials.
    pub client: PathBuf,
}

/// Why a coordinator did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another coordinator has the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A restore into the folder was cut off.
    #[error(transparent)]
    Unfinished(#[from] AdminError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs cannot be read.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// Keys or certificates cannot be made or read.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be had.
    #[error(
        "cannot listen on {address}: {source}; is another program using it? Choose another address with \
         `--listen`"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    /// The local operator has no credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The state can no longer be kept.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The server ended by itself.
    #[error("the server stopped: {0}")]
    Server(#[from] tonic::transport::Error),
    /// A service cannot be made.
    #[error("internal error: {0}")]
    Built(String),
}

impl From<JoinError> for RunError {
    fn from(error: JoinError) -> Self {
        Self::Built(error.to_string())
    }
}

/// Runs a coordinator until `shutdown` is cancelled; then open streams end, calls under way finish, and the store is
/// closed. `on_ready` is told once it answers calls.
pub async fn run(
    settings: Settings,
    shutdown: CancellationToken,
    on_ready: oneshot::Sender<Ready>,
) -> Result<(), RunError> {
    open_files::raise_limit();
    run_on(&Host, settings, shutdown, on_ready).await
}

/// The same on a given platform.
pub async fn run_on(
    platform: &dyn Platform,
    settings: Settings,
    shutdown: CancellationToken,
    on_ready: oneshot::Sender<Ready>,
) -> Result<(), RunError> {
    tls::install_provider();
    durable::create_folder(&settings.state)?;
    let _lock = FolderLock::acquire(&settings.state)?;
    if settings.state.join(UNFINISHED_FOLDER).exists() {
        return Err(AdminError::Unfinished { folder: settings.state }.into());
    }
    let (store, queue) = store_thread::channel();
    let answering = platform.open_store(&settings.state.join(DATABASE_FILE), queue).await?;
    let ended = serve(platform, &settings, &store, shutdown, on_ready).await;
    store.close().await;
    answering.await?;
    tracing::info!("stopped");
    ended
}

async fn serve(
    platform: &dyn Platform,
    settings: &Settings,
    store: &StoreCalls,
    shutdown: CancellationToken,
    on_ready: oneshot::Sender<Ready>,
) -> Result<(), RunError> {
    let (event_loop, handle) = EventLoop::load(store.clone(), settings.lease, settings.policy).await?;
    for violation in violations(&handle.snapshot().cluster) {
        tracing::error!(%violation, "the state breaks an invariant");
    }
    let authority = Authority::create_or_load(&settings.state.join(AUTHORITY_FOLDER))?;
    let limits =
        BlobLimits { quota_bytes: settings.blob_bytes_max, free_bytes_min: settings.disk_free_bytes_min };
    let folder = settings.state.join(BLOBS_FOLDER);
    let blobs = blocking(move || BlobStore::open(&folder, limits)).await?;
    let failed = |source| RunError::Listen { address: settings.listen, source };
    let listener = platform.listen(settings.listen).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;

    let mut event_loop = tokio::spawn(event_loop.run());
    local_operator::provide(&settings.client, addresses::local(bound), &authority, &handle).await?;
    let addresses = addresses::advertised(bound, &settings.advertise);
    let upload_max = settings.upload_bytes_per_sec_max;
    let shares = Shares::new(blobs.clone(), RateLimit::new((upload_max > 0).then_some(upload_max)));
    let hosts = addresses::hosts(&addresses);
    let tracking = Arc::new(Tracking::new(blobs.clone(), shares.clone(), platform.network(), hosts));
    let _tracking = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&tracking).keep_up()));
    let context = Arc::new(Context {
        event_loop: handle.clone(),
        store: store.clone(),
        blobs,
        blob_bytes_max: settings.blob_bytes_max,
        logs: Logs::new(settings.state.join("logs"), settings.log_bytes_max),
        sessions: Sessions::default(),
        tracking,
        generations: Generations::default(),
        authority,
        addresses,
        report_every: settings.report_every,
        started_at: Timestamp::now(),
    });
    let stopping = CancellationToken::new();
    let collecting =
        tokio::spawn(collect::run(Arc::clone(&context), settings.collect_grace, stopping.clone()));
    let mut server = start_server(context, shares, listener, stopping.clone()).await?;
    tracing::info!(address = %bound, state = %settings.state.display(), "ready");
    // Nobody need be waiting for it.
    drop(on_ready.send(Ready { address: bound, client: settings.client.clone() }));

    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = &mut event_loop => Err(end_of(ended)),
        ended = &mut server => Err(end_of(ended)),
    };
    // The loop may have ended already.
    let _ended = handle.send(Input::Stopping).await;
    stopping.cancel();
    if !server.is_finished() && timeout(STOP_WITHIN, &mut server).await.is_err() {
        tracing::warn!("cutting off calls that did not finish within {} s", STOP_WITHIN.as_secs());
        server.abort();
    }
    collecting.await?;
    // If it cannot be sent, the loop has ended already, and the select above has its reason.
    if handle.send(Input::Shutdown).await.is_ok() {
        event_loop.await??;
    }
    ended
}

/// Why a task ended that goes on for ever.
fn end_of<E: Into<RunError>>(ended: Result<Result<(), E>, JoinError>) -> RunError {
    match ended {
        Ok(Ok(())) => RunError::Built("a task ended unexpectedly".to_owned()),
        Ok(Err(error)) => error.into(),
        Err(error) => error.into(),
    }
}

async fn start_server(
    context: Arc<Context>,
    shares: Shares,
    listener: Box<dyn Listener>,
    stopping: CancellationToken,
) -> Result<JoinHandle<Result<(), tonic::transport::Error>>, RunError> {
    let certificate = context.authority.issue_server(&addresses::hosts(&context.addresses))?;
    let config = tls::server_config(&certificate, context.authority.certificate_pem())?;
    let fleet = services::fleet(FleetService { context: Arc::clone(&context) });
    let agents = services::agents(AgentsService { context: Arc::clone(&context) });
    let blobs = services::blobs(BlobService::new(context.blobs.clone()));
    let peers = services::peers(PeerService::new(shares));
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<FleetServer<FleetService>>().await;
    reporter.set_serving::<AgentsServer<AgentsService>>().await;
    reporter.set_serving::<BlobsServer<BlobService>>().await;
    reporter.set_serving::<PeersServer<PeerService>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let built = |error: tonic_reflection::server::Error| RunError::Built(error.to_string());
    let gate = AccessLayer { event_loop: context.event_loop.clone(), stopping: stopping.clone() };
    let (members, strangers) = TlsIncoming::with_strangers(listener, config, HANDSHAKE_TIMEOUT);
    let strangers = stranger_server_builder()
        .layer(gate.clone())
        .add_service(services::join(AgentsService { context }))
        .serve_with_incoming_shutdown(strangers, stopping.clone().cancelled_owned());
    let members = server_builder()
        .layer(gate)
        .add_service(fleet)
        .add_service(agents)
        .add_service(blobs)
        .add_service(peers)
        .add_service(health)
        .add_service(reflection().build_v1().map_err(built)?)
        .add_service(reflection().build_v1alpha().map_err(built)?)
        .serve_with_incoming_shutdown(members, stopping.cancelled_owned());
    Ok(tokio::spawn(async { tokio::try_join!(members, strangers).map(|_both| ()) }))
}
