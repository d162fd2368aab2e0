//! Which permissions a tenant needs from the broker, according to its configuration.

use presence_config::subjects::{ALERTS, BEACON, LOGS, Subjects};
use presence_config::{Config, Directory};
use presence_core::publish::Subject;

use super::{Operation, Permission};
use crate::link::shared_input::CONSUMER;
use crate::link::{fleet_bucket, hello};

/// Every permission that a tenant can need, including those that only a later reload of its
/// configuration would use.
pub(super) fn needed(config: &Config) -> Vec<Permission> {
    let subjects = Subjects::new(config.tenant.prefix.as_deref());
    let publish =
        |subject: &str, is_used| Permission::new(Operation::Publish, subjects.of(subject), is_used);
    let subscribe =
        |subject: &str| Permission::new(Operation::Subscribe, subjects.of(subject), true);
    let mut needed = vec![
        subscribe("presence.>"),
        subscribe(hello::SUBJECT),
        Permission::new(Operation::Subscribe, "_INBOX.>".into(), true),
        publish(hello::SUBJECT, true),
        publish(BEACON, true),
        publish("presence.inbox.*", config.inbox.enabled),
    ];
    needed.extend(Subject::ALL.map(|subject| {
        let is_update = matches!(subject, Subject::Updated | Subject::FilteredUpdated);
        publish(subject.as_str(), !is_update || config.status.enabled)
    }));
    let mut replies = config.nats.reply_prefixes.clone();
    // Nodes answer each other there, whatever the configuration says.
    replies.push(hello::INBOX.into());
    replies.sort_unstable();
    replies.dedup();
    let replies = replies.iter().map(|prefix| format!("{prefix}>"));
    needed.extend(replies.map(|subject| Permission::new(Operation::Publish, subject, true)));
    needed.push(publish(ALERTS, true));
    // A node is ready without it: it is only used while somebody follows a plugin's log.
    needed.push(publish(&format!("{LOGS}.*"), false));
    needed.push(Permission::new(Operation::Subscribe, "$SRV.>".into(), true));
    needed.extend(store_needs(config));
    if config.fleet.enabled {
        needed.extend(fleet_needs(config));
    }
    if let Some(stream) = &config.input.stream {
        for (api, rest) in [
            ("STREAM.INFO", ""),
            ("CONSUMER.CREATE", ".>"),
            ("CONSUMER.MSG.NEXT", ".>"),
        ] {
            let subject = format!("$JS.API.{api}.{stream}{rest}");
            needed.push(Permission::new(Operation::Publish, subject, true));
        }
        let of_fleet = [
            format!("$JS.API.CONSUMER.INFO.{stream}.{CONSUMER}"),
            format!("$JS.API.CONSUMER.DELETE.{stream}.{CONSUMER}"),
            format!("$JS.ACK.{stream}.{CONSUMER}.>"),
        ];
        let used = of_fleet.into_iter().filter(|_| config.fleet.enabled);
        needed.extend(used.map(|it| Permission::new(Operation::Publish, it, true)));
    }
    match &config.directory {
        Directory::File { .. } => {}
        Directory::Request(request) => {
            needed.push(publish(&format!("{}.>", request.subject), true));
            needed.push(subscribe(&format!("{}.invalidate", request.subject)));
        }
        Directory::Kv { bucket } => {
            for (api, rest) in [("STREAM.INFO", ""), ("CONSUMER.CREATE", ".>")] {
                let subject = format!("$JS.API.{api}.KV_{bucket}{rest}");
                needed.push(Permission::new(Operation::Publish, subject, true));
            }
        }
    }
    needed
}

/// The additional permissions of a node of a fleet.
fn fleet_needs(config: &Config) -> impl Iterator<Item = Permission> {
    let subjects = Subjects::new(config.tenant.prefix.as_deref());
    let bucket = fleet_bucket::name(config.tenant.prefix.as_deref());
    let needed = [
        subjects.of("presence.shard.>"),
        subjects.of("presence.node.>"),
        format!("$KV.{bucket}.>"),
        format!("$JS.API.STREAM.INFO.KV_{bucket}"),
        format!("$JS.API.STREAM.MSG.GET.KV_{bucket}"),
        format!("$JS.API.CONSUMER.CREATE.KV_{bucket}.>"),
    ];
    let needed = needed.into_iter();
    needed.map(|subject| Permission::new(Operation::Publish, subject, true))
}

/// The permissions to read the plugin store.
fn store_needs(config: &Config) -> impl Iterator<Item = Permission> {
    let store = |bucket: &str| match &config.tenant.prefix {
        Some(prefix) => format!("{prefix}-{bucket}"),
        None => bucket.to_owned(),
    };
    let pipeline = format!("KV_{}", store("presence-pipeline"));
    let plugins = format!("OBJ_{}", store("presence-plugins"));
    let calls = [
        ("STREAM.INFO", &pipeline, ""),
        ("STREAM.MSG.GET", &pipeline, ""),
        ("CONSUMER.CREATE", &pipeline, ""),
        ("CONSUMER.CREATE", &pipeline, ".>"),
        ("CONSUMER.MSG.NEXT", &pipeline, ".>"),
        ("STREAM.INFO", &plugins, ""),
        ("DIRECT.GET", &plugins, ".>"),
        ("CONSUMER.CREATE", &plugins, ""),
        ("CONSUMER.CREATE", &plugins, ".>"),
        ("CONSUMER.MSG.NEXT", &plugins, ".>"),
    ];
    let calls = calls.map(|(api, stream, rest)| format!("$JS.API.{api}.{stream}{rest}"));
    let is_used = config.follows_store();
    let permissions = calls.into_iter();
    permissions.map(move |subject| Permission::new(Operation::Publish, subject, is_used))
}
