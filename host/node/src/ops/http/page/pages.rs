//! The pages of a node: one, or one for each of its tenants. A request's query names the tenant.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;
use presence_config::Config;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};

use super::super::tenants::TenantStatuses;
use super::super::{StatusBoard, status};
use super::Page;
use super::access::PageAccess;
use super::events::event;

/// How often the current state is noted.
const EVERY: Duration = Duration::from_secs(1);

/// How many pages may listen at a time.
const LISTENERS_MAX: usize = 8;

/// For how many tenants samples are kept: for those whose page is open, and for those whose page
/// was open last.
const SAMPLED_MAX: usize = 2 * LISTENERS_MAX;

/// The owner of a page: what the page is about.
pub(super) enum Owner {
    /// The node, which has a single tenant.
    Node(Arc<StatusBoard>),
    /// The tenant of this name, if it exists.
    Tenant(Arc<TenantStatuses>, String),
}

impl Owner {
    /// The owner's status board. `None` for a tenant that isn't started.
    pub(super) fn board(&self) -> Option<Arc<StatusBoard>> {
        match self {
            Self::Node(board) => Some(Arc::clone(board)),
            Self::Tenant(tenants, name) => tenants.board(name),
        }
    }

    /// The name of the tenant, if the node has several.
    pub(super) fn tenant(&self) -> Option<&str> {
        match self {
            Self::Node(_) => None,
            Self::Tenant(_, name) => Some(name),
        }
    }

    /// The owner's status, as in `/status`.
    pub(super) fn describe(&self) -> Value {
        match self {
            Self::Node(board) => status::of(board),
            Self::Tenant(tenants, name) => tenants.describe_one(name),
        }
    }
}

/// What the pages of a node share.
pub(super) struct Shared {
    pub(super) access: PageAccess,
    /// A permit for each page that may listen.
    pub(super) listeners: Arc<Semaphore>,
    /// The event with the tenants and their states; empty if the node has a single tenant.
    pub(super) tenants: watch::Sender<Bytes>,
}

/// All pages of a node.
pub(in crate::ops::http) struct Pages {
    shared: Arc<Shared>,
    of: PagesOf,
}

enum PagesOf {
    Node(Arc<Page>),
    /// The tenants, and the pages for which samples are kept, the one opened last at the end.
    Tenants(Arc<TenantStatuses>, Mutex<Vec<Arc<Page>>>),
}

impl Pages {
    /// The page of a node with a single tenant.
    pub(in crate::ops::http) fn of_node(config: &Config, board: Arc<StatusBoard>) -> Arc<Self> {
        let shared = Shared::new(config);
        let page = Arc::new(Page::new(Owner::Node(board), &shared));
        Arc::new(Self {
            shared,
            of: PagesOf::Node(page),
        })
    }

    /// The pages of a node with several tenants.
    pub(in crate::ops::http) fn of_tenants(
        config: &Config,
        tenants: Arc<TenantStatuses>,
    ) -> Arc<Self> {
        let shared = Shared::new(config);
        let of = PagesOf::Tenants(tenants, Mutex::default());
        Arc::new(Self { shared, of })
    }

    /// The page that a request is about. Without a tenant in the request, the first tenant's.
    pub(super) fn page(&self, request: &Parts) -> Arc<Page> {
        let (tenants, sampled) = match &self.of {
            PagesOf::Node(page) => return Arc::clone(page),
            PagesOf::Tenants(tenants, sampled) => (tenants, lock(sampled)),
        };
        let named = query(request, "tenant").or_else(|| tenants.first());
        let name = named.unwrap_or_default();
        let known = sampled.iter().find(|it| it.owner.tenant() == Some(&name));
        known.cloned().unwrap_or_else(|| {
            let owner = Owner::Tenant(Arc::clone(tenants), name);
            Arc::new(Page::new(owner, &self.shared))
        })
    }

    /// Has samples kept for a page.
    pub(super) fn sample(&self, page: &Arc<Page>) {
        let PagesOf::Tenants(_, sampled) = &self.of else {
            return;
        };
        let mut sampled = lock(sampled);
        sampled.retain(|it| it.owner.tenant() != page.owner.tenant());
        if sampled.len() >= SAMPLED_MAX
            && let Some(oldest) = sampled.iter().position(|it| !it.is_listened_to())
        {
            sampled.remove(oldest);
        }
        sampled.push(Arc::clone(page));
    }

    /// Notes the current state for the pages every second. It never returns.
    pub(in crate::ops::http) async fn refresh_forever(self: Arc<Self>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.name_tenants();
            match &self.of {
                PagesOf::Node(page) => page.refresh(),
                PagesOf::Tenants(_, sampled) => {
                    let pages = lock(sampled).clone();
                    pages.iter().for_each(|page| page.refresh());
                }
            }
        }
    }

    /// Sends the list of tenants to those who listen, if it has changed.
    pub(super) fn name_tenants(&self) {
        let PagesOf::Tenants(tenants, _) = &self.of else {
            return;
        };
        if self.shared.listeners.available_permits() == LISTENERS_MAX {
            return;
        }
        let each = tenants.names_and_states().into_iter();
        let each = each.map(|(name, state)| json!({"name": name, "state": state}));
        let event_text = json!({"tenants": each.collect::<Vec<_>>()});
        let event_text = event("tenants", &event_text.to_string());
        self.shared.tenants.send_if_modified(|before| {
            let is_news = *before != event_text;
            if is_news {
                *before = event_text;
            }
            is_news
        });
    }
}

impl Shared {
    fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            access: PageAccess::new(&config.http, config.log.user_ids),
            listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
            tenants: watch::Sender::new(Bytes::new()),
        })
    }
}

/// The value of a parameter in a request's query.
pub(super) fn query(request: &Parts, name: &str) -> Option<String> {
    let mut parts = request.uri.query()?.split('&');
    let value = parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;

    use super::*;

    #[test]
    fn a_query_says_what_is_asked_for_by_its_whole_name() {
        let said = |uri: &str, name| {
            let request = Request::builder().uri(uri).body(()).unwrap();
            query(&request.into_parts().0, name)
        };
        assert_eq!(said("/page/events", "tenant"), None);
        assert_eq!(
            said("/page/events?after=7&tenant=a", "after"),
            Some("7".into())
        );
        assert_eq!(
            said("/?tenants=a&tenant=b%20%C3%BC", "tenant"),
            Some("b ü".into())
        );
        assert_eq!(said("/?tenant=", "tenant"), Some(String::new()));
        assert_eq!(said("/?tenant", "tenant"), None);
    }
}
