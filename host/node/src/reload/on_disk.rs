//! Files on disk that are not in force, since when, and why. The node continues with the last good
//! version and stays ready, but the operator who changed the file must be able to see that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock;

/// The kinds of files that are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Configuration,
    Directory,
    Pipeline,
}

impl FileKind {
    pub(crate) const ALL: [Self; 3] = [Self::Configuration, Self::Directory, Self::Pipeline];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Directory => "directory",
            Self::Pipeline => "pipeline",
        }
    }
}

/// A file on disk that isn't in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedFile {
    /// Since when the file on disk has differed from what is in force, in milliseconds since the
    /// Unix epoch, by the host's clock.
    pub(crate) since_ms: u64,
    /// What is wrong with the current file. Each line is a problem.
    pub(crate) why: String,
}

/// The files on disk that are not in force.
#[derive(Debug, Default)]
pub(crate) struct OnDisk {
    refused: [Mutex<Option<RefusedFile>>; FileKind::ALL.len()],
    /// The sections that have changed and take effect at the next start.
    restart: Mutex<Vec<&'static str>>,
    /// Why files can't be followed any more. `None` if they can.
    unfollowed: Mutex<Option<String>>,
}

impl OnDisk {
    /// Notes that the file on disk was refused.
    pub(crate) fn set_refused(&self, what: FileKind, why: impl Into<String>) {
        let mut refused = self.slot(what);
        let since_ms = refused
            .as_ref()
            .map_or_else(clock::now_ms, |it| it.since_ms);
        let why = why.into();
        *refused = Some(RefusedFile { since_ms, why });
    }

    /// Notes that the file on disk is in force. Returns why it was not before, if so.
    pub(crate) fn mark_applied(&self, what: FileKind) -> Option<RefusedFile> {
        self.slot(what).take()
    }

    /// Why the file on disk is not in force. `None` if it is.
    pub(crate) fn of(&self, what: FileKind) -> Option<RefusedFile> {
        self.slot(what).clone()
    }

    /// Notes the sections that have changed and take effect at the next start.
    pub(crate) fn set_waiting_for_restart(&self, sections: &[&'static str]) {
        *locked(&self.restart) = sections.to_vec();
    }

    /// The sections that have changed and take effect at the next start.
    pub(crate) fn waiting_for_restart(&self) -> Vec<&'static str> {
        locked(&self.restart).clone()
    }

    /// Notes why files can't be followed. `None`: they can.
    pub(crate) fn set_unfollowed(&self, why_not: Option<String>) {
        *locked(&self.unfollowed) = why_not;
    }

    /// Why files can't be followed. `None` if they can.
    pub(crate) fn unfollowed(&self) -> Option<String> {
        locked(&self.unfollowed).clone()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is one for each, in the order of their numbers"
    )]
    fn slot(&self, what: FileKind) -> MutexGuard<'_, Option<RefusedFile>> {
        locked(&self.refused[what as usize])
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_so_since_the_first_refusal_until_something_is_taken() {
        let on_disk = OnDisk::default();
        on_disk.set_refused(FileKind::Pipeline, "a");
        let first = on_disk.of(FileKind::Pipeline).unwrap();
        on_disk.set_refused(FileKind::Pipeline, "b");
        let second = on_disk.of(FileKind::Pipeline).unwrap();
        assert_eq!((second.since_ms, &*second.why), (first.since_ms, "b"));
        assert_eq!(on_disk.of(FileKind::Directory), None);
        assert_eq!(on_disk.mark_applied(FileKind::Pipeline), Some(second));
        assert_eq!(on_disk.mark_applied(FileKind::Pipeline), None);
        assert_eq!(on_disk.of(FileKind::Pipeline), None);
    }
}
