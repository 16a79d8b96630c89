//! A fan-out from beginning to end: Hatchery's tracker, receivers and servers on simulated links.

use std::{
    collections::{BinaryHeap, HashMap},
    time::{Duration, Instant},
};

use hatchery_common::{
    blob::PieceSet,
    digest::Digest,
    id::{BlobId, NodeId},
};
use hatchery_swarm::{
    Arrival, Direction, Random, Reach, Receiver, Send, Server, Step, ToChild, ToParent, Tracker,
};

use crate::{
    cases::{Case, Incident, SOURCE, When},
    events::{Due, Event, Message, Sending},
    fetch::{Fetch, RandomFetch},
    links::{FlowId, Links},
};

/// From one node to another, in seconds.
const LATENCY_SECS: f64 = 0.001;
/// An uplink is measured while at least so many pieces are sent at once, as a mean.
const SENDS_MEASURED: f64 = 3.0;
/// Simulated seconds after which a run is given up, in floors.
const FLOORS_MAX: f64 = 60.0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// Hatchery's tracker and receivers.
    House,
    /// Everybody asks the source.
    Star,
    /// Everybody asks the one before.
    Chain,
    /// The tracker's parents, and any piece that one of them has.
    Random,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Seconds from its joining until a node had everything; none if it never had, or died.
    pub done_secs: Vec<Option<f64>>,
    /// Bytes out of each node.
    pub sent_bytes: Vec<f64>,
    /// Pieces that came and were there already.
    pub duplicates: usize,
    /// Pieces that came and were wrong.
    pub refused: usize,
    /// Most children of a node beyond its upload slots at any time.
    pub slots_over_max: usize,
    /// Seconds of this machine's processor that the tracker took.
    pub tracker_secs: f64,
    pub events: u64,
}

struct Peer {
    id: NodeId,
    fetch: Option<Fetch>,
    server: Server,
    is_here: bool,
    is_stopped: bool,
    joined_at: f64,
    sent_bytes: f64,
    received_bytes: f64,
    told: (f64, f64, f64, f64),
}

pub struct Simulation<'a> {
    case: &'a Case,
    policy: Policy,
    now: f64,
    dues: BinaryHeap<Due>,
    numbers: u64,
    links: Links,
    sendings: Vec<Option<Sending>>,
    peers: Vec<Peer>,
    by_id: HashMap<NodeId, usize>,
    tracker: Tracker,
    blob: BlobId,
    holders: Vec<u32>,
    waiting_incidents: Vec<usize>,
    outcome: Outcome,
}

/// Runs a case to its end.
pub fn simulate(case: &Case, policy: Policy, seed: u64) -> Outcome {
    Simulation::new(case, policy, seed).run()
}

impl<'a> Simulation<'a> {
    fn new(case: &'a Case, policy: Policy, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let pieces = case.piece_count();
        let mut peers = Vec::new();
        for node in 0..case.nodes.len() {
            let have = if case.is_source(node) { PieceSet::full(pieces) } else { PieceSet::empty(pieces) };
            let fetch = (!case.is_source(node)).then(|| match policy {
                Policy::Random => {
                    Fetch::Random(Box::new(RandomFetch::new(pieces, Random::new(random.draw()))))
                }
                _ => Fetch::House(Box::new(Receiver::new(have.clone(), Random::new(random.draw())))),
            });
            peers.push(Peer {
                id: NodeId::from_bytes((node as u128 + 1).to_be_bytes()),
                fetch,
                server: Server::new(have, Random::new(random.draw())),
                is_here: false,
                is_stopped: false,
                joined_at: 0.0,
                sent_bytes: 0.0,
                received_bytes: 0.0,
                told: (0.0, 0.0, 0.0, 0.0),
            });
        }
        let by_id = peers.iter().enumerate().map(|(at, peer)| (peer.id, at)).collect();
        let links = Links::new(case.sharing(), case.nodes.iter().map(|link| (link.up, link.down)));
        let outcome = Outcome { done_secs: vec![None; peers.len()], ..Outcome::default() };
        Self {
            case,
            policy,
            now: 0.0,
            dues: BinaryHeap::new(),
            numbers: 0,
            links,
            sendings: Vec::new(),
            peers,
            by_id,
            tracker: Tracker::new(Random::new(random.draw())),
            blob: BlobId(Digest::of(b"simulated")),
            holders: vec![0; pieces as usize],
            waiting_incidents: Vec::new(),
            outcome,
        }
    }

    fn run(mut self) -> Outcome {
        let late: Vec<usize> = self.case.late().collect();
        for node in 0..self.peers.len() {
            if !late.contains(&node) {
                self.join(node);
            }
        }
        self.plan();
        let floor_secs = self.case.floor_secs();
        for (number, (when, _)) in self.case.incidents.iter().enumerate() {
            match when {
                When::AtFloorShare(share) => self.due(share * floor_secs, Event::Incident(number)),
                When::OneCopyIsOut => self.waiting_incidents.push(number),
            }
        }
        while let Some(Due { at, event, .. }) = self.dues.pop() {
            if at > FLOORS_MAX * floor_secs.max(1.0) || self.is_over() {
                break;
            }
            self.now = at;
            self.outcome.events += 1;
            self.handle(event);
            // What happens at one moment is settled together.
            if self.dues.peek().is_none_or(|next| next.at > self.now) {
                self.settle();
            }
        }
        self.outcome.sent_bytes = self.peers.iter().map(|peer| peer.sent_bytes).collect();
        self.outcome
    }

    fn is_over(&self) -> bool {
        self.waiting_incidents.is_empty()
            && self.case.incidents.iter().all(|(when, _)| match when {
                When::AtFloorShare(share) => share * self.case.floor_secs() <= self.now,
                When::OneCopyIsOut => true,
            })
            && self
                .peers
                .iter()
                .zip(&self.outcome.done_secs)
                .skip(self.case.sources)
                .all(|(peer, done)| done.is_some() || !peer.is_here || peer.is_stopped)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => {
                if self.peers[to].is_here && !self.peers[to].is_stopped {
                    self.deliver(from, to, message);
                }
            }
            Event::FlowEnds { flow, number } => self.flow_ends(flow, number),
            Event::Tick { node } => self.tick(node),
            Event::Incident(number) => self.incident(number),
        }
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let id = self.peers[from].id;
        match message {
            Message::Connect => {
                let server = &mut self.peers[to].server;
                server.child_came(id);
                let have = server.have().clone();
                self.tell(to, from, Message::ToChild(ToChild::Have(have)));
            }
            Message::Disconnect { finished } => {
                self.drop_flows(|sending| sending.from == to && sending.to == from);
                let server = &mut self.peers[to].server;
                if finished {
                    server.child_finished(id);
                } else {
                    server.child_left(id);
                }
                self.serve(to);
            }
            Message::ToParent(ToParent::Ask { ask, wanted }) => {
                // Those who are no children any more are not answered.
                let _ = self.peers[to].server.asked(id, ask, wanted);
                self.serve(to);
            }
            Message::ToParent(ToParent::Cancel { ask }) => self.peers[to].server.cancelled(id, ask),
            Message::ToChild(message) => self.hear_parent(from, to, message),
            Message::ParentGone => {
                if let Some(fetch) = &mut self.peers[to].fetch {
                    fetch.parent_lost(id);
                }
                self.fetch(to);
            }
            Message::Parents(parents) => self.new_parents(to, &parents),
        }
    }

    fn hear_parent(&mut self, from: usize, to: usize, message: ToChild) {
        let (id, now) = (self.peers[from].id, Duration::from_secs_f64(self.now));
        let Some(fetch) = &mut self.peers[to].fetch else { return };
        match message {
            ToChild::Have(have) => fetch.parent_has_all(id, have),
            ToChild::Has(index) => fetch.parent_has(id, index),
            ToChild::Begins { ask, index } => fetch.begins(id, ask, index),
            ToChild::Nothing { ask } => fetch.nothing(id, ask),
            ToChild::Piece { ask, index } => {
                let is_good = !self.case.flips(from);
                match fetch.piece(id, ask, index, is_good, now) {
                    Arrival::New => self.has(to, index),
                    Arrival::Duplicate => self.outcome.duplicates += 1,
                    Arrival::Refused => {
                        self.outcome.refused += 1;
                        if !is_good {
                            let step = fetch.ban(id);
                            self.tell(to, from, Message::Disconnect { finished: false });
                            self.step(to, step);
                        }
                    }
                }
            }
        }
        self.fetch(to);
    }

    /// A node has one more piece.
    fn has(&mut self, node: usize, index: u32) {
        self.holders[index as usize] += 1;
        self.peers[node].server.has(index);
        let children: Vec<NodeId> = self.peers[node].server.children().collect();
        for child in children {
            self.tell(node, self.by_id[&child], Message::ToChild(ToChild::Has(index)));
        }
        self.serve(node);
        let Some(fetch) = &self.peers[node].fetch else { return };
        if fetch.have().is_full() {
            self.outcome.done_secs[node] = Some(self.now - self.peers[node].joined_at);
            for parent in fetch.parents() {
                self.tell(node, self.by_id[&parent], Message::Disconnect { finished: true });
            }
            self.track(Tracker::has_all, node);
        }
        if !self.waiting_incidents.is_empty() && self.holders.iter().all(|&holders| holders > 0) {
            for number in std::mem::take(&mut self.waiting_incidents) {
                self.incident(number);
            }
        }
    }

    fn new_parents(&mut self, node: usize, parents: &[NodeId]) {
        let Some(fetch) = &mut self.peers[node].fetch else { return };
        if fetch.have().is_full() {
            return;
        }
        let before = fetch.parents();
        let new = fetch.set_parents(parents);
        let after = fetch.parents();
        for gone in before.iter().filter(|parent| !after.contains(parent)) {
            self.tell(node, self.by_id[gone], Message::Disconnect { finished: false });
        }
        for parent in new {
            self.tell(node, self.by_id[&parent], Message::Connect);
        }
        self.fetch(node);
    }

    /// Lets a node ask for what it wants next.
    fn fetch(&mut self, node: usize) {
        let now = Duration::from_secs_f64(self.now);
        let Some(fetch) = &mut self.peers[node].fetch else { return };
        for step in fetch.next(now) {
            self.step(node, step);
        }
    }

    fn step(&mut self, node: usize, step: Step) {
        match step {
            Step::Tell { parent, message } => {
                self.tell(node, self.by_id[&parent], Message::ToParent(message));
            }
            Step::Report(trouble) => {
                self.track(|tracker, blob, id| tracker.trouble(blob, id, trouble), node);
            }
        }
    }

    /// Lets a node send what it is to send next.
    fn serve(&mut self, node: usize) {
        if self.peers[node].is_stopped || !self.peers[node].is_here {
            return;
        }
        while let Some(send) = self.peers[node].server.next_send() {
            match send {
                Send::Nothing { child, ask } => {
                    self.tell(node, self.by_id[&child], Message::ToChild(ToChild::Nothing { ask }));
                }
                Send::Piece { child, ask, index } => {
                    let to = self.by_id[&child];
                    let flow = self.links.start(node, to, self.case.piece_bytes(index), self.now);
                    self.numbers += 1;
                    if self.sendings.len() <= flow {
                        self.sendings.resize(flow + 1, None);
                    }
                    let number = self.numbers;
                    self.sendings[flow] =
                        Some(Sending { number, from: node, to, ask, index, due: f64::INFINITY });
                    self.tell(node, to, Message::ToChild(ToChild::Begins { ask, index }));
                }
            }
        }
    }

    fn settle(&mut self) {
        let mut changed = Vec::new();
        self.links.settle(self.now, |flow| changed.push(flow));
        for flow in changed {
            let at = self.links.end_at(flow);
            // One that will end later than was thought is looked at again when that time has come.
            if let Some(sending) = &mut self.sendings[flow]
                && at < sending.due
            {
                sending.due = at;
                let number = sending.number;
                self.due(at, Event::FlowEnds { flow, number });
            }
        }
    }

    fn flow_ends(&mut self, flow: FlowId, number: u64) {
        let Some(sending) = self.sendings[flow].filter(|sending| sending.number == number) else { return };
        let at = self.links.end_at(flow);
        if at > self.now + 1e-9 {
            if let Some(sending) = &mut self.sendings[flow] {
                sending.due = at;
            }
            if at.is_finite() {
                self.due(at, Event::FlowEnds { flow, number });
            }
            return;
        }
        let Sending { from, to, ask, index, .. } = sending;
        self.sendings[flow] = None;
        self.links.end(flow, self.now);
        let bytes = self.case.piece_bytes(index);
        self.peers[from].sent_bytes += bytes;
        self.peers[to].received_bytes += bytes;
        self.tell(from, to, Message::ToChild(ToChild::Piece { ask, index }));
        let child = self.peers[to].id;
        self.peers[from].server.sent(child);
        self.serve(from);
    }

    fn drop_flows(&mut self, is_gone: impl Fn(&Sending) -> bool) {
        for flow in 0..self.sendings.len() {
            if let Some(sending) = self.sendings[flow].filter(|sending| is_gone(sending)) {
                self.sendings[flow] = None;
                let left = self.links.end(flow, self.now);
                self.peers[sending.from].sent_bytes += self.case.piece_bytes(sending.index) - left;
            }
        }
    }

    /// A node looks around and tells the tracker how it is getting on.
    fn tick(&mut self, node: usize) {
        if !self.peers[node].is_here {
            return;
        }
        self.due(self.now + self.case.tick_secs(), Event::Tick { node });
        let peer = &self.peers[node];
        if peer.is_stopped {
            return;
        }
        let moved = |outwards| self.links.moved_bytes(node, outwards, self.now);
        let (sent, busy) = (peer.sent_bytes + moved(true), self.links.flow_secs(node, self.now));
        let (received, held) = (peer.received_bytes + moved(false), peer.server.have().held());
        let told = peer.told;
        self.peers[node].told = (sent, busy, received, self.now);
        let is_done = self.outcome.done_secs[node].is_some();
        self.fetch(node);
        let now = self.now;
        self.track(
            |tracker, blob, id| {
                tracker.progressed(blob, id, held);
                // Only while several children wait does it show what the uplink can do.
                if busy - told.1 > SENDS_MEASURED * (now - told.3) {
                    tracker.measured(id, Direction::Up, (sent - told.0) / (now - told.3));
                }
                if !is_done {
                    tracker.measured(id, Direction::Down, (received - told.2) / (now - told.3));
                }
            },
            node,
        );
    }

    fn join(&mut self, node: usize) {
        let link = self.case.nodes[node];
        let peer = &mut self.peers[node];
        (peer.is_here, peer.joined_at, peer.told.3) = (true, self.now, self.now);
        let knows = self.case.rates_are_known;
        self.due(self.now + self.case.tick_secs(), Event::Tick { node });
        self.track(
            |tracker, blob, id| {
                tracker.node_came(id, Reach { can_be_dialled: link.can_be_dialled, children_max: None });
                if knows {
                    tracker.link_is(id, link.up, link.down);
                }
                if self.case.is_source(node) { tracker.has_all(blob, id) } else { tracker.wants(blob, id, 0) }
            },
            node,
        );
        let fixed = match self.policy {
            Policy::Star => Some(SOURCE),
            Policy::Chain => (0..node).rev().find(|&before| self.case.nodes[before].can_be_dialled),
            _ => None,
        };
        if let Some(parent) = fixed.filter(|_| !self.case.is_source(node)) {
            let parents = vec![self.peers[parent].id];
            self.tell(SOURCE, node, Message::Parents(parents));
        }
    }

    fn incident(&mut self, number: usize) {
        match self.case.incidents[number].1 {
            Incident::Joins(node) => self.join(node),
            Incident::Stops(node) => {
                self.peers[node].is_stopped = true;
                self.links.set(node, 0.0, 0.0);
            }
            Incident::Dies(node) => {
                self.peers[node].is_here = false;
                self.drop_flows(|sending| sending.from == node || sending.to == node);
                let id = self.peers[node].id;
                let children: Vec<NodeId> = self.peers[node].server.children().collect();
                for child in children {
                    self.tell(node, self.by_id[&child], Message::ParentGone);
                }
                let parents = self.peers[node].fetch.as_ref().map(Fetch::parents).unwrap_or_default();
                for parent in parents {
                    self.peers[self.by_id[&parent]].server.child_left(id);
                    self.serve(self.by_id[&parent]);
                }
                if !self.case.is_source(node) {
                    let have = self.peers[node].server.have().clone();
                    for index in have.indexes() {
                        self.holders[index as usize] -= 1;
                    }
                }
                self.track(|tracker, _, id| tracker.node_left(id), node);
            }
        }
        self.plan();
    }

    /// Tells the tracker something, and hands out what it plans.
    fn track(&mut self, tell: impl FnOnce(&mut Tracker, BlobId, NodeId), node: usize) {
        let began = Instant::now();
        tell(&mut self.tracker, self.blob, self.peers[node].id);
        self.outcome.tracker_secs += began.elapsed().as_secs_f64();
        if self.now > 0.0 {
            self.plan();
        }
    }

    fn plan(&mut self) {
        if matches!(self.policy, Policy::Star | Policy::Chain) {
            return;
        }
        let began = Instant::now();
        let plans = self.tracker.take_plans();
        self.outcome.tracker_secs += began.elapsed().as_secs_f64();
        for plan in plans {
            for &(parent, _) in &plan.parents {
                if let Some((slots, taken)) = self.tracker.slots(self.blob, parent) {
                    self.outcome.slots_over_max =
                        self.outcome.slots_over_max.max(taken.saturating_sub(slots));
                }
            }
            let parents = plan.parents.into_iter().map(|(node, _)| node).collect();
            self.tell(SOURCE, self.by_id[&plan.receiver], Message::Parents(parents));
        }
    }

    fn tell(&mut self, from: usize, to: usize, message: Message) {
        self.due(self.now + LATENCY_SECS, Event::Deliver { from, to, message });
    }

    fn due(&mut self, at: f64, event: Event) {
        self.numbers += 1;
        self.dues.push(Due { at, number: self.numbers, event });
    }
}
