//! What a card draws and how hot it is while something runs, by `nvidia-smi`.

use std::{
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde::{Deserialize, Serialize};

const EVERY: Duration = Duration::from_secs(1);

/// Means over a run, but for the temperature: its highest.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) power_watts: f64,
    pub(super) busy_percent: f64,
    pub(super) temperature_celsius_max: f64,
}

/// Looks at a card until it is told to stop.
#[derive(Debug)]
pub(super) struct Watch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<[f64; 3]>>,
}

impl Watch {
    /// For card `index`, as CUDA counts.
    pub(super) fn start(index: u32) -> Self {
        let card = name(index, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref());
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut seen = Vec::new();
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                seen.extend(look(&card));
            }
            seen
        });
        Self { stop, thread }
    }

    /// What it saw; None: nothing, because there is no `nvidia-smi` that answers.
    pub(super) fn stop(self) -> Option<Figures> {
        drop(self.stop);
        let seen = self.thread.join().ok().filter(|seen| !seen.is_empty())?;
        let mean = |which: usize| seen.iter().map(|row| row[which]).sum::<f64>() / seen.len() as f64;
        Some(Figures {
            power_watts: mean(0),
            busy_percent: mean(1),
            temperature_celsius_max: seen.iter().map(|row| row[2]).fold(0.0, f64::max),
        })
    }
}

/// What `nvidia-smi` calls the card that CUDA counts as `index`: both count by the PCI bus, but CUDA only those that it may see.
fn name(index: u32, visible: Option<&str>) -> String {
    let visible = visible.and_then(|names| names.split(',').nth(index as usize));
    visible.map_or_else(|| index.to_string(), |name| name.trim().to_owned())
}

fn look(card: &str) -> Option<[f64; 3]> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=power.draw,utilization.gpu,temperature.gpu", "--format=csv,noheader,nounits"])
        .args(["--id", card])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// A line such as `179.31, 97, 61`; a card that has not one of the figures says so in words.
fn parse(line: &str) -> Option<[f64; 3]> {
    let figures: Vec<f64> = line.trim().split(',').map_while(|figure| figure.trim().parse().ok()).collect();
    figures.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_or_left_alone() {
        assert_eq!(parse("179.31, 97, 61\n"), Some([179.31, 97.0, 61.0]));
        assert_eq!(parse("[N/A], 97, 61\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_card_is_named_as_the_driver_names_it() {
        assert_eq!(name(1, None), "1");
        assert_eq!(name(0, Some("2,GPU-5a")), "2");
        assert_eq!(name(1, Some("2, GPU-5a")), "GPU-5a");
    }
}
