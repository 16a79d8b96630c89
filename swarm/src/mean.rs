//! A mean that forgets.

/// How much the newest measurement counts.
const WEIGHT_NEWEST: f64 = 0.25;

/// A mean of measurements in which each counts three quarters of the one after it; unknown at first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecayingMean(Option<f64>);

impl DecayingMean {
    /// Takes a measurement; one that is no positive number is not one.
    pub fn add(&mut self, measured: f64) {
        if measured.is_finite() && measured > 0.0 {
            self.0 = Some(self.0.map_or(measured, |mean| mean + WEIGHT_NEWEST * (measured - mean)));
        }
    }

    /// The mean, if anything was ever measured.
    pub fn get(self) -> Option<f64> {
        self.0
    }
}
