//! BDH without libtorch: a checkpoint folder is read, and its model answers on any CPU.
//!
//! BDH has no softmax, so its attention is a sum that a state carries: each byte costs the same time and memory,
//! however many came before.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use hatchery_bdh::{Engine, Generation, Model, SamplingParams, Window};
//!
//! let model = Arc::new(Model::load(Path::new("step-000005000"))?);
//! let engine = Engine::new(model, Window::Default)?;
//! let answer: Vec<u8> = Generation::new(engine, b"To be", &SamplingParams::default(), 100).collect();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | its reason to change |
//! |---|---|
//! | `load` | the files of a checkpoint folder, and what may be wrong with them |
//! | `model` | the weights as the engine wants them |
//! | `engine`, `state`, `part`, `fold` | what a stream leaves behind, and what may be done with it |
//! | `forward` | the equations |
//! | `rope` | the rotary angles |
//! | `loops`, `number`, `simd`, `multiversion` | the inner loops, over two kinds of number, for several instruction sets |
//! | `sampling`, `generation`, `text` | from logits to bytes, to an answer, to text |
//! | `session`, `session_file` | an answer that is interrupted, forked, put away and taken up again |
//! | `position_loss` | how well a model predicts, by how far it has come |
//! | `stop` | strings that end an answer |
//! | `serving` | the weights in bf16, for nodes that only answer |
//! | `import` | checkpoints of the public code, `.pt` and safetensors, made into folders; runs no code of theirs |

mod engine;
mod fold;
mod forward;
mod generation;
mod import;
mod load;
mod loops;
mod model;
mod multiversion;
mod number;
mod part;
mod position_loss;
mod rope;
mod sampling;
mod serving;
mod session;
mod session_file;
mod simd;
mod state;
mod stop;
mod text;

pub use engine::{Engine, EngineError, Window, step_all};
pub use generation::Generation;
pub use import::{ImportError, ImportOptions, Imported};
pub use load::LoadError;
pub use model::Model;
pub use number::Precision;
pub use position_loss::{PositionLoss, loss_by_position};
pub use sampling::{RawSamplingParams, Sampler, SamplingParams, random_at};
pub use serving::{ServingError, write_serving_weights};
pub use session::{EMPTY_PROMPT, Session};
pub use session_file::SessionError;
pub use stop::{StopFilter, StopStrings};
pub use text::Utf8Stream;
