//! `cancel`, `pause`, `resume`, `requeue`: of one job, or of all of a group that have not ended.

use hatchery_common::{job::JobPhase, view::JobView};
use hatchery_proto::client::{CallError, FleetClient};

use super::jobs::of_group;
use crate::{args::JobOrGroupArgs, exit::Outcome, home::Home, output::Output};

/// What is to be done.
#[derive(Clone, Copy)]
pub(super) enum Control {
    Cancel,
    Pause,
    Resume,
    Requeue,
}

impl Control {
    async fn of(self, fleet: &FleetClient, job: &str) -> Result<JobView, CallError> {
        match self {
            Self::Cancel => fleet.cancel(job).await,
            Self::Pause => fleet.pause(job).await,
            Self::Resume => fleet.resume(job).await,
            Self::Requeue => fleet.requeue(job).await,
        }
    }
}

/// Does it, and says how each job stands then.
pub(super) async fn run(control: Control, args: JobOrGroupArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    let Some(group) = &args.group else {
        let job = control.of(&fleet, &args.job).await?;
        return output.print(&job, told);
    };
    let mut jobs = Vec::new();
    for job in of_group(&fleet, group).await?.iter().filter(|job| !job.phase.is_terminal()) {
        jobs.push(control.of(&fleet, &job.id.to_string()).await?);
    }
    output.print(&jobs, |jobs| {
        if jobs.is_empty() {
            return format!("all jobs of group {group} have ended");
        }
        jobs.iter().map(told).collect::<Vec<_>>().join("\n")
    })
}

fn told(job: &JobView) -> String {
    let id = job.id.short();
    match (&job.phase, &job.why) {
        (JobPhase::Cancelling, _) => {
            format!("job {id} stops after a checkpoint; follow it with `hatchery watch {id}`")
        }
        (JobPhase::Running | JobPhase::Queued, Some(why)) => format!("job {id} is {why}"),
        (phase, _) => format!("job {id} is {phase}"),
    }
}
