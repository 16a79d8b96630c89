//! Where this coordinator is reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::settings::Advertised;

/// Where this very machine reaches the coordinator.
pub(crate) fn local(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// Where other machines reach it, `host:port`, the best first: what was set, or what can be found out.
pub(crate) fn advertised(bound: SocketAddr, set: &[Advertised]) -> Vec<String> {
    if !set.is_empty() {
        return set.iter().map(|one| join(&one.host, one.port.unwrap_or(bound.port()))).collect();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let outward = outward_ip().map(|ip| SocketAddr::new(ip, bound.port()).to_string());
    let hostname = rustix::system::uname().nodename().to_str().ok().map(|name| join(name, bound.port()));
    let mut addresses: Vec<String> = outward.into_iter().chain(hostname).collect();
    addresses.push(local(bound).to_string());
    addresses
}

/// The names that the server's certificate holds for those who come by name.
pub(crate) fn hosts(addresses: &[String]) -> Vec<String> {
    let host = |address: &String| {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']']).to_owned()
    };
    addresses.iter().map(host).collect()
}

/// `host:port`, whatever kind of host it is.
pub(crate) fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The address of the interface that leads outward. A UDP socket that is "connected" sends nothing: it only asks the
/// routing table; 192.0.2.1 is reserved for documentation and belongs to nobody.
fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_comes_first_and_what_is_bound_else() {
        let set = [
            Advertised { host: "box.lan".into(), port: None },
            Advertised { host: "fe80::1".into(), port: Some(9) },
        ];
        let bound = "0.0.0.0:4747".parse().unwrap();
        let addresses = advertised(bound, &set);
        assert_eq!(addresses, ["box.lan:4747", "[fe80::1]:9"]);
        assert_eq!(hosts(&addresses), ["box.lan", "fe80::1"]);
        assert_eq!(advertised("127.0.0.1:5".parse().unwrap(), &[]), ["127.0.0.1:5"]);
        assert!(advertised(bound, &[]).contains(&"127.0.0.1:4747".to_owned()));
        assert_eq!(local(bound), "127.0.0.1:4747".parse().unwrap());
    }
}
