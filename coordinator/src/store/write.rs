//! An event as rows. Updates name the epoch and the phase that they start from, so that one which does not fit what is
//! stored touches no row, and the whole transaction is undone.

use hatchery_common::{id::Name, node::Inventory, recipe::NodeSelector, time::Timestamp};
use hatchery_scheduler::{Event, LeaseEnd, What};
use rusqlite::{Params, params};
use serde::Serialize;

use super::{StoreError, connection::Database};

/// Appends `event` to the events.
pub(super) fn event(database: &Database, event: &Event) -> Result<(), StoreError> {
    let sql = "INSERT INTO events (at, kind, job, body) VALUES (?1, ?2, ?3, ?4)";
    let job = event.what.job().map(|job| job.to_string());
    database.execute(sql, params![time(event.at), event.what.kind(), job, json(event)]).map(drop)
}

/// Brings the tables up to `event`.
pub(super) fn rows(database: &Database, event: &Event) -> Result<(), StoreError> {
    let write = Write { database, event };
    let at = event.at;
    match &event.what {
        What::TokenCreated { secret, token } => write.one(
            "INSERT INTO tokens (secret, scope, name, labels, created_by, created_at, expires_at, used_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                secret.to_string(),
                token.scope.name(),
                token.name.as_ref().map(Name::as_str),
                json(&token.labels),
                token.created_by.as_str(),
                time(token.created_at),
                time(token.expires_at),
                token.used_at.map(time),
            ],
        ),
        What::TokenUsed { secret } => write.one(
            "UPDATE tokens SET used_at = ?2 WHERE secret = ?1 AND used_at IS NULL",
            params![secret.to_string(), time(at)],
        ),
        What::CertificateIssued { certificate } => write.one(
            "INSERT INTO certificates (id, scope, node, name, issued_at, revoked_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                certificate.id.to_string(),
                certificate.scope.name(),
                certificate.node.map(|node| node.to_string()),
                certificate.name.as_str(),
                time(certificate.issued_at),
                certificate.revoked_at.map(time),
            ],
        ),
        What::CertificateRevoked { certificate } => write.one(
            "UPDATE certificates SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL",
            params![certificate.to_string(), time(at)],
        ),
        What::NodeJoined { node, name, labels } => write.one(
            "INSERT INTO nodes (id, name, labels, inventory, joined_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                node.to_string(),
                name.as_str(),
                json(labels),
                json(&Inventory::default()),
                time(at)
            ],
        ),
        What::NodeInventoried { node, inventory, .. } => write.one(
            "UPDATE nodes SET inventory = ?2 WHERE id = ?1 AND removed_at IS NULL",
            params![node.to_string(), json(inventory)],
        ),
        What::NodeModeChanged { node, mode, .. } => write.one(
            "UPDATE nodes SET mode = ?2 WHERE id = ?1 AND removed_at IS NULL",
            params![node.to_string(), mode.name()],
        ),
        What::NodeRemoved { node } => {
            database.execute("DELETE FROM speeds WHERE node = ?1", params![node.to_string()])?;
            write.one(
                "UPDATE nodes SET removed_at = ?2 WHERE id = ?1 AND removed_at IS NULL",
                params![node.to_string(), time(at)],
            )
        }
        What::SpeedMeasured { key, speed } => write.one(
            "INSERT OR REPLACE INTO speeds (node, device, workload, steps_per_sec, spread, measurements, at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                key.node.to_string(),
                key.device.to_string(),
                key.workload.0.to_string(),
                speed.steps_per_sec,
                speed.spread,
                speed.measurements,
                time(speed.at)
            ],
        ),
        What::DatasetRegistered { manifest } => write.one(
            "INSERT INTO datasets (id, name, corpus_bytes, manifest, registered_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                manifest.id().to_string(),
                manifest.name().as_str(),
                manifest.corpus_bytes() as i64,
                json(manifest),
                time(at)
            ],
        ),
        What::RolloutStarted { rollout } => write.one(
            "INSERT INTO rollouts
                (id, checkpoint, selector, asked_by, asked_at, activate, bytes_per_sec_max, withdrawn_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                rollout.id.to_string(),
                rollout.checkpoint.to_string(),
                json(&rollout.to),
                rollout.by.as_str(),
                time(rollout.at),
                rollout.activate,
                rollout.bytes_per_sec_max.map(|rate| rate as i64),
                rollout.withdrawn_at.map(time),
            ],
        ),
        What::RolloutWithdrawn { rollout, from: NodeSelector::All, .. } => write.one(
            "UPDATE rollouts SET withdrawn_at = ?2 WHERE id = ?1 AND withdrawn_at IS NULL",
            params![rollout.to_string(), time(at)],
        ),
        What::RolloutWithdrawn { rollout, from, .. } => write.one(
            "UPDATE rollouts SET not_on = json_insert(not_on, '$[#]', json(?2))
             WHERE id = ?1 AND withdrawn_at IS NULL",
            params![rollout.to_string(), json(from)],
        ),
        What::RolloutForgotten { rollout, .. } => {
            write.one("DELETE FROM rollouts WHERE id = ?1", params![rollout.to_string()])
        }
        // What is needed is kept: checked here once more for what would cost most.
        What::CheckpointRetired { checkpoint, .. } => write.one(
            "UPDATE checkpoints SET retired_at = ?2, is_pinned = 0, self_test = NULL
             WHERE id = ?1 AND retired_at IS NULL AND is_pinned = 0
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.checkpoint = ?1)",
            params![checkpoint.to_string(), time(at)],
        ),
        What::PinChanged { checkpoint, is_pinned, .. } => write.one(
            "UPDATE checkpoints SET is_pinned = ?2 WHERE id = ?1 AND retired_at IS NULL",
            params![checkpoint.to_string(), is_pinned],
        ),
        What::Restored { epoch_floor, .. } => {
            let sql = "UPDATE jobs SET epoch = ?1 WHERE ended_at IS NULL AND epoch < ?1";
            database.execute(sql, params![epoch_floor.0 as i64]).map(drop)
        }
        // It stands in the events.
        What::CheckpointDeclined { .. } => Ok(()),
        What::JobSubmitted { .. }
        | What::LeaseGranted { .. }
        | What::LeaseEnded { .. }
        | What::CancelRequested { .. }
        | What::HandOverRequested { .. }
        | What::JobPaused { .. }
        | What::JobResumed { .. }
        | What::PriorityChanged { .. }
        | What::JobEnded { .. }
        | What::CheckpointCommitted { .. } => write.job(),
    }
}

struct Write<'a> {
    database: &'a Database,
    event: &'a Event,
}

impl Write<'_> {
    /// Runs a statement that must touch exactly one row.
    fn one(&self, sql: &str, params: impl Params) -> Result<(), StoreError> {
        let kind = self.event.what.kind();
        match self.database.execute(sql, params) {
            Ok(1) => Ok(()),
            Ok(rows) => Err(StoreError::Stale {
                kind,
                why: format!("{rows} rows match its precondition instead of 1"),
            }),
            Err(StoreError::Other { source, .. })
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
            {
                Err(StoreError::Stale { kind, why: source.to_string() })
            }
            Err(error) => Err(error),
        }
    }

    fn job(&self) -> Result<(), StoreError> {
        let at = self.event.at;
        match &self.event.what {
            What::JobSubmitted { job, request, body, spec, submitter } => {
                self.one(
                    "INSERT INTO jobs (id, name, dataset, submitter, spec, submitted_at, phase)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'queued')",
                    params![
                        job.to_string(),
                        spec.name.as_str(),
                        spec.dataset.to_string(),
                        submitter.as_str(),
                        json(spec),
                        time(at)
                    ],
                )?;
                self.one(
                    "INSERT INTO requests (id, body, job) VALUES (?1, ?2, ?3)",
                    params![request.to_string(), body.to_string(), job.to_string()],
                )
            }
            What::LeaseGranted { job, epoch, lease } => {
                self.one(
                    "UPDATE jobs SET phase = 'running', epoch = ?2, started_at = coalesce(started_at, ?3),
                        not_before = NULL
                     WHERE id = ?1 AND epoch = ?2 - 1 AND phase = 'queued'",
                    params![job.to_string(), epoch.0 as i64, time(lease.granted_at)],
                )?;
                self.one(
                    "INSERT INTO attempts (job, epoch, node, device, granted_at, resume_from)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        job.to_string(),
                        epoch.0 as i64,
                        lease.node.to_string(),
                        lease.device.to_string(),
                        time(lease.granted_at),
                        lease.resume_from.map(|checkpoint| checkpoint.to_string())
                    ],
                )
            }
            What::LeaseEnded { job, epoch, why, not_before } => {
                self.one(
                    "UPDATE jobs SET hand_over = NULL,
                        phase = iif(hand_over ->> 'why' = 'pause', 'paused', 'queued'),
                        not_before = iif(hand_over ->> 'why' = 'pause', NULL, ?3)
                     WHERE id = ?1 AND epoch = ?2 AND phase = 'running'",
                    params![job.to_string(), epoch.0 as i64, not_before.map(time)],
                )?;
                let how = match why {
                    LeaseEnd::NodeLost => "node_lost",
                    LeaseEnd::Stopped => "stopped",
                    LeaseEnd::HandedOver => "handed_over",
                    LeaseEnd::Failed { .. } => "failed",
                };
                self.one(
                    "UPDATE attempts SET ended_at = ?3, how = ?4 WHERE job = ?1 AND epoch = ?2 AND ended_at IS NULL",
                    params![job.to_string(), epoch.0 as i64, time(at), how],
                )?;
                let LeaseEnd::Failed { cause, message } = why else { return Ok(()) };
                self.one(
                    "INSERT INTO failures (job, epoch, cause, message, at) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![
                        job.to_string(),
                        epoch.0 as i64,
                        json(cause).trim_matches('"'),
                        message,
                        time(at)
                    ],
                )
            }
            What::CancelRequested { job, .. } => self.one(
                "UPDATE jobs SET phase = 'cancelling', hand_over = NULL WHERE id = ?1 AND phase = 'running'",
                params![job.to_string()],
            ),
            What::HandOverRequested { job, why, .. } => self.one(
                "UPDATE jobs SET hand_over = ?2 WHERE id = ?1 AND phase = 'running'",
                params![job.to_string(), json(why)],
            ),
            What::JobPaused { job, .. } => self.one(
                "UPDATE jobs SET phase = 'paused', not_before = NULL WHERE id = ?1 AND phase = 'queued'",
                params![job.to_string()],
            ),
            What::JobResumed { job, .. } => self.one(
                "UPDATE jobs SET phase = 'queued' WHERE id = ?1 AND phase = 'paused'",
                params![job.to_string()],
            ),
            What::PriorityChanged { job, priority, .. } => self.one(
                "UPDATE jobs SET spec = json_set(spec, '$.queue.priority', ?2) WHERE id = ?1 AND ended_at IS NULL",
                params![job.to_string(), priority.get()],
            ),
            What::JobEnded { job, phase } => {
                // Only the attempt of a running job is open, so at most one row changes here.
                self.database.execute(
                    "UPDATE attempts SET ended_at = ?2, how = ?3 WHERE job = ?1 AND ended_at IS NULL",
                    params![job.to_string(), time(at), phase.name()],
                )?;
                self.one(
                    "UPDATE jobs SET phase = ?2, why = ?3, ended_at = ?4, not_before = NULL, hand_over = NULL
                     WHERE id = ?1 AND ended_at IS NULL",
                    params![job.to_string(), phase.name(), phase.why(), time(at)],
                )
            }
            What::CheckpointCommitted { manifest, late, self_test } => {
                let (id, job) = (manifest.id().to_string(), manifest.job.to_string());
                self.one(
                    "INSERT INTO checkpoints (id, job, epoch, step, parent, size_bytes, manifest, committed_at, late, self_test)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                    params![
                        id,
                        job,
                        manifest.epoch.0 as i64,
                        manifest.step as i64,
                        manifest.parent.map(|parent| parent.to_string()),
                        manifest.size_bytes() as i64,
                        json(manifest),
                        time(at),
                        late,
                        self_test.as_ref().map(json)
                    ],
                )?;
                // In time: the attempt has the lease. Late: it is over, and its job is not.
                let of_attempt = if *late {
                    "ended_at IS NULL AND EXISTS (SELECT 1 FROM attempts
                        WHERE attempts.job = ?1 AND attempts.epoch = ?2 AND attempts.ended_at IS NOT NULL)"
                } else {
                    "epoch = ?2 AND phase IN ('running', 'cancelling')"
                };
                self.one(
                    &format!(
                        "UPDATE jobs SET checkpoint = ?3, checkpoint_step = ?4
                         WHERE id = ?1 AND checkpoint_step < ?4 AND {of_attempt}"
                    ),
                    params![job, manifest.epoch.0 as i64, id, manifest.step as i64],
                )
            }
            other => unreachable!("{} is about no job", other.kind()),
        }
    }
}

/// SQLite's numbers are signed; every 64 bits come back as they went.
fn time(at: Timestamp) -> i64 {
    at.0 as i64
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("ids, text and checked numbers are always JSON")
}
