//! Every target on its seeds, on what is near to them, and on what was once found.

use std::{fs, path::Path};

use hatchery_fuzz::TARGETS;

/// Most changed inputs of one seed, for the long ones.
const NEAR_MAX: usize = 400;

#[test]
fn seeds_are_read_and_what_is_near_to_them_breaks_nothing() {
    for target in TARGETS {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            assert!((target.check)(&seed), "{}: seed {number} is refused", target.name);
            let step = (seed.len() / (NEAR_MAX / 4)).max(1);
            for at in (0..seed.len()).step_by(step) {
                // What it says of them counts for nothing here: it must say something.
                let _read = (target.check)(&seed[..at]);
                for flip in [1, 0x80] {
                    let mut near = seed.clone();
                    near[at] ^= flip;
                    let _read = (target.check)(&near);
                }
                let mut longer = seed.clone();
                longer.insert(at, seed[at]);
                let _read = (target.check)(&longer);
            }
        }
    }
}

#[test]
fn what_was_once_found_breaks_nothing_any_more() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("found");
    let entries = fs::read_dir(found).unwrap().map(Result::unwrap);
    for folder in entries.filter(|entry| entry.path().is_dir()) {
        let name = folder.file_name().into_string().unwrap();
        let target = hatchery_fuzz::target(&name).expect("folders are named like their targets");
        for file in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
            let _read = (target.check)(&fs::read(file.path()).unwrap());
        }
    }
}
