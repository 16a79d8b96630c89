//! How an attempt ended: from its trainer's own words, its exit, and what it was told.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use hatchery_common::trainer::{Ending, FailureCause};

use super::messages::Orders;
use crate::reconcile::StopReason;

/// How a trainer that was told `orders` and has exited ended its attempt.
pub(super) fn of_trainer(said: Option<Ending>, status: ExitStatus, orders: Orders) -> Ending {
    match said {
        Some(Ending::Stopped) if orders.stop.is_some() => stopped(orders),
        Some(said) => said,
        None if orders.kill || orders.stop.is_some() => stopped(orders),
        None => failed(
            FailureCause::Crashed,
            format!("the trainer exited without a report: {}", in_words(status)),
        ),
    }
}

/// How an attempt ends that was told to.
pub(super) fn stopped(orders: Orders) -> Ending {
    match orders.stop {
        Some(StopReason::Asked | StopReason::Leaving) => Ending::Stopped,
        Some(StopReason::NodeAway) => Ending::NodeAway,
        Some(StopReason::LeaseEnds) | None => Ending::LeaseExpired,
    }
}

pub(super) fn failed(cause: FailureCause, message: String) -> Ending {
    Ending::Failed { cause, message }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed by signal 9, probably because the system ran out of memory".to_owned(),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}
