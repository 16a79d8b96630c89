//! HTTP as pip would speak it: the user's certificates, proxy and credentials; whole pages and byte ranges.

use std::io::Read;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, ResponseExt};

use super::pip::PipConfig;
use super::url;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);
/// A body may take long as a whole; a single silence this long means that the connection is dead.
const SILENCE_TIMEOUT: Duration = Duration::from_mins(1);

/// A client with the user's settings.
pub(crate) struct Http {
    checked: Agent,
    unchecked: Agent,
    trusted_hosts: Vec<String>,
}

impl Http {
    /// Sets the client up; fails where the configured certificates or proxy cannot be read.
    pub(crate) fn new(pip: &PipConfig) -> Result<Self> {
        let roots = match &pip.certificates {
            Some(path) => {
                let pem = std::fs::read(path).with_context(|| {
                    format!("cannot read the certificates {} of pip's configuration", path.display())
                })?;
                RootCerts::new_with_certs(&certificates(&pem))
            }
            None => RootCerts::WebPki,
        };
        let agent = |check: bool| -> Result<Agent> {
            let tls = TlsConfig::builder().root_certs(roots.clone()).disable_verification(!check).build();
            let mut config = Agent::config_builder()
                .tls_config(tls)
                .http_status_as_error(false)
                .accept_encoding("identity")
                .user_agent("hatchery-xtask")
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(RESPONSE_TIMEOUT))
                .timeout_per_read(Some(SILENCE_TIMEOUT));
            if let Some(proxy) = &pip.proxy {
                config =
                    config.proxy(Some(ureq::Proxy::new(proxy).context("cannot read pip's proxy setting")?));
            }
            Ok(config.build().new_agent())
        };
        Ok(Self { checked: agent(true)?, unchecked: agent(false)?, trusted_hosts: pip.trusted_hosts.clone() })
    }

    /// Asks for a page; anything but success is an error.
    pub(crate) fn get(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        authorization: Option<&str>,
    ) -> Result<Response> {
        let response = self.send(url, headers, authorization)?;
        match response.status() {
            200..=299 => Ok(response),
            401 | 403 => {
                bail!("{url} refuses access ({}): check the credentials of the index", response.status())
            }
            status => bail!("{url} answers {status}"),
        }
    }

    /// Asks for a range of bytes; a server that answers with the whole file is refused.
    pub(crate) fn range(
        &self,
        url: &str,
        range: Range<u64>,
        authorization: Option<&str>,
    ) -> Result<Response> {
        let wanted = format!("bytes={}-{}", range.start, range.end - 1);
        let response = self.send(url, &[("Range", &wanted)], authorization)?;
        if response.status() != 206 {
            bail!("{url} answers {} to a request for a range of bytes", response.status());
        }
        let (start, _) = response.content_range()?;
        if start != range.start {
            bail!("{url} sends bytes from {start} instead of {wanted}");
        }
        Ok(response)
    }

    fn send(&self, url: &str, headers: &[(&str, &str)], authorization: Option<&str>) -> Result<Response> {
        let agent = if self.is_trusted(url) { &self.unchecked } else { &self.checked };
        let mut request = agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(value) = authorization {
            request = request.header("Authorization", value);
        }
        let response = request.call().map_err(|error| anyhow!("cannot reach {url}: {error}"))?;
        Ok(Response(response))
    }

    fn is_trusted(&self, url: &str) -> bool {
        self.trusted_hosts.iter().any(|trusted| url::is_host(trusted, url))
    }
}

fn certificates(pem: &[u8]) -> Vec<Certificate<'static>> {
    parse_pem(pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect()
}

/// An answer whose body has not been read yet.
pub(crate) struct Response(ureq::http::Response<Body>);

impl Response {
    fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    /// A header's value, empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.0.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The URL that answered, after redirects.
    pub(crate) fn url(&self) -> String {
        self.0.get_uri().to_string()
    }

    /// First byte and total length of the file, from `Content-Range: bytes FIRST-LAST/TOTAL`.
    pub(crate) fn content_range(&self) -> Result<(u64, u64)> {
        let header = self.header("content-range");
        let parsed = header.strip_prefix("bytes ").and_then(|rest| {
            let (range, total) = rest.split_once('/')?;
            Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
        });
        parsed.with_context(|| format!("{} sends an invalid Content-Range: {header:?}", self.url()))
    }

    /// The body as a stream.
    pub(crate) fn reader(self) -> impl Read {
        self.0.into_body().into_with_config().limit(u64::MAX).reader()
    }

    /// The whole body, refused beyond `limit_bytes`.
    pub(crate) fn bytes(self, limit_bytes: u64) -> Result<Vec<u8>> {
        let url = self.url();
        let body = self.0.into_body().into_with_config().limit(limit_bytes);
        body.read_to_vec().map_err(|error| anyhow!("{url}: the transfer failed: {error}"))
    }
}
