//! The node among others: large blobs come from whoever has pieces of them, and go to whoever wants some.
//!
//! What is fetched and served is `hatchery_net::swarm`'s; here it is tied to the session: the coordinator is told what is
//! here and what is wanted, and its plans are passed on. Without a session, the plans that came before go on.

mod server;
mod settings;

use std::{sync::Arc, time::Duration};

use hatchery_common::{
    blob::BlobStore,
    id::BlobId,
    session::{AgentMessage, CoordinatorMessage},
    swarm::{PeerReach, SWARM_BLOBS_MAX, SwarmReport, Trouble},
    tls::Credentials,
};
use hatchery_net::{
    RateLimit,
    swarm::{Exchange, PeerService, Shares},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::platform::Platform;
use server::Server;
pub use settings::PeerSettings;

/// How often it is looked whether blobs have come or gone.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often progress and rates are told while something is on its way.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How often at most a change is told.
const REPORT_SPACING: Duration = Duration::from_millis(50);
/// Most parents that are remembered to have sent wrong bytes.
const ACCUSED_MAX: usize = 64;
/// Reports of trouble that wait.
const TROUBLES_AHEAD: usize = 64;

type Outbox = mpsc::Sender<AgentMessage>;

/// The exchange with other nodes. Clones share it.
#[derive(Clone)]
pub(crate) struct Peers {
    exchange: Exchange,
    service: PeerService,
    settings: Arc<PeerSettings>,
    credentials: Arc<watch::Sender<Credentials>>,
    outbox: Arc<watch::Sender<Option<Outbox>>>,
    _tasks: Arc<[AbortOnDropHandle<()>; 2]>,
}

impl Peers {
    /// Begins to serve what is in `store`, and to tell of it; none if the settings do not want it. They were checked.
    pub(crate) fn begin(
        platform: &Arc<dyn Platform>,
        settings: &PeerSettings,
        store: &BlobStore,
        credentials: &Credentials,
    ) -> Option<Self> {
        let address = settings.address().ok().filter(|_| settings.enabled)?;
        let (credentials, known) = watch::channel(credentials.clone());
        let limit = RateLimit::new(settings.upload_bytes_per_sec_max(false));
        let shares = Shares::new(store.clone(), limit);
        let (troubles, told) = mpsc::channel(TROUBLES_AHEAD);
        let exchange =
            Exchange::new(store.clone(), shares.clone(), platform.network(), known.clone(), troubles);
        let service = PeerService::new(shares.clone());
        let (reach, reached) = watch::channel(PeerReach::default());
        let server = Server {
            platform: Arc::clone(platform),
            settings: settings.clone(),
            service: service.clone(),
            credentials: known,
            reach,
        };
        let (outbox, outboxes) = watch::channel(None);
        let teller = Teller { exchange: exchange.clone(), shares, reached, outboxes, troubles: told };
        let tasks = [tokio::spawn(server.run(address)), tokio::spawn(teller.run())];
        Some(Self {
            exchange,
            service,
            settings: Arc::new(settings.clone()),
            credentials: Arc::new(credentials),
            outbox: Arc::new(outbox),
            _tasks: Arc::new(tasks.map(AbortOnDropHandle::new)),
        })
    }

    /// What is fetched from others.
    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// A session stands, with this way to send.
    pub(crate) fn session_began(&self, outbox: Outbox) {
        self.outbox.send_replace(Some(outbox));
    }

    /// There is none any more.
    pub(crate) fn session_ended(&self) {
        self.outbox.send_replace(None);
    }

    /// Takes what the coordinator says of blobs and nodes; gives back what is for somebody else.
    pub(crate) fn take(&self, message: CoordinatorMessage) -> Option<CoordinatorMessage> {
        match message {
            CoordinatorMessage::FetchPlan(plan) => self.exchange.plan(plan),
            CoordinatorMessage::Revoked(certificates) => self.service.revoke(certificates),
            other => return Some(other),
        }
        None
    }

    /// There is a newer certificate.
    pub(crate) fn renewed(&self, credentials: &Credentials) {
        self.credentials.send_replace(credentials.clone());
    }

    /// A trainer runs here, or none does: it should not notice what is sent meanwhile.
    pub(crate) fn set_training(&self, is_training: bool) {
        self.service.shares().limit().set(self.settings.upload_bytes_per_sec_max(is_training));
    }
}

struct Teller {
    exchange: Exchange,
    shares: Shares,
    reached: watch::Receiver<PeerReach>,
    outboxes: watch::Receiver<Option<Outbox>>,
    troubles: mpsc::Receiver<(BlobId, Trouble)>,
}

/// Only wrong bytes are remembered: all other trouble is over, or comes again.
fn remember(accused: &mut Vec<(BlobId, Trouble)>, trouble: (BlobId, Trouble)) {
    if matches!(trouble.1, Trouble::Wrong(_)) && !accused.contains(&trouble) && accused.len() < ACCUSED_MAX {
        accused.push(trouble);
    }
}

/// What was told in a session.
#[derive(Default)]
struct Told {
    reach: Option<PeerReach>,
    holds: Option<Vec<BlobId>>,
    wanted: Vec<(BlobId, u64)>,
    /// When progress was told last, and what had come by then.
    at: Option<Instant>,
    received_bytes: u64,
    sent_bytes: u64,
}

impl Teller {
    async fn run(mut self) {
        let mut accused = Vec::new();
        loop {
            let outbox = self.outboxes.borrow_and_update().clone();
            if let Some(outbox) = outbox {
                self.tell(outbox, &mut accused).await;
                continue;
            }
            tokio::select! {
                changed = self.outboxes.changed() => if changed.is_err() { return },
                Some(trouble) = self.troubles.recv() => remember(&mut accused, trouble),
            }
        }
    }

    /// Tells over one session, until there is another one. Each hears again who has sent `accused` wrong bytes.
    async fn tell(&mut self, outbox: Outbox, accused: &mut Vec<(BlobId, Trouble)>) {
        let mut told = Told::default();
        let mut again = accused.clone().into_iter();
        let (mut may_report_at, mut is_news) = (Instant::now(), false);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                _ = self.outboxes.changed() => return,
                Some((blob, trouble)) = self.troubles.recv() => {
                    remember(accused, (blob, trouble));
                    Some(AgentMessage::PeerTrouble { blob, trouble })
                }
                () = self.exchange.changed(), if !is_news => {
                    is_news = true;
                    continue;
                }
                () = sleep_until(may_report_at), if is_news => {
                    is_news = false;
                    self.report(&mut told)
                }
                _ = look.tick() => self.report(&mut told),
            };
            // The first report has told who wants what; what is accused belongs to that.
            let message = match message {
                None if told.reach.is_some() => {
                    again.next().map(|(blob, trouble)| AgentMessage::PeerTrouble { blob, trouble })
                }
                message => message,
            };
            let Some(message) = message else { continue };
            if matches!(message, AgentMessage::Swarm(_)) {
                may_report_at = Instant::now() + REPORT_SPACING;
            }
            let sent = tokio::select! {
                sent = outbox.send(message) => sent.is_ok(),
                _ = self.outboxes.changed() => return,
            };
            if !sent {
                // The next session hears all of it again.
                if self.outboxes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                return;
            }
        }
    }

    /// What the coordinator does not know yet, if it is worth a message.
    fn report(&mut self, told: &mut Told) -> Option<AgentMessage> {
        let mut wants = self.exchange.wants();
        wants.truncate(SWARM_BLOBS_MAX);
        let wanted: Vec<(BlobId, u64)> = wants.iter().map(|wanted| (wanted.blob, wanted.fetch)).collect();
        let mut holds = self.shares.whole();
        holds.truncate(SWARM_BLOBS_MAX);
        let reach = self.reached.borrow_and_update().clone();
        let new_reach = (told.reach.as_ref() != Some(&reach)).then_some(reach);
        let new_holds = (told.holds.as_ref() != Some(&holds)).then_some(holds);
        let since = told.at.map(|at| at.elapsed());
        let is_time = since.is_none_or(|since| since >= TELL_EVERY);
        let mut report = SwarmReport {
            reach: new_reach,
            holds: new_holds,
            wants,
            sent_bytes: self.shares.sent_bytes(),
            received_bytes: self.exchange.received_bytes(),
            ..SwarmReport::default()
        };
        if is_time {
            let came_bytes = report.received_bytes - told.received_bytes;
            self.add_rates(&mut report, came_bytes, since);
            (told.at, told.received_bytes) = (Some(Instant::now()), report.received_bytes);
        }
        let has_rates = report.up_bytes_per_sec.is_some() || report.down_bytes_per_sec.is_some();
        let progress = is_time && (!report.wants.is_empty() || report.sent_bytes != told.sent_bytes);
        let news = report.reach.is_some() || report.holds.is_some() || wanted != told.wanted;
        if !news && !progress && !has_rates {
            return None;
        }
        if let Some(reach) = &report.reach {
            told.reach = Some(reach.clone());
        }
        if let Some(holds) = &report.holds {
            told.holds = Some(holds.clone());
        }
        (told.wanted, told.sent_bytes) = (wanted, report.sent_bytes);
        Some(AgentMessage::Swarm(report))
    }

    /// What the link did since it was last looked at: upwards if it was busy, downwards if something is on its way.
    fn add_rates(&self, report: &mut SwarmReport, came_bytes: u64, since: Option<Duration>) {
        report.up_bytes_per_sec = self.shares.up_bytes_per_sec();
        let Some(secs) = since.map(|since| since.as_secs_f64()).filter(|secs| *secs < 10.0) else { return };
        if !report.wants.is_empty() && came_bytes > 0 {
            report.down_bytes_per_sec = Some(came_bytes as f64 / secs);
        }
    }
}
