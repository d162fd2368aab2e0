//! Explains why the broker can't be reached. The client's own error only has a kind ("IO error").
//! The causes are read from the last error that it keeps for each server.

use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind, Server, ServerAddr};
use tokio::net::lookup_host;
use tokio::time::timeout;

/// How long a lookup of a server's name may take. The client has just failed at the same lookup.
const LOOKUP: Duration = Duration::from_millis(500);

/// Prefixes that the client puts before a cause, and that explain nothing.
const KINDS: [&str; 3] = ["IO error: ", "TLS error: ", "DNS error: "];

/// The broker's error text when it refuses a login.
const REFUSED_LOGIN: &str = "authorization violation";

/// Why the broker can't be reached.
pub(super) struct Cause {
    pub(super) why: String,
    /// Whether every server that was tried refuses the login.
    pub(super) is_login: bool,
}

/// Hints for errors that need an explanation: a part of the error's text, and the hint.
const HINTS: [(&str, &str); 7] = [
    (
        "Connection refused",
        "is nats-server running there? [nats] url says where",
    ),
    (
        "InvalidContentType",
        "the server doesn't speak TLS, or offers none",
    ),
    (
        "UnknownIssuer",
        "the issuer of its certificate isn't trusted: set [nats.tls] ca",
    ),
    (
        "CertificateRequired",
        "it asks for a client certificate: set [nats.tls] cert and key",
    ),
    (REFUSED_LOGIN, "it refuses this login: see [nats]"),
    (
        "got nothing",
        "it closed the connection without a greeting: is it a NATS server?",
    ),
    ("timed out", "no greeting within [nats] connect_timeout_ms"),
];

/// Why each server that was tried can't be reached. `None` if no reason is known. `unresolved`:
/// whether the lookup of a server's name has failed.
pub(super) async fn of(servers: Vec<Server>, unresolved: bool) -> Option<Cause> {
    let is_one = servers.len() == 1;
    let mut causes = Vec::new();
    for server in servers {
        let cause = match &server.last_error {
            Some(error) => Some(plain(error)),
            None if unresolved => name_problem(server.addr.host(), server.addr.port()).await,
            None => None,
        };
        causes.extend(cause.map(|cause| match is_one {
            true => cause,
            false => format!("{}:{}: {cause}", server.addr.host(), server.addr.port()),
        }));
    }
    (!causes.is_empty()).then(|| Cause {
        why: causes.join("; "),
        is_login: causes.iter().all(|cause| cause.contains(REFUSED_LOGIN)),
    })
}

/// Why an attempt to connect has failed. The client's error is only about the last server that it
/// tried.
pub(super) async fn of_attempt(error: &ConnectError, servers: &[ServerAddr]) -> String {
    if error.kind() == ConnectErrorKind::Dns {
        for server in servers {
            if let Some(problem) = name_problem(server.host(), server.port()).await {
                return problem;
            }
        }
    }
    plain(&error.to_string())
}

/// Why a name can't be looked up. `None` if it can.
async fn name_problem(host: &str, port: u16) -> Option<String> {
    let looked_up = timeout(LOOKUP, lookup_host((host, port))).await;
    match looked_up {
        Ok(Ok(mut addresses)) => match addresses.next() {
            Some(_) => None,
            None => Some(format!("`{host}` has no address")),
        },
        Ok(Err(error)) => {
            let error = error.to_string();
            let words = error.strip_prefix("failed to lookup address information: ");
            let words = words.unwrap_or(&error);
            Some(format!("the name `{host}` can't be looked up: {words}"))
        }
        Err(_) => Some(format!("looking up the name `{host}` takes long")),
    }
}

/// The text of a client's error without meaningless parts, and with a hint if there is one.
fn plain(error: &str) -> String {
    let mut words = error;
    while let Some(rest) = KINDS.iter().find_map(|kind| words.strip_prefix(kind)) {
        words = rest;
    }
    // Some errors repeat their kind in the client's words.
    if let Some((kind, rest)) = words.split_once(": nats: ")
        && kind == rest
    {
        words = kind;
    }
    // The number of an OS error adds nothing to its text.
    if let Some((cause, number)) = words.split_once(" (os error ")
        && number.ends_with(')')
    {
        words = cause;
    }
    let hint = HINTS.iter().find(|(what, _)| words.contains(what));
    match hint {
        Some((_, hint)) => format!("{words} ({hint})"),
        None => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[tokio::test]
    async fn the_cause_is_said_once_and_what_says_nothing_is_left_out() {
        let refused = io::Error::from_raw_os_error(111);
        let error = ConnectError::with_source(ConnectErrorKind::Io, refused);
        let said = of_attempt(&error, &[]).await;
        assert_eq!(
            said,
            "Connection refused (is nats-server running there? [nats] url says where)"
        );
        let refused = "nats: authorization violation";
        let kind = ConnectErrorKind::AuthorizationViolation;
        let error = ConnectError::with_source(kind, refused);
        let said = of_attempt(&error, &[]).await;
        assert_eq!(
            said,
            "authorization violation (it refuses this login: see [nats])"
        );
        let untrusted = "invalid peer certificate: UnknownIssuer";
        let error = ConnectError::with_source(ConnectErrorKind::Io, untrusted);
        let said = of_attempt(&error, &[]).await;
        assert!(said.starts_with(untrusted), "{said}");
        assert!(said.contains("[nats.tls] ca"), "{said}");
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_is_named() {
        let error = ConnectError::with_source(ConnectErrorKind::Dns, "no addresses");
        let said = of_attempt(&error, &["no-such-host.invalid".parse().unwrap()]).await;
        assert!(said.contains("`no-such-host.invalid`"), "{said}");
    }
}
