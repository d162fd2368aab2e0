//! How much may be asked at a time: so many questions, which take so many bytes together
//! with what has been answered of them. What finds no room is refused at once: were it
//! kept, it would wait where nothing bounds it, and be answered when nobody waits any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a question takes beside its body and its answer, in bytes.
const QUESTION_BYTES: usize = 1_024;

/// How much may be asked at a time, and how much is.
#[derive(Debug)]
pub(crate) struct Budget {
    questions: Arc<Semaphore>,
    questions_max: usize,
    bytes: AtomicUsize,
    bytes_max: usize,
}

/// What one question takes of it, for as long as it is being answered.
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

    /// Takes a question of so many bytes, if there is room for it.
    pub(crate) fn admit(self: &Arc<Self>, bytes: usize) -> Option<BudgetShare> {
        let question = Arc::clone(&self.questions).try_acquire_owned().ok()?;
        let share = BudgetShare {
            budget: Arc::clone(self),
            bytes: AtomicUsize::new(0),
            _question: question,
        };
        // One is read into its parts, which are about as many bytes again.
        let bytes = bytes.saturating_mul(2).saturating_add(QUESTION_BYTES);
        share.grow(bytes).then_some(share)
    }

    /// Waits until no question is being answered.
    pub(crate) async fn is_idle(&self) {
        let all = u32::try_from(self.questions_max).unwrap_or(u32::MAX);
        // It is never closed.
        let _ = self.questions.acquire_many(all).await;
    }
}

impl BudgetShare {
    /// Takes so many bytes more, if there is room for them.
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

    /// Gives so many bytes back that it has taken.
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
        budget.is_idle().await;
    }
}
