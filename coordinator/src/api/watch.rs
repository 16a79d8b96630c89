//! Streams that go on as things happen. Each keeps its place and nothing more, so a slow reader costs no memory.

use std::{collections::VecDeque, sync::Arc};

use futures::{Stream, stream};
use hatchery_common::{
    id::{Epoch, JobId},
    view::{EventView, JobView},
};
use hatchery_net::blocking;
use tokio::sync::watch::error::RecvError;

use crate::{
    api::{context::Context, error::ApiError},
    core::handle::CommandError,
    sessions::logs::{AttemptLog, Logs},
    store::StoredEvent,
    views::{self, event},
};

/// Events read from the store at one time.
const EVENTS_PAGE: usize = 256;
/// Most bytes of a log in one message.
const LOG_BYTES_MAX: usize = 64 * 1024;

fn stopping(_: RecvError) -> ApiError {
    CommandError::Stopping.into()
}

/// A job as it is now and whenever it has changed, with the number of the last event, until it has ended.
pub(crate) fn job(
    context: &Context,
    id: JobId,
) -> impl Stream<Item = Result<(JobView, u64), ApiError>> + use<> {
    let snapshots = context.event_loop.snapshots.clone();
    stream::try_unfold((snapshots, None::<JobView>), move |(mut snapshots, last)| async move {
        if last.as_ref().is_some_and(|job| job.phase.is_terminal()) {
            return Ok(None);
        }
        loop {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let job = snapshot.cluster.jobs.get(&id).map(|job| views::job(&snapshot, job));
            let job = job.ok_or_else(|| ApiError::Gone { what: "job", id: id.to_string() })?;
            if last.as_ref() != Some(&job) {
                return Ok(Some(((job.clone(), snapshot.cluster.last_event), (snapshots, Some(job)))));
            }
            drop(snapshot);
            snapshots.changed().await.map_err(stopping)?;
        }
    })
}

/// The history after event number `after`, of one job if asked; with `follow` it never ends.
pub(crate) fn events(
    context: &Arc<Context>,
    after: u64,
    follow: bool,
    job: Option<JobId>,
) -> impl Stream<Item = Result<EventView, ApiError>> + use<> {
    let last_event = context.event_loop.last_event.clone();
    let start = (Arc::clone(context), last_event, after, VecDeque::<StoredEvent>::new());
    stream::try_unfold(start, move |(context, mut last_event, mut after, mut page)| async move {
        loop {
            while let Some(event) = page.pop_front() {
                if job.is_none_or(|job| event.event.what.job() == Some(job)) {
                    let view = event::event(&context.event_loop.snapshot().cluster, &event);
                    return Ok(Some((view, (context, last_event, after, page))));
                }
            }
            // Nothing is told before it is shown: the store may be ahead by one commit.
            let shown = *last_event.borrow_and_update();
            if after < shown {
                let limit = EVENTS_PAGE.min((shown - after) as usize);
                let events = context.store.events(after, limit).await?;
                page = events.map_err(|error| ApiError::Internal(error.to_string()))?.into();
                after = page.back().map_or(shown, |event| event.seq);
            } else if follow {
                last_event.changed().await.map_err(stopping)?;
            } else {
                return Ok(None);
            }
        }
    })
}

/// What a job's attempts wrote, in whole lines; with `follow` until the job has ended.
pub(crate) fn logs(
    context: &Arc<Context>,
    job: JobId,
    follow: bool,
) -> impl Stream<Item = Result<(Epoch, Vec<u8>), ApiError>> + use<> {
    let context = Arc::clone(context);
    let (writes, last_event) = (context.logs.writes(), context.event_loop.last_event.clone());
    let start = (context, writes, last_event, Place::default());
    stream::try_unfold(start, move |(context, mut writes, mut last_event, place)| async move {
        loop {
            writes.mark_unchanged();
            last_event.mark_unchanged();
            let snapshot = context.event_loop.snapshot();
            let goes_on =
                follow && snapshot.cluster.jobs.get(&job).is_some_and(|job| !job.phase.is_terminal());
            drop(snapshot);
            let (logs, from) = (context.logs.clone(), place.clone());
            let read = blocking(move || from.read(&logs, job, !goes_on)).await;
            if let Some((epoch, text, place)) = read.map_err(|error| ApiError::Internal(error.to_string()))? {
                return Ok(Some(((epoch, text), (context, writes, last_event, place))));
            }
            if !goes_on {
                return Ok(None);
            }
            tokio::select! {
                written = writes.changed() => written.map_err(stopping)?,
                shown = last_event.changed() => shown.map_err(stopping)?,
            }
        }
    })
}

/// How far a job's logs are read.
#[derive(Clone, Debug, Default)]
struct Place {
    attempt: Option<AttemptLog>,
    offset: u64,
}

impl Place {
    /// The next lines, and the place after them; `is_final` if nothing more will be written.
    fn read(
        self,
        logs: &Logs,
        job: JobId,
        is_final: bool,
    ) -> Result<Option<(Epoch, Vec<u8>, Self)>, hatchery_common::durable::FileError> {
        let attempts = logs.attempts(job)?;
        let newest = attempts.last().cloned();
        for attempt in attempts.into_iter().filter(|attempt| self.attempt.as_ref() <= Some(attempt)) {
            let from = if self.attempt.as_ref() == Some(&attempt) { self.offset } else { 0 };
            let (at, mut text) = attempt.read(from, LOG_BYTES_MAX)?;
            let is_over = is_final || newest.as_ref() != Some(&attempt);
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            // The rest of a line may still come, unless nothing does, or the line is longer than a message.
            if whole > 0 || !(is_over || text.len() == LOG_BYTES_MAX) {
                text.truncate(whole);
            }
            if !text.is_empty() {
                let place = Self { offset: at + text.len() as u64, attempt: Some(attempt.clone()) };
                return Ok(Some((attempt.epoch, text, place)));
            }
        }
        Ok(None)
    }
}
