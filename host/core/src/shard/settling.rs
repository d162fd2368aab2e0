//! What each viewer has been shown, brought in line with a verdict.
//!
//! The ledger knows who has been told of an online user, and what each of them was
//! shown last. Whatever changes that (rules, directory, time, another event to show, a
//! status), the difference is worked out here, and told: nothing else compares.

use std::sync::Arc;

use super::agenda::Again;
use super::tell::{Whom, bare};
use super::{Output, Shard};
use crate::audience::Audience;
use crate::event::{Change, Event, Reason};
use crate::rules::{Rendition, Rules};
use crate::told::{Shown, Told};
use crate::verdicts::Verdict;

impl Shard {
    /// Brings what each viewer has been told in line with a verdict on the user's online
    /// event. Who lost sight of the user is told first, then who is shown something
    /// else than what they were shown last, then who gained sight.
    ///
    /// The difference is all that is told, whatever it comes from: the ledger knows what
    /// each viewer was shown. So what changes an online event only has to change it and
    /// to decide again, which [`Self::show`] does.
    pub(super) fn settle(
        &mut self,
        event: &Arc<Event>,
        verdict: &Verdict,
        again_at: Option<u64>,
        whom: Whom,
        out: &mut Vec<Output>,
    ) {
        let again_at = again_at.filter(|at| *at > self.clock.wall());
        let again = again_at.map(|at| Again {
            at: self.clock.now_at(at),
            next_wait_ms: None,
        });
        self.agenda.set(event.user, again);
        let Some(entry) = self.ledger.get_mut(event.user) else {
            return;
        };
        let after = Told::by(event, verdict);
        if entry.told.same(&after) {
            self.statuses.take_untold(event.user);
            return;
        }
        let before = entry.told.clone();
        let lost = before.audience().difference(&verdict.audience);
        let news = news(event, verdict, &before);
        // What may not be told yet has its turn when it is.
        let waits = entry.next.is_some();
        let put_off = (waits || whom == Whom::Losses) && !news.is_empty();
        let told = if put_off {
            before.without(&lost)
        } else {
            after
        };
        let differs = told != before;
        entry.told = told;
        if differs {
            self.ledger.note(event.user);
        }
        self.tell_lost(event, &before, &lost, out);
        if put_off {
            if whom == Whom::Losses {
                self.backlog.gaining(event.user);
            }
            return;
        }
        let anew = match self.statuses.take_untold(event.user) {
            Some(at) => &updated(event, at),
            None if self.settings.status.is_some() => &updated(event, self.clock.stamp()),
            None => &**event,
        };
        for news in &news {
            self.tell(anew, news.rendition, &news.changed, out);
        }
        for news in &news {
            self.tell(event, news.rendition, &news.gained, out);
        }
    }

    /// Tells those who lost sight of a user that they are gone, just as if the user had
    /// left at this moment: a viewer gets the fields that they would have got by the
    /// verdict under which they were told, and the times that a disconnect would have
    /// which is as long on its way as the user's connect was.
    fn tell_lost(&mut self, event: &Event, before: &Told, lost: &Audience, out: &mut Vec<Output>) {
        if lost.is_empty() {
            return;
        }
        self.counters.corrected += lost.len();
        let lag_ms = self.ledger.get(event.user).map_or(0, |it| it.lag_ms);
        let late_ms = self.tracker.grace_ms(event.name.as_str()) + lag_ms;
        let gone = Event {
            timestamp: self.clock.stamp(),
            change: Change::Offline {
                last_seen: self.clock.stamp().saturating_sub(late_ms),
                reason: Reason::Disconnect,
            },
            ..event.clone()
        };
        for (viewers, shown) in before.parts() {
            let viewers = viewers.intersection(lost);
            let rendition = Rendition {
                last_seen: shown.last_seen(),
                ..bare(&viewers)
            };
            self.tell(&gone, &rendition, &viewers, out);
        }
    }

    /// What is shown of an online user is this event from now on. Anyone who stays told
    /// and sees a difference is told of it, and anyone who may not see the user so any
    /// more, or may now, as of any other change.
    ///
    /// Nothing is broadcast. Where the decision is pending, viewers are told when it is
    /// made.
    pub(super) fn show(&mut self, event: Arc<Event>, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        if let Some(entry) = self.ledger.get_mut(event.user) {
            (entry.event, entry.next) = (Arc::clone(&event), None);
            self.ledger.note(event.user);
            self.waiting.put_off_no_more(event.user);
            self.decide_anew(&event, rules, out);
        }
    }

    /// What is known of an online user is this event from now on, but it may not be told
    /// yet: rules go by it, and anyone who may not see the user so is told.
    pub(super) fn judge(
        &mut self,
        event: Arc<Event>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        if let Some(entry) = self.ledger.get_mut(event.user) {
            entry.next = Some(Arc::clone(&event));
            self.waiting.put_off(&event);
            self.decide_anew(&event, rules, out);
        }
    }

    fn decide_anew(&mut self, event: &Arc<Event>, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let user = event.user;
        if self.agenda.pending_until(user).is_some() {
            return;
        }
        // Where a decision of a correction is still to come, nobody gains sight of the
        // user before their turn.
        let whom = match self.backlog.has(user) {
            true => Whom::Losses,
            false => Whom::All,
        };
        self.decide(event, whom, rules, out);
    }
}

/// What a rendition tells to those who haven't been shown it.
struct News<'a> {
    rendition: &'a Rendition,
    /// Those who were shown something else before.
    changed: Audience,
    /// Those who were shown nothing.
    gained: Audience,
}

/// What a verdict on an online event has to tell to whom beside those who lose sight.
fn news<'a>(event: &Event, verdict: &'a Verdict, before: &Told) -> Vec<News<'a>> {
    let news = verdict.renditions.iter().map(|rendition| {
        let viewers = &rendition.audience;
        News {
            rendition,
            changed: before.shown_otherwise(viewers, Shown::of(event, rendition)),
            gained: viewers.difference(before.audience()),
        }
    });
    news.filter(|news| !(news.changed.is_empty() && news.gained.is_empty()))
        .collect()
}

/// What is told of an online event to those who were shown something else before.
pub(super) fn updated(event: &Event, at: u64) -> Event {
    Event {
        timestamp: at,
        change: Change::Updated,
        ..event.clone()
    }
}
