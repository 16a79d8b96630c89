//! What came of a part of a bench: a part that fails costs no other its figures.

use std::fmt;

use hatchery_trainer::command_line::in_a_line;
use serde::Serialize;

/// Its figures, or why there are none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Outcome<T> {
    Found(T),
    Failed { failure: String },
}

impl<T> Outcome<T> {
    pub(super) fn of(result: anyhow::Result<T>) -> Self {
        let failed = |error| Self::Failed { failure: format!("{:#}", in_a_line(error)) };
        result.map_or_else(failed, Self::Found)
    }

    pub(super) fn found(&self) -> Option<&T> {
        match self {
            Self::Found(found) => Some(found),
            Self::Failed { .. } => None,
        }
    }
}

impl<T: fmt::Display> Outcome<T> {
    /// For a person, who knows the part by this `name`.
    pub(super) fn told(&self, name: &str) -> String {
        match self {
            Self::Found(found) => found.to_string(),
            Self::Failed { failure } => format!("{name}: failed: {failure}\n"),
        }
    }
}

/// Whether a part that was wanted has its figures.
pub(super) fn is_found<T>(part: Option<&Outcome<T>>) -> bool {
    part.is_none_or(|part| part.found().is_some())
}

/// Ends a bench with an error where parts of it failed; their names are those of `parts` that have no figures.
pub(super) fn all_found<'a>(parts: impl IntoIterator<Item = (&'a str, bool)>) -> anyhow::Result<()> {
    let failed: Vec<&str> = parts.into_iter().filter(|(_, found)| !found).map(|(name, _)| name).collect();
    anyhow::ensure!(failed.is_empty(), "no figures came of: {}", failed.join(", "));
    Ok(())
}
