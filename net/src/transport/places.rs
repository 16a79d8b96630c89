//! A bounded number of places for connections that have not proved who they are, shared among their addresses.
//!
//! When all places are taken, a newcomer from an address that holds fewer of them takes the oldest place of the busiest
//! address; one from the busiest address itself waits in line. An address that dials a thousand times over delays only
//! itself, and a fleet behind one address that comes back at once loses nobody.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How many places there are, and how many may wait for one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    pub(super) places: usize,
    pub(super) places_by_address: usize,
    pub(super) waiting: usize,
}

/// The places. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    capacity: Capacity,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    serial: u64,
    taken: usize,
    waiting: usize,
    addresses: HashMap<IpAddr, Address>,
}

/// Who is here from one address, and who waits, the oldest first.
#[derive(Debug, Default)]
struct Address {
    places: BTreeMap<u64, CancellationToken>,
    waiting: VecDeque<(u64, oneshot::Sender<Place>)>,
}

impl Address {
    fn is_empty(&self) -> bool {
        self.places.is_empty() && self.waiting.is_empty()
    }
}

/// A place. Dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
    serial: u64,
    lost: CancellationToken,
}

impl Place {
    /// Cancelled when somebody from a less busy address has taken the place.
    pub(super) fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.state().give_back(self.address, self.serial);
        self.places.grant();
    }
}

impl Places {
    pub(super) fn new(capacity: Capacity) -> Self {
        Self { capacity, state: Arc::default() }
    }

    /// A place for a connection from `remote`, as soon as there is one; none if too many wait already.
    pub(super) async fn take(&self, remote: IpAddr) -> Option<Place> {
        let (waiter, granted) = oneshot::channel();
        self.state().enqueue(subscriber(remote), waiter, self.capacity.waiting);
        self.grant();
        granted.await.ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out what can be handed out.
    fn grant(&self) {
        loop {
            let Some((waiter, address, serial, lost)) = self.state().next_grant(self.capacity) else {
                return;
            };
            // If the waiter has gone, the place is dropped here, outside of the lock, and free again.
            let _unclaimed = waiter.send(Place { places: self.clone(), address, serial, lost });
        }
    }
}

impl State {
    fn enqueue(&mut self, address: IpAddr, waiter: oneshot::Sender<Place>, waiting_max: usize) {
        if self.waiting >= waiting_max {
            self.forget_gone();
        }
        if self.waiting >= waiting_max {
            // The longest line loses its oldest, who has the least time left.
            let longest = self.addresses.values_mut().max_by_key(|address| address.waiting.len());
            self.waiting -= longest.and_then(|line| line.waiting.pop_front()).map_or(0, |_dropped| 1);
        }
        self.serial += 1;
        self.waiting += 1;
        self.addresses.entry(address).or_default().waiting.push_back((self.serial, waiter));
    }

    /// Those who no longer wait do not count.
    fn forget_gone(&mut self) {
        for address in self.addresses.values_mut() {
            address.waiting.retain(|(_, waiter)| !waiter.is_closed());
        }
        self.addresses.retain(|_, address| !address.is_empty());
        self.waiting = self.addresses.values().map(|address| address.waiting.len()).sum();
    }

    /// The next waiter, of the address with the fewest places, if there is a place for it.
    fn next_grant(
        &mut self,
        capacity: Capacity,
    ) -> Option<(oneshot::Sender<Place>, IpAddr, u64, CancellationToken)> {
        let (held, _, address) = self
            .addresses
            .iter()
            .filter_map(|(ip, line)| Some((line.places.len(), line.waiting.front()?.0, *ip)))
            .min()?;
        if held >= capacity.places_by_address || self.taken >= capacity.places && !self.evict(held) {
            return None;
        }
        let line = self.addresses.get_mut(&address)?;
        let (serial, waiter) = line.waiting.pop_front()?;
        let lost = CancellationToken::new();
        line.places.insert(serial, lost.clone());
        self.waiting -= 1;
        self.taken += 1;
        Some((waiter, address, serial, lost))
    }

    /// Frees the oldest place of the busiest address, if that one then still has as many as a newcomer whose address
    /// holds `held` so far.
    fn evict(&mut self, held: usize) -> bool {
        let busiest = self.addresses.values_mut().max_by_key(|line| line.places.len());
        let Some(busiest) = busiest.filter(|line| line.places.len() >= held + 2) else { return false };
        let Some((_, lost)) = busiest.places.pop_first() else { return false };
        lost.cancel();
        self.taken -= 1;
        true
    }

    /// A place that was lost has been counted out already.
    fn give_back(&mut self, address: IpAddr, serial: u64) {
        let Some(line) = self.addresses.get_mut(&address) else { return };
        if line.places.remove(&serial).is_some() {
            self.taken -= 1;
        }
        if line.is_empty() {
            self.addresses.remove(&address);
        }
    }
}

/// The part of an address that one subscriber cannot change at will: all of IPv4, the first 64 bits of IPv6.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop")]

    use super::*;

    const ATTACKER: [u8; 4] = [10, 0, 0, 1];
    const HONEST: [u8; 4] = [10, 0, 0, 2];

    fn places(places: usize, waiting: usize) -> Places {
        Places::new(Capacity { places, places_by_address: places, waiting })
    }

    #[tokio::test]
    async fn the_oldest_of_the_busiest_address_goes_and_nobody_of_ones_own() {
        let places = places(3, 8);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(places.take(ATTACKER.into()).await.unwrap());
        }
        // One more of the same waits, and takes nothing from its own.
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take(ATTACKER.into()).await }
        });
        tokio::task::yield_now().await;
        assert!(held.iter().all(|place| !place.lost.is_cancelled()));
        let honest = places.take(HONEST.into()).await.unwrap();
        assert!(held[0].lost.is_cancelled() && !held[1].lost.is_cancelled());
        // Two against one is as fair as it gets with three places.
        assert!(tokio::time::timeout(std::time::Duration::ZERO, places.take(HONEST.into())).await.is_err());
        drop(honest);
        let next = waiting.await.unwrap().unwrap();
        assert!(!next.lost.is_cancelled());
    }

    #[tokio::test]
    async fn the_line_is_bounded_and_the_longest_loses_its_oldest() {
        let places = places(1, 2);
        let first = places.take(ATTACKER.into()).await.unwrap();
        let spawn = |address: [u8; 4]| {
            let places = places.clone();
            tokio::spawn(async move { places.take(address.into()).await })
        };
        let oldest = spawn(ATTACKER);
        tokio::task::yield_now().await;
        let second = spawn(ATTACKER);
        tokio::task::yield_now().await;
        let third = spawn(HONEST);
        assert!(oldest.await.unwrap().is_none());
        drop(first);
        // Neither address holds a place: who has waited longer is next.
        drop(second.await.unwrap().unwrap());
        assert!(third.await.unwrap().is_some());
        assert!(places.state().addresses.is_empty() && places.state().taken == 0);
    }

    #[test]
    fn an_address_is_what_one_subscriber_has() {
        let of = |text: &str| subscriber(text.parse().unwrap());
        assert_eq!(of("2001:db8::1:2"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8:0:1::"), of("2001:db8:0:2::"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
