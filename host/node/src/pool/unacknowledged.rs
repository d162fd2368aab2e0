//! How many bytes of a shard's messages in the outbox the broker hasn't acknowledged.

use std::collections::VecDeque;

/// Messages are counted together in parts of about this size, in bytes.
const PART_BYTES: usize = 16_384;

/// A shard's unacknowledged messages, in bytes.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    /// The parts in order: the place behind each, and its bytes.
    parts: VecDeque<(u64, usize)>,
    bytes: usize,
}

impl Unacknowledged {
    /// Adds a message of `bytes` bytes. `end`: the place behind it in the outbox.
    pub(super) fn push(&mut self, end: u64, bytes: usize) {
        self.bytes += bytes;
        match self.parts.back_mut() {
            Some((last, of_last)) if *of_last < PART_BYTES => {
                (*last, *of_last) = (end, *of_last + bytes);
            }
            _ => self.parts.push_back((end, bytes)),
        }
    }

    /// How many bytes are left if the outbox begins at this place.
    pub(super) fn bytes_from(&mut self, begin: u64) -> usize {
        while let Some((end, bytes)) = self.parts.front().copied()
            && end <= begin
        {
            self.parts.pop_front();
            self.bytes -= bytes;
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_acknowledged_is_forgotten_part_by_part() {
        let mut messages = Unacknowledged::default();
        for end in 1..=10 {
            messages.push(end, PART_BYTES / 2);
        }
        assert_eq!(messages.parts.len(), 5);
        assert_eq!(messages.bytes_from(0), 5 * PART_BYTES);
        assert_eq!(messages.bytes_from(3), 4 * PART_BYTES);
        messages.push(11, 3 * PART_BYTES);
        assert_eq!(messages.bytes_from(10), 3 * PART_BYTES);
        assert_eq!(messages.bytes_from(11), 0);
        assert!(messages.parts.is_empty());
    }
}
