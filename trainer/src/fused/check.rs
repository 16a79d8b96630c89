//! Whether the kernels compute what libtorch's operations do: looked at before each run, since a card or a compiler may be one
//! that nobody has tried.

use hatchery_common::recipe::Precision;
use tch::{Kind, TchError, Tensor};

use super::Fused;
use crate::{
    counter::{Purpose, bits},
    data::Batch,
    dropout::Dropout,
    weights::Weights,
};

/// One sequence, of so many tokens at most.
const TOKENS_MAX: usize = 48;
/// Something has to be dropped for the masks to be compared.
const PROBABILITY: f64 = 0.25;

/// How far apart loss and gradients may lie, as a share. Both ways round in other places, and a neuron at the edge of its relu may
/// fall on either side; what is wrong is wrong altogether.
fn tolerance(precision: Precision) -> f64 {
    if precision == Precision::Bf16 { 0.1 } else { 0.02 }
}

impl Fused {
    /// Compares the kernels, where there are any, with libtorch's operations at these weights, and does without the kernels if
    /// they disagree; [`Fused::no_kernels`] then says so.
    pub fn checked(self, weights: &Weights) -> Result<Self, TchError> {
        if !self.has_kernels() {
            return Ok(self);
        }
        let length = self.tokens_max.min(TOKENS_MAX);
        let bytes: Vec<u8> =
            (0..=length as u64).map(|place| bits(1, Purpose::Windows, 0, place) as u8).collect();
        let batch = Batch::from_windows(&bytes, 1, self.device)?;
        let dropout = Dropout::new(PROBABILITY, 1, 0);
        let by_kernels = self.loss_and_gradients(weights, &batch, dropout);
        let operands = if self.operands == Kind::BFloat16 { Precision::Bf16 } else { Precision::F32 };
        let plain = Self::plain(&self.config, self.kind, self.device, operands, length)?;
        let by_operations = plain.loss_and_gradients(weights, &batch, dropout)?;
        let problem = match by_kernels {
            Ok(by_kernels) => disagreement(&by_kernels, &by_operations, tolerance(operands))?,
            Err(error) => Some(error.to_string()),
        };
        match problem {
            Some(problem) => {
                let why = format!("the kernels do not compute what libtorch does on this device: {problem}");
                Ok(Self { no_kernels: Some(why), ..self.without_kernels()? })
            }
            None => Ok(self),
        }
    }
}

/// The first of loss and gradients that lie further apart than `most`, as a share of the second's.
fn disagreement(
    found: &(Tensor, Vec<Tensor>),
    expected: &(Tensor, Vec<Tensor>),
    most: f64,
) -> Result<Option<String>, TchError> {
    const NAMES: [&str; 6] = ["loss", "embed", "encoder", "encoder_v", "decoder", "lm_head"];
    let all = |(loss, gradients): &(Tensor, Vec<Tensor>)| {
        [loss].into_iter().chain(gradients).map(Tensor::shallow_clone).collect::<Vec<_>>()
    };
    for ((found, expected), name) in all(found).iter().zip(&all(expected)).zip(NAMES) {
        let size = |tensor: &Tensor| f64::try_from(&tensor.f_norm()?.f_to_kind(Kind::Float)?);
        let (apart, expected) = (size(&found.f_sub(expected)?)?, size(expected)?);
        // Weights that are no numbers are not the kernels' fault, and told by the loss.
        let is_apart = expected.is_finite() && (apart.is_nan() || apart > most * expected);
        if is_apart {
            return Ok(Some(format!("{name} is off by {:.0} %", 100.0 * apart / expected)));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    fn figures(loss: f64, encoder: f64) -> (Tensor, Vec<Tensor>) {
        let gradient = |value: f64| Tensor::from_slice(&[1.0, value]);
        (Tensor::from(loss), vec![gradient(1.0), gradient(encoder), gradient(3.0)])
    }

    #[test]
    fn what_is_apart_is_named() {
        let told = |found, expected| disagreement(&found, &expected, 0.1).unwrap();
        assert_eq!(told(figures(5.5, 2.0), figures(5.4, 2.1)), None);
        assert!(told(figures(5.5, 2.0), figures(3.0, 2.0)).unwrap().starts_with("loss"));
        assert!(told(figures(5.5, -2.0), figures(5.5, 2.0)).unwrap().starts_with("encoder is off"));
        assert!(told(figures(5.5, f64::NAN), figures(5.5, 2.0)).unwrap().starts_with("encoder"));
        assert_eq!(told(figures(f64::NAN, f64::NAN), figures(f64::NAN, f64::NAN)), None);
    }
}
