//! Loss and gradients without autograd for any of libtorch's devices: the whole batch at once, products by libtorch, and
//! the pointwise operations between them in as few passes over memory as there can be.
//!
//! Beside [`crate::model`], which says the same as the paper does and is what this is checked against; on a CPU in f32
//! [`crate::fast`] is faster. Memory's speed bounds a GPU here, not its arithmetic: in a step autograd writes or reads each
//! layer's neurons some hundred times, this twenty-nine times, twelve of them in the products. It keeps of each layer the
//! neurons q, the gates v and what is small; with kernels no masks, and nothing that can be made again in passing.
//!
//! Letters as in the paper: B sequences, T tokens, N = B*T rows, D width, H heads, M neurons per head, V bytes known. Heads
//! come first: neurons are H x N x M.
//!
//! | file | what it holds |
//! |---|---|
//! | `forward`, `backward` | the equations there and back, as products and pointwise operations |
//! | `pointwise` | the pointwise operations by name |
//! | `plain` | those by libtorch's operations: any device, any kind; the oracle for the kernels |
//! | `kernels` | those by kernels of one pass each, on an NVIDIA GPU |
//! | `measure` | how long each takes, both ways |
//! | `check` | whether both agree, before a run relies on it |

mod backward;
mod check;
mod forward;
mod kernels;
mod measure;
mod plain;
pub(crate) mod pointwise;
mod shape;

use std::rc::Rc;

use hatchery_common::{model::ModelConfig, recipe::Precision};
use hatchery_trainer_shim::kernels::{Kernels, Variant};
use tch::{Device, Kind, TchError, Tensor, no_grad_guard};

pub use self::measure::{Measured, Timed};
pub(crate) use self::shape::Shape;
use self::{kernels::ByKernels, plain::Plain, pointwise::PointwiseOps};
use crate::{data::Batch, dropout::Dropout, model::Rope, weights::Weights};

/// Loss and gradients of one model on one device.
#[derive(Debug)]
pub struct Fused {
    config: ModelConfig,
    /// The kind of the weights, and of their gradients.
    kind: Kind,
    /// The kind of the products' operands.
    operands: Kind,
    device: Device,
    tokens_max: usize,
    pointwise: Box<dyn PointwiseOps>,
    has_kernels: bool,
    /// Why the passes between the products are libtorch's, where they could be kernels.
    no_kernels: Option<String>,
}

impl Fused {
    /// For sequences of up to `tokens_max` tokens and weights of `kind`. On an NVIDIA GPU with kernels of one pass each, once
    /// they have proved right; where those cannot be had it goes on without, and [`Self::no_kernels`] says why.
    pub fn new(
        config: &ModelConfig,
        kind: Kind,
        device: Device,
        precision: Precision,
        tokens_max: usize,
    ) -> Result<Self, TchError> {
        let fused = Self::plain(config, kind, device, precision, tokens_max)?;
        match kernels_for(config, fused.operands, device) {
            Some(Ok(kernels)) => fused.with_checked_kernels(kernels),
            Some(Err(why)) => Ok(Self { no_kernels: Some(why), ..fused }),
            None => Ok(fused),
        }
    }

    /// With libtorch's operations between the products.
    fn plain(
        config: &ModelConfig,
        kind: Kind,
        device: Device,
        precision: Precision,
        tokens_max: usize,
    ) -> Result<Self, TchError> {
        let operands = if precision == Precision::Bf16 { Kind::BFloat16 } else { kind };
        let rope = Rope::new(config.neurons_per_head(), tokens_max, device, kind)?;
        Ok(Self {
            config: config.clone(),
            kind,
            operands,
            device,
            tokens_max,
            pointwise: Box::new(Plain::new(rope)),
            has_kernels: false,
            no_kernels: None,
        })
    }

    /// Has the passes between the products done by `kernels` from now on: how a test comes by them without a GPU.
    pub fn with_kernels(self, kernels: Rc<Kernels>) -> Result<Self, TchError> {
        let pointwise = Box::new(ByKernels::new(kernels, &self.rope()?)?);
        Ok(Self { pointwise, has_kernels: true, ..self })
    }

    /// Has the passes between the products done by libtorch's operations from now on.
    pub fn without_kernels(self) -> Result<Self, TchError> {
        let pointwise = Box::new(Plain::new(self.rope()?));
        Ok(Self { pointwise, has_kernels: false, ..self })
    }

    fn rope(&self) -> Result<Rope, TchError> {
        Rope::new(self.config.neurons_per_head(), self.tokens_max, self.device, self.kind)
    }

    /// Whether the passes between the products are done by kernels.
    pub fn has_kernels(&self) -> bool {
        self.has_kernels
    }

    /// Why the passes between the products are libtorch's on a device that could have kernels for them.
    pub fn no_kernels(&self) -> Option<&str> {
        self.no_kernels.as_deref()
    }

    /// The mean loss of `batch` in nats, a scalar on the device, and its gradients in the order, shapes and kind of the
    /// weights. With kernels it waits for nothing.
    pub fn loss_and_gradients(
        &self,
        weights: &Weights,
        batch: &Batch,
        dropout: Option<Dropout>,
    ) -> Result<(Tensor, Vec<Tensor>), TchError> {
        let _guard = no_grad_guard();
        let shape = self.shape(batch)?;
        let pass =
            forward::Pass { fused: self, shape, dropout, operands: forward::Operands::new(self, weights)? };
        let kept = pass.forward(weights, batch)?;
        let weight = 1.0 / shape.rows() as f64;
        let (losses, dlogits) =
            self.pointwise.cross_entropy(kept.logits, &batch.targets.f_flatten(0, -1)?, weight)?;
        let gradients = pass.backward(kept.start, kept.layers, &dlogits, batch)?;
        Ok((losses.f_mean(losses.kind())?, gradients))
    }

    fn shape(&self, batch: &Batch) -> Result<Shape, TchError> {
        let (sequences, tokens) = batch.tokens.size2()?;
        Ok(Shape {
            layers: self.config.layers(),
            heads: self.config.heads() as i64,
            width: self.config.width() as i64,
            neurons: self.config.neurons_per_head() as i64,
            vocabulary: self.config.vocabulary() as i64,
            sequences,
            tokens,
        })
    }
}

/// `off`: no kernels, for a GPU on which they do harm.
const KERNELS_VARIABLE: &str = "HATCHERY_KERNELS";

/// Kernels for a GPU, or why it has none; nothing for what is no NVIDIA GPU.
pub(crate) fn kernels_for(
    config: &ModelConfig,
    operands: Kind,
    device: Device,
) -> Option<Result<Rc<Kernels>, String>> {
    let Device::Cuda(index) = device else { return None };
    let variant = Variant::new(operands, config.neurons_per_head() as i64)?;
    if std::env::var(KERNELS_VARIABLE).is_ok_and(|value| value == "off") {
        return Some(Err(format!("{KERNELS_VARIABLE} is off")));
    }
    Some(Kernels::on_cuda(index, variant).map(Rc::new).map_err(|error| error.to_string()))
}

/// The pointwise operations, f32 but for the products' operands, by libtorch's; for callers that apply the rope themselves.
pub(crate) fn plain(config: &ModelConfig, device: Device) -> Result<Box<dyn PointwiseOps>, TchError> {
    Ok(Box::new(Plain::new(Rope::new(config.neurons_per_head(), 1, device, Kind::Float)?)))
}

/// The same by kernels.
pub(crate) fn by_kernels(
    kernels: Rc<Kernels>,
    config: &ModelConfig,
    device: Device,
) -> Result<Box<dyn PointwiseOps>, TchError> {
    let rope = Rope::new(config.neurons_per_head(), 1, device, Kind::Float)?;
    Ok(Box::new(ByKernels::new(kernels, &rope)?))
}
