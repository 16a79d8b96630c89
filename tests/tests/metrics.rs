//! What a machine says of this moment, as `hatchery node` shows it.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::{fs, path::Path};

use hatchery_tests::Fleet;
use rustix::fs::statvfs;
use serde_json::Value;

const FILE_BYTES: usize = 256 << 20;
/// Others write to the same disk while the test runs.
const OTHERS_BYTES: u64 = 64 << 20;

/// Waits until the node says what the file system itself says.
fn wait_for_free_bytes(fleet: &Fleet, folder: &Path) {
    let is_so = |node: &Value| {
        let disk = statvfs(folder).unwrap();
        let shown = node["metrics"]["disk_free_bytes"].as_u64()?;
        (shown.abs_diff(disk.f_bavail * disk.f_frsize) < OTHERS_BYTES).then_some(())
    };
    fleet.wait_for(&["node", "ada"], "its free disk is what its file system says", is_so);
}

fn shown(fleet: &Fleet, fact: &str) -> String {
    let text = fleet.run(&["node", "ada"]).stdout;
    let line = text.lines().find_map(|line| line.strip_prefix(fact));
    line.unwrap_or_else(|| panic!("no {fact}: {text}")).trim().to_owned()
}

#[test]
fn a_disk_that_fills_is_seen_to_fill() {
    let mut fleet = Fleet::with_agents(5, &["ada"]);
    let folder = fleet.agent_home("ada").join("agent");
    wait_for_free_bytes(&fleet, &folder);
    // No file system makes less of such bytes.
    let mut state = 7_u64;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    fs::write(folder.join("ballast"), bytes.take(FILE_BYTES).collect::<Vec<u8>>()).unwrap();
    wait_for_free_bytes(&fleet, &folder);
    assert!(shown(&fleet, "disk free").ends_with('B'), "{}", shown(&fleet, "disk free"));

    fleet.agent("ada").kill();
    fleet.wait_for_node("ada", "disconnected");
    assert!(shown(&fleet, "disk free").ends_with(" ago"), "{}", shown(&fleet, "disk free"));
    fleet.kill_coordinator();
    fleet.start_coordinator();
    assert_eq!(shown(&fleet, "disk free"), "-");
}
