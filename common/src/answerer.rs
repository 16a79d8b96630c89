//! The contract between an agent and a `hatchery-trainer answer` process: many answers of one checkpoint at once, on a GPU.
//!
//! The agent starts `hatchery-trainer answer --checkpoint FOLDER --device cuda:0`. The process says
//! [`AnswererEvent::Ready`] once the weights are on the device and its pace is measured; before that it takes no order. Then the
//! agent writes one [`AnswererCommand`] as JSON on each line of stdin, and the process one [`AnswererEvent`] on each line of
//! stdout; stderr is text for people. The end of stdin, `SIGTERM` and `SIGINT` end it at once: whatever answers were being made can be
//! made to their end elsewhere, because each byte follows from those before it and the sampler's draws.

use serde::{Deserialize, Serialize};

use crate::{
    device::Device,
    generate::{FinishReason, GenerationOrder},
    id::RequestId,
};

/// Longest line in either direction, in bytes: a byte of a prompt, or of what was made after it, takes up to four.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// A line from the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum AnswererCommand {
    /// Begin an answer. More than [`AnswererEvent::Ready`]'s `sequences_max` at once are refused with
    /// [`AnswererEvent::Failed`].
    Answer {
        /// What its parts are called by.
        request: RequestId,
        /// What is asked; its checkpoint is not looked at, the process has one.
        order: GenerationOrder,
        /// What was made of it elsewhere, without bytes held back for a stop string: it goes on after that, with the draws
        /// that come then.
        told: Vec<u8>,
    },
    /// Nobody listens to an answer any more; nothing more comes of it. One that is not being made is no error.
    Cancel {
        /// Which.
        request: RequestId,
    },
}

/// A line from the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AnswererEvent {
    /// It takes orders from now on. The first event, said once.
    Ready {
        /// Where it runs.
        device: Device,
        /// Most answers at once: what there is memory for.
        sequences_max: u32,
        /// How long a step takes, by how many sequences go together; by rising numbers, not empty.
        pace: Vec<Pace>,
    },
    /// New bytes of an answer, in order.
    Text {
        /// Which answer.
        request: RequestId,
        /// The bytes; bytes that could be the start of a stop string come later.
        bytes: Vec<u8>,
    },
    /// An answer is whole.
    Finished {
        /// Which.
        request: RequestId,
        /// Why there are no more bytes.
        finish_reason: FinishReason,
    },
    /// An answer cannot be made.
    Failed {
        /// Which.
        request: RequestId,
        /// For a person.
        why: String,
    },
}

/// How fast a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// So many sequences together,
    pub sequences: u32,
    /// take so long for one byte of each.
    pub secs_per_step: f64,
}

/// The seconds that a step of `sequences` takes by the `pace` measured: between two measurements by a straight line, beyond
/// the last in proportion. None: nothing was measured.
pub fn secs_per_step(pace: &[Pace], sequences: u32) -> Option<f64> {
    let last = pace.last()?;
    let above = pace.partition_point(|pace| pace.sequences < sequences);
    Some(match (above.checked_sub(1).map(|below| pace[below]), pace.get(above)) {
        (None, Some(above)) => above.secs_per_step,
        (Some(below), Some(above)) => {
            let share = f64::from(sequences - below.sequences) / f64::from(above.sequences - below.sequences);
            below.secs_per_step + share * (above.secs_per_step - below.secs_per_step)
        }
        (_, None) => last.secs_per_step * f64::from(sequences) / f64::from(last.sequences.max(1)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_between_and_beyond_what_was_measured() {
        let pace = [(1, 1.0), (4, 2.5), (64, 6.0)];
        let pace = pace.map(|(sequences, secs_per_step)| Pace { sequences, secs_per_step });
        let found = [1, 2, 4, 34, 64, 128].map(|sequences| secs_per_step(&pace, sequences));
        assert_eq!(found, [1.0, 1.5, 2.5, 4.25, 6.0, 12.0].map(Some));
        assert_eq!(secs_per_step(&pace[1..], 1), Some(2.5));
        assert_eq!(secs_per_step(&[], 1), None);
    }
}
