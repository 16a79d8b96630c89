//! Which pieces of an unfinished transfer are there.

/// One bit for each piece, the lowest bit of the first byte for the first.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    bits: Vec<u8>,
    count: u32,
    have: u32,
}

impl Progress {
    pub(super) fn empty(count: u32) -> Self {
        Self { bits: vec![0; count.div_ceil(8) as usize], count, have: 0 }
    }

    /// Takes what was saved, if it fits; a claim only, until each piece is hashed again.
    pub(super) fn claimed(count: u32, bits: Vec<u8>) -> Self {
        let empty = Self::empty(count);
        if bits.len() != empty.bits.len() {
            return empty;
        }
        let mut claimed = Self { bits, ..empty };
        claimed.have = (0..count).filter(|&index| claimed.has(index)).count() as u32;
        claimed
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bits
    }

    pub(super) fn has(&self, index: u32) -> bool {
        index < self.count && self.bits[(index / 8) as usize] & mask(index) != 0
    }

    /// Adds a piece; false if it was there.
    pub(super) fn insert(&mut self, index: u32) -> bool {
        let new = index < self.count && !self.has(index);
        if new {
            self.bits[(index / 8) as usize] |= mask(index);
            self.have += 1;
        }
        new
    }

    pub(super) fn remove(&mut self, index: u32) {
        if self.has(index) {
            self.bits[(index / 8) as usize] &= !mask(index);
            self.have -= 1;
        }
    }

    pub(super) fn have(&self) -> u32 {
        self.have
    }

    pub(super) fn indexes(&self) -> impl Iterator<Item = u32> {
        (0..self.count).filter(|&index| self.has(index))
    }

    pub(super) fn missing(&self) -> Vec<u32> {
        (0..self.count).filter(|&index| !self.has(index)).collect()
    }
}

fn mask(index: u32) -> u8 {
    1 << (index % 8)
}
