//! What is said of rollouts.

use hatchery_common::{
    id::RolloutId,
    self_test::{SELF_TEST_BYTES, SelfTest},
    view::RolloutView,
};
use proptest::{collection::vec, option, prelude::*};

use super::{checkpoint_id, job_id, name, text, time};

pub(crate) fn rollout_view() -> impl Strategy<Value = RolloutView> {
    let what = (option::of(any::<[u8; 16]>()), job_id(), name(), checkpoint_id(), any::<u64>());
    let whose = (text(), option::of(name()), time(), any::<bool>());
    let rest = (option::of(any::<u64>()), option::of(time()), any::<(u32, u32, u32, u32)>());
    (what, whose, rest).prop_map(|(what, whose, rest)| RolloutView {
        id: what.0.map(RolloutId::from_bytes),
        job: what.1,
        job_name: what.2,
        checkpoint: what.3,
        step: what.4,
        to: whose.0,
        by: whose.1,
        at: whose.2,
        activate: whose.3,
        bytes_per_sec_max: rest.0,
        withdrawn_at: rest.1,
        nodes: rest.2.0,
        ready: rest.2.1,
        active: rest.2.2,
        failed: rest.2.3,
    })
}

pub(crate) fn self_test() -> impl Strategy<Value = SelfTest> {
    let answered = || (vec(any::<u8>(), SELF_TEST_BYTES), vec(-1e3..=0.0f64, SELF_TEST_BYTES));
    (answered(), option::of(answered())).prop_map(|((answer, log_probabilities), serving)| {
        let serving = serving.map(|(answer, log_probabilities)| {
            Box::new(SelfTest { answer, log_probabilities, serving: None })
        });
        SelfTest { answer, log_probabilities, serving }
    })
}
