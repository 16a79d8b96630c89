//! Typed clients: domain types in, domain types out, errors that a person can use.
//!
//! A client is made over a channel that stands and is cheap to clone. The channel connects again by itself after the
//! connection was lost; a call made meanwhile fails with [`CallError::Unreachable`]. Calls with one answer have a time
//! limit; streams go on as long as they go on.

mod agents;
mod connect_error;
mod error;
mod fleet;

use std::{future::Future, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use hatchery_common::field::FieldError;
use tonic::{Response, Status, Streaming};

pub use agents::AgentsClient;
pub use connect_error::{ConnectError, connect_error};
pub use error::CallError;
pub use fleet::{FleetClient, GenerateCall, PushCall, TokenCall};

/// How long a call with one answer may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for one that carries a manifest of many files, over a slow line.
pub const LARGE_CALL_TIMEOUT: Duration = Duration::from_mins(3);

/// The answers of a stream, until it ends or fails.
pub type Answers<T> = BoxStream<'static, Result<T, CallError>>;

/// Waits for a call's one answer, for [`CALL_TIMEOUT`] at most.
pub async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CallError> {
    answer_within(CALL_TIMEOUT, call).await
}

async fn answer_within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(CallError::Unreachable(format!(
            "the coordinator did not answer within {} s; is it busy, or the network slow? Try again",
            limit.as_secs()
        ))),
    }
}

/// Converts an answer.
fn read<W, D>(message: W) -> Result<D, CallError>
where
    D: TryFrom<W, Error = FieldError>,
{
    D::try_from(message).map_err(CallError::unusable)
}

/// Converts a part of an answer that must be there.
fn part<W, D>(field: &'static str, part: Option<W>) -> Result<D, CallError>
where
    D: TryFrom<W, Error = FieldError>,
{
    let part = part.ok_or_else(|| CallError::unusable(FieldError::new(field, "is missing")))?;
    D::try_from(part).map_err(|error| CallError::unusable(error.within(field)))
}

/// Converts every part of a list.
fn parts<W, D>(field: &'static str, list: Vec<W>) -> Result<Vec<D>, CallError>
where
    D: TryFrom<W, Error = FieldError>,
{
    let converted = list.into_iter().enumerate().map(|(index, part)| {
        D::try_from(part).map_err(|error| CallError::unusable(error.within(&format!("{field}.{index}"))))
    });
    converted.collect()
}

/// Reads an id out of an answer.
fn id<T: std::str::FromStr<Err = FieldError>>(field: &'static str, text: &str) -> Result<T, CallError> {
    text.parse().map_err(|error: FieldError| CallError::unusable(FieldError::new(field, error.problem)))
}

/// Converts each message of a stream.
fn answers<W, D>(
    stream: Streaming<W>,
    mut convert: impl FnMut(W) -> Result<D, CallError> + Send + 'static,
) -> Answers<D>
where
    W: Send + 'static,
    D: Send + 'static,
{
    stream.map(move |message| message.map_err(CallError::from).and_then(&mut convert)).boxed()
}
