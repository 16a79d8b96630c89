//! What nodes say to one another: which pieces are asked for, and pieces with fewer bytes.

use hatchery_common::blob::PieceSet;
use hatchery_net::swarm::{Squeezer, expand, wanted};
use hatchery_proto::v1;
use hatchery_swarm::Wanted;
use prost::Message;

/// Pieces of the blob that is asked for.
const COUNT: u32 = 200;
/// A piece's size, at most.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// An ask names pieces that the blob has, or is refused.
pub(crate) fn ask(bytes: &[u8]) -> bool {
    let Ok(ask) = v1::Ask::decode(bytes) else { return false };
    match wanted(COUNT, ask.wanted) {
        Ok(Wanted::One(index)) => assert!(index < COUNT),
        Ok(Wanted::Any(pieces)) => {
            assert_eq!(pieces.count(), COUNT);
            assert!(pieces.indexes().all(|index| index < COUNT));
        }
        Err(_) => return false,
    }
    true
}

/// Asks for one piece, and for any of some.
pub(crate) fn asks() -> Vec<Vec<u8>> {
    let mut some = PieceSet::empty(COUNT);
    for index in (0..COUNT).step_by(3) {
        some.insert(index);
    }
    let one = v1::Ask { ask: 7, wanted: Some(v1::ask::Wanted::Piece(COUNT - 1)) };
    let any = v1::Ask { ask: 8, wanted: Some(v1::ask::Wanted::AnyOf(some.to_bytes())) };
    vec![one.encode_to_vec(), any.encode_to_vec()]
}

/// A squeezed piece has the size that it is to have, or is none. What comes first: its width, and its size in two bytes.
pub(crate) fn squeezed(bytes: &[u8]) -> bool {
    let [width, low, high, rest @ ..] = bytes else { return false };
    let size_bytes = u64::from(u16::from_le_bytes([*low, *high]));
    let expanded = expand(rest, u32::from(*width), size_bytes);
    if let Some(piece) = &expanded {
        assert_eq!(piece.len() as u64, size_bytes);
    }
    // And the other way: whatever the bytes are, squeezed they come back.
    let piece = &rest[..rest.len().min(PIECE_BYTES_MAX)];
    if let Some((width, fewer)) = Squeezer::default().squeeze(piece) {
        assert!(fewer.len() < piece.len());
        assert_eq!(expand(&fewer, width, piece.len() as u64).as_deref(), Some(piece));
    }
    expanded.is_some()
}

/// Numbers of each width, squeezed.
pub(crate) fn squeezed_pieces() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..300u16).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let weights: Vec<u8> = (0..300u16).flat_map(|n| (f32::from(n) * 0.01 - 1.0).to_le_bytes()).collect();
    let with_head = |piece: &[u8]| {
        let (width, bytes) = Squeezer::default().squeeze(piece)?;
        let size = (piece.len() as u16).to_le_bytes();
        Some([&[width as u8], &size[..], &bytes].concat())
    };
    [text, weights].iter().filter_map(|piece| with_head(piece)).collect()
}
