//! What the tracker's plans always are, whatever it is told.

use std::collections::{BTreeMap, BTreeSet};

use hatchery_common::{
    digest::Digest,
    id::{BlobId, NodeId},
};
use hatchery_swarm::{Because, Direction, Plan, Random, Reach, Tracker, Trouble, Wait, limits};
use proptest::prelude::*;

const NODES: u8 = 40;

#[derive(Clone, Debug)]
enum Told {
    Came { node: u8, can_be_dialled: bool },
    Left { node: u8 },
    HasAll { node: u8, blob: u8 },
    Wants { node: u8, blob: u8 },
    Leaves { node: u8, blob: u8 },
    Holds { node: u8, blob: u8, pieces: u8 },
    Rate { node: u8, mbit: u16, is_sure: bool },
    Trouble { node: u8, blob: u8, parent: u8, kind: u8 },
}

fn told() -> impl Strategy<Value = Told> {
    let (node, blob) = (0..NODES, 0..2_u8);
    prop_oneof![
        4 => (node.clone(), prop::bool::weighted(0.8)).prop_map(|(node, can_be_dialled)| Told::Came { node, can_be_dialled }),
        1 => node.clone().prop_map(|node| Told::Left { node }),
        2 => (node.clone(), blob.clone()).prop_map(|(node, blob)| Told::HasAll { node, blob }),
        6 => (node.clone(), blob.clone()).prop_map(|(node, blob)| Told::Wants { node, blob }),
        1 => (node.clone(), blob.clone()).prop_map(|(node, blob)| Told::Leaves { node, blob }),
        3 => (node.clone(), blob.clone(), any::<u8>()).prop_map(|(node, blob, pieces)| Told::Holds { node, blob, pieces }),
        2 => (node.clone(), 1..1000_u16, any::<bool>()).prop_map(|(node, mbit, is_sure)| Told::Rate { node, mbit, is_sure }),
        3 => (node, blob, any::<u8>(), 0..4_u8)
            .prop_map(|(node, blob, parent, kind)| Told::Trouble { node, blob, parent, kind }),
    ]
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes(u128::from(number).to_be_bytes())
}

fn blob(number: u8) -> BlobId {
    BlobId(Digest::of(&[number]))
}

/// The tracker, and what one knows without it.
struct World {
    tracker: Tracker,
    dialled: BTreeMap<NodeId, bool>,
    /// True: it has everything.
    members: BTreeMap<(BlobId, NodeId), bool>,
    banned: BTreeSet<(BlobId, NodeId, NodeId)>,
    plans: BTreeMap<(BlobId, NodeId), Plan>,
}

impl World {
    fn tell(&mut self, told: &Told) {
        let tracker = &mut self.tracker;
        match *told {
            Told::Came { node: number, can_be_dialled } => {
                tracker.node_came(node(number), Reach { can_be_dialled, children_max: None });
                self.dialled.insert(node(number), can_be_dialled);
            }
            Told::Left { node: number } => {
                tracker.node_left(node(number));
                self.dialled.remove(&node(number));
                self.members.retain(|(_, member), _| *member != node(number));
                self.banned.retain(|(_, receiver, _)| *receiver != node(number));
            }
            Told::HasAll { node: number, blob: which } => {
                tracker.has_all(blob(which), node(number));
                if self.dialled.contains_key(&node(number)) {
                    self.members.insert((blob(which), node(number)), true);
                }
            }
            Told::Wants { node: number, blob: which } => {
                tracker.wants(blob(which), node(number), 1);
                if self.dialled.contains_key(&node(number)) {
                    self.members.insert((blob(which), node(number)), false);
                }
            }
            Told::Leaves { node: number, blob: which } => {
                tracker.leaves(blob(which), node(number));
                self.members.remove(&(blob(which), node(number)));
                self.banned.retain(|(of, receiver, _)| (*of, *receiver) != (blob(which), node(number)));
            }
            Told::Holds { node: number, blob: which, pieces } => {
                tracker.progressed(blob(which), node(number), pieces.into());
            }
            Told::Rate { node: number, mbit, is_sure } => {
                let rate = f64::from(mbit) * 125_000.0;
                if is_sure {
                    tracker.link_is(node(number), rate, rate);
                } else {
                    tracker.measured(node(number), Direction::Up, rate);
                }
            }
            Told::Trouble { node: number, blob: which, parent, kind } => {
                let plan = tracker.plan(blob(which), node(number));
                let parents = plan.map(|plan| plan.parents).unwrap_or_default();
                let Some(&(parent, _)) = parents.get(usize::from(parent) % parents.len().max(1)) else {
                    return;
                };
                let trouble = match kind {
                    0 => Trouble::Stalled(parent),
                    1 => Trouble::Slow(parent),
                    2 => Trouble::Starved,
                    _ => {
                        self.banned.insert((blob(which), node(number), parent));
                        Trouble::Wrong(parent)
                    }
                };
                tracker.trouble(blob(which), node(number), trouble);
            }
        }
    }

    fn check(&mut self) {
        for plan in self.tracker.take_plans() {
            self.plans.insert((plan.blob, plan.receiver), plan);
        }
        let mut children: BTreeMap<(BlobId, NodeId), usize> = BTreeMap::new();
        for (&(of, receiver), &has_all) in &self.members {
            let plan = self.tracker.plan(of, receiver);
            assert_eq!(plan.is_none(), has_all, "who has everything has no plan, everybody else has one");
            let Some(plan) = plan else { continue };
            let nodes = |plan: &Plan| plan.parents.iter().map(|&(parent, _)| parent).collect::<Vec<_>>();
            let told = self.plans.get(&(of, receiver)).map(nodes);
            assert_eq!(told, Some(nodes(&plan)), "a plan has changed and was not told");
            let distinct: BTreeSet<NodeId> = plan.parents.iter().map(|&(parent, _)| parent).collect();
            assert_eq!(distinct.len(), plan.parents.len());
            assert!(distinct.len() <= limits::PARENTS_MAX + limits::PARENTS_MORE);
            assert_eq!(plan.waits.is_some(), distinct.is_empty());
            for &(parent, because) in &plan.parents {
                *children.entry((of, parent)).or_default() += 1;
                assert_ne!(parent, receiver);
                assert!(self.dialled[&parent], "a parent that cannot be dialled");
                assert!(!self.banned.contains(&(of, receiver, parent)), "a banned parent");
                assert_eq!(self.members[&(of, parent)], because == Because::HasAll);
            }
            if plan.waits == Some(Wait::NoHolder) {
                let source = self.members.iter().find(|&(&(other, holder), &has_all)| {
                    let slots = self.tracker.slots(of, holder).map_or(0, |(slots, _)| slots);
                    other == of && has_all && slots > 0 && !self.banned.contains(&(of, receiver, holder))
                });
                assert_eq!(source, None, "there is one who has it");
            }
        }
        for &(of, member) in self.members.keys() {
            let slots = |of| self.tracker.slots(of, member).map_or(0, |(slots, _)| slots);
            let children = |of| children.get(&(of, member)).copied().unwrap_or(0);
            let taken: usize = [0, 1].map(|number| children(blob(number))).iter().sum();
            let most = [0, 1].map(|number| slots(blob(number))).into_iter().max();
            assert_eq!(self.tracker.slots(of, member).map(|(_, taken)| taken), Some(taken));
            assert!(Some(taken) <= most, "{taken} children and {most:?} slots");
            assert!(slots(of) > 0 || children(of) == 0, "{} children and no slot", children(of));
        }
    }
}

proptest! {
    #[test]
    fn plans_keep_to_the_rules(seed in any::<u64>(), story in prop::collection::vec(told(), 1..300)) {
        let tracker = Tracker::new(Random::new(seed));
        let mut world = World {
            tracker,
            dialled: BTreeMap::new(),
            members: BTreeMap::new(),
            banned: BTreeSet::new(),
            plans: BTreeMap::new(),
        };
        for told in &story {
            world.tell(told);
            world.check();
        }
    }
}

#[test]
fn two_who_say_so_bar_a_node() {
    let mut tracker = Tracker::new(Random::new(1));
    let reach = Reach { can_be_dialled: true, children_max: None };
    for number in 0..5 {
        tracker.node_came(node(number), reach);
        if number == 0 { tracker.has_all(blob(0), node(0)) } else { tracker.wants(blob(0), node(number), 0) }
    }
    let is_parent = |tracker: &Tracker, receiver| {
        let plan = tracker.plan(blob(0), node(receiver)).expect("it receives");
        plan.parents.iter().any(|&(parent, _)| parent == node(4))
    };
    assert!((1..=3).all(|receiver| is_parent(&tracker, receiver)));
    tracker.trouble(blob(0), node(1), Trouble::Wrong(node(4)));
    assert!(!is_parent(&tracker, 1) && is_parent(&tracker, 2) && is_parent(&tracker, 3));
    assert!(!tracker.suspects()[0].is_barred);
    tracker.trouble(blob(0), node(2), Trouble::Wrong(node(4)));
    assert!(!is_parent(&tracker, 3), "nobody fetches from it any more");
    assert!(tracker.suspects()[0].is_barred && tracker.suspects()[0].node == node(4));
    tracker.node_left(node(4));
    assert_eq!(tracker.suspects().len(), 1, "it is not forgotten");
    tracker.node_came(node(4), reach);
    tracker.wants(blob(0), node(4), 0);
    assert!(!is_parent(&tracker, 3));
    tracker.cleared(node(4));
    assert!(tracker.suspects().is_empty() && is_parent(&tracker, 3), "{:?}", tracker.plan(blob(0), node(3)));
}

#[test]
fn who_cannot_be_had_is_waited_for() {
    let mut tracker = Tracker::new(Random::new(1));
    tracker.node_came(node(0), Reach { can_be_dialled: false, children_max: None });
    tracker.node_came(node(1), Reach { can_be_dialled: true, children_max: Some(1) });
    for number in 2..4 {
        tracker.node_came(node(number), Reach { can_be_dialled: false, children_max: None });
        tracker.wants(blob(0), node(number), 0);
    }
    tracker.has_all(blob(0), node(0));
    let waits = |tracker: &Tracker, number| tracker.plan(blob(0), node(number)).and_then(|plan| plan.waits);
    assert_eq!([2, 3].map(|number| waits(&tracker, number)), [Some(Wait::NoHolder); 2]);
    tracker.has_all(blob(0), node(1));
    assert_eq!([2, 3].map(|number| waits(&tracker, number)), [None, Some(Wait::NoSlot)], "one slot");
    tracker.has_all(blob(0), node(2));
    assert_eq!(waits(&tracker, 3), None, "its turn");
}

#[test]
fn one_to_whom_all_others_seemed_to_stall_is_given_parents_again() {
    for seed in 0..50 {
        let mut tracker = Tracker::new(Random::new(seed));
        for number in 1..=8 {
            tracker.node_came(node(number), Reach { can_be_dialled: true, children_max: None });
        }
        tracker.has_all(blob(0), node(1));
        (2..=8).for_each(|number| tracker.wants(blob(0), node(number), 1));
        // Its own link is down for a moment: one after the other falls silent.
        let lonely = node(2);
        for _ in 0..3 {
            for other in (1..=8).filter(|number| *number != 2) {
                tracker.trouble(blob(0), lonely, Trouble::Stalled(node(other)));
            }
        }
        // And those that it has left go away.
        let left = tracker.plan(blob(0), lonely).unwrap().parents;
        for (parent, _) in left.iter().take(3) {
            tracker.leaves(blob(0), *parent);
        }
        tracker.trouble(blob(0), lonely, Trouble::Starved);
        let plan = tracker.plan(blob(0), lonely).unwrap();
        let others_have = (1..=8)
            .any(|number| number != 2 && left.iter().take(3).all(|(parent, _)| *parent != node(number)));
        assert!(!plan.parents.is_empty() || !others_have, "seed {seed}: {plan:?}");
    }
}

/// A source and receivers of one blob.
fn fleet(receivers: u8) -> Tracker {
    let mut tracker = Tracker::new(Random::new(1));
    for number in 0..=receivers {
        tracker.node_came(node(number), Reach { can_be_dialled: true, children_max: None });
    }
    tracker.has_all(blob(0), node(0));
    (1..=receivers).for_each(|number| tracker.wants(blob(0), node(number), 0));
    tracker
}

#[test]
fn an_uplink_is_slow_if_half_of_its_children_say_so_while_little_comes() {
    let mut tracker = fleet(8);
    let measured = |tracker: &mut Tracker, number, rate| tracker.measured(node(number), Direction::Up, rate);
    (0..=8).for_each(|number| measured(&mut tracker, number, 1e6));
    let slots = |tracker: &Tracker| tracker.slots(blob(0), node(8)).unwrap();
    let children: Vec<u8> = (1..8)
        .filter(|receiver| {
            let plan = tracker.plan(blob(0), node(*receiver)).unwrap();
            plan.parents.iter().any(|(parent, _)| *parent == node(8))
        })
        .collect();
    assert!(children.len() >= 4, "{children:?}");
    let complain = |tracker: &mut Tracker, share: usize| {
        for child in &children[..children.len().div_ceil(2) - share] {
            tracker.trouble(blob(0), node(*child), Trouble::Slow(node(8)));
        }
    };
    // It has little to send, and one child too few finds it slow.
    complain(&mut tracker, 1);
    (0..10).for_each(|_| measured(&mut tracker, 8, 1e5));
    assert!(slots(&tracker).0 > 0);
    // What it sends well between clears it of what was said before.
    measured(&mut tracker, 8, 1e6);
    complain(&mut tracker, 1);
    (0..10).for_each(|_| measured(&mut tracker, 8, 1e5));
    assert!(slots(&tracker).0 > 0);
    complain(&mut tracker, 0);
    (0..10).for_each(|_| measured(&mut tracker, 8, 1e5));
    assert_eq!(slots(&tracker), (0, 0), "nobody fetches from it");
    (0..10).for_each(|_| measured(&mut tracker, 8, 1e6));
    assert!(slots(&tracker).0 > 0, "and again, once it sends more");
}

#[test]
fn who_is_behind_is_given_more_parents() {
    let mut tracker = fleet(16);
    let parents = |tracker: &Tracker, number| tracker.plan(blob(0), node(number)).unwrap().parents.len();
    (1..=16).for_each(|number| tracker.progressed(blob(0), node(number), 100));
    assert!((1..=16).all(|number| parents(&tracker, number) <= limits::PARENTS_MAX));
    tracker.progressed(blob(0), node(5), 90);
    assert!(parents(&tracker, 5) > limits::PARENTS_MAX, "{}", parents(&tracker, 5));
    tracker.progressed(blob(0), node(6), 99);
    assert!(parents(&tracker, 6) <= limits::PARENTS_MAX, "this is nothing");
}

#[test]
fn who_must_serve_alone_keeps_its_children() {
    let mut tracker = Tracker::new(Random::new(0));
    for number in [26, 7, 25, 6, 5, 39, 4] {
        tracker.node_came(node(number), Reach { can_be_dialled: number == 7, children_max: None });
    }
    // Seven's uplink is a small one beside the typical, but nobody has complained.
    for (number, mbit) in [(7, 1), (25, 263), (7, 9)] {
        tracker.measured(node(number), Direction::Up, f64::from(mbit) * 125_000.0);
    }
    for number in [6, 39, 7, 25] {
        tracker.wants(blob(0), node(number), 1);
    }
    tracker.has_all(blob(0), node(26));
    for number in [5, 4, 26] {
        tracker.wants(blob(0), node(number), 1);
    }
    let (slots, taken) = tracker.slots(blob(0), node(7)).unwrap();
    assert!(taken <= slots, "{taken} children and {slots} slots");
}
