//! One parent, as its child sees it.

use std::time::Duration;

use hatchery_common::{blob::PieceSet, id::NodeId};

use crate::{
    limits::{
        ASKS_AHEAD, ASKS_OPEN_MAX, REST_MAX, REST_MIN, SLOW_FACTOR, STALL_FACTOR, STALL_FACTOR_UNKNOWN,
        STALL_MIN, STALL_UNKNOWN, STALL_UNKNOWN_MIN,
    },
    mean::DecayingMean,
    message::{AskId, Wanted},
};

/// A parent that was named and not banned.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) node: NodeId,
    /// What it says it has; none until it is connected.
    pub(super) have: Option<PieceSet>,
    /// In the order of asking, which is that of the answers.
    pub(super) asks: Vec<Asked>,
    /// Seconds between one piece and the next while it is asked for some.
    pub(super) piece_secs: DecayingMean,
    /// When it was last heard with a piece, or first asked after it had nothing to do.
    busy_since: Duration,
    /// Whether it was said to be slow.
    is_called_slow: bool,
    /// Until when it is not asked, after a stall, and how long the next rest is.
    resting_until: Option<Duration>,
    rest: Duration,
}

/// An ask without its answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ask: AskId,
    pub(super) wanted: Wanted,
    /// The piece that will come, once that is known.
    pub(super) index: Option<u32>,
    pub(super) begun: bool,
}

impl Parent {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            have: None,
            asks: Vec::new(),
            piece_secs: DecayingMean::default(),
            busy_since: Duration::ZERO,
            is_called_slow: false,
            resting_until: None,
            rest: REST_MIN,
        }
    }

    /// Whether it has the whole blob.
    pub(super) fn is_complete(&self) -> bool {
        self.have.as_ref().is_some_and(PieceSet::is_full)
    }

    /// Whether it may be asked for more: for one piece, for `more`, and for those that come in the time until it hears of
    /// the next ask.
    pub(super) fn has_room(&self, more: usize) -> bool {
        let ahead = self.piece_secs.get().map_or(0, |secs| (ASKS_AHEAD.as_secs_f64() / secs) as usize);
        self.have.is_some()
            && self.resting_until.is_none()
            && self.asks.len() < (1 + more + ahead).min(ASKS_OPEN_MAX)
    }

    pub(super) fn ask(&mut self, ask: AskId, wanted: Wanted, now: Duration) {
        if self.asks.is_empty() {
            self.busy_since = now;
        }
        let index = match wanted {
            Wanted::One(index) => Some(index),
            Wanted::Any(_) => None,
        };
        self.asks.push(Asked { ask, wanted, index, begun: false });
    }

    /// A piece has come from it: it is not stalled, whatever was thought.
    pub(super) fn delivered(&mut self, now: Duration) {
        if self.resting_until.is_none() {
            self.piece_secs.add(now.saturating_sub(self.busy_since).as_secs_f64());
        }
        (self.busy_since, self.resting_until, self.rest) = (now, None, REST_MIN);
    }

    /// Whether it is found out just now that it takes much longer than is typical.
    pub(super) fn is_slow(&mut self, typical_secs: f64) -> bool {
        let is_slow = self.piece_secs.get().is_some_and(|secs| secs > SLOW_FACTOR * typical_secs);
        is_slow && !std::mem::replace(&mut self.is_called_slow, true)
    }

    /// When it counts as stalled, unless something comes before.
    pub(super) fn stalls_at(&self, typical_secs: Option<f64>) -> Option<Duration> {
        if self.asks.is_empty() {
            return None;
        }
        let patience = match (self.piece_secs.get(), typical_secs) {
            (Some(secs), typical) => {
                let expected = STALL_FACTOR * secs.max(typical.unwrap_or(secs));
                Duration::try_from_secs_f64(expected).unwrap_or(STALL_UNKNOWN).max(STALL_MIN)
            }
            // Of one that has not sent anything yet nobody knows how it compares with the others.
            (None, Some(typical)) => Duration::try_from_secs_f64(STALL_FACTOR_UNKNOWN * typical)
                .unwrap_or(STALL_UNKNOWN)
                .clamp(STALL_UNKNOWN_MIN, STALL_UNKNOWN),
            (None, None) => STALL_UNKNOWN,
        };
        Some(self.busy_since + patience)
    }

    /// It is left alone for a while; what was asked of it is given back.
    pub(super) fn stalled(&mut self, now: Duration) -> Vec<Asked> {
        self.resting_until = Some(now + self.rest);
        self.rest = (self.rest * 2).min(REST_MAX);
        std::mem::take(&mut self.asks)
    }

    /// Ends its rest if that is due; otherwise when it will be.
    pub(super) fn rested_at(&mut self, now: Duration) -> Option<Duration> {
        if self.resting_until.is_some_and(|until| until <= now) {
            self.resting_until = None;
        }
        self.resting_until
    }
}
