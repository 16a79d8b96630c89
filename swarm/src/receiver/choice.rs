//! What is asked next, of whom.

use std::time::Duration;

use super::{Parent, Receiver, Step};
use crate::message::{AskId, ToParent, Wanted};

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

    fn choose(&mut self) -> Option<(usize, Wanted)> {
        if !self.parents.iter().any(Parent::has_room) {
            return None;
        }
        self.of_complete().or_else(|| self.rarest()).or_else(|| self.second_copy())
    }

    /// Of those who have everything: first what nobody else here has, and they know best which piece that should be.
    fn of_complete(&mut self) -> Option<(usize, Wanted)> {
        let complete = |&at: &usize| self.parents[at].is_complete() && self.parents[at].has_room();
        let complete: Vec<usize> = (0..self.parents.len()).filter(complete).collect();
        if complete.is_empty() {
            return None;
        }
        let missing = self.have.missing().difference(&self.coming);
        let mut wanted = missing.difference(&self.shared);
        if wanted.is_empty() {
            wanted = missing;
        }
        // Each open ask takes one of them, and nobody knows yet which.
        let open = self.parents.iter().flat_map(|parent| &parent.asks);
        let open = open.filter(|asked| asked.index.is_none()).count();
        if wanted.held() as usize <= open {
            return None;
        }
        let parents = &self.parents;
        let at = self.random.least(complete, |&at| parents[at].asks.len())?;
        Some((at, Wanted::Any(wanted)))
    }

    /// Of the others: the piece that the fewest parents have, from the one of them that will have sent it first.
    fn rarest(&mut self) -> Option<(usize, Wanted)> {
        let partial = self.parents.iter().filter(|parent| !parent.is_complete() && parent.has_room());
        let offered =
            partial.filter_map(|parent| parent.have.clone()).reduce(|all, have| all.union(&have))?;
        let possible = offered.difference(&self.have).difference(&self.coming);
        let holders = &self.holders;
        let index = self.random.least(possible.indexes(), |&index| holders[index as usize])?;
        Some((self.soonest(index)?, Wanted::One(index)))
    }

    /// At the end, when all that is missing is on its way: a second copy of what is longest on it.
    fn second_copy(&mut self) -> Option<(usize, Wanted)> {
        let missing = self.have.missing();
        if !missing.difference(&self.coming).is_empty() {
            return None;
        }
        for index in missing.indexes() {
            if self.copies[index as usize] >= COPIES_MAX {
                continue;
            }
            if let Some(at) = self.soonest(index).filter(|&at| self.parents[at].asks.is_empty()) {
                return Some((at, Wanted::One(index)));
            }
        }
        None
    }

    /// The parent with room that has the piece and will have sent it first.
    fn soonest(&mut self, index: u32) -> Option<usize> {
        let typical = self.typical_secs().unwrap_or(1.0);
        let can = |&at: &usize| {
            let parent = &self.parents[at];
            parent.has_room()
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
