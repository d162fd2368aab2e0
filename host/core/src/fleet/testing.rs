//! Shared helpers of the fleet's unit tests: shards whose users may all see each other.

use std::sync::Arc;

use bytes::Bytes;

use crate::audience::Audience;
use crate::directory::Directory;
use crate::message::{Kind, Message};
use crate::names::Names;
use crate::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use crate::tracker::TrackerSettings;
use crate::{Input, Settings, Shard};

pub(crate) struct Everyone;

fn renditions(audience: Audience) -> Vec<Rendition> {
    vec![Rendition {
        audience,
        keys: ["device".into()].into(),
        last_seen: true,
    }]
}

impl Rules for Everyone {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let viewers = ["v1", "v2"]
            .iter()
            .map(|viewer| context.names.intern(viewer));
        Decision::Decided(renditions(viewers.collect()), Reads::default())
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(renditions(told.clone()), Reads::default())
    }
}

pub(crate) fn shard(names: &Arc<Names>) -> Shard {
    let settings = Settings {
        tracker: TrackerSettings {
            timeout_ms: 30_000,
            ..TrackerSettings::default()
        },
        ..Settings::default()
    };
    Shard::new(settings, Arc::clone(names), Arc::new(Directory::new()))
}

pub(crate) fn message(kind: Kind, user: &str, conn: &str, timestamp: u64) -> Input {
    let body = format!(
        r#"{{"userId":"{user}","connId":"{conn}","timestamp":{timestamp},"metadata":{{"device":"web"}}}}"#
    );
    let message = Message::parse(kind, &Bytes::from(body), 1 << 20).unwrap();
    Input::Message {
        message,
        reply: None,
    }
}
