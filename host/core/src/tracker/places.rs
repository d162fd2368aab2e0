//! The places of live connections in their user's list.

use super::slab::Key;

/// Added to the order of a connection that is kept ahead of those that are opened after it.
pub(super) const MARK: i64 = 1 << 62;

/// The distance between the orders of two connections that are opened one after the other. It
/// leaves room between them for connects that come late.
const STEP: i64 = 1 << 12;

/// The two ends of a user's list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListEnds {
    pub(super) oldest: Option<Key>,
    pub(super) newest: Option<Key>,
}

/// A live connection's place in its user's list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// The list is sorted by it. It rises with each connection that is opened, unless the connect
    /// comes late. It is negative for a connection that was adopted.
    pub(super) order: i64,
    pub(super) older: Option<Key>,
    pub(super) newer: Option<Key>,
}

impl Place {
    /// The place of a connection that isn't in a list yet.
    pub(super) fn new(order: i64) -> Self {
        Self {
            order,
            ..Self::default()
        }
    }
}

/// The last orders that were given to opened and to adopted connections.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OrderCounter {
    opened: i64,
    adopted: i64,
}

impl OrderCounter {
    pub(super) fn next_opened(&mut self) -> i64 {
        self.opened += STEP;
        self.opened
    }

    pub(super) fn next_adopted(&mut self) -> i64 {
        self.adopted -= 1;
        self.adopted
    }

    /// Whether this order has been given.
    pub(super) fn has_given(&self, order: i64) -> bool {
        (self.adopted..=self.opened).contains(&without_mark(order))
    }

    pub(super) fn advance_past(&mut self, order: i64) {
        self.opened = self.opened.max(without_mark(order));
        self.adopted = self.adopted.min(order);
    }
}

pub(super) fn is_marked(order: i64) -> bool {
    order >= MARK
}

pub(super) fn without_mark(order: i64) -> i64 {
    if is_marked(order) {
        order - MARK
    } else {
        order
    }
}
