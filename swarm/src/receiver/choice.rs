//! What is asked next, of whom.

use std::time::Duration;

use hatchery_common::blob::PieceSet;

use super::{Receiver, Step};
use crate::message::{AskId, ToParent, Wanted};

/// Behind is who has so much of the blob less than its parents do, and no fewer pieces.
const BEHIND_SHARE: u32 = 100;
const BEHIND_PIECES_MIN: u32 = 6;
/// Of fewer parents there is no mean worth the name.
const BEHIND_PARENTS_MIN: usize = 3;
/// Copies of a piece on their way at once, at the end.
const COPIES_MAX: u8 = 2;

impl Receiver {
    /// Asks for as much as may be asked for.
    pub(super) fn ask(&mut self, now: Duration, steps: &mut Vec<Step>) {
        while let Some((at, wanted)) = self.choose() {
            let ask = AskId(self.asks_given);
            self.asks_given += 1;
            if let Wanted::One(index) = wanted {
                self.comes(index);
            }
            let parent = &mut self.parents[at];
            parent.ask(ask, wanted.clone(), now);
            steps.push(Step::Tell { parent: parent.node, message: ToParent::Ask { ask, wanted } });
        }
    }

    /// Whether it has clearly less than its parents that receive too have, as a mean. Then it asks them for the next
    /// piece before the last has come, and so gets a little more of their uplinks than others do.
    fn is_behind(&self) -> bool {
        let parents = self.parents.iter().filter(|parent| !parent.is_complete());
        let held: Vec<u32> = parents.filter_map(|parent| parent.have.as_ref()).map(PieceSet::held).collect();
        let behind = BEHIND_PIECES_MIN.max(self.have.count() / BEHIND_SHARE);
        held.len() >= BEHIND_PARENTS_MIN
            && (u64::from(self.have.held() + behind) * held.len() as u64)
                < held.iter().copied().map(u64::from).sum()
    }

    fn choose(&mut self) -> Option<(usize, Wanted)> {
        let more = usize::from(self.is_behind());
        if !self.parents.iter().any(|parent| parent.has_room(more)) {
            return None;
        }
        self.of_complete(more).or_else(|| self.rarest(more)).or_else(|| self.second_copy(more))
    }

    /// Of those who have everything: first what nobody else here has, and they know best which piece that should be. Where
    /// there are several, each has a share of the pieces that is asked of it before the others': two that choose by
    /// themselves would send the same.
    fn of_complete(&mut self, more: usize) -> Option<(usize, Wanted)> {
        let complete: Vec<usize> =
            (0..self.parents.len()).filter(|&at| self.parents[at].is_complete()).collect();
        let missing = self.have.missing().difference(&self.coming);
        // Each open ask takes one of them, and nobody knows yet which.
        let open = self.parents.iter().flat_map(|parent| &parent.asks);
        let open = open.filter(|asked| asked.index.is_none()).count();
        let only_here = Some(missing.difference(&self.shared)).filter(|only_here| !only_here.is_empty());
        let wanted = only_here.unwrap_or(missing);
        if wanted.held() as usize <= open {
            return None;
        }
        let parents = &self.parents;
        let with_room = complete.iter().copied().filter(|&at| parents[at].has_room(more)).collect::<Vec<_>>();
        let at = self.random.least(with_room, |&at| parents[at].asks.len())?;
        // By the order of their names it is the same share whoever asks.
        let place = complete.iter().filter(|&&other| parents[other].node < parents[at].node).count();
        let own = wanted.every(complete.len() as u32, place as u32);
        if !own.is_empty() {
            return Some((at, Wanted::Any(own)));
        }
        // What another is asked for that has no choice will come from there.
        let certain =
            self.parents.iter().flat_map(|parent| &parent.asks).filter_map(|asked| match &asked.wanted {
                Wanted::Any(pieces) if pieces.held() == 1 => Some(pieces),
                _ => None,
            });
        let rest = certain.fold(wanted, |rest, pieces| rest.difference(pieces));
        (!rest.is_empty()).then_some((at, Wanted::Any(rest)))
    }

    /// Of the others: the piece that the fewest parents have, from the one of them that will have sent it first.
    fn rarest(&mut self, more: usize) -> Option<(usize, Wanted)> {
        let partial = self.parents.iter().filter(|parent| !parent.is_complete() && parent.has_room(more));
        let offered =
            partial.filter_map(|parent| parent.have.clone()).reduce(|all, have| all.union(&have))?;
        let possible = offered.difference(&self.have).difference(&self.coming);
        let holders = &self.holders;
        let index = self.random.least(possible.indexes(), |&index| holders[index as usize])?;
        Some((self.soonest(index, more)?, Wanted::One(index)))
    }

    /// At the end, when all that is missing is on its way: a second copy of what is longest on it.
    fn second_copy(&mut self, more: usize) -> Option<(usize, Wanted)> {
        let missing = self.have.missing();
        if !missing.difference(&self.coming).is_empty() {
            return None;
        }
        for index in missing.indexes() {
            if self.copies[index as usize] >= COPIES_MAX {
                continue;
            }
            if let Some(at) = self.soonest(index, more).filter(|&at| self.parents[at].asks.is_empty()) {
                return Some((at, Wanted::One(index)));
            }
        }
        None
    }

    /// The parent with room that has the piece and will have sent it first.
    fn soonest(&mut self, index: u32, more: usize) -> Option<usize> {
        let typical = self.typical_secs().unwrap_or(1.0);
        let can = |&at: &usize| {
            let parent = &self.parents[at];
            parent.has_room(more)
                && parent.have.as_ref().is_some_and(|have| have.has(index))
                && parent.asks.iter().all(|asked| asked.index != Some(index))
        };
        let can: Vec<usize> = (0..self.parents.len()).filter(can).collect();
        let parents = &self.parents;
        self.random.least(can, |&at| {
            let parent = &parents[at];
            (parent.asks.len() + 1) as f64 * parent.piece_secs.get().unwrap_or(typical)
        })
    }
}
