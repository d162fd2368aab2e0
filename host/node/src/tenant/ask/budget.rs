//! Limits the questions in progress: their number, and their size in bytes together with their
//! answers. A question without room is refused at once. If it waited instead, nothing would limit
//! the waiting questions, and its answer might come when nobody waits for it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The size of a question without its body and its answer, in bytes.
const QUESTION_BYTES: usize = 1_024;

/// The limits, and what is used of them.
#[derive(Debug)]
pub(crate) struct Budget {
    questions: Arc<Semaphore>,
    questions_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
}

/// The part of the budget that one question uses while it is in progress.
#[derive(Debug)]
pub(crate) struct BudgetShare {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
    _question: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(questions_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            questions: Arc::new(Semaphore::new(questions_max)),
            questions_max,
            bytes: AtomicUsize::new(0),
            bytes_max,
        })
    }

    /// Admits a question with a body of this many bytes, if there is room for it.
    pub(crate) fn admit(self: &Arc<Self>, bytes: usize) -> Option<BudgetShare> {
        let question = Arc::clone(&self.questions).try_acquire_owned().ok()?;
        let share = BudgetShare {
            budget: Arc::clone(self),
            bytes: AtomicUsize::new(0),
            _question: question,
        };
        // The parsed question takes about as many bytes as its body.
        let bytes = bytes.saturating_mul(2).saturating_add(QUESTION_BYTES);
        share.grow(bytes).then_some(share)
    }

    /// Waits until no question is in progress.
    pub(crate) async fn until_idle(&self) {
        let all = u32::try_from(self.questions_max).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let _ = self.questions.acquire_many(all).await;
    }
}

impl BudgetShare {
    /// Uses more bytes, if there is room for them. Returns whether there was.
    pub(crate) fn grow(&self, bytes: usize) -> bool {
        let max = self.budget.bytes_max;
        let grown = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
        let relaxed = Ordering::Relaxed;
        let has_room = self.budget.bytes.fetch_update(relaxed, relaxed, grown);
        if has_room.is_ok() {
            self.bytes.fetch_add(bytes, relaxed);
        }
        has_room.is_ok()
    }

    /// Gives bytes back.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.budget.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_and_their_bytes_are_bounded_and_come_back() {
        let budget = Budget::new(2, 10_000);
        let (first, second) = (budget.admit(10), budget.admit(10));
        assert!(first.is_some() && second.is_some());
        assert!(budget.admit(10).is_none(), "questions");
        drop(second);
        assert!(budget.admit(5_000).is_none(), "bytes");
        let first = first.unwrap();
        assert!(first.grow(5_000) && !first.grow(5_000));
        first.shrink(5_000);
        assert!(first.grow(5_000));
        drop(first);
        assert_eq!(budget.bytes.load(Ordering::Relaxed), 0);
        budget.until_idle().await;
    }
}
