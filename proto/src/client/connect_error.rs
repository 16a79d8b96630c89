//! Why a connection did not come about, in words that say what to do.

use std::{error::Error, time::Duration};

/// Why a connection did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is no address to try.
    #[error("no coordinator address is known")]
    NoAddress,
    /// The address has no such host, or is no address.
    #[error("cannot find {address}: {problem}; check the name")]
    Address {
        /// The address.
        address: String,
        /// The resolver's reason.
        problem: String,
    },
    /// The machine is there, but nothing listens.
    #[error("nothing listens at {address}; is the coordinator running, and the address right?")]
    NobodyListens {
        /// The address.
        address: String,
    },
    /// No answer within the time allowed.
    #[error("{address} did not answer within {} s; is the machine up, and the port open in the firewall?", timeout.as_secs_f32())]
    TimedOut {
        /// The address.
        address: String,
        /// The time allowed.
        timeout: Duration,
    },
    /// The network says no.
    #[error("cannot reach {address}: {problem}")]
    Unreachable {
        /// The address.
        address: String,
        /// The system's reason.
        problem: String,
    },
    /// Whoever listens there does not belong to the fleet that was meant.
    #[error("{address} is not the expected coordinator: {problem}; nothing was sent to it")]
    WrongAuthority {
        /// The address.
        address: String,
        /// What does not fit.
        problem: String,
    },
    /// The server does not accept our certificate.
    #[error(
        "{address} refused our certificate ({problem}); it may have expired or belong to another fleet: join again with a \
         new join string"
    )]
    CertificateRefused {
        /// The address.
        address: String,
        /// The server's reason.
        problem: String,
    },
    /// Something listens there that does not speak as we do.
    #[error("{address} does not speak Hatchery's protocol: {problem}; is it a coordinator of this release?")]
    Protocol {
        /// The address.
        address: String,
        /// What went wrong.
        problem: String,
    },
    /// None of several addresses would do.
    #[error("no address works: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<ConnectError>),
}

impl ConnectError {
    /// Whether trying again later may help: nobody was there. Otherwise somebody was, and the answer was no.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::NobodyListens { .. }
            | Self::TimedOut { .. }
            | Self::Unreachable { .. }
            | Self::Address { .. } => true,
            Self::Several(errors) => errors.iter().any(Self::is_absence),
            Self::NoAddress
            | Self::WrongAuthority { .. }
            | Self::CertificateRefused { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// Whether the machine itself said, at every address, that nobody listens there. That is not how a broken network
    /// answers: it answers nothing at all, or says so in other words.
    pub fn is_refusal_by_the_machine(&self) -> bool {
        match self {
            Self::NobodyListens { .. } => true,
            Self::Several(errors) => !errors.is_empty() && errors.iter().all(Self::is_refusal_by_the_machine),
            _ => false,
        }
    }
}

/// Why a call failed, where the reason is that its connection was lost and
/// could not be made again.
pub fn connect_error(status: &tonic::Status) -> Option<ConnectError> {
    let mut error = status.source();
    while let Some(current) = error {
        if let Some(found) = current.downcast_ref::<ConnectError>() {
            return Some(found.clone());
        }
        error = current.source();
    }
    None
}
