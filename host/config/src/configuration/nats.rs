//! `[nats]` and `[nats.tls]`: the broker, and how to reach it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use percent_encoding::percent_decode_str;
use url::Url;

use super::checks::{any, filled, within};
use super::problem::InvalidValue;
use super::section::Section;
use crate::reply_prefix;

const URL: &str = "nats://127.0.0.1:4222";

/// The port of a NATS server whose address names none.
const PORT: u16 = 4_222;

/// The prefix of the reply subjects of NATS clients, unless they set another one.
const REPLY_PREFIX: &str = "_INBOX.";

/// `[nats]`: the broker, and how to reach it.
#[derive(Clone, Debug, PartialEq)]
pub struct Nats {
    /// The servers of one cluster, at least one. The first that answers is
    /// used.
    pub url: Vec<Url>,
    /// How this node logs in.
    pub auth: Auth,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// How long an attempt to connect may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How many bytes of messages that the broker hasn't acknowledged are kept, in all.
    pub journal_bytes: usize,
    /// How many messages of a subscription may wait to be handled.
    pub intake_queue: usize,
    /// How often each source publishes its sequence numbers, in milliseconds.
    pub beacon_ms: u64,
    /// Whether published messages have an id for JetStream.
    pub message_ids: bool,
    /// The prefixes of the reply subjects on which requests are answered, at least one.
    pub reply_prefixes: Vec<String>,
}

/// How this node logs in.
#[derive(Clone, Debug, PartialEq)]
pub enum Auth {
    /// Without a login.
    Anonymous,
    /// By the JWT and the key in a `.creds` file.
    Creds(PathBuf),
    /// By the nkey whose seed is in this file.
    Nkey(PathBuf),
    /// By user and password, which may come from the URLs.
    Password {
        /// The user.
        user: String,
        /// The user's password.
        password: Secret,
    },
    /// By a token that the broker knows.
    Token(Secret),
}

impl Auth {
    /// Who logs in, without the secret.
    pub fn who(&self) -> String {
        match self {
            Self::Anonymous => "nobody".into(),
            Self::Creds(path) => format!("creds {}", path.display()),
            Self::Nkey(path) => format!("nkey {}", path.display()),
            Self::Password { user, .. } => format!("user {user}"),
            Self::Token(_) => "a token".into(),
        }
    }
}

/// `[nats.tls]`: how the connection is encrypted.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// Whether a connection without TLS is refused.
    pub required: bool,
    /// A PEM file with certificates to trust in addition to the system's.
    pub ca: Option<PathBuf>,
    /// The client certificate of this node. `None`: it has none.
    pub identity: Option<ClientIdentity>,
}

/// A client certificate and its private key, both PEM files.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientIdentity {
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A text that must not be printed.
#[derive(Clone, PartialEq)]
pub struct Secret(pub(super) String);

impl Secret {
    /// The secret, to hand to the broker or to compare.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Nats {
    /// Host and port of each server, without logins.
    pub fn servers(&self) -> String {
        let servers = self.url.iter();
        let servers = servers.map(|server| {
            let host = server.host_str().unwrap_or_default();
            format!("{host}:{}", server.port().unwrap_or(PORT))
        });
        servers.collect::<Vec<_>>().join(", ")
    }

    /// The errors of the files that it names and that can't be read.
    pub fn unreadable_files(&self) -> Vec<anyhow::Error> {
        let open = |(key, file): (&str, &Path)| {
            let opened = std::fs::File::open(file);
            let opened =
                opened.with_context(|| format!("[nats] {key}: can't read {}", file.display()));
            opened.err()
        };
        self.files().into_iter().filter_map(open).collect()
    }

    /// The files that it names, each with its key.
    fn files(&self) -> Vec<(&'static str, &Path)> {
        let login = match &self.auth {
            Auth::Creds(path) => Some(("creds", &**path)),
            Auth::Nkey(path) => Some(("nkey", &**path)),
            Auth::Anonymous | Auth::Password { .. } | Auth::Token(_) => None,
        };
        let tls = &self.tls;
        let identity = tls.identity.iter();
        let identity = identity.flat_map(|own| [("tls.cert", &*own.cert), ("tls.key", &*own.key)]);
        let ca = tls.ca.as_deref().map(|path| ("tls.ca", path));
        login.into_iter().chain(ca).chain(identity).collect()
    }

    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let servers = section.get("url", servers).unwrap_or_default();
        let is_encrypted = servers
            .iter()
            .any(|server| server.address.scheme() == "tls");
        let url: Vec<_> = servers
            .iter()
            .map(|server| server.address.clone())
            .collect();
        let auth = Auth::read(
            section,
            servers.into_iter().filter_map(|server| server.auth),
        );
        Self {
            url: match url.is_empty() {
                true => URL.parse().into_iter().collect(),
                false => url,
            },
            auth,
            connect_timeout_ms: section
                .get("connect_timeout_ms", within(1..=600_000))
                .unwrap_or(5_000),
            journal_bytes: section
                .get("journal_bytes", within(65_536..=17_179_869_184))
                .unwrap_or(67_108_864),
            intake_queue: section
                .get("intake_queue", within(1..=16_777_216))
                .unwrap_or(65_536),
            beacon_ms: section
                .get("beacon_ms", within(100..=3_600_000))
                .unwrap_or(5_000),
            message_ids: section.get("message_ids", any).unwrap_or(false),
            reply_prefixes: section
                .get("reply_prefixes", reply_prefixes)
                .unwrap_or_else(|| vec![REPLY_PREFIX.into()]),
            tls: section.section("tls", |section| Tls::read(section, is_encrypted)),
        }
    }
}

impl Auth {
    /// Reads the keys of the login. Without any of these keys, the login in the URLs is used.
    fn read(section: &mut Section<'_, '_>, carried: impl Iterator<Item = Self>) -> Self {
        let mut carried: Vec<_> = carried.collect();
        carried.dedup();
        let creds = section.path("creds");
        let nkey = section.path("nkey");
        let user = section.get("user", filled);
        let password = section.get("password", filled).map(Secret);
        let token = section.get("token", filled).map(Secret);
        match (creds, nkey, user, password, token) {
            (None, None, None, None, None) if carried.len() <= 1 => {
                return carried.pop().unwrap_or(Self::Anonymous);
            }
            (None, None, None, None, None) => {
                let what = "carries several logins";
                section.refuse(
                    "url",
                    InvalidValue::new(what, "keep one, the same in each address"),
                );
                return Self::Anonymous;
            }
            _ if !carried.is_empty() => {
                let what = "carries a login, and another is set beside it";
                section.refuse("url", InvalidValue::new(what, "keep one of them"));
                return Self::Anonymous;
            }
            (Some(creds), None, None, None, None) => return Self::Creds(creds),
            (None, Some(nkey), None, None, None) => return Self::Nkey(nkey),
            (None, None, Some(user), Some(password), None) => {
                return Self::Password { user, password };
            }
            (None, None, None, None, Some(token)) => return Self::Token(token),
            (None, None, ..) if !section.is_set("token") => {
                both_or_none(section, "user", "password");
            }
            _ => {
                let ways = ["creds", "nkey", "user", "password", "token"];
                let set: Vec<_> = ways.into_iter().filter(|key| section.is_set(key)).collect();
                let what = format!("is one of several ways to log in ({})", set.join(", "));
                let last = set.last().copied().unwrap_or("token");
                section.refuse(last, InvalidValue::new(what, "keep one of them"));
            }
        }
        Self::Anonymous
    }
}

impl Tls {
    /// Reads the keys. Certificates and `tls://` addresses make TLS required: otherwise, anyone
    /// between the node and the broker could switch it off unnoticed.
    fn read(section: &mut Section<'_, '_>, is_encrypted: bool) -> Self {
        let required = section.get("required", any);
        let ca = section.path("ca");
        let cert = section.path("cert");
        let key = section.path("key");
        both_or_none(section, "cert", "key");
        let is_needed = is_encrypted || ca.is_some() || cert.is_some() || key.is_some();
        if is_needed && required == Some(false) {
            let what = "is false, and certificates or a `tls://` address are set, which need TLS";
            section.refuse(
                "required",
                InvalidValue::new(what, "leave it out, or take them out"),
            );
        }
        Self {
            required: required.unwrap_or(false) || is_needed,
            ca,
            identity: cert
                .zip(key)
                .map(|(cert, key)| ClientIdentity { cert, key }),
        }
    }
}

fn both_or_none(section: &mut Section<'_, '_>, one: &'static str, other: &'static str) {
    for (key, missing) in [(one, other), (other, one)] {
        if section.is_set(key) && !section.is_set(missing) {
            let what = format!("stands without `{missing}`");
            section.refuse(key, InvalidValue::new(what, "give both or neither"));
        }
    }
}

/// Checks the prefixes of reply subjects.
fn reply_prefixes(prefixes: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    let fix = "write `_INBOX.`, or what else your clients' reply subjects begin with, up to a dot";
    if prefixes.is_empty() {
        return Err(InvalidValue::new("is empty", fix));
    }
    let problem = |prefix: &String| Some((prefix.clone(), reply_prefix::problem(prefix)?));
    match prefixes.iter().find_map(problem) {
        Some((prefix, what)) => Err(InvalidValue::new(
            format!("holds `{prefix}`, which {what}"),
            fix,
        )),
        None => Ok(prefixes),
    }
}

/// The address of a server, and the login that it carries.
struct Server {
    address: Url,
    auth: Option<Auth>,
}

/// Reads the addresses of servers. An error doesn't repeat the address, since it may have a
/// password.
fn servers(urls: Vec<String>) -> Result<Vec<Server>, InvalidValue> {
    let fix = "write `nats://host:port` or `tls://host:port`, or a list of such";
    if urls.is_empty() {
        return Err(InvalidValue::new("is empty", fix));
    }
    let server = |url: &String| {
        let (bare, auth) = without_login(url);
        let address = match bare.contains("://") {
            true => bare.parse(),
            false => format!("nats://{bare}").parse(),
        };
        let address: Url = address.map_err(|error| {
            InvalidValue::new(format!("is not an address of a server ({error})"), fix)
        })?;
        let has_host = address.host_str().is_some_and(|host| !host.is_empty());
        if !matches!(address.scheme(), "nats" | "tls") || !has_host {
            return Err(InvalidValue::new("is not an address of a NATS server", fix));
        }
        Ok(Server { address, auth })
    };
    urls.iter().map(server).collect()
}

/// Splits an address into the address without a login, and the login in it, so that the login is
/// never printed. A login is a user and a password, or a token alone, percent-encoded where needed.
pub(super) fn without_login(url: &str) -> (String, Option<Auth>) {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| {
        (url.get(..scheme.len() + 3).unwrap_or_default(), rest)
    });
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((login, host)) = rest.split_at(end).0.rsplit_once('@') else {
        return (url.to_owned(), None);
    };
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let auth = match login.split_once(':') {
        Some((user, password)) => Auth::Password {
            user: plain(user),
            password: Secret(plain(password)),
        },
        None => Auth::Token(Secret(plain(login))),
    };
    let path = rest.get(end..).unwrap_or_default();
    (format!("{scheme}{host}{path}"), Some(auth))
}
