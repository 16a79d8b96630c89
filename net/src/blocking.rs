//! Work that waits for a disk, kept away from the threads that serve.

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::spawn_blocking,
};

/// Does what waits for a disk on a thread made for it, and waits for its end. On a runtime of one thread it is done in
/// place: there the order of everything is the same each time, which simulations live on.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down; this task ends with it.
            Err(_) => std::future::pending().await,
        },
    }
}
