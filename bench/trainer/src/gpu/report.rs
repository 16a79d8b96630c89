//! What a comparison found, for a person and for a program.

use std::fmt;

use hatchery_common::{recipe::Precision, trainer::bits};
use hatchery_trainer::fused::{Measured, Timed};
use serde::Serialize;

use super::{
    Contender,
    full::Full,
    resume::Resume,
    task::{Found, median},
};
use crate::{
    outcome::{Outcome, all_found, is_found},
    together::Together,
};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    pub(super) head: Head,
    pub(super) shapes: Vec<Outcome<Shape>>,
    pub(super) parity: Option<Outcome<Parity>>,
    pub(super) full: Option<Outcome<Full>>,
    /// Of the full run's checkpoint.
    pub(super) answers: Option<Outcome<Together>>,
    pub(super) resume: Option<Outcome<Resume>>,
}

impl Report {
    /// An error where parts failed. That a contender cannot run is a finding, and no failure, in the comparison of losses too.
    pub(super) fn all_found(&self) -> anyhow::Result<()> {
        let Self { head: _, shapes, parity, full, answers, resume } = self;
        let operations = || shapes.iter().filter_map(Outcome::found).map(|shape| &shape.operations);
        all_found([
            ("shapes", shapes.iter().all(|shape| shape.found().is_some())),
            ("operations between the products", operations().all(|operations| operations.found().is_some())),
            ("comparison of losses", is_found(parity.as_ref())),
            ("whole run", is_found(full.as_ref())),
            ("answers at once", is_found(answers.as_ref())),
            ("exact resume", is_found(resume.as_ref())),
        ])
    }
}

/// What is measured, on what.
#[derive(Debug, Serialize)]
pub(super) struct Head {
    pub(super) device: String,
    pub(super) precision: Precision,
    pub(super) corpus_bytes: u64,
}

/// The contenders at one shape.
#[derive(Debug, Serialize)]
pub(super) struct Shape {
    pub(super) name: String,
    pub(super) parameters: u64,
    pub(super) batch: u32,
    pub(super) block: u32,
    pub(super) lines: Vec<Line>,
    /// What lies between the products, operation by operation.
    pub(super) operations: Outcome<Operations>,
}

#[derive(Debug, Serialize)]
pub(super) struct Line {
    contender: String,
    /// Median over all looks of all turns.
    step_secs: Option<f64>,
    /// The same of what the host needs to ask an idle device for a step: where that is near the whole, the device waits for the
    /// host.
    host_secs: Option<f64>,
    memory_bytes: Option<u64>,
    /// Why it has no figures, or why one of its turns has none.
    failure: Option<String>,
}

impl Line {
    pub(super) fn new(contender: &str, turns: &[Found], failure: Option<String>) -> Self {
        let median = |of: fn(&Found) -> &Vec<f64>| median(turns.iter().flat_map(of).copied());
        Self {
            contender: contender.into(),
            step_secs: median(|turn| &turn.step_secs),
            host_secs: median(|turn| &turn.host_secs),
            memory_bytes: turns.iter().map(|turn| turn.memory_bytes).max(),
            failure,
        }
    }
}

/// How far the losses of two ways lie apart, over windows of so many steps: the largest difference relative to f32's.
#[derive(Debug, Serialize)]
pub(super) struct Parity {
    preset: String,
    steps: usize,
    window: usize,
    /// This device's own arithmetic against f32.
    own_from_f32: f64,
    /// PyTorch's against f32.
    torch_from_f32: Option<f64>,
    /// This device's own against PyTorch's.
    own_from_torch: Option<f64>,
    /// Why PyTorch has no figures.
    torch_failure: Option<String>,
    /// Means over the last window.
    own_last: f64,
    f32_last: f64,
    torch_last: Option<f64>,
}

impl Parity {
    pub(super) fn new(
        preset: &str,
        own: &[f64],
        f32: &[f64],
        torch: Option<Outcome<Vec<f64>>>,
        window: usize,
    ) -> Self {
        let means = |losses: &[f64]| {
            let mean = |window: &[f64]| window.iter().sum::<f64>() / window.len() as f64;
            windows(losses, window).map(mean).collect::<Vec<f64>>()
        };
        let (torch, torch_failure) = match torch {
            Some(Outcome::Found(losses)) => (Some(losses), None),
            Some(Outcome::Failed { failure }) => (None, Some(failure)),
            None => (None, None),
        };
        let torch = torch.as_deref();
        let apart = |some: &[f64], other: &[f64]| {
            let pairs = means(some).into_iter().zip(means(other));
            pairs.map(|(some, other)| (some / other - 1.0).abs()).fold(0.0, f64::max)
        };
        let last = |losses: &[f64]| means(losses).last().copied().unwrap_or(f64::NAN);
        Self {
            preset: preset.into(),
            steps: own.len(),
            window,
            own_from_f32: apart(own, f32),
            torch_from_f32: torch.map(|torch| apart(torch, f32)),
            own_from_torch: torch.map(|torch| apart(own, torch)),
            torch_failure,
            own_last: last(own),
            f32_last: last(f32),
            torch_last: torch.map(last),
        }
    }
}

/// Windows of so many losses each; what is left over belongs to the last.
fn windows(losses: &[f64], size: usize) -> impl Iterator<Item = &[f64]> {
    let count = (losses.len() / size).max(1);
    (0..count).map(move |index| {
        let end = if index + 1 == count { losses.len() } else { (index + 1) * size };
        &losses[index * size..end]
    })
}

impl fmt::Display for Head {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, precision, corpus_bytes } = self;
        let precision = format!("{precision:?}").to_lowercase();
        writeln!(out, "{device}, {precision}, text of {corpus_bytes} bytes; dropout and AdamW included")
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, parameters, batch, block, lines, operations } = self;
        writeln!(out, "{name}: {parameters} parameters, batch {batch}, block {block}")?;
        writeln!(
            out,
            "contender         ms/step   host ms   steps/s   peak MiB   kernels are   in times the memory"
        )?;
        // What a run takes is what the others are compared with.
        let first = lines.iter().find(|line| line.contender == Contender::Kernels.name());
        for line in lines {
            let (Some(secs), Some(bytes)) = (line.step_secs, line.memory_bytes) else {
                let why = line.failure.as_deref().unwrap_or("no figures");
                writeln!(out, "{:<14} {why}", line.contender)?;
                continue;
            };
            let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}x"));
            let faster = first.and_then(|first| first.step_secs).map(|first| secs / first);
            let memory = first.and_then(|first| first.memory_bytes).map(|first| first as f64 / bytes as f64);
            writeln!(
                out,
                "{:<14} {:>10.2} {:>9.2} {:>9.2} {:>10} {:>13} {:>21}",
                line.contender,
                1e3 * secs,
                1e3 * line.host_secs.unwrap_or(secs),
                1.0 / secs,
                bytes >> 20,
                ratio(faster),
                ratio(memory)
            )?;
            if let Some(failure) = &line.failure {
                writeln!(out, "{:<14} one of its turns failed: {failure}", "")?;
            }
        }
        out.write_str(&operations.told("each operation between the products"))
    }
}

/// For a person, times beside what memory allows.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Operations(pub(super) Measured);

impl fmt::Display for Operations {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured { copy_bytes_per_sec, operations } = &self.0;
        writeln!(
            out,
            "\nbetween the products, in us; memory copies {:.0} GB/s, and the least time is what is read and written at that",
            copy_bytes_per_sec / 1e9
        )?;
        writeln!(out, "operation                 MB   least   kernel  of least   libtorch   gain")?;
        for Timed { name, bytes, kernels_secs, operations_secs } in operations {
            let least = *bytes as f64 / copy_bytes_per_sec;
            let of = |figure: Option<f64>, unit: &str| {
                figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.1}{unit}"))
            };
            writeln!(
                out,
                "{name:<20} {:>7.1} {:>7.1} {:>8} {:>9} {:>10} {:>6}",
                *bytes as f64 / 1e6,
                1e6 * least,
                of(kernels_secs.map(|secs| 1e6 * secs), ""),
                of(kernels_secs.map(|secs| secs / least), "x"),
                of(operations_secs.map(|secs| 1e6 * secs), ""),
                of(kernels_secs.zip(*operations_secs).map(|(kernel, libtorch)| libtorch / kernel), "x"),
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Parity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        writeln!(
            out,
            "losses of the preset {} over {} steps without dropout, means over {} steps, furthest apart:",
            self.preset, self.steps, self.window
        )?;
        writeln!(out, "  this trainer from its f32     {}", percent(self.own_from_f32))?;
        if let (Some(torch), Some(own)) = (self.torch_from_f32, self.own_from_torch) {
            writeln!(out, "  PyTorch from the same f32     {}", percent(torch))?;
            writeln!(out, "  this trainer from PyTorch     {}", percent(own))?;
        }
        if let Some(failure) = &self.torch_failure {
            writeln!(out, "  PyTorch failed: {failure}")?;
        }
        let torch = self.torch_last.map_or_else(String::new, |loss| format!(", PyTorch {loss:.4}"));
        writeln!(
            out,
            "  at the end: this trainer {:.4} ({:.4} bits per byte), f32 {:.4}{torch}",
            self.own_last,
            bits(self.own_last),
            self.f32_last
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_compared_window_by_window() {
        let f32 = [4.0, 2.0, 1.0, 1.0];
        let torch = Some(Outcome::Found(f32.to_vec()));
        let parity = Parity::new("seed", &[3.0, 3.0, 1.1, 1.1], &f32, torch, 2);
        assert!((parity.own_from_f32 - 0.1).abs() < 1e-12 && parity.torch_from_f32 == Some(0.0));
        assert!((parity.own_last - 1.1).abs() < 1e-12);
        let lengths = |count: usize| windows(&vec![1.0; count], 2).map(<[f64]>::len).collect::<Vec<usize>>();
        assert_eq!((lengths(1), lengths(4), lengths(5)), (vec![1], vec![2, 2], vec![2, 3]));
    }

    #[test]
    fn a_comparison_without_pytorch_says_why_and_keeps_the_rest() {
        let torch = Some(Outcome::Failed { failure: "no kernel image".into() });
        let told = Parity::new("seed", &[1.1, 1.1], &[1.0, 1.0], torch, 2).to_string();
        assert!(
            told.contains("its f32     10.00 %") && told.contains("PyTorch failed: no kernel image"),
            "{told}"
        );
    }

    #[test]
    fn a_contender_without_figures_is_a_line_with_its_reason() {
        let found = |secs: &[f64]| Found {
            step_secs: secs.to_vec(),
            host_secs: secs.to_vec(),
            memory_bytes: 3 << 20,
            losses: vec![],
        };
        let lines = vec![
            Line::new("kernels", &[found(&[0.3, 0.1]), found(&[0.2])], None),
            Line::new("torch compiled", &[], Some("no compiler".into())),
            Line::new(
                "torch eager",
                &[Found { memory_bytes: 6 << 20, ..found(&[0.6]) }],
                Some("once".into()),
            ),
        ];
        let timed = Timed {
            name: "rope".into(),
            bytes: 2_000_000,
            kernels_secs: Some(4e-6),
            operations_secs: Some(2e-5),
        };
        let operations =
            Outcome::Found(Operations(Measured { copy_bytes_per_sec: 1e12, operations: vec![timed] }));
        let shape = Shape { name: "seed".into(), parameters: 1, batch: 8, block: 256, lines, operations };
        let table = shape.to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[2].contains("200.00") && lines[2].contains("1.00x"), "{table}");
        assert_eq!(lines[3], "torch compiled no compiler");
        assert!(lines[4].contains("3.00x") && lines[4].contains("0.50x"), "{table}");
        assert_eq!(lines[5].trim_start(), "one of its turns failed: once");
        let of_rope: Vec<&str> = lines[9].split_whitespace().collect();
        assert_eq!(of_rope, ["rope", "2.0", "2.0", "4.0", "2.0x", "20.0", "5.0x"]);
    }
}
