//! The authority and what it gives out, without a network.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::{fs, os::unix::fs::PermissionsExt};

use hatchery_common::{
    id::{Name, NodeId},
    time::Timestamp,
    tls::{
        Authority, CertificateRequest, Credentials, Identity, KeyHash, Role, client_config,
        client_config_pinned, server_config, validity,
    },
};

fn operator(name: &str) -> Identity {
    Identity::new(Role::Operator(Name::new("name", name).unwrap()))
}

#[test]
fn an_authority_is_made_once_and_its_key_is_hidden() {
    let folder = tempfile::tempdir().unwrap();
    let made = Authority::create_or_load(&folder.path().join("tls")).unwrap();
    let loaded = Authority::create_or_load(&folder.path().join("tls")).unwrap();
    assert_eq!(made.certificate_pem(), loaded.certificate_pem());
    assert_eq!(made.key_hash(), KeyHash::of_certificate_pem(loaded.certificate_pem()).unwrap());
    assert_eq!(made.key_hash().to_string().parse::<KeyHash>().unwrap(), made.key_hash());
    let key = folder.path().join("tls/authority.key.pem");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    // The certificate alone can be made again; the key cannot.
    fs::remove_file(folder.path().join("tls/authority.pem")).unwrap();
    let again = Authority::create_or_load(&folder.path().join("tls")).unwrap();
    assert_eq!(again.key_hash(), made.key_hash());
    fs::remove_file(&key).unwrap();
    let error = Authority::create_or_load(&folder.path().join("tls")).unwrap_err().to_string();
    assert!(error.contains("authority.key.pem is missing; restore it from a backup"), "{error}");
}

#[test]
fn a_request_gives_the_key_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create_or_load(folder.path()).unwrap();
    let request = CertificateRequest::generate().unwrap();
    let identity = Identity::new(Role::Agent(NodeId::random()));
    let certificate = authority.issue_client(&identity, &request.request_pem).unwrap();
    assert_eq!(Identity::of_certificate_pem(&certificate).unwrap(), identity);
    let other = CertificateRequest::generate().unwrap();
    assert!(other.complete(certificate.clone()).is_err(), "the certificate is of another key");
    let keyed = request.complete(certificate).unwrap();
    assert!(!format!("{keyed:?}").contains("PRIVATE KEY"));
    client_config(authority.certificate_pem(), Some(&keyed)).unwrap();

    // A request that asks to be an operator, and to be an authority, gets neither.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut wishes = rcgen::CertificateParams::new(vec!["coordinator.hatchery".to_owned()]).unwrap();
    wishes.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let uri = operator("eve").to_uri().try_into().unwrap();
    wishes.subject_alt_names.push(rcgen::SanType::URI(uri));
    let greedy = wishes.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = authority.issue_client(&identity, &greedy).unwrap();
    assert_eq!(Identity::of_certificate_pem(&certificate).unwrap(), identity);
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(certificate.as_bytes());
    let der: rustls::pki_types::CertificateDer<'_> = der.unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert!(!parsed.is_ca());
    let names = format!("{:?}", parsed.subject_alternative_name().unwrap().unwrap().value.general_names);
    assert!(!names.contains("coordinator.hatchery") && !names.contains("eve"), "{names}");

    for wrong in [String::new(), "x".repeat(20_000), request_with_broken_signature()] {
        let error = authority.issue_client(&identity, &wrong).unwrap_err().to_string();
        assert!(error.starts_with("the certificate request cannot be used: "), "{error}");
    }
}

fn request_with_broken_signature() -> String {
    let pem = CertificateRequest::generate().unwrap().request_pem;
    let mut lines: Vec<String> = pem.lines().map(str::to_owned).collect();
    let last = lines.len() - 2;
    let changed = if lines[last].starts_with('A') { "B" } else { "A" };
    lines[last].replace_range(0..1, changed);
    lines.join("\n")
}

#[test]
fn certificates_live_a_year_and_forgive_slow_clocks() {
    const DAY_MS: u64 = 86_400_000;
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create_or_load(folder.path()).unwrap();
    let keyed = authority.issue_client_with_key(&operator("ada")).unwrap();
    let (now, valid) = (Timestamp::now().0, validity(&keyed.certificate_pem).unwrap());
    assert!(valid.not_before.0 < now - DAY_MS / 2 && valid.not_before.0 > now - 2 * DAY_MS);
    assert!(valid.not_after.0 > now + 364 * DAY_MS && valid.not_after.0 < now + 366 * DAY_MS);
    assert!(valid.renew_after().0 > now + 200 * DAY_MS && valid.renew_after().0 < now + 300 * DAY_MS);
}

#[test]
fn credentials_are_one_secret_file() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create_or_load(folder.path()).unwrap();
    let identity = operator("ada");
    let keyed = authority.issue_client_with_key(&identity).unwrap();
    let credentials = Credentials::new(vec!["127.0.0.1:7600".into()], authority.certificate_pem(), keyed);
    credentials.save(folder.path()).unwrap();
    let path = folder.path().join("credentials.toml");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let loaded = Credentials::load(folder.path()).unwrap();
    assert_eq!(loaded, credentials);
    assert_eq!(loaded.identity().unwrap(), identity);
    assert!(!format!("{loaded:?}").contains("PRIVATE"));

    let text = fs::read_to_string(&path).unwrap();
    for wrong in [text.replace("7600", "x"), text.replace("certificate_pem", "certificate"), String::new()] {
        fs::write(&path, wrong).unwrap();
        let error = Credentials::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("credentials.toml: "), "{error}");
    }
    let foreign = authority.issue_client_with_key(&operator("bob")).unwrap();
    Credentials { key_pem: foreign.key_pem, ..credentials }.save(folder.path()).unwrap();
    let error = Credentials::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("TLS rejects the client certificate"), "{error}");
}

#[test]
fn material_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create_or_load(folder.path()).unwrap();
    let mut keyed = authority.issue_server(&["gpu-a.lan".into(), "192.0.2.1".into()]).unwrap();
    server_config(&keyed, authority.certificate_pem()).unwrap();
    client_config_pinned(authority.key_hash()).unwrap();
    assert!(authority.issue_server(&["no such name ä".into()]).is_err());
    assert!(Identity::of_certificate_pem(authority.certificate_pem()).is_err(), "an authority is nobody");
    keyed.key_pem = authority.issue_server(&[]).unwrap().key_pem;
    assert!(server_config(&keyed, authority.certificate_pem()).is_err());
    assert!(server_config(&keyed, "nothing").is_err());
}
