//! Names of things: each kind of identifier is a type of its own, so that none is taken for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{digest::Digest, field::FieldError};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Draws a new random one.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// Takes 16 bytes, for ids that are derived or drawn from a seeded source.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The first 8 hexadecimal digits, for people; any unique prefix is accepted back.
            pub fn short(&self) -> String {
                self.to_string()[..8].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.as_simple(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl TryFrom<String> for $name {
            type Error = FieldError;

            fn try_from(text: String) -> Result<Self, FieldError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl FromStr for $name {
            type Err = FieldError;

            fn from_str(text: &str) -> Result<Self, FieldError> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| FieldError::new($field, format!("`{text}` is not 32 hexadecimal digits")))
            }
        }
    };
}

uuid_id!(
    /// A job, from its submission to its end and after.
    JobId, "job"
);
uuid_id!(
    /// A node: one machine's agent, as its certificate names it.
    NodeId, "node"
);
uuid_id!(
    /// One request of a client; the same id with the same body is the same request.
    RequestId, "request_id"
);
uuid_id!(
    /// One certificate that the fleet's authority has given out.
    CertificateId, "certificate"
);
uuid_id!(
    /// One rollout: the wish that a checkpoint be on a set of nodes.
    RolloutId, "rollout"
);

macro_rules! digest_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl $name {
            /// The first 12 hexadecimal digits, for people; any unique prefix is accepted back.
            pub fn short(&self) -> String {
                self.0.short()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = FieldError;

            fn from_str(text: &str) -> Result<Self, FieldError> {
                text.parse().map(Self)
            }
        }
    };
}

digest_id!(
    /// A blob: the digest of its piece manifest (see [`crate::blob::PieceManifest`]).
    BlobId
);
digest_id!(
    /// A dataset: the digest of its manifest's canonical bytes.
    DatasetId
);
digest_id!(
    /// A checkpoint: the digest of its manifest's canonical bytes.
    CheckpointId
);

/// Which lease of a job this is: the fencing token. It only grows; 0 means never leased.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next lease's epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One attempt at a job: what a lease is for. The pair fences off whoever held the job before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AttemptId {
    /// The job.
    pub job: JobId,
    /// The fencing token.
    pub epoch: Epoch,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.job, self.epoch)
    }
}

impl FromStr for AttemptId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let pair = text.split_once('-').and_then(|(job, epoch)| {
            Some(Self { job: job.parse().ok()?, epoch: Epoch(epoch.parse().ok()?) })
        });
        pair.ok_or_else(|| {
            FieldError::new("attempt", format!("`{text}` is not a job's id, `-` and a number"))
        })
    }
}

/// A name that people give to a job, a node or a label: 1 to 63 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Longest name, in bytes.
    pub const LEN_MAX: usize = 63;

    /// Checks `text`; the error names `field`.
    pub fn new(field: &str, text: &str) -> Result<Self, FieldError> {
        let good_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > Self::LEN_MAX {
            return Err(FieldError::new(
                field,
                format!("must have 1 to {} characters, not {}", Self::LEN_MAX, text.len()),
            ));
        }
        if !text.chars().all(good_character) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(FieldError::new(
                field,
                format!(
                    "{text:?} may contain only letters, digits, `.`, `_` and `-`, and must start with a \
                     letter or digit"
                ),
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// The nearest valid name to any text: other characters become `-`.
    pub fn from_lossy(text: &str) -> Self {
        let cleaned: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
            .take(Self::LEN_MAX)
            .collect();
        let cleaned = cleaned.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        Self(if cleaned.is_empty() { "unnamed".to_owned() } else { cleaned.to_owned() })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Name {
    type Error = FieldError;

    fn try_from(text: String) -> Result<Self, FieldError> {
        Self::new("name", &text)
    }
}

impl FromStr for Name {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        Self::new("name", text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_cleaned() {
        assert!(Name::new("name", "gpu-a.1").is_ok());
        for wrong in ["", "-x", "a/b", "ä", &"a".repeat(64)] {
            assert!(Name::new("name", wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(Name::from_lossy("..my box!").as_str(), "my-box-");
        assert_eq!(Name::from_lossy("").as_str(), "unnamed");
    }

    #[test]
    fn ids_round_trip() {
        let job = JobId::random();
        assert_eq!(job.to_string().parse::<JobId>().unwrap(), job);
        assert!(job.to_string().starts_with(&job.short()));
        assert_eq!(serde_json::to_string(&job).unwrap(), format!("\"{job}\""));
        assert_eq!("x".parse::<JobId>().unwrap_err().field, "job");
        let attempt = AttemptId { job, epoch: Epoch(7) };
        assert_eq!(attempt.to_string(), format!("{job}-7"));
        assert_eq!(attempt.to_string().parse::<AttemptId>().unwrap(), attempt);
        assert!(format!("{job}").parse::<AttemptId>().is_err());
    }
}
