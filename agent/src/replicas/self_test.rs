//! The self-test: a short answer, always the likeliest byte, that must be the one of the node that made the checkpoint.

use std::{sync::Arc, time::Instant};

use hatchery_bdh::{Engine, Model, SamplingParams, Session, Window};
use hatchery_common::self_test::{SELF_TEST_BYTES, SELF_TEST_PROMPT, SelfTest};
use hatchery_net::blocking;
use tokio::sync::Semaphore;

/// By how much the logarithm of a probability may differ between machines, which round otherwise.
const TOLERANCE: f64 = 1e-3;
/// Bytes that a byte-level model chooses among.
const BYTES: usize = 256;

/// One self-test at a time: each loads a model.
#[derive(Clone, Debug)]
pub(crate) struct SelfTester(Arc<Semaphore>);

/// What a model answered.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) self_test: SelfTest,
    /// How long it took, in milliseconds, loading left out.
    pub(crate) took_ms: f64,
    /// For each byte of the answer, how likely each byte was there.
    log_probabilities: Vec<[f64; BYTES]>,
}

impl SelfTester {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Lets the model that `load` gives answer; an error says why it does not.
    pub(crate) async fn run(
        &self,
        load: impl FnOnce() -> Result<Arc<Model>, String> + Send + 'static,
    ) -> Result<Answered, String> {
        let _one = self.0.acquire().await.map_err(|error| error.to_string())?;
        blocking(move || answer(load()?)).await
    }
}

fn answer(model: Arc<Model>) -> Result<Answered, String> {
    let start = Instant::now();
    let engine = Engine::new(model, Window::Default).map_err(|error| error.to_string())?;
    let mut session = Session::new(engine, &SamplingParams::greedy());
    session.feed(SELF_TEST_PROMPT);
    let mut answered = Answered {
        self_test: SelfTest { answer: Vec::new(), log_probabilities: Vec::new(), serving: None },
        took_ms: 0.0,
        log_probabilities: Vec::new(),
    };
    while answered.self_test.answer.len() < SELF_TEST_BYTES {
        let Some(byte) = session.next_byte() else {
            let answered = answered.self_test.answer.len();
            return Err(format!(
                "its self-test failed after {answered} bytes: the model's output is not a number"
            ));
        };
        // The engine has not seen the byte yet, so its figures are those that the byte was chosen by.
        let likely = log_probabilities(session.engine().logits());
        answered.self_test.answer.push(byte);
        answered.self_test.log_probabilities.push(likely[usize::from(byte)]);
        answered.log_probabilities.push(likely);
    }
    answered.took_ms = start.elapsed().as_secs_f64() * 1000.0;
    Ok(answered)
}

fn log_probabilities(logits: &[f32]) -> [f64; BYTES] {
    let logit = |byte: usize| logits.get(byte).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit));
    let most = (0..BYTES).map(logit).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = (0..BYTES).map(|byte| (logit(byte) - most).exp()).sum();
    std::array::from_fn(|byte| (logit(byte) - most - sum.ln()).min(0.0))
}

impl Answered {
    /// Whether this is the answer of the node that made the checkpoint: the same bytes, each as likely to [`TOLERANCE`]. Where
    /// the bytes differ, the two must be as likely as one another at the first difference; what comes after it follows from it.
    pub(crate) fn compare(&self, source: &SelfTest) -> Result<(), String> {
        let (ours, theirs) = (&self.self_test, source);
        let bytes = ours.answer.iter().zip(&theirs.answer);
        let chosen = ours.log_probabilities.iter().zip(&theirs.log_probabilities);
        for (index, ((our, their), (our_likely, their_likely))) in bytes.zip(chosen).enumerate() {
            let likely = &self.log_probabilities[index];
            let apart = (likely[usize::from(*their)] - their_likely).abs();
            if our == their && apart <= TOLERANCE {
                continue;
            }
            let gap = our_likely - likely[usize::from(*their)];
            // Both figures are off by a tolerance at most, so the two of a tie are off by two.
            if our != their && apart <= TOLERANCE && gap <= 2.0 * TOLERANCE {
                return Ok(());
            }
            return Err(format!(
                "its self-test differs from that of the training node: after `{}` and {index} bytes it \
                 answers `{}` instead of `{}` (log probabilities {our_likely:.6} and {their_likely:.6})",
                String::from_utf8_lossy(SELF_TEST_PROMPT),
                shown(&ours.answer),
                shown(&theirs.answer),
            ));
        }
        Ok(())
    }
}

/// Bytes on one line.
fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chose byte 1 each time, with byte 2 close behind by `gap`.
    fn answered(gap: f64) -> Answered {
        let mut likely = [-9.0; BYTES];
        (likely[1], likely[2]) = (-0.7, -0.7 - gap);
        let log_probabilities = vec![likely[1]; SELF_TEST_BYTES];
        Answered {
            self_test: SelfTest { answer: vec![1; SELF_TEST_BYTES], log_probabilities, serving: None },
            took_ms: 1.0,
            log_probabilities: vec![likely; SELF_TEST_BYTES],
        }
    }

    #[test]
    fn an_answer_may_differ_by_rounding_and_by_nothing_else() {
        let ours = answered(0.001);
        let theirs = |change: fn(&mut SelfTest)| {
            let mut theirs = ours.self_test.clone();
            change(&mut theirs);
            ours.compare(&theirs)
        };
        assert_eq!(theirs(|_| {}), Ok(()));
        assert_eq!(theirs(|one| one.log_probabilities[15] += 0.0009), Ok(()), "that is rounding");
        let error = theirs(|one| one.log_probabilities[15] -= 0.002).unwrap_err();
        assert!(error.contains("after `The ` and 15 bytes it answers `\\x01"), "{error}");
        // A tie was decided otherwise, and all that follows is another text.
        let tie = |one: &mut SelfTest| {
            one.answer[3..].fill(2);
            one.log_probabilities[3] = -0.7005;
            one.log_probabilities[4..].fill(-5.0);
        };
        assert_eq!(theirs(tie), Ok(()));
        let mut other = ours.self_test.clone();
        tie(&mut other);
        let error = answered(0.1).compare(&other).unwrap_err();
        assert!(error.contains("instead of `\\x01\\x01\\x01\\x02"), "{error}");
    }

    #[test]
    fn probabilities_sum_up_to_one() {
        let logits: Vec<f32> = (0..300).map(|index| (index as f32 * 0.37).sin() * 20.0).collect();
        let sum: f64 = log_probabilities(&logits).iter().map(|one| one.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    }
}
