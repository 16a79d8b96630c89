//! What the bearer of a join string, and then of a certificate, may do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::field::FieldError;

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Be a node.
    Agent,
    /// Do everything that people do.
    Operator,
    /// Look, and change nothing.
    Viewer,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Agent, Self::Operator, Self::Viewer];

    /// `agent`, `operator` or `viewer`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scope {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or_else(|| {
            FieldError::new("scope", format!("`{text}` is not one of agent, operator, viewer"))
        })
    }
}
