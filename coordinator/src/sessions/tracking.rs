//! The tracker of the blobs that nodes exchange, and what it knows of the nodes: soft state, rebuilt from what sessions say.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hatchery_common::{
    blob::BlobStore,
    id::{BlobId, Name, NodeId},
    swarm::{COORDINATOR, FetchPlan, PEER_ADDRESSES_MAX, PeerReach, PlannedParent, SwarmReport, Trouble},
    view::PeersView,
};
use hatchery_net::{swarm::Shares, transport::Network};
use hatchery_swarm::{Direction, Plan, Random, Reach, Tracker};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{addresses::join, core::handle::SessionNumber};

/// How often the coordinator's own blobs and link are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a node without a session stays in the plans: its peers may reach it all the same.
const GONE_AFTER: Duration = Duration::from_secs(10);
/// How often it is tried whether a node can be dialled that could not, and one that could.
const PROBE_EVERY: Duration = Duration::from_mins(1);
const PROBE_REACHED_EVERY: Duration = Duration::from_mins(10);
/// At every so many looks those who wait are told why.
const REASONS_EVERY: u64 = 5;
/// How long one address of a node may take to answer.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

/// The tracker with its surroundings.
#[derive(Debug)]
pub(crate) struct Tracking {
    state: Mutex<State>,
    blobs: BlobStore,
    /// What is sent from here, as one of the nodes.
    shares: Shares,
    network: Arc<dyn Network>,
    /// The hosts under which others reach this machine.
    hosts: Vec<String>,
}

#[derive(Debug)]
struct State {
    tracker: Tracker,
    members: BTreeMap<NodeId, Member>,
    /// The blobs of this machine that the tracker knows of: those that somebody wants.
    here: BTreeSet<BlobId>,
    looks: u64,
}

/// A node as its session told of it.
#[derive(Debug)]
struct Member {
    session: SessionNumber,
    gone_since: Option<Instant>,
    addresses: Vec<String>,
    reach: Reach,
    holds: BTreeSet<BlobId>,
    /// What it fetches, each with the number of that fetch.
    wants: BTreeMap<BlobId, u64>,
    /// Whether it can be dialled is being tried.
    probe: Option<AbortOnDropHandle<()>>,
    probed_at: Option<Instant>,
    has_reported: bool,
    sent_bytes: u64,
    received_bytes: u64,
    /// Blobs whose plans it has to be told.
    due: BTreeSet<BlobId>,
    is_due: Arc<Notify>,
}

impl Tracking {
    /// A tracker that knows nobody yet. `hosts` are those of this machine.
    pub(crate) fn new(
        blobs: BlobStore,
        shares: Shares,
        network: Arc<dyn Network>,
        hosts: Vec<String>,
    ) -> Self {
        let mut tracker = Tracker::new(Random::new(RandomState::new().build_hasher().finish()));
        tracker.node_came(COORDINATOR, Reach { can_be_dialled: true, children_max: None });
        let state = State { tracker, members: BTreeMap::new(), here: BTreeSet::new(), looks: 0 };
        let state = Mutex::new(state);
        Self { state, blobs, shares, network, hosts }
    }

    /// A node's session begins. The handle is told when there are plans for [`Tracking::due`].
    pub(crate) fn session_opened(&self, node: NodeId, session: SessionNumber) -> Arc<Notify> {
        let mut state = self.state();
        let known = state.members.remove(&node);
        let is_due = Arc::new(Notify::new());
        let member = match known {
            // It says everything again; until then what it said before holds.
            Some(known) => Member {
                session,
                gone_since: None,
                // Its fetches are other ones if its agent is another one: all plans are due when it names them.
                wants: known.wants.keys().map(|blob| (*blob, 0)).collect(),
                due: BTreeSet::new(),
                is_due: Arc::clone(&is_due),
                ..known
            },
            None => Member {
                session,
                gone_since: None,
                addresses: Vec::new(),
                reach: Reach { can_be_dialled: false, children_max: None },
                holds: BTreeSet::new(),
                wants: BTreeMap::new(),
                probe: None,
                probed_at: None,
                has_reported: false,
                sent_bytes: 0,
                received_bytes: 0,
                due: BTreeSet::new(),
                is_due: Arc::clone(&is_due),
            },
        };
        state.members.insert(node, member);
        is_due
    }

    /// A node's session is over; a newer one may have begun.
    pub(crate) fn session_closed(&self, node: NodeId, session: SessionNumber) {
        let mut state = self.state();
        if let Some(member) = state.members.get_mut(&node).filter(|member| member.session == session) {
            member.gone_since = Some(Instant::now());
        }
    }

    /// A node says how it stands. `remote` is where its session comes from.
    pub(crate) fn report(self: &Arc<Self>, node: NodeId, remote: Option<IpAddr>, report: SwarmReport) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(member) = state.members.get_mut(&node) else { return };
        if let Some(reach) = report.reach {
            let addresses = self.addresses(&reach, remote);
            if addresses.is_empty() {
                member.reach.can_be_dialled = false;
            }
            member.reach.children_max = reach.children_max.map(|max| max as usize);
            if !same_set(&addresses, &member.addresses) {
                member.addresses = addresses;
                member.probed_at = None;
            }
            self.probe_if_due(node, member);
        }
        member.has_reported = true;
        (member.sent_bytes, member.received_bytes) = (report.sent_bytes, report.received_bytes);
        state.tracker.node_came(node, member.reach);
        if let Some(holds) = report.holds {
            let holds: BTreeSet<BlobId> = holds.into_iter().collect();
            for blob in holds.difference(&member.holds) {
                state.tracker.has_all(*blob, node);
            }
            let wants: BTreeSet<BlobId> = report.wants.iter().map(|wanted| wanted.blob).collect();
            for blob in member.holds.difference(&holds).filter(|blob| !wants.contains(blob)) {
                state.tracker.leaves(*blob, node);
            }
            member.holds = holds;
        }
        let before = std::mem::take(&mut member.wants);
        for wanted in report.wants.iter().filter(|wanted| !member.holds.contains(&wanted.blob)) {
            member.wants.insert(wanted.blob, wanted.fetch);
            if let Some(fetch) = before.get(&wanted.blob) {
                state.tracker.progressed(wanted.blob, node, wanted.held);
                if *fetch != wanted.fetch {
                    member.due.insert(wanted.blob);
                    member.is_due.notify_one();
                }
            } else {
                if self.blobs.has(wanted.blob) && state.here.insert(wanted.blob) {
                    state.tracker.has_all(wanted.blob, COORDINATOR);
                }
                state.tracker.wants(wanted.blob, node, wanted.held);
            }
        }
        let is_over = |blob: &&BlobId| !member.wants.contains_key(blob) && !member.holds.contains(blob);
        for blob in before.keys().filter(is_over) {
            state.tracker.leaves(*blob, node);
        }
        for (direction, rate) in
            [(Direction::Up, report.up_bytes_per_sec), (Direction::Down, report.down_bytes_per_sec)]
        {
            if let Some(rate) = rate {
                state.tracker.measured(node, direction, rate);
            }
        }
        state.spread_plans();
    }

    /// A node reports trouble with another one.
    pub(crate) fn trouble(&self, blob: BlobId, node: NodeId, trouble: Trouble) {
        if let Trouble::Wrong(parent) = trouble {
            tracing::warn!(%node, %parent, blob = %blob.short(), "a node received a piece that does not match its hash");
        }
        let mut state = self.state();
        state.tracker.trouble(blob, node, trouble);
        state.spread_plans();
    }

    /// The plans that a node has not been told yet, for the session that it has.
    pub(crate) fn due(&self, node: NodeId, session: SessionNumber) -> Vec<FetchPlan> {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(member) = state.members.get_mut(&node).filter(|member| member.session == session) else {
            return Vec::new();
        };
        let due = std::mem::take(&mut member.due);
        let plans: Vec<Plan> = due.into_iter().filter_map(|blob| state.tracker.plan(blob, node)).collect();
        let planned = |&(node, _): &(NodeId, _)| PlannedParent {
            node,
            addresses: state.members.get(&node).map(|member| member.addresses.clone()).unwrap_or_default(),
        };
        let plan = |plan: &Plan| FetchPlan {
            blob: plan.blob,
            parents: plan.parents.iter().map(planned).collect(),
            waits: plan.waits,
        };
        plans.iter().map(plan).collect()
    }

    /// How a node stands, if it is known; `name` says who a node is.
    pub(crate) fn standing(&self, node: NodeId, name: impl Fn(NodeId) -> Name) -> Option<PeersView> {
        let state = self.state();
        let suspect = state.tracker.suspects().into_iter().find(|suspect| suspect.node == node);
        let mut view = PeersView {
            up_bytes_per_sec: state.tracker.bytes_per_sec(node, Direction::Up),
            down_bytes_per_sec: state.tracker.bytes_per_sec(node, Direction::Down),
            ..PeersView::default()
        };
        match (state.members.get(&node), &suspect) {
            (Some(member), _) if member.has_reported => {
                view.addresses.clone_from(&member.addresses);
                view.can_be_dialled = member.reach.can_be_dialled;
                (view.sent_bytes, view.received_bytes) = (member.sent_bytes, member.received_bytes);
                view.fetching = member.wants.len() as u32;
            }
            (_, None) => return None,
            (_, Some(_)) => {}
        }
        if let Some(suspect) = suspect {
            view.suspected_by = suspect.reported_by.into_iter().map(name).collect();
            view.is_barred = suspect.is_barred;
        }
        Some(view)
    }

    /// Somebody has looked at a node, and it is to be trusted again.
    pub(crate) fn trust(&self, node: NodeId) {
        let mut state = self.state();
        state.tracker.cleared(node);
        state.spread_plans();
    }

    /// Keeps up what no session tells: this machine's own blobs and link, and who is gone. Never ends.
    pub(crate) async fn keep_up(self: Arc<Self>) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look(Instant::now(), self.shares.up_bytes_per_sec());
        }
    }

    fn look(self: &Arc<Self>, now: Instant, up_bytes_per_sec: Option<f64>) {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(rate) = up_bytes_per_sec.filter(|rate| *rate > 0.0) {
            state.tracker.measured(COORDINATOR, Direction::Up, rate);
        }
        let is_gone = |member: &Member| member.gone_since.is_some_and(|since| now - since >= GONE_AFTER);
        let gone: Vec<NodeId> =
            state.members.iter().filter(|(_, member)| is_gone(member)).map(|(node, _)| *node).collect();
        for node in gone {
            state.members.remove(&node);
            state.tracker.node_left(node);
        }
        let wanted: BTreeSet<BlobId> =
            state.members.values().flat_map(|member| member.wants.keys().copied()).collect();
        let here: BTreeSet<BlobId> = wanted.into_iter().filter(|blob| self.blobs.has(*blob)).collect();
        for blob in here.difference(&state.here) {
            state.tracker.has_all(*blob, COORDINATOR);
        }
        for blob in state.here.difference(&here) {
            state.tracker.leaves(*blob, COORDINATOR);
        }
        state.here = here;
        state.looks += 1;
        for (node, member) in &mut state.members {
            self.probe_if_due(*node, member);
            // Why somebody waits may be another reason by now, which is no new plan.
            if state.looks.is_multiple_of(REASONS_EVERY) {
                let waits = |blob: &&BlobId| {
                    state.tracker.plan(**blob, *node).is_some_and(|plan| plan.waits.is_some())
                };
                let waiting: Vec<BlobId> = member.wants.keys().filter(waits).copied().collect();
                if !waiting.is_empty() {
                    member.due.extend(waiting);
                    member.is_due.notify_one();
                }
            }
        }
        state.spread_plans();
    }

    /// Where others may reach a node: what it says itself, then where its session comes from.
    fn addresses(&self, reach: &PeerReach, remote: Option<IpAddr>) -> Vec<String> {
        let Some(port) = reach.port else { return Vec::new() };
        let mut addresses = reach.addresses.clone();
        let mut add = |address: String| {
            if !addresses.contains(&address) && addresses.len() < PEER_ADDRESSES_MAX {
                addresses.push(address);
            }
        };
        if let Some(remote) = remote.map(|remote| remote.to_canonical()) {
            if remote.is_loopback() {
                // It runs on this machine, which others know by other names.
                for host in &self.hosts {
                    add(join(host, port));
                }
            }
            add(SocketAddr::new(remote, port).to_string());
        }
        addresses
    }

    /// Tries whether a node can be dialled, if that is not known, or was long ago; one try at a time.
    fn probe_if_due(self: &Arc<Self>, node: NodeId, member: &mut Member) {
        let again_after = if member.reach.can_be_dialled { PROBE_REACHED_EVERY } else { PROBE_EVERY };
        let is_due = member.probed_at.is_none_or(|at| at.elapsed() >= again_after);
        let is_trying = member.probe.as_ref().is_some_and(|probe| !probe.is_finished());
        if is_due && !is_trying && member.gone_since.is_none() && !member.addresses.is_empty() {
            member.probed_at = Some(Instant::now());
            let probe = Arc::clone(self).probe(node, member.session, member.addresses.clone());
            member.probe = Some(AbortOnDropHandle::new(tokio::spawn(probe)));
        }
    }

    /// Finds out whether a node can be dialled, and puts the addresses that answer first.
    async fn probe(self: Arc<Self>, node: NodeId, session: SessionNumber, addresses: Vec<String>) {
        let mut answers = Vec::new();
        for address in &addresses {
            let dialled = timeout(PROBE_WITHIN, self.network.dial(address)).await;
            if matches!(dialled, Ok(Ok(_))) {
                answers.push(address.clone());
            }
        }
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(member) = state.members.get_mut(&node).filter(|member| member.session == session) else {
            return;
        };
        if !same_set(&member.addresses, &addresses) {
            return;
        }
        let silent = addresses.into_iter().filter(|address| !answers.contains(address)).collect::<Vec<_>>();
        member.reach.can_be_dialled = !answers.is_empty();
        member.addresses = answers.into_iter().chain(silent).collect();
        tracing::debug!(%node, addresses = ?member.addresses, can_be_dialled = member.reach.can_be_dialled, "peer");
        state.tracker.node_came(node, member.reach);
        state.spread_plans();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes whom to tell of new plans.
    fn spread_plans(&mut self) {
        for plan in self.tracker.take_plans() {
            if let Some(member) = self.members.get_mut(&plan.receiver) {
                member.due.insert(plan.blob);
                member.is_due.notify_one();
            }
        }
    }
}

/// Whether two lists have the same addresses, in whatever order.
fn same_set(one: &[String], other: &[String]) -> bool {
    let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    set(one) == set(other)
}
