//! Whose each GPU is: training has one for itself, and what answers on it goes before a trainer comes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hatchery_common::device::Device;
use tokio::{sync::watch, time::timeout};

/// How long a trainer waits for the process that answered to be gone. One that is killed takes that long only where the
/// driver hangs, and then the trainer can say more of it than anybody.
const VACATED_WITHIN: Duration = Duration::from_secs(5);

/// The GPUs of this node; clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gpus(Arc<watch::Sender<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Those on which nothing trains.
    free: BTreeSet<Device>,
    /// Those with a process that answers, which may have to go from there: the one that is kept, and those that were killed and are
    /// not gone yet.
    taken: BTreeSet<Device>,
}

/// A GPU that is taken for answers, for as long as this is kept.
#[derive(Debug)]
pub(crate) struct GpuGuard {
    gpus: Gpus,
    pub(crate) device: Device,
}

impl Gpus {
    /// Says on which GPUs nothing trains, nor is about to.
    pub(crate) fn offer(&self, free: BTreeSet<Device>) {
        self.0.send_if_modified(|table| {
            let is_news = table.free != free;
            table.free = free;
            is_news
        });
    }

    /// A trainer is about to come to `device`, if that is a GPU: it is no longer offered.
    pub(crate) fn withdraw(&self, device: Device) {
        self.0.send_if_modified(|table| table.free.remove(&device));
    }

    /// Waits until nothing answers on `device`, which was withdrawn.
    pub(crate) async fn vacated(&self, device: Device) {
        let mut table = self.0.subscribe();
        let gone = table.wait_for(|table| !table.taken.contains(&device));
        if timeout(VACATED_WITHIN, gone).await.is_err() {
            tracing::warn!(%device, "the answering process does not exit although it was killed");
        }
    }

    /// Takes a GPU on which nothing trains or answers, if there is one.
    pub(crate) fn take(&self) -> Option<GpuGuard> {
        let mut device = None;
        self.0.send_if_modified(|table| {
            device = table.free.difference(&table.taken).next().copied();
            table.taken.extend(device);
            false
        });
        device.map(|device| GpuGuard { gpus: self.clone(), device })
    }

    /// Tells of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<impl Sized + use<>> {
        self.0.subscribe()
    }
}

impl GpuGuard {
    /// Waits until the GPU is offered no longer.
    pub(crate) async fn withdrawn(&self) {
        let mut table = self.gpus.0.subscribe();
        // The sender lives in `self`.
        let _table = table.wait_for(|table| !table.free.contains(&self.device)).await;
    }
}

impl Drop for GpuGuard {
    fn drop(&mut self) {
        self.gpus.0.send_modify(|table| {
            table.taken.remove(&self.device);
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_trainer_comes_when_what_answered_is_gone() {
        let gpus = Gpus::default();
        assert!(gpus.take().is_none(), "there is none");
        gpus.offer([Device::cuda(0)].into());
        let taken = gpus.take().unwrap();
        assert!(gpus.take().is_none(), "one process on a GPU");
        assert!(taken.withdrawn().now_or_never().is_none());

        gpus.withdraw(Device::cuda(0));
        assert!(taken.withdrawn().now_or_never().is_some());
        assert!(gpus.vacated(Device::cuda(0)).now_or_never().is_none(), "it is still there");
        assert!(gpus.vacated(Device::CPU).now_or_never().is_some());
        drop(taken);
        assert!(gpus.vacated(Device::cuda(0)).now_or_never().is_some());
        assert!(gpus.take().is_none(), "it is the trainer's");
    }

    #[tokio::test]
    async fn what_does_not_end_keeps_its_own_gpu_alone() {
        let gpus = Gpus::default();
        gpus.offer([Device::cuda(0), Device::cuda(1)].into());
        let hangs = gpus.take().unwrap();
        assert_eq!(hangs.device, Device::cuda(0));
        let other = gpus.take().unwrap();
        assert_eq!(other.device, Device::cuda(1));
        assert!(gpus.take().is_none());
        drop(other);
        assert!(gpus.vacated(Device::cuda(1)).now_or_never().is_some());
        assert!(gpus.vacated(Device::cuda(0)).now_or_never().is_none());
    }
}
