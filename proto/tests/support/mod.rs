//! What several tests share.
#![allow(dead_code, reason = "each test uses its own part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

pub(crate) mod arbitrary;
