//! Tasks that a shard gets only after all messages that had arrived before them: requests for a
//! snapshot. Those messages may still wait to be read, and the snapshot must include them.

use std::collections::VecDeque;
use std::future::pending;

use tokio::sync::mpsc;

use crate::pool::FleetTask;

/// Tasks of shards, in the order in which they arrived.
pub(crate) struct DeferredTasks {
    /// `None` outside of a fleet.
    tasks: Option<mpsc::UnboundedReceiver<(u32, FleetTask)>>,
    /// The tasks that aren't due yet, each with the number of read messages at which it is due.
    waiting: VecDeque<(u64, (u32, FleetTask))>,
    /// The greatest number of messages that may wait to be read.
    queue: u64,
}

impl DeferredTasks {
    /// `queue`: the greatest number of messages that may wait to be read.
    pub(crate) fn new(
        tasks: Option<mpsc::UnboundedReceiver<(u32, FleetTask)>>,
        queue: usize,
    ) -> Self {
        Self {
            tasks,
            waiting: VecDeque::new(),
            queue: queue as u64,
        }
    }

    /// The next task that is due when `read` messages have been read in all.
    pub(crate) fn after(&mut self, read: u64) -> Option<(u32, FleetTask)> {
        if let Some(tasks) = &mut self.tasks {
            let end = read.saturating_add(self.queue);
            let arrived = std::iter::from_fn(|| tasks.try_recv().ok());
            self.waiting.extend(arrived.map(|task| (end, task)));
        }
        let (end, _) = self.waiting.front()?;
        if *end > read {
            return None;
        }
        self.waiting.pop_front().map(|(_, task)| task)
    }

    /// Waits until a task is there. `read`: how many messages have been read in all. Used while no
    /// message waits to be read, so that the task is due at once.
    pub(crate) async fn arrives(&mut self, read: u64) {
        if !self.waiting.is_empty() {
            return;
        }
        let next = match &mut self.tasks {
            Some(tasks) => tasks.recv().await,
            None => None,
        };
        match next {
            Some(task) => self
                .waiting
                .push_back((read.saturating_add(self.queue), task)),
            // The sender is gone: no task will come.
            None => pending().await,
        }
    }

    /// Takes the next task, due or not. Used while no message waits to be read.
    pub(crate) fn take(&mut self) -> Option<(u32, FleetTask)> {
        self.waiting.pop_front().map(|(_, task)| task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard((shard, _): (u32, FleetTask)) -> u32 {
        shard
    }

    #[tokio::test]
    async fn a_task_comes_behind_all_that_had_arrived() {
        let (sender, tasks) = mpsc::unbounded_channel();
        let mut deferred = DeferredTasks::new(Some(tasks), 10);
        assert!(deferred.after(100).is_none());
        sender.send((1, FleetTask::Lease)).unwrap();
        assert!(deferred.after(101).is_none());
        sender.send((2, FleetTask::Lease)).unwrap();
        assert!(deferred.after(110).is_none());
        assert_eq!(deferred.after(111).map(shard), Some(1));
        assert!(deferred.after(111).is_none());
        sender.send((3, FleetTask::Lease)).unwrap();
        // No message waits any more.
        for expected in [2, 3] {
            deferred.arrives(111).await;
            assert_eq!(deferred.take().map(shard), Some(expected));
        }
    }
}
