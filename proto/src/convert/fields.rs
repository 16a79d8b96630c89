//! The steps that most conversions are made of.

use std::{collections::BTreeMap, str::FromStr};

use hatchery_common::{
    field::FieldError,
    id::{AttemptId, Epoch, Name},
    recipe::Labels,
};

/// Most labels of a node, and most that a wish may name.
pub const LABELS_MAX: usize = 64;
/// Most entries of a list of nodes or checkpoints.
pub const ENTRIES_MAX: usize = 10_000;
/// Longest text that a failure carries, last output included, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// Longest certificate request, in bytes.
pub const CERTIFICATE_REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Checks the length of a request's field `certificate_request_pem`, before anything reads it.
pub fn certificate_request(pem: String) -> Result<String, FieldError> {
    short_text("certificate_request_pem", pem, CERTIFICATE_REQUEST_BYTES_MAX)
}

/// What a part that is not there is told.
pub(super) fn missing(field: &str) -> FieldError {
    FieldError::new(field, "is missing, or unknown to this version")
}

/// Converts a part that must be there.
pub(super) fn needed<W, D>(field: &str, part: Option<W>) -> Result<D, FieldError>
where
    D: TryFrom<W, Error = FieldError>,
{
    let part = part.ok_or_else(|| FieldError::new(field, "is missing"))?;
    D::try_from(part).map_err(|error| error.within(field))
}

/// Converts a part that may be absent.
pub(super) fn optional<W, D>(field: &str, part: Option<W>) -> Result<Option<D>, FieldError>
where
    D: TryFrom<W, Error = FieldError>,
{
    part.map(D::try_from).transpose().map_err(|error| error.within(field))
}

/// Converts every entry of a list that has at most `entries_max`.
pub(super) fn each<W, D>(field: &str, list: Vec<W>, entries_max: usize) -> Result<Vec<D>, FieldError>
where
    D: TryFrom<W, Error = FieldError>,
{
    at_most(field, list.len(), entries_max, "entries")?;
    list.into_iter()
        .enumerate()
        .map(|(index, entry)| D::try_from(entry).map_err(|error| error.within(&format!("{field}.{index}"))))
        .collect()
}

/// Reads an id, a digest or a device from text.
pub(super) fn parsed<T: FromStr<Err = FieldError>>(field: &str, text: &str) -> Result<T, FieldError> {
    text.parse().map_err(|error: FieldError| FieldError::new(field, error.problem))
}

/// The same for text that may be absent.
pub(super) fn parsed_optional<T: FromStr<Err = FieldError>>(
    field: &str,
    text: Option<&str>,
) -> Result<Option<T>, FieldError> {
    text.map(|text| parsed(field, text)).transpose()
}

/// The same for every entry of a list that has at most `entries_max`.
pub(super) fn parsed_each<T: FromStr<Err = FieldError>>(
    field: &str,
    list: &[String],
    entries_max: usize,
) -> Result<Vec<T>, FieldError> {
    at_most(field, list.len(), entries_max, "entries")?;
    list.iter().enumerate().map(|(index, text)| parsed(&format!("{field}.{index}"), text)).collect()
}

/// Reads an attempt; the error names the job's field.
pub fn attempt_id(field: &str, job: &str, epoch: u64) -> Result<AttemptId, FieldError> {
    Ok(AttemptId { job: parsed(field, job)?, epoch: Epoch(epoch) })
}

/// Reads a name that may be absent.
pub(super) fn name_optional(field: &str, text: Option<&str>) -> Result<Option<Name>, FieldError> {
    text.map(|text| Name::new(field, text)).transpose()
}

/// Reads labels; the error names the key.
pub fn labels(field: &str, labels: &BTreeMap<String, String>) -> Result<Labels, FieldError> {
    at_most(field, labels.len(), LABELS_MAX, "entries")?;
    labels
        .iter()
        .map(|(key, value)| Ok((Name::new(field, key)?, Name::new(&format!("{field}.{key}"), value)?)))
        .collect()
}

/// Labels as the wire has them.
pub fn wire_labels(labels: Labels) -> BTreeMap<String, String> {
    labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

/// Refuses a list or text that is too long; `what` names the unit.
pub(super) fn at_most(field: &str, length: usize, length_max: usize, what: &str) -> Result<(), FieldError> {
    if length <= length_max {
        return Ok(());
    }
    Err(FieldError::new(field, format!("has {length} {what}, more than the limit of {length_max}")))
}

/// Refuses text that is too long.
pub(super) fn short_text(field: &str, text: String, bytes_max: usize) -> Result<String, FieldError> {
    at_most(field, text.len(), bytes_max, "bytes")?;
    Ok(text)
}

/// Refuses what is no amount of anything: negative, infinite, not a number.
pub(super) fn amount(field: &str, value: f64) -> Result<f64, FieldError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(FieldError::new(field, format!("must be a finite number of at least 0, not {value}")))
}

/// Refuses a loss that is infinite or not a number: trainers end where they meet one, and what equals nothing breaks every
/// comparison.
pub(super) fn loss(field: &str, value: f64) -> Result<f64, FieldError> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(FieldError::new(field, format!("must be a finite number, not {value}")))
}

/// The start of a text that may be too long to be sent.
pub(super) fn head(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// The end of a text that may be too long to be sent.
pub(super) fn tail(text: String, bytes_max: usize) -> String {
    match text.len().checked_sub(bytes_max) {
        None | Some(0) => text,
        Some(surplus) => text[text.ceil_char_boundary(surplus)..].to_owned(),
    }
}
