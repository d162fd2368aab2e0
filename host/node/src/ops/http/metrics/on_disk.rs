//! What the broker forbids, and what of the files on disk is not in force.

use super::Exposition;
use crate::clock;
use crate::ops::http::Status;
use crate::reload::on_disk::What;

pub(super) fn tell(text: &mut Exposition, status: &Status) {
    let refused = What::ALL.map(|what| (what.as_str(), status.on_disk.of(what)));
    text.labelled(
        "presence_on_disk_refused",
        "gauge",
        "Whether what lies on disk is not in force, since it can't be taken.",
        "what",
        refused
            .each_ref()
            .map(|(what, it)| (*what, it.is_some().into())),
    );
    let now = clock::now_ms();
    let seconds = |since_ms: u64| (now.saturating_sub(since_ms) / 1_000).max(1);
    text.labelled(
        "presence_on_disk_refused_seconds",
        "gauge",
        "For how long what lies on disk has not been in force; 0 if it is.",
        "what",
        refused
            .each_ref()
            .map(|(what, it)| (*what, it.as_ref().map_or(0, |it| seconds(it.since_ms)))),
    );
    text.singles([
        (
            "presence_restart_needed_sections",
            "gauge",
            "Sections of the configuration that have changed and take effect at the next start.",
            status.on_disk.waiting_for_restart().len() as u64,
        ),
        (
            "presence_nats_forbidden",
            "gauge",
            "How many of the permissions that this node needs NATS has refused.",
            status.broker.rights.forbidden_now().len() as u64,
        ),
    ]);
}
