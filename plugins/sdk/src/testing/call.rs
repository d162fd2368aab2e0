//! A call while it runs. Each thread has at most one.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};

use super::event::About;
use super::host::Users;
use super::{Host, Outcome, Read};
use crate::log;

/// The limits of a real host.
const AUDIENCES_MAX: usize = 65_536;
const LINES_MAX: usize = 16;
const LINE_BYTES_MAX: usize = 1_024;

thread_local! {
    static RUNNING: RefCell<Option<Call>> = const { RefCell::new(None) };
}

/// What a call has before it, and has done so far.
pub(crate) struct Call {
    pub(crate) host: Host,
    pub(crate) about: About,
    audiences: HashMap<u32, Users>,
    reads: BTreeSet<Read>,
    explained: Vec<String>,
    logged: Vec<(log::Level, String)>,
    lines: usize,
    reconsider_at: Option<u64>,
}

/// Makes a call.
///
/// # Panics
///
/// If the thread is in a call already.
pub(crate) fn make<T>(host: Host, about: About, body: impl FnOnce() -> T) -> Outcome<T> {
    /// Ends the call, also if it panics.
    struct Running;
    impl Drop for Running {
        fn drop(&mut self) {
            RUNNING.take();
        }
    }

    crate::host::install_log();
    let call = Call {
        host,
        about,
        audiences: HashMap::new(),
        reads: BTreeSet::new(),
        explained: Vec::new(),
        logged: Vec::new(),
        lines: 0,
        reconsider_at: None,
    };
    RUNNING.with_borrow_mut(|running| match running {
        Some(_) => panic!("a rule can't have another one called"),
        None => *running = Some(call),
    });
    let running = Running;
    let answer = body();
    let call = RUNNING.take();
    drop(running);
    let Some(call) = call else {
        unreachable!("nothing else ends the call")
    };
    Outcome {
        answer,
        explained: call.explained,
        logged: call.logged,
        reconsider_at: call.reconsider_at,
        reads: call.reads,
    }
}

/// Does something in the running call.
///
/// # Panics
///
/// If there is none.
pub(super) fn running<T>(act: impl FnOnce(&mut Call) -> T) -> T {
    match try_running(act) {
        Some(done) => done,
        None => panic!(
            "there is no event to ask about: a test has one by presence_plugin::testing::Host, and a plugin that is being configured has none"
        ),
    }
}

/// As [`running`], or nothing if there is none.
pub(super) fn try_running<T>(act: impl FnOnce(&mut Call) -> T) -> Option<T> {
    RUNNING.with_borrow_mut(|running| running.as_mut().map(act))
}

impl Call {
    pub(super) fn put(&mut self, audience: Users) -> u32 {
        // No two calls of a process share a token, so that one which a rule has
        // kept is found out.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        assert!(
            self.audiences.len() < AUDIENCES_MAX,
            "made more than {AUDIENCES_MAX} audiences in one call"
        );
        let token = NEXT.fetch_add(1, Ordering::Relaxed);
        self.audiences.insert(token, audience);
        token
    }

    pub(super) fn audience(&self, token: u32) -> &Users {
        match self.audiences.get(&token) {
            Some(audience) => audience,
            None => panic!("used an audience that is not of this call"),
        }
    }

    /// Puts a question to the directory.
    pub(super) fn ask(&mut self, read: Read, answer: impl FnOnce(&Host) -> Users) -> u32 {
        self.read(read);
        let answer = answer(&self.host);
        self.put(answer)
    }

    pub(super) fn read(&mut self, read: Read) {
        self.reads.insert(read);
    }

    pub(super) fn explain(&mut self, text: &str) {
        if self.takes_line() {
            self.explained.push(cut(text));
        }
    }

    pub(super) fn log(&mut self, level: log::Level, text: &str) {
        if self.takes_line() {
            self.logged.push((level, cut(text)));
        }
    }

    pub(super) fn reconsider_at(&mut self, ms: u64) {
        self.reconsider_at = Some(self.reconsider_at.map_or(ms, |before| before.min(ms)));
    }

    fn takes_line(&mut self) -> bool {
        self.lines += 1;
        self.lines <= LINES_MAX
    }
}

/// As much of a line as is kept.
fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(LINE_BYTES_MAX);
    text.get(..end).unwrap_or_default().to_owned()
}
