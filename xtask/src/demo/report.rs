//! The table at the end.

use serde_json::Value;

const HEADINGS: [&str; COLUMNS] = [
    "node",
    "device",
    "steps/s",
    "start loss",
    "train loss",
    "val. loss",
    "bits/byte",
    "memory",
    "time",
    "answers in",
];
const COLUMNS: usize = 10;

/// One line for each node: first the one that trained, with its figures, and all with the time of their answer.
pub(crate) fn table(job: &Value, answers: &[Value]) -> String {
    let (trained, others): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer["node"] == job["node"]);
    let rows = trained.into_iter().chain(others).map(|answer| row(job, answer));
    layout(&std::iter::once(HEADINGS.map(str::to_owned)).chain(rows).collect::<Vec<_>>())
}

fn row(job: &Value, answer: &Value) -> [String; COLUMNS] {
    let has_trained = answer["node"] == job["node"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let figure = |value: Option<f64>, digits: usize, unit: &str| match value {
        Some(value) if has_trained => format!("{value:.digits$}{unit}"),
        _ => "-".to_owned(),
    };
    let progress = &job["progress"];
    let train_loss = progress["train_loss"].as_f64().or(job["metrics"]["train_loss"].as_f64());
    let validation_loss = job["validation"]["loss"].as_f64().or(job["metrics"]["validation_loss"].as_f64());
    let start_loss = job["metrics"]["first_loss"].as_f64().or(progress["first_loss"].as_f64());
    let time_ms = job["ended_at"].as_f64().zip(job["started_at"].as_f64()).map(|(end, start)| end - start);
    [
        text(&answer["node"]),
        if has_trained { text(&job["device"]) } else { "-".to_owned() },
        figure(progress["steps_per_sec"].as_f64(), 2, ""),
        figure(start_loss, 2, ""),
        figure(train_loss, 2, ""),
        figure(validation_loss, 2, ""),
        figure(validation_loss.map(|nats| nats / std::f64::consts::LN_2), 2, ""),
        figure(progress["memory_bytes"].as_f64().map(|bytes| bytes / 1e6), 0, " MB"),
        figure(time_ms.map(|ms| ms / 1e3), 0, " s"),
        answer["latency_ms"].as_f64().map_or("-".to_owned(), |ms| format!("{ms:.0} ms")),
    ]
}

/// Pads the columns: words to the left, everything else to the right.
fn layout(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A text sample in a few lines: what cannot be printed is replaced, and it is indented.
pub(crate) fn sample(text: &str) -> String {
    let printable = |char: char| if char == '\n' || !char.is_control() { char } else { '\u{b7}' };
    let text: String = text.chars().map(printable).collect();
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_node_that_trained_shows_its_figures() {
        let job = json!({
            "node": "alder", "device": "cpu", "started_at": 1_000, "ended_at": 81_400,
            "progress": {"train_loss": 2.314, "steps_per_sec": 4.567, "memory_bytes": 412_000_000_u64},
            "validation": {"step": 300, "loss": 2.401}, "metrics": {"first_loss": 5.56},
        });
        let answers =
            [json!({"node": "birch", "latency_ms": 98.0}), json!({"node": "alder", "latency_ms": 211.4})];
        let expected = "\
node   device  steps/s  start loss  train loss  val. loss  bits/byte  memory  time  answers in
alder  cpu        4.57        5.56        2.31       2.40       3.46  412 MB  80 s      211 ms
birch  -             -           -           -          -          -       -     -       98 ms";
        assert_eq!(table(&job, &answers), expected);
    }

    #[test]
    fn a_sample_is_indented_and_printable() {
        assert_eq!(sample("a\u{7}b\nc"), "    a\u{b7}b\n    c");
    }
}
