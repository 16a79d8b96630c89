//! Strings that end an answer.

use serde::{Deserialize, Serialize};

use crate::field::{FieldError, check_range};

/// Strings of bytes at which an answer ends, checked. None at all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Vec<u8>>", into = "Vec<Vec<u8>>")]
pub struct StopStrings(Vec<Vec<u8>>);

impl StopStrings {
    /// Most strings.
    pub const COUNT_MAX: usize = 16;
    /// Longest string.
    pub const BYTES_MAX: usize = 256;

    /// Checks how many there are and how long each is.
    pub fn new(strings: Vec<Vec<u8>>) -> Result<Self, FieldError> {
        if strings.len() > Self::COUNT_MAX {
            return Err(FieldError::new(
                "stop",
                format!("must be at most {} strings, not {}", Self::COUNT_MAX, strings.len()),
            ));
        }
        for (index, string) in strings.iter().enumerate() {
            check_range("", string.len(), 1, Self::BYTES_MAX).map_err(|error| {
                FieldError::new(format!("stop.{index}"), format!("its length {}", error.problem))
            })?;
        }
        Ok(Self(strings))
    }

    /// The strings, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

impl TryFrom<Vec<Vec<u8>>> for StopStrings {
    type Error = FieldError;

    fn try_from(strings: Vec<Vec<u8>>) -> Result<Self, FieldError> {
        Self::new(strings)
    }
}

impl From<StopStrings> for Vec<Vec<u8>> {
    fn from(stops: StopStrings) -> Self {
        stops.0
    }
}
