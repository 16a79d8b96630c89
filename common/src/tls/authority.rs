//! The authority of a fleet: it says who is who.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
    date_time_ymd,
};

use crate::{
    durable::{self, FileError},
    tls::{
        Identity, KeyHash, KeyedCertificate, Role, SERVER_NAME, TlsError,
        certificate::{certificate_der, check_key},
        node_server_name,
    },
};

/// Longest file of PEM that is read.
const PEM_BYTES_MAX: u64 = 64 << 10;
/// Longest certificate request that is taken from outside.
const REQUEST_BYTES_MAX: usize = 16 << 10;

const DAY: Duration = Duration::from_hours(24);
/// How long the authority's own certificate is good; its key is the fleet's root, so it outlives everything.
const AUTHORITY_VALID_DAYS: u32 = 20 * 365;
/// How long all other certificates are good; they are renewed after two thirds of it.
const CERTIFICATE_VALID_DAYS: u32 = 365;
/// How far a certificate reaches back, for machines whose clock is behind.
const CLOCK_SKEW: Duration = DAY;

/// The authority of a fleet. Whoever has its key can be anyone, so the key stays in its file (0600) and in this value.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    key_hash: KeyHash,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("key_hash", &self.key_hash).finish_non_exhaustive()
    }
}

impl Authority {
    /// The file of its certificate, in its folder.
    pub const CERTIFICATE_FILE: &str = "authority.pem";
    /// The file of its key (0600), in its folder.
    pub const KEY_FILE: &str = "authority.key.pem";

    /// Takes the authority in `folder`, or makes one there. A lost certificate is made again from the key, and everything
    /// it signed stays good; a lost key is an error, because a new one would lock the whole fleet out.
    pub fn create_or_load(folder: &Path) -> Result<Self, TlsError> {
        durable::create_folder(folder)?;
        let (certificate_file, key_file) = (folder.join(Self::CERTIFICATE_FILE), folder.join(Self::KEY_FILE));
        let key = match (read_text(&key_file)?, certificate_file.exists()) {
            (Some(pem), _) => KeyPair::from_pem(&pem).map_err(TlsError::make("authority's key"))?,
            (None, false) => {
                let key = KeyPair::generate().map_err(TlsError::make("authority's key"))?;
                durable::write_secret(&key_file, key.serialize_pem().as_bytes())?;
                key
            }
            (None, true) => {
                let problem = format!(
                    "{} is missing; restore it from a backup, or delete {} too and join every machine again",
                    key_file.display(),
                    certificate_file.display()
                );
                return Err(TlsError::unusable("authority", problem));
            }
        };
        let certificate_pem = if let Some(pem) = read_text(&certificate_file)? {
            pem
        } else {
            let pem = self_signed(&key)?;
            durable::write_atomically(&certificate_file, pem.as_bytes())?;
            pem
        };
        let der = certificate_der(&certificate_pem)?;
        check_key(&der, &key)?;
        let key_hash = KeyHash::of_certificate_der(&der)?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(TlsError::make("authority"))?;
        Ok(Self { certificate_pem, issuer, key_hash })
    }

    /// The authority's own certificate, which everyone may have.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The hash of the authority's key, for join strings.
    pub fn key_hash(&self) -> KeyHash {
        self.key_hash
    }

    /// Makes a key and a certificate for the coordinator. It is good for [`SERVER_NAME`], which Hatchery's own clients
    /// ask for whatever the address, and for `names`: DNS names and IP addresses by which others, such as browsers, come.
    pub fn issue_server(&self, names: &[String]) -> Result<KeyedCertificate, TlsError> {
        self.issue_with_key(&Identity::new(Role::Coordinator), names)
    }

    /// Certifies the key in a request as the key of `identity`. The request's signature is checked; all that it says
    /// beside the key is ignored.
    pub fn issue_client(&self, identity: &Identity, request_pem: &str) -> Result<String, TlsError> {
        const WHAT: &str = "certificate request";
        if request_pem.len() > REQUEST_BYTES_MAX {
            return Err(TlsError::unusable(WHAT, format!("it is larger than {REQUEST_BYTES_MAX} bytes")));
        }
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|error| TlsError::unusable(WHAT, error))?;
        self.issue(identity, &[], &request.public_key)
    }

    /// Makes both key and certificate, for someone on this very machine.
    pub fn issue_client_with_key(&self, identity: &Identity) -> Result<KeyedCertificate, TlsError> {
        self.issue_with_key(identity, &[])
    }

    fn issue_with_key(&self, identity: &Identity, names: &[String]) -> Result<KeyedCertificate, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::make("key"))?;
        let certificate_pem = self.issue(identity, names, &key)?;
        Ok(KeyedCertificate { certificate_pem, key_pem: key.serialize_pem() })
    }

    fn issue(
        &self,
        identity: &Identity,
        names: &[String],
        public_key: &impl PublicKeyData,
    ) -> Result<String, TlsError> {
        let mut names = names.to_vec();
        match &identity.role {
            Role::Coordinator => names.insert(0, SERVER_NAME.to_owned()),
            Role::Agent(node) => names.push(node_server_name(*node)),
            Role::Operator(_) | Role::Viewer(_) => {}
        }
        let may_serve = matches!(identity.role, Role::Coordinator | Role::Agent(_));
        let mut certificate = CertificateParams::new(names).map_err(TlsError::make("certificate"))?;
        let uri = identity.to_uri().try_into().map_err(TlsError::make("certificate"))?;
        certificate.subject_alt_names.push(SanType::URI(uri));
        certificate.distinguished_name = named(&identity.role.to_string());
        certificate.serial_number = Some(serial_number(identity));
        certificate.is_ca = IsCa::ExplicitNoCa;
        certificate.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if may_serve {
            certificate.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        certificate.use_authority_key_identifier_extension = true;
        set_validity(&mut certificate, CERTIFICATE_VALID_DAYS);
        let certificate = certificate.signed_by(public_key, &self.issuer);
        Ok(certificate.map_err(TlsError::make("certificate"))?.pem())
    }
}

fn self_signed(key: &KeyPair) -> Result<String, TlsError> {
    let mut certificate = CertificateParams::default();
    certificate.distinguished_name = named("Hatchery authority");
    certificate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    certificate.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut certificate, AUTHORITY_VALID_DAYS);
    Ok(certificate.self_signed(key).map_err(TlsError::make("authority's certificate"))?.pem())
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The certificate's id as its serial number, so that the two never differ.
fn serial_number(identity: &Identity) -> SerialNumber {
    let digits = identity.certificate.to_string();
    let bytes = data_encoding::HEXLOWER.decode(digits.as_bytes()).expect("an id is hexadecimal");
    SerialNumber::from_slice(&bytes)
}

fn set_validity(certificate: &mut CertificateParams, days: u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    certificate.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    certificate.not_after = epoch + now + DAY * days;
}

/// A text file, if it is there.
fn read_text(path: &Path) -> Result<Option<String>, TlsError> {
    match durable::read_limited(path, PEM_BYTES_MAX) {
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| TlsError::unusable("authority", format!("{} is not text", path.display()))),
        Err(error) if FileError::is_missing(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
