//! Periodic checks of tenants. All tenants share one timer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::interval;
use tracing::Span;

use crate::tasks::{self, Tasks};

/// The interval of the checks.
pub(crate) const EVERY: Duration = Duration::from_millis(500);

/// Runs periodic checks. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct PeriodicChecks(Arc<Mutex<Vec<Check>>>);

/// A periodic check of a tenant.
struct Check {
    name: &'static str,
    /// Returns whether to go on. It must not block.
    check: Box<dyn FnMut() -> bool + Send>,
    /// The tenant's span, in which the check logs.
    span: Span,
    tasks: Tasks,
}

impl PeriodicChecks {
    /// Starts a task that runs the checks for as long as the node runs.
    pub(crate) fn start(tasks: &Tasks) -> Self {
        let periodic_checks = Self::default();
        tasks.spawn("periodic-checks", periodic_checks.clone().run());
        periodic_checks
    }

    /// Adds a check of a tenant, which runs until it returns `false`. If it panics, that counts as
    /// a failure of the tenant's tasks.
    pub(crate) fn add(
        &self,
        tasks: &Tasks,
        name: &'static str,
        check: impl FnMut() -> bool + Send + 'static,
    ) {
        self.all().push(Check {
            name,
            check: Box::new(check),
            span: Span::current(),
            tasks: tasks.clone(),
        });
    }

    fn all(&self) -> MutexGuard<'_, Vec<Check>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self) {
        let mut ticks = interval(EVERY);
        loop {
            ticks.tick().await;
            self.run_all();
        }
    }

    fn run_all(&self) {
        let mut checks = std::mem::take(&mut *self.all());
        checks.retain_mut(Check::runs_again);
        let mut all = self.all();
        checks.append(&mut all);
        *all = checks;
    }
}

impl Check {
    fn runs_again(&mut self) -> bool {
        let check = || self.span.in_scope(&mut self.check);
        match catch_unwind(AssertUnwindSafe(check)) {
            Ok(runs_again) => runs_again,
            Err(panic) => {
                let why = tasks::message(&*panic);
                self.tasks
                    .fail(format!("the task `{}` has failed: {why}", self.name));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_panics_fails_alone_and_one_that_is_done_is_looked_at_no_more() {
        let periodic_checks = PeriodicChecks::default();
        let (frail, mut faults) = Tasks::new();
        let (other, _faults) = Tasks::new();
        periodic_checks.add(&frail, "frail", || panic!("a number"));
        periodic_checks.add(&other, "done", || false);
        periodic_checks.add(&other, "lasting", || true);
        periodic_checks.run_all();
        let fault = faults.next().await.to_string();
        assert_eq!(fault, "the task `frail` has failed: a number");
        let left: Vec<_> = periodic_checks.all().iter().map(|it| it.name).collect();
        assert_eq!(left, ["lasting"]);
    }
}
