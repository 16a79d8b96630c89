//! An event as it stands in the events table: its time in a column, all of it as JSON in another.

use hatchery_common::time::Timestamp;
use hatchery_scheduler::{Event, What};
use serde::Deserialize;

/// Older versions wrote the time of some kinds into the column alone.
#[derive(Deserialize)]
struct Body {
    at: Option<Timestamp>,
    #[serde(flatten)]
    what: What,
}

/// Reads the event whose columns are these.
pub(super) fn parse(at: Timestamp, body: &str) -> Result<Event, String> {
    let body: Body = serde_json::from_str(body).map_err(|error| error.to_string())?;
    match body.at {
        Some(other) if other != at => Err("its columns do not match its body".to_owned()),
        _ => Ok(body.what.at(at)),
    }
}
