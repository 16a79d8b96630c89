//! Calls about who may come in: join tokens and certificates.

use std::{cmp::Reverse, time::Duration};

use hatchery_common::{
    field::check_range,
    id::Name,
    time::Timestamp,
    tls::{JoinSecret, JoinString},
};
use hatchery_proto::{convert, v1};
use hatchery_scheduler::{CreateToken, RevokeCertificate};

use super::{call::Call, error::ApiError, lookup};

/// How long a join string is good, in seconds: least, most, and unless told otherwise.
const TOKEN_SECS: (u64, u64, u64) = (60, 30 * 86_400, 86_400);

pub(super) async fn create_token(
    call: Call,
    request: v1::CreateTokenRequest,
) -> Result<v1::CreateTokenResponse, ApiError> {
    let scope = convert::scope(request.scope)?;
    let name = request.name.as_deref().map(|name| Name::new("name", name)).transpose()?;
    let labels = convert::labels("labels", &request.labels)?;
    let (least, most, default) = TOKEN_SECS;
    let secs = if request.valid_secs == 0 { default } else { request.valid_secs };
    let expires_at = Timestamp::now() + Duration::from_secs(check_range("valid_secs", secs, least, most)?);
    let secret = JoinSecret::random();
    let (digest, by) = (secret.digest(), call.caller.clone());
    call.command(CreateToken { secret: digest, scope, name, labels, by, expires_at }).await?;
    let authority = call.context.authority.key_hash();
    let addresses = call.context.addresses.clone();
    let join_string = JoinString { addresses, authority, secret, scope }.to_string();
    Ok(v1::CreateTokenResponse { join_string, expires_at_ms: expires_at.0 })
}

pub(super) async fn list_certificates(
    call: Call,
    _: v1::ListCertificatesRequest,
) -> Result<v1::ListCertificatesResponse, ApiError> {
    let snapshot = call.snapshot();
    let mut certificates: Vec<_> = snapshot.cluster.certificates.values().collect();
    certificates.sort_by_key(|one| Reverse((one.issued_at, one.id)));
    let certificates = certificates.into_iter().map(|one| one.clone().into()).collect();
    Ok(v1::ListCertificatesResponse { certificates })
}

pub(super) async fn revoke_certificate(
    call: Call,
    request: v1::RevokeCertificateRequest,
) -> Result<v1::RevokeCertificateResponse, ApiError> {
    let certificate = lookup::certificate(&call.snapshot().cluster, &request.certificate)?;
    call.command(RevokeCertificate { certificate }).await?;
    let certificate = call.snapshot().cluster.certificates[&certificate].clone();
    Ok(v1::RevokeCertificateResponse { certificate: Some(certificate.into()) })
}
