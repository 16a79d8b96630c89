//! The machine's figures of this moment, read every few seconds and sent with each report.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hatchery_common::node::NodeMetrics;
use rustix::fs::statvfs;
use sysinfo::{Components, System};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::platform::Platform;

/// How often the figures are read.
const READ_EVERY: Duration = Duration::from_secs(2);
/// What the names of a processor's sensors contain: the drivers for Intel and AMD, boards with ARM, Macs.
const PROCESSOR_SENSORS: [&str; 6] = ["coretemp", "k10temp", "zenpower", "cpu", "soc", "tdie"];

/// Keeps `latest` up to date for as long as it runs.
pub(crate) async fn watch(platform: Arc<dyn Platform>, state: PathBuf, latest: watch::Sender<NodeMetrics>) {
    let mut due = interval(READ_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        latest.send_replace(platform.metrics(&state).await);
    }
}

/// Reads them. `state` is a folder on the file system whose free space counts.
pub(crate) fn read(state: &Path) -> NodeMetrics {
    NodeMetrics {
        disk_free_bytes: statvfs(state).ok().map(|disk| disk.f_bavail * disk.f_frsize),
        load_average: System::load_average().ok().map(|load| load.one),
        temperature_celsius: temperature(),
    }
}

fn temperature() -> Option<f64> {
    let sensors = Components::new_with_refreshed_list().ok()?;
    let readings =
        sensors.iter().filter_map(|sensor| Some((sensor.label().to_owned(), sensor.temperature()?.into())));
    hottest(readings)
}

/// The highest reading of the processor's sensors.
fn hottest(readings: impl Iterator<Item = (String, f64)>) -> Option<f64> {
    let of_processor = |name: &str| {
        let name = name.to_lowercase();
        PROCESSOR_SENSORS.iter().any(|part| name.contains(part))
    };
    let own = readings.filter(|(name, celsius)| of_processor(name) && celsius.is_finite());
    own.map(|(_, celsius)| celsius).max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_disk_and_a_load() {
        let metrics = read(Path::new("/"));
        assert!(metrics.disk_free_bytes.is_some() && metrics.load_average.is_some(), "{metrics:?}");
        assert_eq!(read(Path::new("/no such folder")).disk_free_bytes, None);
    }

    #[test]
    fn the_temperature_is_that_of_the_processor() {
        let readings = [("nvme Composite", 71.9), ("coretemp Core 0", 48.0), ("coretemp Core 1", 54.0)];
        let hottest = |readings: &[(&str, f64)]| {
            hottest(readings.iter().map(|(name, celsius)| ((*name).to_owned(), *celsius)))
        };
        assert_eq!(hottest(&readings), Some(54.0));
        assert_eq!(hottest(&readings[..1]), None);
    }
}
