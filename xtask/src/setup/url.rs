//! What reading a package index asks of URLs: credentials apart, origins, links of a page.

use data_encoding::BASE64;
use percent_encoding::percent_decode_str;
use url::Url;

/// A URL without its credentials, and these apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// The URL as it may be sent and shown.
    pub(crate) url: String,
    /// `Authorization` header value for the URL's host, where the URL named a user.
    pub(crate) authorization: Option<String>,
}

/// Takes `user:password@` out of a URL.
pub(crate) fn split_credentials(url: &str) -> Address {
    let named = Url::parse(url).ok().filter(|url| !url.username().is_empty());
    let Some(mut named) = named else { return Address { url: url.to_owned(), authorization: None } };
    let user = [named.username(), named.password().unwrap_or_default()];
    let [name, password] = user.map(|text| percent_decode_str(text).collect::<Vec<u8>>());
    let encoded = BASE64.encode(&[name, password].join(&b':'));
    // A URL that names a user has a host, so it can do without the user.
    let _ = named.set_username("").and_then(|()| named.set_password(None));
    Address { url: named.into(), authorization: Some(format!("Basic {encoded}")) }
}

/// Scheme, host and port: `https://host:8443`. Credentials belong to one origin and are sent to no other.
pub(crate) fn origin(url: &str) -> String {
    Url::parse(url).map_or_else(|_| url.to_owned(), |url| url.origin().ascii_serialization())
}

/// Whether `trusted`, as pip is told it (`host` or `host:port`), means the host of `url`.
pub(crate) fn is_host(trusted: &str, url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return false };
    trusted == host || trusted == format!("{host}:{port}")
}

/// Resolves a link found on the page at `base`.
pub(crate) fn join(base: &str, link: &str) -> String {
    let Ok(mut url) = Url::parse(base).and_then(|base| base.join(link)) else { return link.to_owned() };
    url.set_fragment(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_url() {
        let address = split_credentials("https://me:p%40ss@host:8443/simple");
        assert_eq!(address.url, "https://host:8443/simple");
        assert_eq!(address.authorization.unwrap(), format!("Basic {}", BASE64.encode(b"me:p@ss")));
        assert_eq!(split_credentials("https://host/a@b").authorization, None);
        let token = split_credentials("https://token@host/simple").authorization.unwrap();
        assert_eq!(token, format!("Basic {}", BASE64.encode(b"token:")));
    }

    #[test]
    fn origin_and_host() {
        assert_eq!(origin("https://h:1/a/b"), "https://h:1");
        assert_eq!(origin("https://h"), "https://h");
        assert!(is_host("h", "https://h:1/a/b") && is_host("h:1", "https://h:1/a/b"));
        assert!(is_host("h", "http://h/a") && is_host("h:80", "http://h/a"));
        assert!(!is_host("h:1", "http://h/a") && !is_host("h", "http://h.h/a"));
    }

    #[test]
    fn links_resolve_as_in_a_browser() {
        let base = "https://h/simple/torch/";
        assert_eq!(join(base, "https://files/x.whl#sha256=1"), "https://files/x.whl");
        assert_eq!(join(base, "//files/x.whl"), "https://files/x.whl");
        assert_eq!(join(base, "/p/x.whl"), "https://h/p/x.whl");
        assert_eq!(join(base, "../../p/x.whl"), "https://h/p/x.whl");
        assert_eq!(join(base, "x.whl"), "https://h/simple/torch/x.whl");
    }
}
