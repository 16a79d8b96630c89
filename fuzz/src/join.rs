//! Join strings.

use data_encoding::BASE32_NOPAD;
use hatchery_common::{
    access::Scope,
    digest::Digest,
    tls::{JoinSecret, JoinString, KeyHash},
};

const PREFIX: &str = "hatchery-join-";
const CHECKSUM_BYTES: usize = 4;

/// What a person pastes. Bytes that are no join string are taken for the content of one, under a right checksum: nobody
/// finds that by chance.
pub(crate) fn string(bytes: &[u8]) -> bool {
    let pasted = std::str::from_utf8(bytes).is_ok_and(|text| text.starts_with(PREFIX) && read(text));
    pasted || read(&wrapped(bytes))
}

pub(crate) fn strings() -> Vec<Vec<u8>> {
    let secret = JoinSecret::from_slice("secret", &[3; JoinSecret::BYTES]).expect("its length is right");
    let addresses = |all: &[&str]| all.iter().map(|address| (*address).to_owned()).collect();
    let join = |all, scope| JoinString {
        addresses: addresses(all),
        authority: KeyHash::from_bytes([5; 32]),
        secret: secret.clone(),
        scope,
    };
    let joins = [
        join(&["gpu-a:4747"], Scope::Agent),
        join(&["10.0.0.1:1", "[::1]:65535", "a.b.c:80"], Scope::Operator),
    ];
    joins.iter().flat_map(|join| [join.to_string().into_bytes(), content(join)]).collect()
}

fn read(text: &str) -> bool {
    let Ok(join) = text.parse::<JoinString>() else { return false };
    let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    assert_eq!(join.to_string(), plain.to_ascii_lowercase(), "a join string has one form");
    assert!((1..=8).contains(&join.addresses.len()));
    assert_eq!(join.check(), Ok(()));
    true
}

fn wrapped(content: &[u8]) -> String {
    let digest = Digest::of(content);
    let sum = &digest.as_bytes()[..CHECKSUM_BYTES];
    format!("{PREFIX}{}", BASE32_NOPAD.encode(&[content, sum].concat()).to_ascii_lowercase())
}

fn content(join: &JoinString) -> Vec<u8> {
    let code = join.to_string().trim_start_matches(PREFIX).to_ascii_uppercase();
    let mut bytes = BASE32_NOPAD.decode(code.as_bytes()).expect("it was made above");
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    bytes
}
