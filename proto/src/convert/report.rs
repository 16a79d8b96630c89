//! What an agent sees: attempts and replicas.

use hatchery_common::{
    field::FieldError,
    self_test::SelfTest,
    session::{ATTEMPTS_MAX, AttemptPhase, AttemptReport, REPLICAS_MAX, ReplicaReport, ReplicaState, Report},
};

use super::{
    fields::{
        OUTPUT_BYTES_MAX, amount, attempt_id, each, head, missing, needed, optional, parsed, short_text, tail,
    },
    node::{metrics, metrics_json},
};
use crate::v1::{self, attempt_report, replica, replica_report};

impl From<Report> for v1::Report {
    fn from(report: Report) -> Self {
        Self {
            sequence: report.sequence,
            attempts: report.attempts.into_iter().map(Into::into).collect(),
            replicas: report.replicas.into_iter().map(Into::into).collect(),
            metrics_json: metrics_json(&report.metrics),
            leaving: report.leaving,
            away: report.away.map(Into::into),
        }
    }
}

impl TryFrom<v1::Report> for Report {
    type Error = FieldError;

    fn try_from(report: v1::Report) -> Result<Self, FieldError> {
        Ok(Self {
            sequence: report.sequence,
            attempts: each("attempts", report.attempts, ATTEMPTS_MAX)?,
            replicas: each("replicas", report.replicas, REPLICAS_MAX)?,
            metrics: metrics(&report.metrics_json)?,
            leaving: report.leaving,
            away: optional("away", report.away)?,
        })
    }
}

impl From<AttemptReport> for v1::AttemptReport {
    fn from(report: AttemptReport) -> Self {
        Self {
            job: report.id.job.to_string(),
            epoch: report.id.epoch.0,
            phase: Some(report.phase.into()),
            progress: report.progress.map(Into::into),
            validation: report.validation.map(Into::into),
            running_on: report.running_on,
        }
    }
}

impl TryFrom<v1::AttemptReport> for AttemptReport {
    type Error = FieldError;

    fn try_from(report: v1::AttemptReport) -> Result<Self, FieldError> {
        Ok(Self {
            id: attempt_id("job", &report.job, report.epoch)?,
            phase: report.phase.ok_or_else(|| missing("phase"))?.try_into()?,
            progress: optional("progress", report.progress)?,
            validation: optional("validation", report.validation)?,
            running_on: report.running_on,
        })
    }
}

impl From<AttemptPhase> for attempt_report::Phase {
    fn from(phase: AttemptPhase) -> Self {
        match phase {
            AttemptPhase::Fetching { done_bytes, total_bytes } => {
                Self::Fetching(attempt_report::Fetching { done_bytes, total_bytes })
            }
            AttemptPhase::Starting => Self::Starting(attempt_report::Starting {}),
            AttemptPhase::Running => Self::Running(attempt_report::Running {}),
            AttemptPhase::Stopping => Self::Stopping(attempt_report::Stopping {}),
            AttemptPhase::Ended { ending, last_output } => {
                let last_output = tail(last_output, OUTPUT_BYTES_MAX);
                Self::Ended(attempt_report::Ended { ending: Some(ending.into()), last_output })
            }
        }
    }
}

impl TryFrom<attempt_report::Phase> for AttemptPhase {
    type Error = FieldError;

    fn try_from(phase: attempt_report::Phase) -> Result<Self, FieldError> {
        Ok(match phase {
            attempt_report::Phase::Fetching(fetching) => {
                Self::Fetching { done_bytes: fetching.done_bytes, total_bytes: fetching.total_bytes }
            }
            attempt_report::Phase::Starting(_) => Self::Starting,
            attempt_report::Phase::Running(_) => Self::Running,
            attempt_report::Phase::Stopping(_) => Self::Stopping,
            attempt_report::Phase::Ended(ended) => Self::Ended {
                ending: needed("ended.ending", ended.ending)?,
                last_output: short_text("ended.last_output", ended.last_output, OUTPUT_BYTES_MAX)?,
            },
        })
    }
}

impl From<ReplicaReport> for v1::ReplicaReport {
    fn from(report: ReplicaReport) -> Self {
        let state = match report.state {
            ReplicaState::Fetching { done_bytes, total_bytes } => {
                replica_report::State::Fetching(replica::Fetching { done_bytes, total_bytes })
            }
            ReplicaState::Ready { self_test_ms } => {
                replica_report::State::Ready(replica::Ready { self_test_ms })
            }
            ReplicaState::Failed { why } => {
                let why = head(why, OUTPUT_BYTES_MAX);
                replica_report::State::Failed(replica::Failed { why })
            }
        };
        Self {
            checkpoint: report.checkpoint.to_string(),
            state: Some(state),
            active: report.active,
            serving_only: report.serving_only,
        }
    }
}

impl TryFrom<v1::ReplicaReport> for ReplicaReport {
    type Error = FieldError;

    fn try_from(report: v1::ReplicaReport) -> Result<Self, FieldError> {
        let state = match report.state.ok_or_else(|| missing("state"))? {
            replica_report::State::Fetching(fetching) => fetching.into(),
            replica_report::State::Ready(ready) => ready.try_into()?,
            replica_report::State::Failed(failed) => failed.try_into()?,
        };
        Ok(Self {
            checkpoint: parsed("checkpoint", &report.checkpoint)?,
            state,
            active: report.active,
            serving_only: report.serving_only,
        })
    }
}

impl From<SelfTest> for v1::SelfTest {
    fn from(self_test: SelfTest) -> Self {
        Self {
            answer: self_test.answer,
            log_probabilities: self_test.log_probabilities,
            serving: self_test.serving.map(|serving| Box::new((*serving).into())),
        }
    }
}

impl TryFrom<v1::SelfTest> for SelfTest {
    type Error = FieldError;

    fn try_from(self_test: v1::SelfTest) -> Result<Self, FieldError> {
        let v1::SelfTest { answer, log_probabilities, serving } = self_test;
        // Not into the depth: what comes from outside may go on in itself.
        let serving = serving.map(|serving| {
            if serving.serving.is_some() {
                return Err(FieldError::new("serving.serving", "must be absent"));
            }
            Ok(Box::new(Self {
                answer: serving.answer,
                log_probabilities: serving.log_probabilities,
                serving: None,
            }))
        });
        let self_test = Self { answer, log_probabilities, serving: serving.transpose()? };
        self_test.check()?;
        Ok(self_test)
    }
}

// The same three states stand in a report and in what people see, each time in a `oneof` of its own.

impl From<replica::Fetching> for ReplicaState {
    fn from(fetching: replica::Fetching) -> Self {
        Self::Fetching { done_bytes: fetching.done_bytes, total_bytes: fetching.total_bytes }
    }
}

impl TryFrom<replica::Ready> for ReplicaState {
    type Error = FieldError;

    fn try_from(ready: replica::Ready) -> Result<Self, FieldError> {
        Ok(Self::Ready { self_test_ms: amount("ready.self_test_ms", ready.self_test_ms)? })
    }
}

impl TryFrom<replica::Failed> for ReplicaState {
    type Error = FieldError;

    fn try_from(failed: replica::Failed) -> Result<Self, FieldError> {
        Ok(Self::Failed { why: short_text("failed.why", failed.why, OUTPUT_BYTES_MAX)? })
    }
}
