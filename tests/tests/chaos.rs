//! Three minutes of chaos: Hatchery is hurt while it is used, and keeps all that it promises.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::time::Duration;

use hatchery_tests::chaos::{Plan, run};

/// Another seed does the same things to others, in another order, at other times.
const SEED: u64 = 20_261_126;

#[test]
fn three_minutes_of_chaos_break_nothing() {
    let plan = Plan { time: Duration::from_mins(3), seed: SEED, points: String::new(), only: String::new() };
    let report = run(plan, &|line| eprintln!("{line}")).unwrap();
    println!("{report}");
    assert!(report.findings.is_empty(), "{report}");
}
