//! Randomness from a seed.

/// A generator whose numbers follow from its seed (SplitMix64): it breaks ties and keeps nothing secret.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.draw()) * end as u128) >> 64) as usize
    }

    /// One of the items with the least key, each of them with the same chance.
    pub fn least<T, K: PartialOrd>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut key: impl FnMut(&T) -> K,
    ) -> Option<T> {
        let mut least: Option<(K, T)> = None;
        let mut ties = 0;
        for item in items {
            let key = key(&item);
            match &least {
                Some((so_far, _)) if key > *so_far => continue,
                Some((so_far, _)) if key == *so_far => ties += 1,
                _ => ties = 1,
            }
            // The n-th of equals takes the place with a chance of 1 in n.
            if ties == 1 || self.below(ties) == 0 {
                least = Some((key, item));
            }
        }
        least.map(|(_, item)| item)
    }
}
