//! Reading a [`ConnectError`] out of what the system and TLS say.

use std::io;

use hatchery_common::tls::WrongAuthority;
use hatchery_proto::client::ConnectError;
use rustls::{AlertDescription, CertificateError};

/// Takes the failure of a TCP connection.
pub(super) fn dial_error(address: &str, error: &io::Error) -> ConnectError {
    let address = address.to_owned();
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectError::NobodyListens { address },
        _ => ConnectError::Unreachable { address, problem: error.to_string() },
    }
}

/// Takes the failure of a TLS handshake, or of the first words after it.
pub(super) fn tls_error(address: &str, error: &io::Error) -> ConnectError {
    let address = address.to_owned();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(certificate)) => {
            ConnectError::WrongAuthority { address, problem: certificate_problem(certificate) }
        }
        Some(rustls::Error::AlertReceived(alert)) if is_about_certificate(*alert) => {
            ConnectError::CertificateRefused { address, problem: format!("{alert:?}") }
        }
        Some(error) => ConnectError::Protocol { address, problem: error.to_string() },
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            let problem = "it closed the connection during the TLS handshake".to_owned();
            ConnectError::Protocol { address, problem }
        }
        None => ConnectError::Unreachable { address, problem: error.to_string() },
    }
}

fn certificate_problem(error: &CertificateError) -> String {
    match error {
        CertificateError::Other(other) => match other.0.downcast_ref::<WrongAuthority>() {
            Some(wrong) => wrong.to_string(),
            None => other.to_string(),
        },
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate belongs to another authority".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; is this machine's clock right?".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; is this machine's clock right?".to_owned()
        }
        other => format!("its certificate is not accepted ({other})"),
    }
}

/// Whether a server says by `alert` that it does not take the client's certificate.
fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
    )
}
