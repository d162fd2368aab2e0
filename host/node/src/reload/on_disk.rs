//! Files on disk that are not in force, since when, and why. The node continues with the last good
//! version and stays ready, but the operator who changed the file must be able to see that.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock;

/// What is read from files.
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

/// Why what is on disk isn't in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedFile {
    /// Since when something on disk has not been in force, by the host's clock, in
    /// milliseconds since the Unix epoch.
    pub(crate) since_ms: u64,
    /// What is wrong with what lies there now; several lines are several problems.
    pub(crate) why: String,
}

/// What of the files on disk is not in force.
#[derive(Debug, Default)]
pub(crate) struct OnDisk {
    refused: [Mutex<Option<RefusedFile>>; FileKind::ALL.len()],
    /// The sections that have changed and take effect at the next start.
    restart: Mutex<Vec<&'static str>>,
    /// Whether files can no longer be followed, and why.
    unfollowed: Mutex<Option<String>>,
}

impl OnDisk {
    /// What lies there was refused.
    pub(crate) fn refused(&self, what: FileKind, why: impl Into<String>) {
        let mut refused = self.slot(what);
        let since_ms = refused
            .as_ref()
            .map_or_else(clock::now_ms, |it| it.since_ms);
        let why = why.into();
        *refused = Some(RefusedFile { since_ms, why });
    }

    /// What lies there is in force. Returns why it was not, if it was not.
    pub(crate) fn taken(&self, what: FileKind) -> Option<RefusedFile> {
        self.slot(what).take()
    }

    /// Why what lies there is not in force; none if it is.
    pub(crate) fn of(&self, what: FileKind) -> Option<RefusedFile> {
        self.slot(what).clone()
    }

    /// These sections have changed, and take effect at the next start.
    pub(crate) fn wait_for_restart(&self, sections: &[&'static str]) {
        *locked(&self.restart) = sections.to_vec();
    }

    /// The sections that have changed and take effect at the next start.
    pub(crate) fn waiting_for_restart(&self) -> Vec<&'static str> {
        locked(&self.restart).clone()
    }

    /// Files can't be followed, for this reason; or can again.
    pub(crate) fn follows(&self, why_not: Option<String>) {
        *locked(&self.unfollowed) = why_not;
    }

    /// Why files can't be followed; none if they can.
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
        on_disk.refused(FileKind::Pipeline, "a");
        let first = on_disk.of(FileKind::Pipeline).unwrap();
        on_disk.refused(FileKind::Pipeline, "b");
        let second = on_disk.of(FileKind::Pipeline).unwrap();
        assert_eq!((second.since_ms, &*second.why), (first.since_ms, "b"));
        assert_eq!(on_disk.of(FileKind::Directory), None);
        assert_eq!(on_disk.taken(FileKind::Pipeline), Some(second));
        assert_eq!(on_disk.taken(FileKind::Pipeline), None);
        assert_eq!(on_disk.of(FileKind::Pipeline), None);
    }
}
