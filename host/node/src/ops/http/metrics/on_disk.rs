//! Metrics of the files on disk whose content is not in force.

use super::exposition::Exposition;
use crate::clock;
use crate::ops::http::Status;
use crate::reload::on_disk::FileKind;

pub(super) fn write(text: &mut Exposition, status: &Status) {
    let refused = FileKind::ALL.map(|what| (what.as_str(), status.on_disk.of(what)));
    let is_refused = refused
        .iter()
        .map(|(what, it)| (what, u8::from(it.is_some())));
    text.values("presence_on_disk_refused", "what", is_refused);
    let now = clock::now_ms();
    let seconds = |since_ms: u64| (now.saturating_sub(since_ms) / 1_000).max(1);
    let since = refused.iter().map(|(what, it)| {
        let seconds = it.as_ref().map_or(0, |it| seconds(it.since_ms));
        (what, seconds)
    });
    text.values("presence_on_disk_refused_seconds", "what", since);
    let sections = status.on_disk.waiting_for_restart().len();
    text.value("presence_restart_needed_sections", sections);
}
