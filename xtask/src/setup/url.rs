//! The little of URLs that reading a package index takes.

use data_encoding::BASE64;

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
    let Some((scheme, rest)) = url.split_once("://") else {
        return Address { url: url.to_owned(), authorization: None };
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = if user.contains(':') { user.to_owned() } else { format!("{user}:") };
            let encoded = BASE64.encode(&percent_decode(&user));
            Address {
                url: format!("{scheme}://{host}{path}"),
                authorization: Some(format!("Basic {encoded}")),
            }
        }
        None => Address { url: url.to_owned(), authorization: None },
    }
}

/// Scheme, host and port: `https://host:8443`. Credentials belong to one origin and are sent to no other.
pub(crate) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    &url[..url[start..].find('/').map_or(url.len(), |at| start + at)]
}

/// The host of a URL, without port.
pub(crate) fn host(url: &str) -> &str {
    let origin = origin(url);
    let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Resolves a link found on the page at `base`.
pub(crate) fn join(base: &str, link: &str) -> String {
    let link = link.split('#').next().unwrap_or(link);
    if link.contains("://") {
        return link.to_owned();
    }
    if let Some(rest) = link.strip_prefix("//") {
        let scheme = base.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}://{rest}");
    }
    let origin = origin(base);
    if link.starts_with('/') {
        return format!("{origin}{link}");
    }
    let path = base[origin.len()..].split(['?', '#']).next().unwrap_or("");
    let mut segments: Vec<&str> = path.split('/').skip(1).collect();
    segments.pop();
    for segment in link.split('/') {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("{origin}/{}", segments.join("/"))
}

/// Undoes `%40` and its like; a stray `%` stays as it is.
pub(crate) fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    decoded
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
        assert_eq!(host("https://h:1/a/b"), "h");
        assert_eq!(host("http://h/a"), "h");
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
