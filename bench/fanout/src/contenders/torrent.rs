//! A `.torrent` file of one file.

use sha1::{Digest as _, Sha1};

use super::bencode::Value;
use super::payload;

/// As long as clients make them for files of this size.
const PIECE_BYTES: usize = 256 << 10;

/// The file's text, for a tracker at `announce`.
pub(super) fn describe(content: &[u8], announce: &str) -> Vec<u8> {
    let pieces: Vec<u8> = content.chunks(PIECE_BYTES).flat_map(Sha1::digest).collect();
    let info = Value::table([
        ("length", Value::Number(content.len() as u64)),
        ("name", Value::text(payload::FILE)),
        ("piece length", Value::Number(PIECE_BYTES as u64)),
        ("pieces", Value::Bytes(pieces)),
    ]);
    Value::table([("announce", Value::text(announce)), ("info", info)]).to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_has_its_digest() {
        let content = vec![7; PIECE_BYTES + 1];
        let torrent = describe(&content, "http://t/announce");
        let text = String::from_utf8_lossy(&torrent);
        assert!(
            text.starts_with("d8:announce17:http://t/announce4:infod6:lengthi262145e4:name7:payload"),
            "{text}"
        );
        assert!(text.contains("12:piece lengthi262144e6:pieces40:"), "{text}");
        assert!(
            torrent.windows(20).any(|window| window == Sha1::digest([7]).as_slice()),
            "the last piece is short"
        );
    }
}
