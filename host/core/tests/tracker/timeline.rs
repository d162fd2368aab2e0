//! Runs a timeline: a script of inputs above a line `---`, and below that line everything that must
//! happen.
//!
//! ```text
//! # What it shows.
//! settings timeout=30000 grace=0 reorder=2000 [step=…]  the defaults; without a step all is heard always
//! at 5 connect USER CONN [ts=5] [meta=-]
//! at 5 heartbeat USER CONN [ts=5] [meta=-]
//! at 5 disconnect USER CONN [ts=5] [reason=disconnect]
//! at 5 heard [upto=5]                      only where the settings have a step
//! at 5 hear until=9                        the same every step until then
//! at 5 reconfigure timeout=… grace=…
//! at 5 wake                                work due since the last line is done only now
//! at 5 show                                who is online, with how many connections
//! ```
//!
//! Time is virtual: between two lines, it goes from deadline to deadline, and after the last line
//! until nothing is due. Inputs come before deadlines of the same time.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use presence_core::tracker::{InputResult, Reason, Tracker, TrackerSettings, Transition};

/// Runs the timeline in a file. The error shows where the result differs.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (script, expected) = text
        .split_once("---\n")
        .ok_or_else(|| format!("{}: no line `---`", path.display()))?;
    let actual = run(script);
    if actual == expected {
        return Ok(());
    }
    Err(format!(
        "{}:\n--- expected\n{expected}--- but was\n{actual}",
        path.display()
    ))
}

fn run(script: &str) -> String {
    let mut lines = script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .peekable();
    let settings = match lines.next_if(|line| line.starts_with("settings")) {
        Some(line) => settings(&options(line)),
        None => TrackerSettings::default(),
    };
    let mut runner = Runner {
        tracker: Tracker::new(settings),
        now: 0,
        step_ms: settings.receive_step_ms.unwrap_or(u64::MAX),
        log: String::new(),
    };
    for line in lines {
        runner.step(line);
    }
    runner.advance(u64::MAX);
    // Connections that are still live were kept by a pause. Nothing else is left.
    assert!(runner.tracker.is_empty() || runner.tracker.connections() > 0);
    runner.log
}

struct Runner {
    tracker: Tracker<String>,
    now: u64,
    step_ms: u64,
    log: String,
}

impl Runner {
    fn step(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let options = options(line);
        let [at, now, action, names @ ..] = &words[..] else {
            panic!("what is `{line}`?")
        };
        assert_eq!(*at, "at", "in `{line}`");
        let now: u64 = now.parse().unwrap();
        assert!(now >= self.now, "time runs backwards in `{line}`");
        if *action != "wake" {
            self.advance(now);
        }
        self.now = now;

        let tracker = &mut self.tracker;
        let timestamp = options.get("ts").map_or(now, |ts| ts.parse().unwrap());
        let metadata = || options.get("meta").copied().unwrap_or("-").to_owned();
        match (*action, names) {
            ("connect", [user, conn, ..]) => {
                let handled = tracker.connect(now, user, conn, timestamp, metadata);
                self.report(user, conn, handled);
            }
            ("heartbeat", [user, conn, ..]) => {
                let handled = tracker.heartbeat(now, user, conn, timestamp, metadata);
                self.report(user, conn, handled);
            }
            ("disconnect", [user, conn, ..]) => {
                let reason = match options.get("reason").copied() {
                    None | Some("disconnect") => Reason::Disconnect,
                    Some("timeout") => Reason::Timeout,
                    Some("logout") => Reason::Logout,
                    Some(other) => panic!("what reason is `{other}`?"),
                };
                let handled = tracker.disconnect(now, user, conn, timestamp, reason);
                self.report(user, conn, handled);
            }
            ("heard", _) => {
                let at = options.get("upto").map_or(now, |at| at.parse().unwrap());
                tracker.received_up_to(now, at);
            }
            ("missed", _) => tracker.lost_up_to(now, now),
            ("hear", _) => self.hear(options["until"].parse().unwrap()),
            ("reconfigure", _) => tracker.reconfigure(settings(&options)),
            ("wake", []) => self.expire(now),
            ("show", []) => self.show(),
            _ => panic!("what is `{line}`?"),
        }
    }

    fn hear(&mut self, until: u64) {
        loop {
            self.tracker.received_up_to(self.now, self.now);
            self.expire(self.now);
            if self.now >= until {
                return;
            }
            let next = until.min(self.now + self.step_ms);
            self.advance(next);
            self.now = next;
        }
    }

    /// Goes from deadline to deadline, up to but not including `until`.
    fn advance(&mut self, until: u64) {
        while let Some(deadline) = self.tracker.next_deadline().filter(|at| *at < until) {
            self.now = self.now.max(deadline);
            self.expire(self.now);
        }
    }

    fn expire(&mut self, now: u64) {
        while let Some(transition) = self.tracker.expire(now) {
            self.write(&transition);
        }
    }

    fn report(&mut self, user: &str, conn: &str, handled: InputResult<String>) {
        let effect = format!("{:?}", handled.effect).to_lowercase();
        writeln!(self.log, "{} {user}/{conn} {effect}", self.now).unwrap();
        if let Some(transition) = &handled.transition {
            self.write(transition);
        }
    }

    fn write(&mut self, transition: &Transition<String>) {
        let log = &mut self.log;
        match transition {
            Transition::Online {
                user,
                at,
                conn,
                metadata,
            } => {
                writeln!(log, "{at} {user} ONLINE conn={conn} meta={metadata}").unwrap();
            }
            Transition::Offline {
                user,
                at,
                last_seen,
                reason,
                last_heartbeat,
            } => {
                let reason = format!("{reason:?}").to_lowercase();
                write!(log, "{at} {user} OFFLINE {reason} last_seen={last_seen}").unwrap();
                if let Some(last_heartbeat) = last_heartbeat {
                    write!(log, " last_heartbeat={last_heartbeat}").unwrap();
                }
                log.push('\n');
            }
        }
    }

    fn show(&mut self) {
        let tracker = &self.tracker;
        let users: Vec<_> = tracker
            .users()
            .map(|(user, live)| format!("{user}={live}"))
            .collect();
        assert_eq!(users.len(), tracker.online_users());
        let (live, remembered) = (tracker.connections(), tracker.remembered());
        let users = users.join(" ");
        let line = format!("{} [{users}] live={live} remembered={remembered}", self.now);
        self.log.push_str(&line);
        self.log.push('\n');
    }
}

/// The words `key=value` of a line.
fn options(line: &str) -> HashMap<&str, &str> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .collect()
}

fn settings(options: &HashMap<&str, &str>) -> TrackerSettings {
    let figure = |key, default| {
        options
            .get(key)
            .map_or(default, |text| text.parse().unwrap())
    };
    let TrackerSettings {
        timeout_ms,
        grace_ms,
        reorder_ms,
        ..
    } = TrackerSettings::default();
    TrackerSettings {
        timeout_ms: figure("timeout", timeout_ms),
        grace_ms: figure("grace", grace_ms),
        reorder_ms: figure("reorder", reorder_ms),
        ties_close: options.contains_key("ties"),
        shows_newest: !options.contains_key("shown-stays"),
        receive_step_ms: options.get("step").map(|text| text.parse().unwrap()),
        ..TrackerSettings::default()
    }
}
