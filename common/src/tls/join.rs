//! What a new machine is given, as one line of text: where the coordinator is, how to know it, and a secret that is good
//! once.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;

use crate::{
    access::Scope,
    digest::Digest,
    field::FieldError,
    tls::{KeyHash, configuration::provider},
};

const PREFIX: &str = "hatchery-join-";
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// Most addresses in a join string.
const ADDRESSES_MAX: usize = 8;
/// Longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 255;
/// Longest join string, in characters, spaces left out.
const TEXT_LEN_MAX: usize = 8192;

/// A scope's byte in a join string.
const fn code(scope: Scope) -> u8 {
    match scope {
        Scope::Agent => 1,
        Scope::Operator => 2,
        Scope::Viewer => 3,
    }
}

/// A secret that lets its holder join once. The coordinator keeps only its digest.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret([u8; Self::BYTES]);

impl JoinSecret {
    /// Its length.
    pub const BYTES: usize = 16;

    /// Draws a new one.
    pub fn random() -> Self {
        let mut bytes = [0; Self::BYTES];
        provider().secure_random.fill(&mut bytes).expect("the system gives random bytes");
        Self(bytes)
    }

    /// Takes what came over the wire.
    pub fn from_slice(field: &str, bytes: &[u8]) -> Result<Self, FieldError> {
        let bytes = bytes.try_into().map_err(|_| {
            FieldError::new(field, format!("must be {} bytes, not {}", Self::BYTES, bytes.len()))
        })?;
        Ok(Self(bytes))
    }

    /// The raw bytes, for the wire.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// What is stored of it, and looked up by.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(hidden)")
    }
}

/// All that a new machine needs. As text: `hatchery-join-` and lower-case letters and digits, with a checksum, so that it
/// survives copying, and a typing error is noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinString {
    /// Where the coordinator listens, `host:port`, the best first.
    pub addresses: Vec<String>,
    /// The hash of the authority's key.
    pub authority: KeyHash,
    /// Good once.
    pub secret: JoinSecret,
    /// For what.
    pub scope: Scope,
}

/// Why a text is no join string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinStringError {
    /// It starts otherwise.
    #[error("not a join string: those start with `{PREFIX}`; create one with `hatchery token create`")]
    Prefix,
    /// It holds characters that no join string has.
    #[error(
        "the join string contains `{character}`, which is not allowed; copy the whole string and nothing else"
    )]
    Character {
        /// The first such character.
        character: char,
    },
    /// Something is missing, or mistyped.
    #[error("the join string is incomplete or mistyped (wrong checksum); copy it again in full")]
    Checksum,
    /// It is of another version.
    #[error(
        "the join string has version {found}, but this program supports {VERSION}; use the coordinator's \
         release"
    )]
    Version {
        /// Its version.
        found: u8,
    },
    /// It is whole, yet makes no sense.
    #[error("the join string is not usable: {0}")]
    Content(#[from] FieldError),
}

impl fmt::Display for JoinString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION, code(self.scope)];
        bytes.extend(self.authority.as_bytes());
        bytes.extend(self.secret.as_bytes());
        // Longer ones do not pass `check`, here or where it is read.
        for address in self.addresses.iter().filter(|address| address.len() <= ADDRESS_BYTES_MAX) {
            bytes.push(address.len() as u8);
            bytes.extend(address.as_bytes());
        }
        bytes.extend(checksum(&bytes));
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for JoinString {
    type Err = JoinStringError;

    fn from_str(text: &str) -> Result<Self, JoinStringError> {
        // Terminals and mail break long lines.
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(TEXT_LEN_MAX + 1).collect();
        let text = text.to_ascii_lowercase();
        let code = text.strip_prefix(PREFIX).ok_or(JoinStringError::Prefix)?;
        if let Some(character) = code.chars().find(|c| !matches!(c, 'a'..='z' | '2'..='7')) {
            return Err(JoinStringError::Character { character });
        }
        let decoded = BASE32_NOPAD.decode(code.to_ascii_uppercase().as_bytes());
        let bytes = decoded.map_err(|_| JoinStringError::Checksum)?;
        let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(JoinStringError::Checksum)?;
        if checksum(bytes) != *sum {
            return Err(JoinStringError::Checksum);
        }
        match bytes.split_first() {
            Some((&VERSION, content)) => {
                let join = parse(content).ok_or_else(|| FieldError::new("content", "is malformed"))?;
                join.check()?;
                Ok(join)
            }
            Some((&found, _)) => Err(JoinStringError::Version { found }),
            None => Err(JoinStringError::Checksum),
        }
    }
}

impl JoinString {
    /// Checks that each address can be dialled, and that there are some, and not too many.
    pub fn check(&self) -> Result<(), FieldError> {
        if self.addresses.is_empty() || self.addresses.len() > ADDRESSES_MAX {
            let problem = format!("must be 1 to {ADDRESSES_MAX}, not {}", self.addresses.len());
            return Err(FieldError::new("addresses", problem));
        }
        self.addresses.iter().try_for_each(|address| check_address("addresses", address))
    }
}

fn parse(content: &[u8]) -> Option<JoinString> {
    let (&number, content) = content.split_first()?;
    let (authority, content) = content.split_first_chunk::<32>()?;
    let (secret, mut content) = content.split_first_chunk::<{ JoinSecret::BYTES }>()?;
    let mut addresses = Vec::new();
    while let Some((&length, rest)) = content.split_first() {
        let (address, rest) = rest.split_at_checked(length.into())?;
        addresses.push(String::from_utf8(address.to_vec()).ok()?);
        content = rest;
    }
    Some(JoinString {
        addresses,
        authority: KeyHash::from_bytes(*authority),
        secret: JoinSecret(*secret),
        scope: Scope::ALL.into_iter().find(|scope| code(*scope) == number)?,
    })
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = *Digest::of(bytes).as_bytes();
    [a, b, c, d]
}

/// Checks that `address` is `host:port`, with a DNS name, an IPv4 address, or an IPv6 address in brackets.
pub fn check_address(field: &str, address: &str) -> Result<(), FieldError> {
    let wrong =
        || FieldError::new(field, format!("`{address}` is not host:port, such as gpu-a:7600 or [::1]:7600"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port_is_good = port.parse::<u16>().is_ok_and(|port| port > 0);
    let host_is_good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    if host_is_good && port_is_good && address.len() <= ADDRESS_BYTES_MAX { Ok(()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> JoinString {
        JoinString {
            addresses: vec![
                "192.0.2.7:7600".into(),
                "[2001:db8::1]:7600".into(),
                "hatchery.example:443".into(),
            ],
            authority: KeyHash::from_bytes([7; 32]),
            secret: JoinSecret::random(),
            scope: Scope::Agent,
        }
    }

    #[test]
    fn a_join_string_survives_copying() {
        let join = example();
        let text = join.to_string();
        assert_eq!(text.parse(), Ok(join.clone()));
        let (head, tail) = text.split_at(60);
        assert_eq!(format!("  {head}\r\n  {tail}\n").parse(), Ok(join.clone()));
        assert_eq!(text.to_uppercase().parse(), Ok(join.clone()));
        assert!(!format!("{join:?}").contains(&format!("{:?}", join.secret.as_bytes())));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = example().to_string();
        let parse = |text: &str| text.parse::<JoinString>().unwrap_err();
        assert_eq!(parse("abc"), JoinStringError::Prefix);
        assert_eq!(parse(&text[..text.len() - 1]), JoinStringError::Checksum);
        assert_eq!(parse(&format!("{text}'")), JoinStringError::Character { character: '\'' });
        let of_bytes = |bytes: &[u8]| {
            let sealed = [bytes, &checksum(bytes)].concat();
            parse(&format!("{PREFIX}{}", BASE32_NOPAD.encode(&sealed)))
        };
        assert_eq!(of_bytes(&[9]), JoinStringError::Version { found: 9 });
        assert!(matches!(of_bytes(&[1, 1, 0]), JoinStringError::Content(_)));
        let nowhere = JoinString { addresses: vec![], ..example() };
        assert!(matches!(parse(&nowhere.to_string()), JoinStringError::Content(_)));
        let odd = JoinString { addresses: vec!["a b:1".into()], ..example() };
        assert!(parse(&odd.to_string()).to_string().contains("`a b:1` is not host:port"));
    }

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["localhost:1", "127.0.0.1:65535", "[::1]:7600", "gpu-a.lan:7600"] {
            assert_eq!(check_address("listen", good), Ok(()), "{good}");
        }
        for wrong in ["", "localhost", ":1", "localhost:0", "localhost:65536", "::1:7600", "a/b:1", "[x]:1"] {
            assert!(check_address("listen", wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_noticed(at in any::<prop::sample::Index>(), to in "[a-z2-7]") {
            let text = example().to_string();
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            let changed = format!("{}{to}{}", &text[..at], &text[at + 1..]);
            prop_assert_eq!(changed.parse::<JoinString>().is_ok(), changed == text);
        }

        #[test]
        fn no_text_upsets_the_parser(text in ".{0,80}", with_prefix in any::<bool>()) {
            let text = if with_prefix { format!("{PREFIX}{text}") } else { text };
            prop_assert!(text.parse::<JoinString>().is_err());
        }
    }
}
