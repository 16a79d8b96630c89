//! Keys as tables of Markdown.

use std::fmt::Write;

use serde_json::Value;

use crate::{Source, source::Field};

/// A table of the keys of the struct `name`, and one under a heading of its own for each struct within it.
///
/// `defaults` are the values that hold where nothing is written, each with the name of the case in which they do; the first
/// is the usual one. `heading` is what the inner headings begin with, such as `##`.
pub fn tables(source: &Source, name: &str, defaults: &[(&str, Value)], heading: &str) -> String {
    let mut text = String::new();
    write_tables(&mut text, source, name, "", defaults, heading);
    text
}

fn write_tables(
    text: &mut String,
    source: &Source,
    name: &str,
    path: &str,
    defaults: &[(&str, Value)],
    heading: &str,
) {
    let table = source.table(name).unwrap_or_else(|| panic!("no struct {name} is read from TOML"));
    let (inner, keys): (Vec<&Field>, Vec<&Field>) =
        table.fields.iter().partition(|field| source.table(&field.of).is_some());
    if !keys.is_empty() {
        text.push_str("| key | default | meaning |\n|---|---|---|\n");
    }
    for key in &keys {
        let default = default(&key.name, defaults);
        let meaning = [key.doc.clone(), choices(source, &key.of)].join(" ");
        writeln!(text, "| `{}` | {default} | {} |", key.name, cell(&meaning)).expect("text takes any length");
    }
    for field in inner {
        let path = if path.is_empty() { field.name.clone() } else { format!("{path}.{}", field.name) };
        let within: Vec<_> =
            defaults.iter().map(|(case, value)| (*case, value[&field.name].clone())).collect();
        let doc = if field.doc.is_empty() {
            &source.table(&field.of).expect("it was looked up before").doc
        } else {
            &field.doc
        };
        write!(text, "\n{heading} `[{path}]`\n\n{}\n\n", prose(doc)).expect("text takes any length");
        write_tables(text, source, &field.of, &path, &within, heading);
    }
}

/// What an enum's words mean.
fn choices(source: &Source, of: &str) -> String {
    let choice = |choice: &crate::source::Choice| {
        let word = if choice.has_value {
            format!("{{ {} = ... }}", choice.word)
        } else {
            format!("\"{}\"", choice.word)
        };
        let doc = choice.doc.trim_end_matches('.');
        if doc.is_empty() { format!("`{word}`") } else { format!("`{word}`: {doc}") }
    };
    let choices: Vec<String> = source.choices(of).iter().map(choice).collect();
    if choices.is_empty() { String::new() } else { format!("<br>{}", choices.join("<br>")) }
}

/// The default of a key, and where it differs between cases, that of each.
fn default(key: &str, defaults: &[(&str, Value)]) -> String {
    let Some((_, usual)) = defaults.first() else { return String::new() };
    let mut text = value(key, &usual[key]);
    for (case, others) in defaults.iter().skip(1).filter(|(_, others)| others[key] != usual[key]) {
        write!(text, "; {case}: {}", value(key, &others[key])).expect("text takes any length");
    }
    text
}

fn value(key: &str, value: &Value) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let text = match value {
        Value::Null => return "not set".to_owned(),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        value => value.to_string(),
    };
    let bytes = value.as_u64().filter(|bytes| key.contains("bytes") && *bytes > 0);
    let unit = bytes.and_then(|bytes| {
        let (size, unit) = UNITS.into_iter().find(|(size, _)| bytes.is_multiple_of(*size))?;
        Some(format!(" ({} {unit})", bytes / size))
    });
    format!("`{text}`{}", unit.unwrap_or_default())
}

fn cell(text: &str) -> String {
    prose(text).replace('|', "\\|").replace(" <br>", "<br>").trim().to_owned()
}

/// A doc comment's text with its links to items as plain code.
fn prose(text: &str) -> String {
    text.replace("[`", "`").replace("`]", "`")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_name_their_case_and_bytes_their_unit() {
        let cases =
            [("tiny", json!({ "steps": 3, "same": "a" })), ("seed", json!({ "steps": 5, "same": "a" }))];
        assert_eq!(default("steps", &cases), "`3`; seed: `5`");
        assert_eq!(default("same", &cases), "`\"a\"`");
        assert_eq!(default("absent", &cases), "not set");
        assert_eq!(value("disk_bytes", &json!(8_u64 << 30)), "`8589934592` (8 GiB)");
    }
}
