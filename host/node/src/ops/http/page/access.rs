//! Who reads the page, and what they may see.
//!
//! A browser also sends requests that another web page made it send. Their headers give them away:
//! a request to a name that resolves to this host (DNS rebinding) has that name as its `Host`, and
//! a request of another page has that page's `Origin`. The token is in a header that no other page
//! can make a browser send.

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use presence_config::Http;
use ring::hmac;
use ring::rand::SystemRandom;

use super::super::is_address;
use crate::pool::log_limiter::LogLimiter;

/// The shortest time between two log lines about wrong tokens, in milliseconds.
const LOG_EVERY_MS: u64 = 10_000;

/// The response to a refused request: its status, and why.
pub(super) type Refusal = (StatusCode, &'static str);

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requester {
    /// Anyone who can connect.
    Anyone,
    /// Someone who has the token.
    Operator,
}

/// The configured access to the page.
pub(super) struct PageAccess {
    token: Option<Token>,
    /// Whether only clients on this machine can connect.
    is_local: bool,
    /// Whether ids of users may be shown at all.
    names_users: bool,
    wrong: LogLimiter,
}

/// The digest of a token. Digests under a key of the process's own are compared, so that the time
/// of a comparison reveals nothing about the token.
struct Token {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl Token {
    fn new(token: &str) -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        let tag = hmac::sign(&key, token.as_bytes());
        Some(Self { key, tag })
    }

    fn is(&self, token: &[u8]) -> bool {
        hmac::verify(&self.key, token, self.tag.as_ref()).is_ok()
    }
}

impl PageAccess {
    pub(super) fn new(http: &Http, names_users: bool) -> Self {
        let token = http.admin_token.as_ref();
        Self {
            token: token.and_then(|token| Token::new(token.reveal())),
            is_local: http
                .listen
                .is_some_and(|address| address.ip().is_loopback()),
            names_users,
            wrong: LogLimiter::default(),
        }
    }

    /// Whether a request is made to an address, and not to a name.
    pub(super) fn is_to_address(request: &Parts) -> bool {
        is_address(text(request, header::HOST.as_str()).unwrap_or_default())
    }

    /// Who sends a request.
    ///
    /// # Errors
    /// If another page made the browser send the request, or the token is wrong.
    pub(super) fn requester(&self, request: &Parts) -> Result<Requester, Refusal> {
        let host = text(request, header::HOST.as_str()).unwrap_or_default();
        let is_own = |origin: &str| origin.strip_prefix("http://") == Some(host);
        if request.headers.contains_key(header::ORIGIN)
            && !text(request, header::ORIGIN.as_str()).is_some_and(is_own)
        {
            return Err((StatusCode::FORBIDDEN, "another page asks\n"));
        }
        let site = text(request, "sec-fetch-site");
        if site.is_some_and(|site| !["same-origin", "none"].contains(&site)) {
            return Err((StatusCode::FORBIDDEN, "another page asks\n"));
        }
        let Some(given) = request.headers.get(header::AUTHORIZATION) else {
            return Ok(Requester::Anyone);
        };
        let given = given.as_bytes().strip_prefix(b"Bearer ");
        let is_right = |token: &Token| given.is_some_and(|given| token.is(given));
        if self.token.as_ref().is_some_and(is_right) {
            return Ok(Requester::Operator);
        }
        if let Some(times) = self.wrong.line(LOG_EVERY_MS) {
            tracing::warn!(times, "[http] was given a token that is not admin_token");
        }
        Err((StatusCode::UNAUTHORIZED, "the token is wrong\n"))
    }

    /// Whether a token is configured.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Whether a reader may see data about users: one with the token, or anyone on this machine if
    /// no token is configured.
    pub(super) fn is_trusted(&self, requester: Requester) -> bool {
        requester == Requester::Operator || (self.is_local && self.token.is_none())
    }

    /// Whether a reader may see users' ids.
    pub(super) fn names_users_to(&self, requester: Requester) -> bool {
        self.names_users && self.is_trusted(requester)
    }
}

/// The text of a header, if the request has exactly one such header.
fn text<'a>(request: &'a Parts, name: &str) -> Option<&'a str> {
    let mut values = request.headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;

    use super::*;

    fn access(listen: &str, token: Option<&str>) -> PageAccess {
        PageAccess {
            token: token.and_then(Token::new),
            is_local: listen.starts_with("127."),
            names_users: true,
            wrong: LogLimiter::default(),
        }
    }

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_another_page_has_a_browser_send_is_refused() {
        let access = access("127.0.0.1", None);
        let host = ("host", "127.0.0.1:18520");
        for good in [
            vec![host],
            vec![host, ("origin", "http://127.0.0.1:18520")],
            vec![host, ("sec-fetch-site", "same-origin")],
            vec![host, ("sec-fetch-site", "none")],
        ] {
            assert_eq!(
                access.requester(&parts(&good)),
                Ok(Requester::Anyone),
                "{good:?}"
            );
        }
        for bad in [
            vec![host, ("origin", "http://evil.example")],
            vec![host, ("origin", "http://127.0.0.1:18521")],
            vec![host, ("origin", "https://127.0.0.1:18520")],
            vec![host, ("origin", "null")],
            vec![host, ("origin", "")],
            vec![
                host,
                ("origin", "http://127.0.0.1:18520"),
                ("origin", "http://evil.example"),
            ],
            vec![host, ("sec-fetch-site", "cross-site")],
            vec![host, ("sec-fetch-site", "same-site")],
            vec![("origin", "http://127.0.0.1:18520")],
        ] {
            let refused = access.requester(&parts(&bad)).unwrap_err();
            assert_eq!(refused.0, StatusCode::FORBIDDEN, "{bad:?}");
        }
        assert!(PageAccess::is_to_address(&parts(&[host])));
        for bad in [
            &[][..],
            &[("host", "evil.example")],
            &[host, ("host", "[::1]")],
        ] {
            assert!(!PageAccess::is_to_address(&parts(bad)), "{bad:?}");
        }
    }

    #[test]
    fn the_token_is_taken_whole_and_from_its_header_alone() {
        let given = |access: &PageAccess, value: &str| {
            access.requester(&parts(&[("authorization", value)]))
        };
        let with = access("127.0.0.1", Some("a long enough token"));
        assert_eq!(
            given(&with, "Bearer a long enough token"),
            Ok(Requester::Operator)
        );
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer a long enough toke",
            "Bearer a long enough token ",
            "Bearer  a long enough token",
            "bearer a long enough token",
            "Basic a long enough token",
            "a long enough token",
        ] {
            let refused = given(&with, wrong).unwrap_err();
            assert_eq!(refused.0, StatusCode::UNAUTHORIZED, "{wrong:?}");
        }
        let without = access("127.0.0.1", None);
        assert!(given(&without, "Bearer ").is_err(), "there is none to give");
    }

    #[test]
    fn users_are_named_to_operators_and_on_the_machine_itself_where_there_is_no_token() {
        let (anyone, operator) = (Requester::Anyone, Requester::Operator);
        let local = access("127.0.0.1", None);
        assert!(local.names_users_to(anyone));
        let remote = access("0.0.0.0", None);
        assert!(!remote.names_users_to(anyone));
        let guarded = access("127.0.0.1", Some("a long enough token"));
        assert!(!guarded.names_users_to(anyone) && guarded.names_users_to(operator));
        let nameless = PageAccess {
            names_users: false,
            ..access("127.0.0.1", None)
        };
        assert!(!nameless.names_users_to(operator) && nameless.is_trusted(operator));
    }
}
