//! The time below which no plan can bring a file to all nodes.

/// A node's link, in bytes of payload per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// Away from the node.
    pub(super) up: f64,
    pub(super) down: f64,
}

/// Seconds in which `bytes` can be on all `receivers` at the earliest: they must leave the source once, come in through the
/// narrowest downlink, and all copies together must pass all uplinks.
pub(super) fn secs(bytes: f64, source: Rates, receivers: &[Rates]) -> f64 {
    let count = receivers.len() as f64;
    let uplinks = source.up + receivers.iter().map(|rates| rates.up).sum::<f64>();
    let narrowest = receivers.iter().map(|rates| rates.down).fold(f64::INFINITY, f64::min);
    (bytes / source.up).max(bytes / narrowest).max(count * bytes / uplinks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EQUAL: Rates = Rates { up: 10.0, down: 10.0 };

    #[test]
    fn each_of_the_three_bounds_counts() {
        assert!((secs(100.0, EQUAL, &[EQUAL; 8]) - 10.0).abs() < 1e-9, "once out of the source");
        let slow = Rates { up: 10.0, down: 2.5 };
        assert!((secs(100.0, EQUAL, &[EQUAL, slow]) - 40.0).abs() < 1e-9, "through the narrowest downlink");
        let mute = Rates { up: 0.0, down: 10.0 };
        assert!((secs(100.0, EQUAL, &[mute; 4]) - 40.0).abs() < 1e-9, "four copies over one uplink");
        assert!((secs(100.0, Rates { up: 5.0, down: 1.0 }, &[EQUAL]) - 20.0).abs() < 1e-9);
    }
}
