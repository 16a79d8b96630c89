//! The self-test: the few bytes with which a checkpoint answers a prompt that is always the same. The node that made a
//! checkpoint is the first to run it; whoever gets the checkpoint must come to the same.

use serde::{Deserialize, Serialize};

use crate::field::FieldError;

/// What a checkpoint is asked, always the same.
pub const SELF_TEST_PROMPT: &[u8] = b"The ";
/// How many bytes it is to answer.
pub const SELF_TEST_BYTES: usize = 16;

/// A checkpoint's answer, always the likeliest byte, and how likely it thought each byte to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfTest {
    /// The bytes, [`SELF_TEST_BYTES`] of them.
    pub answer: Vec<u8>,
    /// The natural logarithm of each byte's probability.
    pub log_probabilities: Vec<f64>,
    /// The same of the weights for replicas that only answer, where the checkpoint has such; in it there is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Box<Self>>,
}

impl SelfTest {
    /// Checks what comes from outside.
    pub fn check(&self) -> Result<(), FieldError> {
        for (field, length) in
            [("answer", self.answer.len()), ("log_probabilities", self.log_probabilities.len())]
        {
            if length != SELF_TEST_BYTES {
                return Err(FieldError::new(
                    field,
                    format!("must have {SELF_TEST_BYTES} entries, not {length}"),
                ));
            }
        }
        if self.log_probabilities.iter().any(|one| !one.is_finite() || *one > 0.0) {
            return Err(FieldError::new("log_probabilities", "must be finite and at most 0"));
        }
        match &self.serving {
            Some(serving) if serving.serving.is_some() => {
                Err(FieldError::new("serving.serving", "must be absent"))
            }
            Some(serving) => serving.check().map_err(|error| error.within("serving")),
            None => Ok(()),
        }
    }
}
