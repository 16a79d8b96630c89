//! What a receiver and a server never do, whatever they are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hatchery_common::{blob::PieceSet, id::NodeId};
use hatchery_swarm::{
    Arrival, AskId, AskRefused, Random, Receiver, Send, Server, Step, ToParent, Wanted, limits,
};
use proptest::prelude::*;

const PIECES: u32 = 70;

fn node(number: u8) -> NodeId {
    NodeId::from_bytes(u128::from(number).to_be_bytes())
}

fn some_pieces() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..PIECES, 0..PIECES as usize)
}

fn set(pieces: &[u32]) -> PieceSet {
    let mut set = PieceSet::empty(PIECES);
    for &index in pieces {
        set.insert(index);
    }
    set
}

#[derive(Clone, Debug)]
enum Heard {
    Parents(Vec<u8>),
    HasAll(u8, Vec<u32>),
    Has(u8, u32),
    Lost(u8),
    /// The oldest open ask of this parent is answered; with the piece, or one of those that were wanted.
    Answers {
        parent: u8,
        draw: u16,
        is_good: bool,
    },
    Nothing(u8),
    /// An answer that nobody asked for.
    Stray {
        parent: u8,
        ask: u64,
        index: u32,
    },
    Passes {
        millis: u16,
    },
    /// What was written is not what the disk gives back.
    Damaged(u32),
}

fn heard() -> impl Strategy<Value = Heard> {
    let parent = 0..8_u8;
    prop_oneof![
        1 => prop::collection::vec(0..8_u8, 0..7).prop_map(Heard::Parents),
        3 => (parent.clone(), some_pieces()).prop_map(|(parent, have)| Heard::HasAll(parent, have)),
        4 => (parent.clone(), 0..PIECES + 2).prop_map(|(parent, index)| Heard::Has(parent, index)),
        1 => parent.clone().prop_map(Heard::Lost),
        20 => (parent.clone(), any::<u16>(), prop::bool::weighted(0.98))
            .prop_map(|(parent, draw, is_good)| Heard::Answers { parent, draw, is_good }),
        1 => parent.clone().prop_map(Heard::Nothing),
        1 => (parent, any::<u64>(), 0..PIECES + 2).prop_map(|(parent, ask, index)| Heard::Stray { parent, ask, index }),
        2 => any::<u16>().prop_map(|millis| Heard::Passes { millis }),
        1 => (0..PIECES).prop_map(Heard::Damaged),
    ]
}

proptest! {
    #[test]
    fn a_receiver_asks_for_what_is_missing_and_there(seed in any::<u64>(), story in prop::collection::vec(heard(), 1..400)) {
        let mut receiver = Receiver::new(PieceSet::empty(PIECES), Random::new(seed));
        let mut now = Duration::ZERO;
        let mut said: BTreeMap<NodeId, PieceSet> = BTreeMap::new();
        let mut open: BTreeMap<NodeId, Vec<(AskId, Wanted)>> = BTreeMap::new();
        let (mut banned, mut have) = (BTreeSet::new(), BTreeSet::new());
        for heard in story {
            match heard {
                Heard::Parents(numbers) => {
                    let numbers: BTreeSet<u8> = numbers.into_iter().collect();
                    let nodes: Vec<NodeId> = numbers.into_iter().map(node).collect();
                    let before: BTreeSet<NodeId> = receiver.parents().collect();
                    let new = receiver.set_parents(&nodes);
                    prop_assert!(new.iter().all(|parent| !banned.contains(parent) && !before.contains(parent)));
                    said.retain(|parent, _| nodes.contains(parent));
                    open.retain(|parent, _| nodes.contains(parent));
                }
                Heard::HasAll(parent, pieces) => {
                    let is_parent = receiver.parents().any(|known| known == node(parent));
                    prop_assert_eq!(receiver.parent_has_all(node(parent), set(&pieces)), is_parent);
                    prop_assert!(!receiver.parent_has_all(node(parent), PieceSet::full(PIECES + 1)));
                    open.remove(&node(parent));
                    if is_parent {
                        said.insert(node(parent), set(&pieces));
                    }
                }
                Heard::Has(parent, index) => {
                    receiver.parent_has(node(parent), index);
                    if let Some(said) = said.get_mut(&node(parent)) {
                        said.insert(index);
                    }
                }
                Heard::Lost(parent) => {
                    receiver.parent_lost(node(parent));
                    said.remove(&node(parent));
                    open.remove(&node(parent));
                }
                Heard::Answers { parent, draw, is_good } => {
                    let asks = open.entry(node(parent)).or_default();
                    if asks.is_empty() {
                        continue;
                    }
                    let (ask, wanted) = asks.remove(0);
                    let index = match wanted {
                        Wanted::One(index) => index,
                        Wanted::Any(pieces) => {
                            let pieces: Vec<u32> = pieces.indexes().collect();
                            pieces[usize::from(draw) % pieces.len()]
                        }
                    };
                    receiver.begins(node(parent), ask, index);
                    let arrival = receiver.piece(node(parent), ask, index, is_good, now);
                    prop_assert_eq!(arrival == Arrival::Refused, !is_good);
                    prop_assert_eq!(arrival == Arrival::New, is_good && have.insert(index));
                    if !is_good {
                        receiver.ban(node(parent));
                        banned.insert(node(parent));
                        said.remove(&node(parent));
                        open.remove(&node(parent));
                    }
                }
                Heard::Nothing(parent) => {
                    let asks = open.entry(node(parent)).or_default();
                    if !asks.is_empty() {
                        let (ask, wanted) = asks.remove(0);
                        receiver.nothing(node(parent), ask);
                        if let (Wanted::One(index), Some(said)) = (wanted, said.get_mut(&node(parent))) {
                            said.remove(index);
                        }
                    }
                }
                Heard::Stray { parent, ask, index } => {
                    receiver.begins(node(parent), AskId(ask), index);
                    receiver.nothing(node(parent), AskId(ask | 1 << 63));
                }
                Heard::Passes { millis } => now += Duration::from_millis(millis.into()),
                Heard::Damaged(index) => {
                    receiver.lost(index);
                    have.remove(&index);
                }
            }
            for step in receiver.next(now) {
                let Step::Tell { parent, message } = step else { continue };
                prop_assert!(!banned.contains(&parent), "a banned parent is asked");
                let asks = open.entry(parent).or_default();
                match message {
                    ToParent::Ask { ask, wanted } => {
                        let wanted_set = match &wanted {
                            Wanted::One(index) => set(&[*index]),
                            Wanted::Any(pieces) => pieces.clone(),
                        };
                        prop_assert!(!wanted_set.is_empty());
                        prop_assert!(wanted_set.difference(&said[&parent]).is_empty(), "it has not said that it has it");
                        prop_assert!(wanted_set.indexes().all(|index| !have.contains(&index)), "it is here");
                        asks.push((ask, wanted));
                        prop_assert!(asks.len() <= limits::ASKS_OPEN_MAX);
                    }
                    ToParent::Cancel { ask } => asks.retain(|(open, _)| *open != ask),
                }
            }
            let mut copies = [0; PIECES as usize];
            for (_, wanted) in open.values().flatten() {
                if let Wanted::One(index) = wanted {
                    copies[*index as usize] += 1;
                }
            }
            prop_assert!(copies.iter().all(|&copies| copies <= 2), "more than two copies are on their way");
            prop_assert_eq!(receiver.have(), &set(&have.iter().copied().collect::<Vec<_>>()));
            prop_assert_eq!(receiver.wake_at(now).is_none(), receiver.is_complete());
        }
    }

    #[test]
    fn a_server_gives_what_it_has_once(
        seed in any::<u64>(),
        have in some_pieces(),
        story in prop::collection::vec((0..5_u8, 0..8_u8, some_pieces()), 1..300),
    ) {
        let mut server = Server::new(set(&have), Random::new(seed));
        let mut given: BTreeMap<NodeId, BTreeSet<u32>> = BTreeMap::new();
        let mut busy: BTreeSet<NodeId> = BTreeSet::new();
        for (number, (child, kind, pieces)) in story.into_iter().enumerate() {
            let (child, ask) = (node(child), AskId(number as u64));
            let is_child = given.contains_key(&child);
            match kind {
                0 => {
                    server.child_came(child);
                    given.insert(child, BTreeSet::new());
                    busy.remove(&child);
                }
                1 => {
                    if number % 2 == 0 { server.child_left(child) } else { server.child_finished(child) }
                    given.remove(&child);
                    busy.remove(&child);
                }
                2 => {
                    for index in pieces {
                        server.has(index);
                    }
                }
                3 => {
                    server.sent(child);
                    busy.remove(&child);
                }
                4 => {
                    server.cancelled(child, AskId(number.saturating_sub(3) as u64));
                    pieces.iter().take(1).for_each(|&index| server.lost(index));
                }
                5 => {
                    let refused = server.asked(child, ask, Wanted::One(PIECES));
                    prop_assert_eq!(refused, Err(if is_child { AskRefused::NotThisBlob } else { AskRefused::NotAChild }));
                }
                _ => {
                    let wanted = match pieces.as_slice() {
                        [index] => Wanted::One(*index),
                        pieces => Wanted::Any(set(pieces)),
                    };
                    let refused = server.asked(child, ask, wanted).err();
                    prop_assert_eq!(refused == Some(AskRefused::NotAChild), !is_child);
                }
            }
            while let Some(send) = server.next_send() {
                if let Send::Piece { child, index, .. } = send {
                    prop_assert!(server.have().has(index), "it does not have it");
                    prop_assert!(given.entry(child).or_default().insert(index), "a piece is sent twice to one child");
                    prop_assert!(busy.insert(child), "two pieces at once to one child");
                }
            }
            prop_assert_eq!(server.sending(), busy.len());
        }
    }

    #[test]
    fn a_source_sends_every_piece_before_it_sends_any_twice(seed in any::<u64>(), children in 1..8_u8) {
        let mut server = Server::new(PieceSet::full(PIECES), Random::new(seed));
        (0..children).for_each(|child| server.child_came(node(child)));
        let (mut sent, mut random) = (Vec::new(), Random::new(seed));
        while sent.len() < PIECES as usize {
            let child = node(random.below(children.into()) as u8);
            server.asked(child, AskId(sent.len() as u64), Wanted::Any(PieceSet::full(PIECES))).expect("it may ask");
            if let Some(Send::Piece { child, index, .. }) = server.next_send() {
                sent.push(index);
                server.sent(child);
            }
        }
        let distinct: BTreeSet<u32> = sent.iter().copied().collect();
        prop_assert_eq!(distinct.len(), PIECES as usize);
    }
}

#[test]
fn several_that_have_all_are_asked_for_different_pieces() {
    let mut receivers: Vec<Receiver> =
        (0..3).map(|seed| Receiver::new(PieceSet::empty(PIECES), Random::new(seed))).collect();
    let mut asked = BTreeMap::new();
    for (turn, receiver) in receivers.iter_mut().enumerate() {
        let mut parents = [1, 2].map(node);
        parents.rotate_left(turn % 2);
        receiver.set_parents(&parents);
        for parent in parents {
            assert!(receiver.parent_has_all(parent, PieceSet::full(PIECES)));
        }
        for step in receiver.next(Duration::ZERO) {
            let Step::Tell { parent, message: ToParent::Ask { wanted: Wanted::Any(pieces), .. } } = step
            else {
                panic!("{step:?}");
            };
            asked.entry(parent).or_insert_with(BTreeSet::new).extend(pieces.indexes());
        }
    }
    let [one, other] = [1, 2].map(|number| &asked[&node(number)]);
    assert!(one.is_disjoint(other), "whoever asks");
    assert_eq!(one.len() + other.len(), PIECES as usize);
}

#[test]
fn who_is_behind_asks_for_one_piece_more() {
    let open = |held: u32| {
        let mut receiver = Receiver::new(set(&(0..held).collect::<Vec<_>>()), Random::new(1));
        let parents = [1, 2, 3].map(node);
        receiver.set_parents(&parents);
        for parent in parents {
            receiver.parent_has_all(parent, set(&(0..60).collect::<Vec<_>>()));
        }
        receiver.next(Duration::ZERO).len()
    };
    assert_eq!((open(10), open(57), open(59)), (6, 3, 1));
}
