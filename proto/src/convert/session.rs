//! The session's two directions.

use std::{collections::BTreeMap, time::Duration};

use hatchery_common::{
    field::FieldError,
    generate::{GenerationOrder, PROMPT_BYTES_MAX},
    id::{AttemptId, Name},
    recipe::Reader,
    session::{
        ATTEMPTS_MAX, AgentMessage, AnswerPart, AssignedAttempt, Assignment, CoordinatorMessage,
        LOG_CHUNK_BYTES_MAX, UnreadableAttempt,
    },
    swarm::{REVOKED_MAX, Trouble},
};

use super::fields::{
    ENTRIES_MAX, OUTPUT_BYTES_MAX, at_most, attempt_id, head, missing, needed, parsed, parsed_each,
    parsed_optional, short_text,
};
use super::recipe::job_spec;
use crate::v1::{self, generation_part, session_request, session_response};

impl From<Assignment> for v1::Assignment {
    fn from(assignment: Assignment) -> Self {
        Self {
            lease_ms: assignment.lease.as_millis() as u64,
            attempts: assignment.attempts.into_iter().map(Into::into).collect(),
            checkpoints: assignment.checkpoints.iter().map(ToString::to_string).collect(),
            active: assignment
                .active
                .iter()
                .map(|(job, checkpoint)| v1::assignment::Active {
                    job: job.to_string(),
                    checkpoint: checkpoint.to_string(),
                })
                .collect(),
            rates: assignment
                .bytes_per_sec_max
                .iter()
                .map(|(checkpoint, rate)| v1::assignment::Rate {
                    checkpoint: checkpoint.to_string(),
                    bytes_per_sec_max: *rate,
                })
                .collect(),
        }
    }
}

impl TryFrom<v1::Assignment> for Assignment {
    type Error = FieldError;

    fn try_from(assignment: v1::Assignment) -> Result<Self, FieldError> {
        let (attempts, unreadable) = attempts(assignment.attempts)?;
        Ok(Self {
            lease: Duration::from_millis(assignment.lease_ms),
            attempts,
            unreadable,
            checkpoints: parsed_each("checkpoints", &assignment.checkpoints, ENTRIES_MAX)?,
            active: entries("active", &assignment.active, |one| {
                Ok((parsed("job", &one.job)?, parsed("checkpoint", &one.checkpoint)?))
            })?,
            bytes_per_sec_max: entries("rates", &assignment.rates, |one| {
                Ok((parsed("checkpoint", &one.checkpoint)?, one.bytes_per_sec_max))
            })?,
        })
    }
}

/// Reads the pairs of a map.
fn entries<W, K: Ord, V>(
    field: &str,
    list: &[W],
    read: impl Fn(&W) -> Result<(K, V), FieldError>,
) -> Result<BTreeMap<K, V>, FieldError> {
    at_most(field, list.len(), ENTRIES_MAX, "entries")?;
    let pair = |(index, one)| read(one).map_err(|error| error.within(&format!("{field}.{index}")));
    list.iter().enumerate().map(pair).collect()
}

impl From<AssignedAttempt> for v1::AssignedAttempt {
    fn from(attempt: AssignedAttempt) -> Self {
        Self {
            job: attempt.id.job.to_string(),
            epoch: attempt.id.epoch.0,
            spec: Some(attempt.spec.into()),
            device: attempt.device.to_string(),
            resume_from: attempt.resume_from.map(|checkpoint| checkpoint.to_string()),
            stop: attempt.stop,
        }
    }
}

/// Reads the attempts of an assignment. One whose spec cannot be read here is set aside, so that the others go on.
fn attempts(
    list: Vec<v1::AssignedAttempt>,
) -> Result<(Vec<AssignedAttempt>, Vec<UnreadableAttempt>), FieldError> {
    at_most("attempts", list.len(), ATTEMPTS_MAX, "entries")?;
    let (mut attempts, mut unreadable) = (Vec::with_capacity(list.len()), Vec::new());
    for (index, one) in list.into_iter().enumerate() {
        match attempt(one).map_err(|error| error.within(&format!("attempts.{index}")))? {
            Ok(attempt) => attempts.push(attempt),
            Err(attempt) => unreadable.push(attempt),
        }
    }
    Ok((attempts, unreadable))
}

fn attempt(attempt: v1::AssignedAttempt) -> Result<Result<AssignedAttempt, UnreadableAttempt>, FieldError> {
    let id = attempt_id("job", &attempt.job, attempt.epoch)?;
    let (device, stop) = (parsed("device", &attempt.device)?, attempt.stop);
    let resume_from = parsed_optional("resume_from", attempt.resume_from.as_deref())?;
    Ok(match job_spec(attempt.spec, Reader::Agent) {
        Ok((_, spec)) => Ok(AssignedAttempt { id, spec, device, resume_from, stop }),
        Err(error) => Err(UnreadableAttempt { id, stop, why: error.to_string() }),
    })
}

impl From<AgentMessage> for v1::SessionRequest {
    fn from(message: AgentMessage) -> Self {
        use session_request::Message;
        let message = match message {
            AgentMessage::Hello(inventory) => {
                Message::Hello(v1::Hello { inventory: Some((*inventory).into()) })
            }
            AgentMessage::Report(report) => Message::Report(report.into()),
            AgentMessage::Inventory(inventory) => Message::Inventory((*inventory).into()),
            AgentMessage::LogLines { attempt: AttemptId { job, epoch }, offset, text } => {
                Message::LogLines(v1::LogLines { job: job.to_string(), epoch: epoch.0, offset, text })
            }
            AgentMessage::Generation { request, part } => {
                let part = match part {
                    AnswerPart::Text(bytes) => generation_part::Part::Text(bytes),
                    AnswerPart::Finished(finished) => generation_part::Part::Finished(finished.into()),
                    AnswerPart::Failed(why) => {
                        let why = head(why, OUTPUT_BYTES_MAX);
                        generation_part::Part::Failed(generation_part::Failed { why })
                    }
                };
                Message::GenerationPart(v1::GenerationPart {
                    request_id: request.to_string(),
                    part: Some(part),
                })
            }
            AgentMessage::Goodbye => Message::Goodbye(v1::Goodbye {}),
            AgentMessage::Swarm(report) => Message::SwarmReport(report.into()),
            AgentMessage::PeerTrouble { blob, trouble } => Message::PeerTrouble(v1::PeerTrouble {
                blob: blob.to_string(),
                trouble: Some(trouble.into()),
            }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<v1::SessionRequest> for AgentMessage {
    type Error = FieldError;

    fn try_from(request: v1::SessionRequest) -> Result<Self, FieldError> {
        use session_request::Message;
        Ok(match request.message.ok_or_else(|| missing("message"))? {
            Message::Hello(hello) => Self::Hello(Box::new(needed("hello.inventory", hello.inventory)?)),
            Message::Report(report) => {
                Self::Report(report.try_into().map_err(|error: FieldError| error.within("report"))?)
            }
            Message::Inventory(inventory) => Self::Inventory(Box::new(
                inventory.try_into().map_err(|error: FieldError| error.within("inventory"))?,
            )),
            Message::LogLines(lines) => {
                at_most("log_lines.text", lines.text.len(), LOG_CHUNK_BYTES_MAX, "bytes")?;
                Self::LogLines {
                    attempt: attempt_id("log_lines.job", &lines.job, lines.epoch)?,
                    offset: lines.offset,
                    text: lines.text,
                }
            }
            Message::GenerationPart(part) => Self::Generation {
                request: parsed("generation_part.request_id", &part.request_id)?,
                part: part
                    .part
                    .ok_or_else(|| missing("part"))
                    .and_then(AnswerPart::try_from)
                    .map_err(|error| error.within("generation_part"))?,
            },
            Message::Goodbye(_) => Self::Goodbye,
            Message::SwarmReport(report) => {
                Self::Swarm(report.try_into().map_err(|error: FieldError| error.within("swarm_report"))?)
            }
            Message::PeerTrouble(v1::PeerTrouble { blob, trouble }) => Self::PeerTrouble {
                blob: parsed("peer_trouble.blob", &blob)?,
                trouble: trouble
                    .ok_or_else(|| missing("trouble"))
                    .and_then(Trouble::try_from)
                    .map_err(|error| error.within("peer_trouble"))?,
            },
        })
    }
}

impl TryFrom<generation_part::Part> for AnswerPart {
    type Error = FieldError;

    fn try_from(part: generation_part::Part) -> Result<Self, FieldError> {
        Ok(match part {
            generation_part::Part::Text(bytes) => {
                at_most("text", bytes.len(), PROMPT_BYTES_MAX, "bytes")?;
                Self::Text(bytes)
            }
            generation_part::Part::Finished(finished) => {
                Self::Finished(finished.try_into().map_err(|error: FieldError| error.within("finished"))?)
            }
            generation_part::Part::Failed(failed) => {
                Self::Failed(short_text("failed.why", failed.why, OUTPUT_BYTES_MAX)?)
            }
        })
    }
}

impl From<CoordinatorMessage> for v1::SessionResponse {
    fn from(message: CoordinatorMessage) -> Self {
        use session_response::Message;
        let message = match message {
            CoordinatorMessage::Welcome { name, report_every } => Message::Welcome(v1::Welcome {
                name: name.into(),
                report_every_ms: report_every.as_millis() as u64,
            }),
            CoordinatorMessage::Assignment(assignment) => Message::Assignment(assignment.into()),
            CoordinatorMessage::ReportReceived { sequence } => {
                Message::ReportReceived(v1::ReportReceived { sequence })
            }
            CoordinatorMessage::Generation { request, order } => {
                let GenerationOrder { checkpoint, prompt, max_bytes, sampling, stop } = order;
                Message::Generation(v1::Generation {
                    request_id: request.to_string(),
                    checkpoint: checkpoint.to_string(),
                    prompt,
                    max_bytes,
                    sampling: Some(sampling.into()),
                    stop: stop.into(),
                })
            }
            CoordinatorMessage::GenerationCancelled { request } => {
                Message::GenerationCancelled(v1::GenerationCancelled { request_id: request.to_string() })
            }
            CoordinatorMessage::FetchPlan(plan) => Message::FetchPlan(plan.into()),
            CoordinatorMessage::Revoked(certificates) => Message::Revoked(v1::Revoked {
                certificates: certificates.iter().map(ToString::to_string).collect(),
            }),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<v1::SessionResponse> for CoordinatorMessage {
    type Error = FieldError;

    fn try_from(response: v1::SessionResponse) -> Result<Self, FieldError> {
        use session_response::Message;
        Ok(match response.message.ok_or_else(|| missing("message"))? {
            Message::Welcome(welcome) => Self::Welcome {
                name: Name::new("welcome.name", &welcome.name)?,
                report_every: Duration::from_millis(welcome.report_every_ms),
            },
            Message::Assignment(assignment) => Self::Assignment(
                assignment.try_into().map_err(|error: FieldError| error.within("assignment"))?,
            ),
            Message::ReportReceived(received) => Self::ReportReceived { sequence: received.sequence },
            Message::Generation(generation) => Self::Generation {
                request: parsed("generation.request_id", &generation.request_id)?,
                order: generation.try_into().map_err(|error: FieldError| error.within("generation"))?,
            },
            Message::GenerationCancelled(cancelled) => Self::GenerationCancelled {
                request: parsed("generation_cancelled.request_id", &cancelled.request_id)?,
            },
            Message::FetchPlan(plan) => {
                Self::FetchPlan(plan.try_into().map_err(|error: FieldError| error.within("fetch_plan"))?)
            }
            Message::Revoked(revoked) => {
                Self::Revoked(parsed_each("revoked.certificates", &revoked.certificates, REVOKED_MAX)?)
            }
        })
    }
}
