//! Dead letters: what could not be processed is published with its bytes and the reason,
//! as far as their limit allows. They are made here and nowhere else.

use super::env::Env;
use super::publishing::subject;
use super::settings::Settings;
use super::types::{Output, PluginFailed};
use crate::body;
use crate::dead_letter_limit::SHORT_BYTES;
use crate::event::Event;
use crate::message::{Cause, Rejection};
use crate::publish::Subject;
use crate::quota::Quota;
use crate::rules::Failure;

impl Env<'_> {
    /// Makes a dead letter of a message, or an event, that can't be processed.
    pub(super) fn dead_letter(&mut self, subject: &str, rejection: &Rejection, payload: &[u8]) {
        let common = &mut *self.common;
        common.counters.dead_letter(rejection.cause);
        if let Some(quota) = rejection.quota {
            common.counters.over(quota);
        }
        let Settings {
            node,
            subject_prefix,
            body_bytes_max,
            dead_letters,
            ..
        } = &common.settings;
        if !dead_letters.take_letter(common.clock.now()) {
            common.counters.dead_letters_left_out += 1;
            common.counters.over(Quota::DeadLetters);
            return;
        }
        let at = common.clock.stamp();
        let subject = format!("{subject_prefix}{subject}");
        let letter = |max| body::dead_letter(&subject, rejection, payload, at, node, max);
        let mut body = letter(*body_bytes_max);
        if !dead_letters.take_bytes(body.len()) {
            body = letter(SHORT_BYTES.min(*body_bytes_max));
        }
        self.publish(Subject::DeadLetters, body);
    }

    /// A plugin failed on an event. The event is not lost. `retry_ms`: in how many milliseconds the
    /// decision is made again; `None` if it isn't.
    pub(super) fn plugin_failed(
        &mut self,
        event: &Event,
        failure: &Failure,
        retry_ms: Option<u64>,
    ) {
        self.out.push(Output::PluginFailed(PluginFailed {
            plugin: failure.plugin.clone(),
            user: event.name.clone(),
            error: failure.error.clone(),
            retry_ms,
        }));
        let error = format!("plugin `{}`: {}", failure.plugin, failure.error);
        let rejection = Rejection::new(Cause::PluginFailed, error);
        self.dead_letter(subject(event).as_str(), &rejection, &body::event(event));
    }

    /// More viewers may see a user than the limit allows.
    pub(super) fn audience_refused(&mut self, event: &Event, viewers: u64) {
        let max = self.common.settings.audience_max;
        let error = format!(
            "the user `{}` may be seen by {viewers} viewers, and the limit is {max} ([limits] \
             audience_max): nobody new is told",
            event.name.as_str()
        );
        let rejection = Rejection::over(Quota::Audience, error);
        let subject = Subject::FilteredOnline.as_str();
        self.dead_letter(subject, &rejection, &body::event(event));
        self.out.push(Output::Refused(rejection));
    }

    /// Makes a dead letter of a body that is longer than the broker takes.
    pub(super) fn too_large(&mut self, subject: Subject, body: &[u8], error: String) {
        let rejection = Rejection::new(Cause::TooLarge, error);
        self.dead_letter(subject.as_str(), &rejection, body);
    }
}
