//! However a file to be imported is built, reading it takes no more memory than is said.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use hatchery_bdh::{ImportOptions, Imported};

/// What refusing a small file may take at its most.
const BYTES_MAX: usize = 64 << 20;

/// Counts what is allocated. All tests of this file share it, so there is one only.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[expect(
    unsafe_code,
    reason = "an allocator cannot be written otherwise; it hands everything on to the system's"
)]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the block came from the system's allocator, with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory at any time of reading `bytes`, beyond what was taken before.
fn peak(file: &Path, bytes: &[u8]) -> usize {
    fs::write(file, bytes).unwrap();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let options = ImportOptions { n_layer: Some(2), ..ImportOptions::default() };
    // Whether it is refused or read does not matter here.
    drop(Imported::read(file, &options));
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn memory_is_bounded_whatever_a_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.pt");
    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dict-config.pt")).unwrap();
    assert!(peak(&file, &whole) < 1 << 20, "a file in order needs little more than itself");

    // Figures of the pickle and of the directory, made as large as they can be.
    let pickle = 0..1024;
    for place in pickle.chain(whole.len() - 1200..whole.len() - 4).step_by(3) {
        let mut spoiled = whole.clone();
        spoiled[place..place + 4].fill(0xFF);
        let peak = peak(&file, &spoiled);
        assert!(peak < BYTES_MAX, "{peak} bytes with a lie at {place}");
    }

    // The longest pickle that is read, of the opcodes that make the most of each byte.
    let name = b"a/data.pkl";
    for opcodes in
        [&b"N"[..], b")", b"}", b"]", b"(", b"N\x85", b"NNN\x87", b"h\x00", b"}N\x88s", b"q\x00\x85"]
    {
        let mut pickle = b"\x80\x02Nq\x00".to_vec();
        while pickle.len() + opcodes.len() < 256 << 10 {
            pickle.extend(opcodes);
        }
        pickle.push(b'.');
        let size = (pickle.len() as u32).to_le_bytes();
        let sizes = [&[0; 12][..], &size, &size, &(name.len() as u16).to_le_bytes()].concat();
        let entry = [b"PK\x03\x04\0\0", &sizes[..], &[0, 0], name, &pickle].concat();
        let directory = [b"PK\x01\x02\0\0\0\0", &sizes[..], &[0; 16], name].concat();
        let (start, length) = ((entry.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
        let end = [&b"PK\x05\x06"[..], &[0; 8], &length, &start, &[0; 2]].concat();
        let peak = peak(&file, &[entry, directory, end].concat());
        assert!(peak > 1 << 20 && peak < BYTES_MAX, "{peak} bytes for {opcodes:?}");
    }
}
