//! The environment: its variables, and those of them that look like keys, but are set by something
//! else.

use std::ffi::{OsStr, OsString};

use super::section::VARIABLE_PREFIX;

/// All variables of the process, also those whose value isn't UTF-8.
pub fn variables() -> impl Iterator<Item = (String, OsString)> {
    // A name that isn't UTF-8 can't be a key's.
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value))
}

/// Whether a variable says where a service is. Kubernetes sets such variables in every container
/// for every service, and Docker does so for every link. If the service is named `presence` or
/// `presence-…`, they begin like the variable of a key.
pub(super) fn is_service_link(name: &str, value: &OsStr) -> bool {
    let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else {
        return false;
    };
    // The name of the service comes before it, and may be only the prefix.
    let ends_in = |ending: &str| {
        let before = rest.strip_suffix(ending);
        before.is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    let is_address = || {
        let value = value.to_str().unwrap_or_default();
        value
            .split_once("://")
            .is_some_and(|(protocol, _)| PROTOCOLS.contains(&&*protocol.to_ascii_uppercase()))
    };
    ends_in("SERVICE_HOST")
        || ends_in("SERVICE_PORT")
        || rest.starts_with("SERVICE_PORT_")
        || rest.contains("_SERVICE_PORT_")
        || ends_in("PORT") && is_address()
        || is_of_a_port(rest)
}

/// The protocols of a service's port.
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Whether a name ends like the variable of a port: `PORT_4222_TCP`, `PORT_4222_TCP_ADDR` and the
/// like.
fn is_of_a_port(rest: &str) -> bool {
    let mut parts = rest.rsplit('_').peekable();
    parts.next_if(|last| ["ADDR", "PORT", "PROTO"].contains(last));
    parts.next().is_some_and(|it| PROTOCOLS.contains(&it))
        && parts.next().is_some_and(|it| it.parse::<u16>().is_ok())
        && parts.next() == Some("PORT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_services_are_told_from_those_of_keys() {
        for (name, value) in [
            ("PRESENCE_SERVICE_HOST", "10.0.0.1"),
            ("PRESENCE_SERVICE_PORT", "4222"),
            ("PRESENCE_SERVICE_PORT_METRICS", "18520"),
            ("PRESENCE_PORT", "tcp://10.0.0.1:4222"),
            ("PRESENCE_PORT_4222_TCP", "tcp://10.0.0.1:4222"),
            ("PRESENCE_PORT_4222_TCP_ADDR", "10.0.0.1"),
            ("PRESENCE_PORT_4222_TCP_PORT", "4222"),
            ("PRESENCE_PORT_4222_UDP_PROTO", "udp"),
            ("PRESENCE_NATS_SERVICE_HOST", "10.0.0.1"),
            ("PRESENCE_NATS_SERVICE_PORT_CLIENT", "4222"),
            ("PRESENCE_NATS_PORT", "tcp://10.0.0.1:4222"),
            ("PRESENCE_NATS_PORT_4222_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(is_service_link(name, value.as_ref()), "{name}");
        }
        for (name, value) in [
            ("PRESENCE_NATS_URL", "tcp://10.0.0.1:4222"),
            ("PRESENCE_NATS_PORT", "4222"),
            ("PRESENCE_PORTS", "tcp://a"),
            ("PRESENCE_PORT_X_TCP", "tcp://a"),
            ("PRESENCE_HTTP_LISTEN", "127.0.0.1:1"),
            ("PORT", "tcp://a"),
        ] {
            assert!(!is_service_link(name, value.as_ref()), "{name}");
        }
    }
}
