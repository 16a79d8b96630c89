//! What a trainer is told from outside.

use hatchery_common::{
    time::BootTime,
    trainer::{AttemptOrder, Ending, TrainerCommand},
};

/// Whether it is to stop, and until when it may go on.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    is_stopped: bool,
    lease_until: Option<BootTime>,
}

impl Orders {
    /// Those that an attempt begins with.
    pub fn of(order: &AttemptOrder) -> Self {
        Self { is_stopped: false, lease_until: order.lease_until }
    }

    pub fn obey(&mut self, command: TrainerCommand) {
        match command {
            TrainerCommand::Stop => self.is_stopped = true,
            TrainerCommand::Lease { until } => self.lease_until = Some(until),
        }
    }

    /// How it has to end now, if it has to.
    pub fn ending(self, now: BootTime) -> Option<Ending> {
        let is_over = self.lease_until.is_some_and(|until| now >= until);
        if self.is_stopped { Some(Ending::Stopped) } else { is_over.then_some(Ending::LeaseExpired) }
    }
}
