//! Telling viewers that a user came online or went offline.

use std::sync::Arc;

use super::{Output, Shard};
use crate::audience::Audience;
use crate::body;
use crate::event::{Change, Event};
use crate::ledger::Pending;
use crate::message::{Cause, Rejection};
use crate::publish::Subject;
use crate::rules::{Context, Decision, Failure, Rendition, Rules};
use crate::verdicts::Verdict;

impl Shard {
    /// A user came online, as the tracker found or an application states.
    pub(super) fn online(
        &mut self,
        event: Event,
        ours: bool,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        let event = self.announce(event, ours, rules, out);
        self.ledger.online(Arc::clone(&event));
        self.decide(&event, rules, out);
    }

    /// A user went offline, as the tracker found or an application states. Who
    /// was told that they came online is told of it, whatever the rules say now.
    pub(super) fn offline(
        &mut self,
        event: Event,
        ours: bool,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        let event = self.announce(event, ours, rules, out);
        let Some(entry) = self.ledger.offline(event.user) else {
            return;
        };
        if let Some(pending) = entry.pending {
            self.agenda.remove(&(pending.retry_at, event.user));
        }
        let ledger = &self.ledger;
        self.verdicts
            .tidy(|user| ledger.get(user).is_some(), ledger.len());
        if entry.told.is_empty() {
            return;
        }
        let context = context(self.now, &event, &self.directory, &self.names);
        let verdict = match rules.redact(context, &entry.told) {
            Ok(renditions) => Verdict::new(event.user, renditions),
            Err(failure) => {
                self.failed(&event, &failure, out);
                Verdict::default()
            }
        };
        for rendition in &verdict.renditions {
            let viewers = rendition.audience.intersection(&entry.told);
            self.tell(&event, rendition, &viewers, out);
        }
        // Nobody is left believing that the user is online.
        let rest = entry.told.difference(&verdict.audience);
        self.tell(&event, &bare(&rest), &rest, out);
    }

    /// Decides who may see an online user, and tells whom that concerns.
    pub(super) fn decide(
        &mut self,
        event: &Arc<Event>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        if self.settings.reuse_verdicts
            && let Some((verdict, again_at)) = self.verdicts.find(self.now, event)
        {
            let verdict = verdict.clone();
            self.counters.reused += 1;
            return self.settle(event, &verdict, again_at, out);
        }
        self.counters.decided += 1;
        let context = context(self.now, event, &self.directory, &self.names);
        match rules.decide(context) {
            Decision::Decided(renditions, reads) => {
                let verdict = Verdict::new(event.user, renditions);
                let again_at = reads.reconsider_at;
                self.verdicts.keep(event, verdict.clone(), reads);
                self.settle(event, &verdict, again_at, out);
            }
            Decision::NotAtHand(questions) => {
                out.push(Output::Fetch(questions));
                self.postpone(event);
            }
            Decision::Failed(failure) => {
                self.failed(event, &failure, out);
                self.postpone(event);
            }
        }
    }

    /// Brings who has been told in line with a verdict. Who lost sight of the
    /// user is told first.
    fn settle(
        &mut self,
        event: &Arc<Event>,
        verdict: &Verdict,
        again_at: Option<u64>,
        out: &mut Vec<Output>,
    ) {
        let Some(entry) = self.ledger.get_mut(event.user) else {
            return;
        };
        let told = std::mem::replace(&mut entry.told, verdict.audience.clone());
        if let Some(pending) = entry.pending.take() {
            self.agenda.remove(&(pending.retry_at, event.user));
        }
        if let Some(at) = again_at.filter(|at| *at > self.now) {
            entry.pending = Some(Pending {
                retry_at: at,
                wait_ms: self.settings.retry_ms,
            });
            self.agenda.insert((at, event.user));
        }
        if told.same(&verdict.audience) {
            return;
        }
        let lost = told.difference(&verdict.audience);
        if !lost.is_empty() {
            self.counters.corrected += lost.len();
            let gone = Event {
                timestamp: self.now,
                change: Change::Offline {
                    last_seen: self.now,
                    reason: crate::event::Reason::Disconnect,
                },
                ..Event::clone(event)
            };
            let rendition = Rendition {
                last_seen: true,
                ..bare(&lost)
            };
            self.tell(&gone, &rendition, &lost, out);
        }
        for rendition in &verdict.renditions {
            let gained = rendition.audience.difference(&told);
            self.tell(event, rendition, &gained, out);
        }
    }

    /// Lets the enrichers at an event, and broadcasts it.
    fn announce(
        &mut self,
        mut event: Event,
        ours: bool,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Arc<Event> {
        let mut shared = Arc::new(event.clone());
        let context = context(self.now, &shared, &self.directory, &self.names);
        let enriched = rules.enrich(context);
        if !enriched.changes.is_empty() {
            let mut metadata = event.metadata.edit();
            for (key, value) in &enriched.changes {
                match value {
                    Some(value) => metadata.set(key, value, true),
                    None => metadata.remove(key),
                }
            }
            event.metadata = metadata.build();
            shared = Arc::new(event);
        }
        for failure in &enriched.failures {
            self.failed(&shared, failure, out);
        }
        let body = body::event(&shared);
        // An application's own event is on its own subject already.
        if ours {
            self.publish(subject(&shared), body.clone(), out);
        }
        self.publish(Subject::Events, body, out);
        shared
    }

    fn tell(
        &mut self,
        event: &Event,
        rendition: &Rendition,
        viewers: &Audience,
        out: &mut Vec<Output>,
    ) {
        let subject = match event.change {
            Change::Online => Subject::FilteredOnline,
            Change::Offline { .. } => Subject::FilteredOffline,
        };
        let body_bytes_max = self.settings.body_bytes_max;
        for body in body::filtered(event, rendition, viewers, &self.names, body_bytes_max) {
            self.publish(subject, body, out);
        }
    }

    /// A component failed on an event: nothing is lost of it.
    fn failed(&mut self, event: &Event, failure: &Failure, out: &mut Vec<Output>) {
        self.counters.failures += 1;
        let error = format!("plugin `{}`: {}", failure.plugin, failure.error);
        let rejection = Rejection::new(Cause::PluginFailed, error);
        self.dead_letter(
            subject(event).as_str(),
            &rejection,
            &body::event(event),
            out,
        );
    }

    /// Puts a decision off. Nobody new is told until it is made.
    fn postpone(&mut self, event: &Event) {
        let Some(entry) = self.ledger.get_mut(event.user) else {
            return;
        };
        let before = entry.pending.take();
        if let Some(pending) = before {
            self.agenda.remove(&(pending.retry_at, event.user));
        }
        let wait_ms = before.map_or(self.settings.retry_ms, |pending| pending.wait_ms);
        let retry_at = self.now + wait_ms;
        let next = wait_ms.saturating_mul(2).min(self.settings.retry_ms_max);
        entry.pending = Some(Pending {
            retry_at,
            wait_ms: next.max(wait_ms),
        });
        self.agenda.insert((retry_at, event.user));
    }
}

fn subject(event: &Event) -> Subject {
    match event.change {
        Change::Online => Subject::Online,
        Change::Offline { .. } => Subject::Offline,
    }
}

fn bare(viewers: &Audience) -> Rendition {
    Rendition {
        audience: viewers.clone(),
        keys: Arc::new([]),
        last_seen: false,
    }
}

fn context<'a>(
    now: u64,
    event: &'a Arc<Event>,
    directory: &'a Arc<crate::directory::Directory>,
    names: &'a Arc<crate::names::Names>,
) -> Context<'a> {
    Context {
        now,
        event,
        directory,
        names,
    }
}
