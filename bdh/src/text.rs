//! Text out of a stream of bytes.

/// Turns bytes into text as they come, holding back a character until it is whole.
///
/// What comes out is, all together, what [`String::from_utf8_lossy`] makes of all the bytes: bytes that are no UTF-8
/// become U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The start of a character, at most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// A stream before its first byte.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `bytes` in; returns the text that is now complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            rest += chunk.valid().len();
            if is_unfinished(&self.held[rest..]) {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            rest += chunk.invalid().len();
        }
        self.held.drain(..rest);
        text
    }

    /// Ends the stream; returns U+FFFD if a character was left unfinished.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}

/// Whether `bytes` are the start of one character, cut off.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}
