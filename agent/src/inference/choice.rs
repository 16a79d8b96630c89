//! Where an answer is made, and when the GPU is worth a process: what follows from figures alone.

use hatchery_common::{
    answerer::{Pace, secs_per_step},
    generate::GenerationOrder,
};

/// So many bytes of a prompt take the processor as long as one byte made.
const PROMPT_BYTES_PER_STEP_PROCESSOR: f64 = 4.0;
/// A GPU reads so many bytes of a prompt in one step.
const PROMPT_BYTES_PER_STEP_GPU: f64 = 128.0;
/// A process is started when somebody would wait at least so long for the processor. Starting takes some seconds: what the
/// processor is done with sooner gains nothing.
const WAIT_SECS_MIN: f64 = 2.0;

/// An answer at work on the processor moves for so much: a pace is an estimate, and its start is read again.
const MOVE_SECS_MIN: f64 = 0.5;

/// What is left to do for an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Work {
    pub(crate) prompt_bytes: usize,
    /// Bytes to make, at most.
    pub(crate) bytes: usize,
}

impl Work {
    /// What is to be done for an answer, or after what was `told` of it, where nothing of it was done.
    pub(crate) fn whole(order: &GenerationOrder, told: &[u8]) -> Self {
        Self {
            prompt_bytes: order.prompt.len() + told.len(),
            bytes: (order.max_bytes as usize).saturating_sub(told.len()),
        }
    }

    /// In bytes made by the processor.
    pub(crate) fn steps_on_processor(self) -> f64 {
        self.prompt_bytes as f64 / PROMPT_BYTES_PER_STEP_PROCESSOR + self.bytes as f64
    }

    /// What was done of it when so much is `left`.
    pub(crate) fn less(self, left: Self) -> Self {
        Self { prompt_bytes: self.prompt_bytes - left.prompt_bytes, bytes: self.bytes - left.bytes }
    }

    fn steps_on_gpu(self) -> f64 {
        (self.prompt_bytes as f64 / PROMPT_BYTES_PER_STEP_GPU).ceil() + self.bytes as f64
    }
}

/// The processor, as one answer finds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Processor {
    /// Answers that it makes at the same time.
    pub(crate) at_once: usize,
    /// Answers before this one that are not at their end.
    pub(crate) ahead: usize,
    /// How long those take, one after the other.
    pub(crate) ahead_secs: f64,
    /// How long it takes for a byte of this model, while as many answers are made as can be; None: not known yet.
    pub(crate) secs_per_step: Option<f64>,
}

impl Processor {
    fn has_room(&self) -> bool {
        self.ahead < self.at_once
    }

    /// How long until an answer is begun. None: not known yet.
    pub(crate) fn wait_secs(&self) -> Option<f64> {
        if self.has_room() {
            return Some(0.0);
        }
        self.secs_per_step.map(|_| self.ahead_secs / self.at_once as f64)
    }

    /// How long until the last byte. None: not known yet.
    fn secs(&self, work: Work) -> Option<f64> {
        Some(self.wait_secs()? + work.steps_on_processor() * self.secs_per_step?)
    }
}

/// A GPU that answers, as one answer finds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gpu<'a> {
    /// How fast it is.
    pub(crate) pace: &'a [Pace],
    /// Answers that are being made.
    pub(crate) sequences: u32,
    pub(crate) sequences_max: u32,
    /// Bytes of their prompts that it has still to read, one prompt after another.
    pub(crate) unread_bytes: usize,
}

impl Gpu<'_> {
    /// How long until the last byte. None: it has no room.
    fn secs(&self, work: Work) -> Option<f64> {
        let has_room = self.sequences < self.sequences_max;
        let secs_per_step = has_room.then(|| secs_per_step(self.pace, self.sequences + 1))??;
        let unread = (self.unread_bytes as f64 / PROMPT_BYTES_PER_STEP_GPU).ceil();
        Some((unread + work.steps_on_gpu()) * secs_per_step)
    }
}

/// Where an answer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the processor, as soon as it has room.
    Processor,
    /// On the GPU, now.
    Gpu,
}

/// Where an answer is at its end sooner. As long as nobody knows how fast the processor is, it is asked first.
pub(crate) fn choose(work: Work, processor: &Processor, gpu: Option<&Gpu<'_>>) -> Place {
    let is_better = gpu.and_then(|gpu| gpu.secs(work)).is_some_and(|gpu_secs| {
        processor.secs(work).map_or(!processor.has_room(), |processor_secs| gpu_secs < processor_secs)
    });
    if is_better { Place::Gpu } else { Place::Processor }
}

/// Whether an answer at work on the processor, which would need `left_secs` more there, is worth a move to the GPU, where it is
/// to be done `anew`.
pub(crate) fn is_worth_a_move(left_secs: f64, anew: Work, gpu: &Gpu<'_>) -> bool {
    gpu.secs(anew).is_some_and(|gpu_secs| gpu_secs + MOVE_SECS_MIN <= left_secs)
}

/// Whether an answer that finds the processor like this is worth the start of a process on a GPU, of which `known` says
/// how it was when it last answered for this model.
pub(crate) fn is_worth_a_start(work: Work, processor: &Processor, known: Option<&Gpu<'_>>) -> bool {
    processor.wait_secs().is_none_or(|wait_secs| wait_secs >= WAIT_SECS_MIN)
        && known.is_none_or(|gpu| choose(work, processor, Some(gpu)) == Place::Gpu)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORK: Work = Work { prompt_bytes: 100, bytes: 1000 };
    /// A GPU that takes ten times the processor's millisecond for one answer, and hardly more for many.
    const SLOW: [Pace; 2] =
        [Pace { sequences: 1, secs_per_step: 0.010 }, Pace { sequences: 64, secs_per_step: 0.016 }];
    const FAST: [Pace; 2] =
        [Pace { sequences: 1, secs_per_step: 0.0005 }, Pace { sequences: 64, secs_per_step: 0.002 }];

    /// A processor of two places and 1 ms for a byte, with so many whole answers ahead.
    fn processor(ahead: usize) -> Processor {
        let ahead_secs = ahead as f64 * WORK.steps_on_processor() * 1e-3;
        Processor { at_once: 2, ahead, ahead_secs, secs_per_step: Some(1e-3) }
    }

    fn gpu(pace: &[Pace], sequences: u32) -> Gpu<'_> {
        Gpu { pace, sequences, sequences_max: 16, unread_bytes: 0 }
    }

    /// Where each of so many ends up that come at once.
    fn burst(count: usize, pace: &[Pace]) -> [usize; 2] {
        let (mut on_processor, mut on_gpu) = (0, 0);
        for _ in 0..count {
            match choose(WORK, &processor(on_processor), Some(&gpu(pace, on_gpu as u32))) {
                Place::Processor => on_processor += 1,
                Place::Gpu => on_gpu += 1,
            }
        }
        [on_processor, on_gpu]
    }

    #[test]
    fn one_answer_goes_where_it_is_sooner() {
        assert_eq!(choose(WORK, &processor(0), None), Place::Processor);
        assert_eq!(choose(WORK, &processor(0), Some(&gpu(&SLOW, 0))), Place::Processor);
        assert_eq!(choose(WORK, &processor(0), Some(&gpu(&FAST, 0))), Place::Gpu);
        assert_eq!(choose(WORK, &processor(0), Some(&gpu(&[], 0))), Place::Processor);
    }

    #[test]
    fn many_at_once_go_to_the_gpu_also_where_one_would_not() {
        assert_eq!(burst(16, &FAST), [0, 16]);
        let [on_processor, on_gpu] = burst(40, &SLOW);
        assert!(on_gpu >= 12 && on_processor >= 16, "{on_processor} and {on_gpu}");
    }

    #[test]
    fn a_full_gpu_sends_back_to_the_queue() {
        assert_eq!(choose(WORK, &processor(50), Some(&gpu(&FAST, 15))), Place::Gpu);
        assert_eq!(choose(WORK, &processor(50), Some(&gpu(&FAST, 16))), Place::Processor);
        assert_eq!(burst(40, &FAST), [24, 16]);
    }

    #[test]
    fn a_processor_that_nobody_knows_is_asked_first() {
        let unknown = |ahead| Processor { secs_per_step: None, ahead_secs: 0.0, ..processor(ahead) };
        assert_eq!(choose(WORK, &unknown(1), Some(&gpu(&FAST, 0))), Place::Processor);
        assert_eq!(choose(WORK, &unknown(2), Some(&gpu(&SLOW, 0))), Place::Gpu);
        assert_eq!(choose(WORK, &unknown(2), Some(&gpu(&SLOW, 16))), Place::Processor);
    }

    #[test]
    fn prompts_that_a_gpu_has_to_read_first_count_too() {
        let reading = Gpu { unread_bytes: 30 * 64_000, ..gpu(&FAST, 1) };
        assert_eq!(choose(WORK, &processor(2), Some(&gpu(&FAST, 1))), Place::Gpu);
        assert_eq!(choose(WORK, &processor(2), Some(&reading)), Place::Processor);
    }

    #[test]
    fn a_long_prompt_counts_for_less_on_the_gpu() {
        let reading = Work { prompt_bytes: 64_000, bytes: 10 };
        let pace = [Pace { sequences: 1, secs_per_step: 0.010 }];
        assert_eq!(choose(reading, &processor(0), Some(&gpu(&pace, 0))), Place::Gpu);
        assert_eq!(
            choose(Work { prompt_bytes: 0, ..reading }, &processor(0), Some(&gpu(&pace, 0))),
            Place::Processor
        );
    }

    #[test]
    fn a_process_is_started_for_a_queue_that_lasts() {
        let unknown = Processor { secs_per_step: None, ..processor(2) };
        assert!(is_worth_a_start(WORK, &unknown, None), "somebody waits, and nobody knows how long");
        assert!(!is_worth_a_start(WORK, &processor(1), None), "nobody waits");
        assert!(!is_worth_a_start(WORK, &processor(2), None), "for about a second");
        assert!(is_worth_a_start(WORK, &processor(4), None), "for more than two");
        assert!(is_worth_a_start(WORK, &processor(4), Some(&gpu(&FAST, 0))));
        assert!(!is_worth_a_start(WORK, &processor(4), Some(&gpu(&SLOW, 0))), "the GPU is slower still");
    }

    #[test]
    fn what_is_at_work_moves_for_much_and_not_for_little() {
        // A thousand bytes at half a millisecond.
        assert!(is_worth_a_move(2.0, WORK, &gpu(&FAST, 0)));
        assert!(!is_worth_a_move(0.9, WORK, &gpu(&FAST, 0)), "for less than half a second");
        assert!(!is_worth_a_move(2.0, WORK, &gpu(&FAST, 16)), "there is no room");
        assert!(!is_worth_a_move(2.0, WORK, &gpu(&SLOW, 0)), "it is slower there");
    }

    prop_compose! {
        fn paces()(mut secs in prop::collection::vec(1e-6..1.0_f64, 1..5)) -> Vec<Pace> {
            secs.sort_by(f64::total_cmp);
            let pace = |(index, secs_per_step)| Pace { sequences: 4_u32.pow(index as u32), secs_per_step };
            secs.into_iter().enumerate().map(pace).collect()
        }
    }

    prop_compose! {
        fn processors()(
            at_once in 1..8_usize,
            ahead in 0..64_usize,
            secs in 0.0..100.0_f64,
            secs_per_step in prop::option::of(1e-6..1.0_f64),
        ) -> Processor {
            Processor { at_once, ahead, ahead_secs: secs * ahead as f64, secs_per_step }
        }
    }

    prop_compose! {
        fn works()(prompt_bytes in 0..65_536_usize, bytes in 1..65_536_usize) -> Work {
            Work { prompt_bytes, bytes }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_busier_gpu_draws_no_one_and_a_longer_queue_sends_no_one_back(
            work in works(),
            processor in processors(),
            pace in paces(),
            sequences in 0..20_u32,
            more in 1..20_u32,
        ) {
            let place = choose(work, &processor, Some(&gpu(&pace, sequences)));
            let busier = choose(work, &processor, Some(&gpu(&pace, sequences + more)));
            prop_assert!(place == Place::Gpu || busier == Place::Processor);
            let longer = Processor {
                ahead: processor.ahead + more as usize,
                ahead_secs: processor.ahead_secs + f64::from(more),
                ..processor
            };
            let longer = choose(work, &longer, Some(&gpu(&pace, sequences)));
            prop_assert!(place == Place::Processor || longer == Place::Gpu);
        }

        #[test]
        fn nobody_is_sent_to_a_gpu_without_room_nor_waits_for_one(
            work in works(), processor in processors(), pace in paces(), sequences in 16..40_u32,
        ) {
            prop_assert_eq!(choose(work, &processor, Some(&gpu(&pace, sequences))), Place::Processor);
            prop_assert_eq!(choose(work, &processor, None), Place::Processor);
        }

        #[test]
        fn a_process_is_started_only_if_somebody_waits(
            work in works(),
            processor in processors(),
            pace in paces(),
        ) {
            let known = gpu(&pace, 0);
            for known in [None, Some(&known)] {
                let is_started = is_worth_a_start(work, &processor, known);
                prop_assert!(!is_started || processor.ahead >= processor.at_once);
            }
        }
    }
}
