//! Printing: text for people or JSON for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::exit::{Failure, Outcome};

/// How results are printed to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Tables and sentences for people.
    #[default]
    Text,
    /// JSON with stable field names; streams print one value per line.
    Json,
}

impl Output {
    /// Prints `value` as JSON, or what `text` makes of it.
    pub(crate) fn print<T: Serialize + ?Sized>(self, value: &T, text: impl FnOnce(&T) -> String) -> Outcome {
        match self {
            Self::Json => line(&serde_json::to_string_pretty(value).map_err(Failure::failed)?),
            Self::Text => line(text(value).trim_end()),
        }
    }

    /// Prints one value of a stream: a line of JSON, or the text.
    pub(crate) fn print_line<T: Serialize + ?Sized>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Outcome {
        match self {
            Self::Json => line(&serde_json::to_string(value).map_err(Failure::failed)?),
            Self::Text => line(&text(value)),
        }
    }
}

/// Prints one line to stdout. A reader that has gone away (`| head`) ends the command quietly.
pub(crate) fn line(text: &str) -> Outcome {
    raw(format!("{text}\n").as_bytes())
}

/// Writes bytes to stdout as they are.
pub(crate) fn raw(bytes: &[u8]) -> Outcome {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
    }
}

/// Whether stderr shows bars: it is a terminal that can move its cursor, and `NO_COLOR` does not ask for plain lines.
pub(crate) fn is_interactive() -> bool {
    let wants_plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    io::stderr().is_terminal() && !console::is_dumb() && !wants_plain
}

/// An aligned table; columns whose heading starts with `>` are aligned to the right.
pub(crate) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let on_terminal = io::stdout().is_terminal();
    table.set_header(headings.iter().map(|heading| {
        let cell = Cell::new(heading.trim_start_matches('>').to_uppercase());
        if on_terminal { cell.add_attribute(comfy_table::Attribute::Dim) } else { cell }
    }));
    for row in rows {
        table.add_row(row);
    }
    for (index, heading) in headings.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if heading.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `key  value` lines, aligned; pairs without a value are left out.
pub(crate) fn facts(pairs: &[(&str, Option<String>)]) -> String {
    let width = pairs.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 2;
    pairs
        .iter()
        .filter_map(|(key, value)| value.as_ref().map(|value| format!("{key:<width$}{value}")))
        .collect::<Vec<_>>()
        .join("\n")
}
