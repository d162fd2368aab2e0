//! A lane of a worker's mailbox: a queue that is bounded in messages and in bytes, and
//! whose end is never waited for unless the sender wants to. Each kind of work has a lane
//! of its own, so that a flood of one kind takes no room from another.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How much something takes of a lane, or how much a lane holds at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Messages, or pieces of work.
    pub(crate) messages: usize,
    /// What they hold, more or less.
    pub(crate) bytes: usize,
}

/// The end of a lane that things are put into.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// The end of a lane that things are taken from.
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    max: Size,
    arrived: Notify,
    freed: Notify,
}

struct Queue<T> {
    items: VecDeque<(T, Size)>,
    used: Size,
    /// Nobody takes anything any more.
    is_closed: bool,
}

/// A lane that holds so much.
pub(crate) fn lane<T>(max: Size) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        queue: Mutex::new(Queue {
            items: VecDeque::new(),
            used: Size::default(),
            is_closed: false,
        }),
        max,
        arrived: Notify::new(),
        freed: Notify::new(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Shared<T> {
    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        // A panic can't leave it half-changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.used()).finish()
    }
}

impl<T> Sender<T> {
    /// Puts something in, if there is room for it now; an empty lane takes anything.
    ///
    /// # Errors
    /// With what found no room.
    pub(crate) fn offer(&self, item: T, size: Size) -> Result<(), T> {
        let mut queue = self.0.queue();
        if queue.is_closed {
            return Err(item);
        }
        let messages = queue.used.messages.saturating_add(size.messages);
        let bytes = queue.used.bytes.saturating_add(size.bytes);
        let has_room = messages <= self.0.max.messages && bytes <= self.0.max.bytes;
        if !has_room && !queue.items.is_empty() {
            return Err(item);
        }
        queue.used = Size { messages, bytes };
        queue.items.push_back((item, size));
        drop(queue);
        self.0.arrived.notify_one();
        Ok(())
    }

    /// Puts something in when there is room for it. It is for one sender: another that
    /// waits at the same time may wait for ever. Where nobody takes anything any more, it
    /// is dropped.
    pub(crate) async fn send(&self, item: T, size: Size) {
        let mut item = item;
        while let Err(refused) = self.offer(item, size) {
            if self.0.queue().is_closed {
                return;
            }
            item = refused;
            self.0.freed.notified().await;
        }
    }

    /// How much is in it.
    pub(crate) fn used(&self) -> Size {
        self.0.queue().used
    }
}

impl<T> Receiver<T> {
    /// Takes what has been in for longest.
    pub(crate) fn take(&self) -> Option<T> {
        let mut queue = self.0.queue();
        let (item, size) = queue.items.pop_front()?;
        queue.used.messages -= size.messages;
        queue.used.bytes -= size.bytes;
        drop(queue);
        self.0.freed.notify_one();
        Some(item)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.queue().items.is_empty()
    }

    /// Waits until there is something to take.
    pub(crate) async fn ready(&self) {
        while self.is_empty() {
            self.0.arrived.notified().await;
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.is_closed = true;
        queue.items.clear();
        drop(queue);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn size(messages: usize, bytes: usize) -> Size {
        Size { messages, bytes }
    }

    #[test]
    fn a_lane_is_full_at_its_messages_and_at_its_bytes() {
        let (sender, receiver) = lane(size(3, 100));
        assert_eq!(sender.offer('a', size(2, 10)), Ok(()));
        assert_eq!(sender.offer('b', size(2, 10)), Err('b'), "messages");
        assert_eq!(sender.offer('c', size(1, 91)), Err('c'), "bytes");
        assert_eq!(sender.offer('d', size(1, 90)), Ok(()));
        assert_eq!(sender.used(), size(3, 100));
        assert_eq!((receiver.take(), receiver.take()), (Some('a'), Some('d')));
        assert_eq!((receiver.take(), sender.used()), (None, Size::default()));
    }

    #[test]
    fn one_thing_alone_always_has_room() {
        let (sender, receiver) = lane(size(1, 100));
        assert_eq!(sender.offer('a', size(256, 5_000)), Ok(()));
        assert_eq!(sender.offer('b', size(0, 1)), Err('b'));
        assert_eq!(receiver.take(), Some('a'));
        assert_eq!(sender.offer('b', size(0, 1)), Ok(()));
    }

    #[tokio::test]
    async fn who_sends_waits_for_room_and_for_nobody_who_is_gone() {
        let (sender, receiver) = lane(size(1, 100));
        sender.send('a', size(1, 1)).await;
        let (_, taken) = tokio::join!(sender.send('b', size(1, 1)), async {
            receiver.ready().await;
            receiver.take()
        });
        assert_eq!((taken, receiver.take()), (Some('a'), Some('b')));
        sender.send('c', size(1, 1)).await;
        tokio::join!(sender.send('d', size(1, 1)), async { drop(receiver) });
        assert_eq!(sender.offer('e', size(1, 1)), Err('e'));
    }
}
