//! Errors about one field of an input, and the check that finds a misspelt one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is wrong with one field of an input, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Dotted path of the field, as the user writes it: `train.lr`.
    pub field: String,
    /// What is wrong and what would be right, as half a sentence.
    pub problem: String,
}

impl FieldError {
    /// Names the `field` and says what is wrong with it.
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { field: field.into(), problem: problem.to_string() }
    }

    /// The same error, one level further in: `lr` within `train` becomes `train.lr`.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), problem: self.problem }
    }
}

/// Checks that `value` lies in `low..=high`; the error says both ends.
pub fn check_range<T: PartialOrd + fmt::Display>(
    field: &str,
    value: T,
    low: T,
    high: T,
) -> Result<T, FieldError> {
    // Written so that a NaN, which compares false with everything, is refused.
    if value >= low && value <= high {
        Ok(value)
    } else {
        Err(FieldError::new(field, format!("must be from {low} to {high}, not {value}")))
    }
}

/// The known key most like `given`, if any is near enough to be what was meant.
pub fn nearest_key<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILARITY_MIN: f64 = 0.75;
    known
        .into_iter()
        .map(|key| (strsim::jaro_winkler(given, key), key))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| key)
}

/// Refuses a key of `given` that does not stand in `known`, and suggests the nearest one.
///
/// Both are TOML tables; a known empty table accepts any keys below it (labels, for instance).
pub fn check_keys(given: &toml::Table, known: &toml::Table) -> Result<(), FieldError> {
    for (key, value) in given {
        let Some(known_value) = known.get(key) else {
            let hint = match nearest_key(key, known.keys().map(String::as_str)) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => {
                    format!(
                        "; known keys: {}",
                        known.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
                    )
                }
            };
            return Err(FieldError::new(key, format!("unknown key{hint}")));
        };
        if let (toml::Value::Table(given), toml::Value::Table(known)) = (value, known_value)
            && !known.is_empty()
        {
            check_keys(given, known).map_err(|error| error.within(key))?;
        }
    }
    Ok(())
}

/// Reads a typed value out of a TOML table; a wrong type is reported with the path of its key.
pub fn from_table<T: serde::de::DeserializeOwned>(table: toml::Table) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(toml::Value::Table(table)).map_err(|error| {
        let path = error.path().to_string();
        FieldError::new(path, error.into_inner().to_string().trim().replace('\n', " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_refuses_nan_and_says_both_ends() {
        assert_eq!(check_range("lr", 0.5, 0.0, 1.0), Ok(0.5));
        let error = check_range("lr", f64::NAN, 0.0, 1.0).unwrap_err();
        assert_eq!(error.within("train").to_string(), "train.lr: must be from 0 to 1, not NaN");
    }

    #[test]
    fn unknown_key_suggests_the_near_one() {
        let known: toml::Table = toml::from_str("[train]\nsteps = 1\nbatch = 1\n[labels]").unwrap();
        let given: toml::Table = toml::from_str("[train]\nstpes = 5").unwrap();
        let error = check_keys(&given, &known).unwrap_err();
        assert_eq!(error.to_string(), "train.stpes: unknown key; did you mean `steps`?");
        let labels: toml::Table = toml::from_str("[labels]\nroom = 'attic'").unwrap();
        assert_eq!(check_keys(&labels, &known), Ok(()));
    }
}
