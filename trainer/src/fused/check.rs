//! Whether the kernels compute what libtorch's operations do: looked at before a run relies on them, since a GPU or a compiler may
//! be one that nobody has tried. The verdict follows from the device, the build and the model's shape alone, so that a run that is
//! interrupted goes the same way again.

use std::rc::Rc;

use hatchery_common::{
    model::{ModelConfig, RawModelConfig},
    recipe::Precision,
};
use hatchery_trainer_shim::kernels::Kernels;
use tch::{Device, Kind, TchError, Tensor};

use super::{Fused, KERNELS_VARIABLE};
use crate::{
    data::Batch,
    dropout::Dropout,
    rng::{Purpose, bits},
    torch_error::first_line,
    weights::Weights,
};

/// So many sequences, of so many tokens at most, through so many layers at most: what a kernel does depends on no more. A kernel
/// takes up to eight lines at once, so that there are more.
const SEQUENCES: usize = 9;
const TOKENS_MAX: usize = 48;
const LAYERS_MAX: u32 = 2;
/// Something has to be dropped for the masks to be compared.
const PROBABILITY: f64 = 0.25;
const SEED: u64 = 1;
/// The kernels may err by so many times what libtorch's operations err by in the same arithmetic, both beside f32, and by so
/// much more, as a share: they round in other places. What is wrong is wrong altogether.
const TIMES: f64 = 2.0;
const MORE: f64 = 0.02;

/// A loss, and the gradients in the order of the weights.
type Found = (Tensor, Vec<Tensor>);

impl Fused {
    /// Has the passes between the products done by `kernels` from now on, if they prove to compute what libtorch's operations do;
    /// if not, [`Fused::no_kernels`] says so.
    pub fn with_checked_kernels(self, kernels: Rc<Kernels>) -> Result<Self, TchError> {
        let raw = self.config.raw();
        let raw = RawModelConfig { n_layer: raw.n_layer.min(LAYERS_MAX), ..raw.clone() };
        let shallow = ModelConfig::new(raw).map_err(|error| TchError::Shape(error.to_string()))?;
        let length = self.tokens_max.min(TOKENS_MAX);
        let bytes: Vec<u8> = (0..(SEQUENCES * (length + 1)) as u64)
            .map(|place| bits(SEED, Purpose::Windows, 0, place) as u8)
            .collect();
        let batch = Batch::from_windows(&bytes, SEQUENCES, self.device)?;
        let weights = Weights::start(&shallow, SEED)?.on(self.device)?.to_kind(self.kind)?;
        let plain = |precision| Self::plain(&shallow, self.kind, self.device, precision, length);
        let own = if self.operands == Kind::BFloat16 { Precision::Bf16 } else { Precision::F32 };
        let pass = |way: &Self| way.loss_and_gradients(&weights, &batch, Dropout::new(PROBABILITY, SEED, 0));

        let exact = pass(&plain(Precision::F32)?)?;
        let by_operations = errors(&pass(&plain(own)?)?, &exact)?;
        let tried = plain(own)?.with_kernels(Rc::clone(&kernels))?;
        let by_kernels = pass(&tried).and_then(|found| errors(&found, &exact));
        let problem = match by_kernels {
            Ok(by_kernels) => disagreement(&by_kernels, &by_operations),
            Err(error) if works(self.device) => Some(first_line(&error)),
            // What a kernel did to memory that is not its own cannot be undone: nothing works on the device any more.
            Err(error) => {
                let line = first_line(&error);
                let way_out = format!("{KERNELS_VARIABLE}=off avoids them");
                return Err(TchError::Torch(format!("{line} (in the kernels' self-test; {way_out})")));
            }
        };
        match problem {
            Some(problem) => {
                let why = format!("the kernels' results differ from libtorch's on this device: {problem}");
                Ok(Self { no_kernels: Some(why), ..self })
            }
            None => self.with_kernels(kernels),
        }
    }
}

/// Whether a device still computes.
fn works(device: Device) -> bool {
    Tensor::f_ones([1], (Kind::Float, device)).and_then(|one| f64::try_from(&one)).is_ok()
}

/// How far loss and gradients lie from the exact ones, as shares; where those are 0, how large they are.
fn errors(found: &Found, exact: &Found) -> Result<Vec<f64>, TchError> {
    fn all((loss, gradients): &Found) -> impl Iterator<Item = &Tensor> {
        [loss].into_iter().chain(gradients)
    }
    let size = |tensor: &Tensor| f64::try_from(&tensor.f_norm()?.f_to_kind(Kind::Float)?);
    let error = |(found, exact): (&Tensor, &Tensor)| {
        let (apart, exact) = (size(&found.f_sub(exact)?)?, size(exact)?);
        Ok(if exact > 0.0 { apart / exact } else { apart })
    };
    all(found).zip(all(exact)).map(error).collect()
}

/// The first of loss and gradients by which the kernels err more than they may.
fn disagreement(by_kernels: &[f64], by_operations: &[f64]) -> Option<String> {
    const NAMES: [&str; 6] = ["loss", "embed", "encoder", "encoder_v", "decoder", "lm_head"];
    let each = by_kernels.iter().zip(by_operations).zip(NAMES);
    let mut apart =
        each.filter(|((kernels, operations), _)| kernels.is_nan() || **kernels > TIMES * **operations + MORE);
    apart.next().map(|((kernels, _), name)| format!("{name} is off by {:.0} %", 100.0 * kernels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_errs_more_than_it_may_is_named() {
        let operations = [0.0, 0.01, 0.02, 0.02, 0.02, 0.0];
        assert_eq!(disagreement(&[0.0, 0.03, 0.05, 0.01, 0.02, 0.01], &operations), None);
        let told = |kernels: [f64; 6]| disagreement(&kernels, &operations);
        assert_eq!(told([0.5, 0.0, 0.0, 0.0, 0.0, 0.0]), Some("loss is off by 50 %".into()));
        assert_eq!(told([0.0, 0.0, 1.5, 0.0, 0.0, 0.0]), Some("encoder is off by 150 %".into()));
        assert!(told([0.0, 0.0, 0.0, f64::NAN, 0.0, 0.0]).is_some_and(|told| told.starts_with("encoder_v")));
    }
}
