//! Two copies of a state: one that readers hold, one that the next steps are tried on. Applying the few steps that the
//! older copy is behind costs less than copying the whole, so a fleet may grow without each change growing dearer.

use std::{mem, sync::Arc};

use hatchery_scheduler::{Cluster, Event};

/// A state that moves by steps, the same step always the same way.
pub(crate) trait Evolve: Clone {
    type Step;
    fn evolve(&mut self, step: &Self::Step);
}

impl Evolve for Cluster {
    type Step = Event;

    fn evolve(&mut self, event: &Event) {
        Self::evolve(self, event);
    }
}

/// A state as it is shown, and as it will be once the steps since are accepted.
#[derive(Debug)]
pub(crate) struct DoubleBuffer<T: Evolve> {
    shown: Arc<T>,
    /// What was shown before, and the steps that lead from it to `shown`.
    spare: Option<(Arc<T>, Vec<T::Step>)>,
    /// `shown` and `steps`; none until there is a first step.
    draft: Option<T>,
    steps: Vec<T::Step>,
}

impl<T: Evolve> DoubleBuffer<T> {
    /// Shows `state`.
    pub(crate) fn new(state: T) -> Self {
        Self { shown: Arc::new(state), spare: None, draft: None, steps: Vec::new() }
    }

    /// The state with the steps that are not accepted yet.
    pub(crate) fn draft(&self) -> &T {
        self.draft.as_ref().unwrap_or(&self.shown)
    }

    /// The state that readers hold.
    pub(crate) fn shown(&self) -> &Arc<T> {
        &self.shown
    }

    /// Takes a step on the draft.
    pub(crate) fn step(&mut self, step: T::Step) {
        let (shown, spare) = (&self.shown, &mut self.spare);
        self.draft.get_or_insert_with(|| catch_up(shown, spare)).evolve(&step);
        self.steps.push(step);
    }

    /// Whether there are steps that are not accepted yet.
    pub(crate) fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    /// The steps that are not accepted yet.
    pub(crate) fn steps(&self) -> &[T::Step] {
        &self.steps
    }

    /// Drops the draft: none of its steps happened.
    pub(crate) fn discard(&mut self) {
        (self.draft, self.steps) = (None, Vec::new());
    }

    /// The steps since, taken out: give them back to [`accept`](Self::accept), or call [`reset`](Self::reset).
    pub(crate) fn take_steps(&mut self) -> Vec<T::Step> {
        mem::take(&mut self.steps)
    }

    /// Shows the draft, to which `steps` have led.
    pub(crate) fn accept(&mut self, steps: Vec<T::Step>) {
        if let Some(draft) = self.draft.take() {
            let before = mem::replace(&mut self.shown, Arc::new(draft));
            self.spare = Some((before, steps));
        }
    }

    /// Drops the draft and shows `state`.
    pub(crate) fn reset(&mut self, state: T) {
        *self = Self::new(state);
    }
}

/// A copy of `shown`: the spare, if no reader holds it any more, or else a new one.
fn catch_up<T: Evolve>(shown: &T, spare: &mut Option<(Arc<T>, Vec<T::Step>)>) -> T {
    match spare.take().map(|(state, steps)| (Arc::try_unwrap(state), steps)) {
        Some((Ok(mut state), steps)) => {
            for step in &steps {
                state.evolve(step);
            }
            state
        }
        _ => shown.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Sum(Vec<u32>);

    impl Evolve for Sum {
        type Step = u32;

        fn evolve(&mut self, step: &u32) {
            self.0.push(*step);
        }
    }

    #[test]
    fn what_is_shown_moves_only_when_accepted_whoever_reads() {
        let mut buffer = DoubleBuffer::new(Sum(vec![]));
        let mut readers = Vec::new();
        for round in 0..20 {
            buffer.step(round);
            buffer.step(round + 100);
            assert_eq!(buffer.shown().0.len(), 2 * round as usize);
            let steps = buffer.take_steps();
            buffer.accept(steps);
            assert_eq!(buffer.shown().0.len(), 2 * round as usize + 2);
            if round % 3 == 0 {
                readers.push(Arc::clone(buffer.shown()));
            }
        }
        assert_eq!(readers[1].0, [0, 100, 1, 101, 2, 102, 3, 103]);
        let expected: Vec<u32> = (0..20).flat_map(|round| [round, round + 100]).collect();
        assert_eq!(buffer.shown().0, expected);
        buffer.step(7);
        buffer.reset(Sum(vec![1]));
        assert_eq!(buffer.draft(), &Sum(vec![1]));
    }
}
