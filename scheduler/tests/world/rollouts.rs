//! Steps about rollouts and pins.

use hatchery_common::{
    id::{CheckpointId, RolloutId},
    recipe::NodeSelector,
    self_test::{SELF_TEST_BYTES, SelfTest},
};
use hatchery_scheduler::{Pin, Push, Rejected, RollBack, Rollout, Withdraw};

use super::{World, name, steps::pick};

impl World {
    pub(super) fn step_push(&mut self, which: u8, to: u8) {
        let Some(checkpoint) = pick(self.cluster.checkpoints.keys(), which).copied() else {
            let checkpoint = CheckpointId(self.draw());
            let rollout = RolloutId::from_bytes(self.draw_id());
            let (to, by) = (NodeSelector::All, name("ann"));
            let push = Push { rollout, checkpoint, to, activate: true, bytes_per_sec_max: None, by };
            assert!(matches!(self.ask(push), Err(Rejected::NotFound { what: "checkpoint", .. })));
            return;
        };
        let to = match self.pick_node(to) {
            Some(node) if to < 6 => NodeSelector::Nodes(vec![node]),
            _ => NodeSelector::All,
        };
        let rollout = RolloutId::from_bytes(self.draw_id());
        let activate = which.is_multiple_of(2);
        let bytes_per_sec_max = (which % 3 == 1).then_some(1 << 20);
        let push = Push { rollout, checkpoint, to, activate, bytes_per_sec_max, by: name("ann") };
        self.ask(push.clone()).unwrap();
        assert_eq!(self.ask(push).unwrap().events, []);
    }

    /// Somebody takes a rollout back, by its own name or as the newest of its job, from everywhere or from one node; what was
    /// active before is so again.
    pub(super) fn step_withdraw(&mut self, which: u8, how: u8) {
        let by = name("bob");
        let from = match self.pick_node(which) {
            Some(node) if how > 1 => NodeSelector::Nodes(vec![node]),
            _ => NodeSelector::All,
        };
        if how.is_multiple_of(2) {
            let Some(rollout) = pick(self.cluster.rollouts.keys(), which).copied() else { return };
            let before = self.cluster.rollouts[&rollout].clone();
            let is_done = before.withdrawn_at.is_some() || before.not_on.contains(&from);
            let decision = self.ask(Withdraw { rollout, from, by }).unwrap();
            assert_eq!(decision.outcome, rollout);
            assert_eq!(decision.events.len(), usize::from(!is_done));
            return;
        }
        let Some(job) = self.pick_job(which) else { return };
        let nodes = self.cluster.nodes.values().filter(|node| from.selects(node.id, &node.labels));
        let nodes: Vec<_> = nodes.cloned().collect();
        let reaches = |rollout: &Rollout| nodes.iter().any(|node| rollout.reaches(node));
        let activations = self.cluster.activations(job);
        let left = activations.last().filter(|_| from == NodeSelector::All);
        let newest = activations.iter().rfind(|rollout| reaches(rollout)).or(left);
        let newest = newest.map(|rollout| rollout.id);
        match (self.ask(RollBack { job, from, by }), newest) {
            (Ok(decision), Some(rollout)) => {
                assert_eq!(decision.outcome, rollout);
                assert!(!reaches(&self.cluster.rollouts[&rollout]));
            }
            (answer, newest) => {
                assert_eq!(newest, None);
                assert!(matches!(answer, Err(Rejected::NothingActivated { .. })), "{answer:?}");
            }
        }
    }

    /// Somebody wants a checkpoint kept, or does so no longer; twice is as good as once.
    pub(super) fn step_pin(&mut self, which: u8, is_pinned: bool) {
        let Some(checkpoint) = pick(self.cluster.checkpoints.keys(), which).copied() else { return };
        let pin = Pin { checkpoint, is_pinned, by: name("ann") };
        self.ask(pin.clone()).unwrap();
        assert_eq!(self.ask(pin).unwrap().events, []);
    }
}

/// What a checkpoint answered, or nothing.
pub(super) fn self_test(which: u8) -> Option<Box<SelfTest>> {
    let log_probabilities = vec![-1.0 / 3.0; SELF_TEST_BYTES];
    which.is_multiple_of(2).then(|| {
        Box::new(SelfTest { answer: vec![which; SELF_TEST_BYTES], log_probabilities, serving: None })
    })
}
