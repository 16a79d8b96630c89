//! Which pieces of a blob are somewhere.

const WORD_BITS: u32 = u64::BITS;

/// A set of the pieces of one blob: one bit for each. Sets that are combined are of the same blob.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PieceSet {
    words: Vec<u64>,
    count: u32,
    held: u32,
}

impl PieceSet {
    /// No piece of a blob that has `count` of them.
    pub fn empty(count: u32) -> Self {
        Self { words: vec![0; count.div_ceil(WORD_BITS) as usize], count, held: 0 }
    }

    /// All pieces of a blob that has `count` of them.
    pub fn full(count: u32) -> Self {
        let mut words = vec![u64::MAX; count.div_ceil(WORD_BITS) as usize];
        if let (Some(last), rest @ 1..) = (words.last_mut(), count % WORD_BITS) {
            *last = (1 << rest) - 1;
        }
        Self { words, count, held: count }
    }

    /// The set that `bytes` stand for, the lowest bit of the first byte for the first piece; none if their number does
    /// not fit or there are bits beyond the last piece.
    pub fn from_bytes(count: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != count.div_ceil(8) as usize {
            return None;
        }
        let mut set = Self::empty(count);
        for (word, bytes) in set.words.iter_mut().zip(bytes.chunks(size_of::<u64>())) {
            *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        set.held = set.words.iter().map(|word| word.count_ones()).sum();
        (set.difference(&Self::full(count)).held == 0).then_some(set)
    }

    /// What [`PieceSet::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.count.div_ceil(8) as usize);
        bytes
    }

    /// How many pieces the blob has.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many pieces are in the set.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Whether no piece is in the set.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Whether all pieces are in the set.
    pub fn is_full(&self) -> bool {
        self.held == self.count
    }

    /// Whether piece `index` is in the set.
    pub fn has(&self, index: u32) -> bool {
        index < self.count && self.words[(index / WORD_BITS) as usize] & mask(index) != 0
    }

    /// Adds a piece; false if it was there, or the blob has no such piece.
    pub fn insert(&mut self, index: u32) -> bool {
        let new = index < self.count && !self.has(index);
        if new {
            self.words[(index / WORD_BITS) as usize] |= mask(index);
            self.held += 1;
        }
        new
    }

    /// Takes a piece out; false if it was not there.
    pub fn remove(&mut self, index: u32) -> bool {
        let there = self.has(index);
        if there {
            self.words[(index / WORD_BITS) as usize] &= !mask(index);
            self.held -= 1;
        }
        there
    }

    /// The pieces in the set, in order.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().zip(0..).flat_map(|(&word, at)| bits(word).map(move |bit| at * WORD_BITS + bit))
    }

    /// The pieces that are not in the set.
    #[must_use]
    pub fn missing(&self) -> Self {
        Self::full(self.count).difference(self)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combined(other, |one, other| one & other)
    }

    /// What is in this one and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combined(other, |one, other| one & !other)
    }

    /// What is in one of them, or in both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combined(other, |one, other| one | other)
    }

    /// Each `step`-th piece of the blob that is in this set, counted from piece `first`.
    #[must_use]
    pub fn every(&self, step: u32, first: u32) -> Self {
        let mut every = Self::empty(self.count);
        for index in (first..self.count).step_by(step.max(1) as usize).filter(|&index| self.has(index)) {
            every.insert(index);
        }
        every
    }

    fn combined(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        debug_assert_eq!(self.count, other.count, "sets of two blobs");
        let words: Vec<u64> =
            self.words.iter().zip(&other.words).map(|(&one, &other)| combine(one, other)).collect();
        let held = words.iter().map(|word| word.count_ones()).sum();
        Self { words, count: self.count, held }
    }
}

fn mask(index: u32) -> u64 {
    1 << (index % WORD_BITS)
}

/// The numbers of the bits that are set, in order.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < WORD_BITS).then_some(bit)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(count: u32, indexes: &BTreeSet<u32>) -> PieceSet {
        let mut set = PieceSet::empty(count);
        for &index in indexes {
            assert_eq!(set.insert(index), index < count);
        }
        set
    }

    #[test]
    fn other_bytes_are_no_set() {
        assert_eq!(PieceSet::from_bytes(9, &[0xff, 0x01]), Some(PieceSet::full(9)));
        assert_eq!(PieceSet::from_bytes(9, &[0xff, 0x03]), None, "a tenth piece of nine");
        assert_eq!(PieceSet::from_bytes(9, &[0xff]), None);
        assert_eq!(PieceSet::from_bytes(9, &[0xff, 0x01, 0x00]), None);
        assert_eq!(PieceSet::from_bytes(0, &[]), Some(PieceSet::full(0)));
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(
            count in 0..300_u32,
            one in prop::collection::btree_set(0..300_u32, 0..100),
            other in prop::collection::btree_set(0..300_u32, 0..100),
        ) {
            let (a, b) = (set(count, &one), set(count, &other));
            let within = |set: BTreeSet<u32>| set.into_iter().filter(|&index| index < count).collect::<Vec<_>>();
            let listed = |set: &PieceSet| set.indexes().collect::<Vec<_>>();
            prop_assert_eq!(listed(&a), within(one.clone()));
            prop_assert_eq!(listed(&a.intersection(&b)), within(&one & &other));
            prop_assert_eq!(listed(&a.difference(&b)), within(&one - &other));
            prop_assert_eq!(listed(&a.union(&b)), within(&one | &other));
            prop_assert_eq!(listed(&a.missing()), within(&(0..count).collect::<BTreeSet<_>>() - &one));
            for set in [&a, &b, &a.union(&b), &a.missing()] {
                prop_assert_eq!(set.held() as usize, listed(set).len());
                prop_assert_eq!(PieceSet::from_bytes(count, &set.to_bytes()), Some(set.clone()));
            }
            let mut rest = a.clone();
            for index in 0..count {
                prop_assert_eq!(rest.remove(index), one.contains(&index));
            }
            prop_assert!(rest.is_empty() && rest == PieceSet::empty(count));
        }
    }
}
