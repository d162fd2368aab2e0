//! Write components for presence: small programs that decide who may see whom.
//!
//! A component has one role, and a role is a trait: a [`Filter`] turns an
//! audience into an audience, a [`Redactor`] splits the final audience into
//! renditions, an [`Enricher`] changes an event's metadata. Implement one, and
//! [`export!`] it:
//!
//! ```
//! use presence_plugin::{Audience, Event, Filter, NoConfig, directory};
//!
//! /// A user's contacts may see the user.
//! struct Contacts;
//!
//! impl Filter for Contacts {
//!     type Config = NoConfig;
//!
//!     fn configure(_: NoConfig) -> Result<Self, String> {
//!         Ok(Contacts)
//!     }
//!
//!     fn filter(&self, event: &Event, audience: Audience) -> Audience {
//!         audience | directory::contacts(event.user())
//!     }
//! }
//!
//! presence_plugin::export!(filter: Contacts);
//! # fn main() {}
//! ```
//!
//! Everything a rule may know comes through [`Event`], [`Audience`],
//! [`directory`] and [`now`]. These ask the host. In a plain `cargo test` there is
//! one in memory: [`testing::Host`] calls the rule, and has the answer as plain
//! data.
//!
//! ```
//! use presence_plugin::testing::Host;
//! # use presence_plugin::{Audience, Event, Filter, NoConfig, directory};
//! # struct Contacts;
//! # impl Filter for Contacts {
//! #     type Config = NoConfig;
//! #     fn configure(_: NoConfig) -> Result<Self, String> {
//! #         Ok(Contacts)
//! #     }
//! #     fn filter(&self, event: &Event, audience: Audience) -> Audience {
//! #         audience | directory::contacts(event.user())
//! #     }
//! # }
//!
//! let host = Host::new().contacts("ada", ["ben", "cleo"]);
//! let outcome = host.online("ada").filter(&Contacts, ["dan"]);
//! assert_eq!(outcome.answer, ["ben", "cleo", "dan"]);
//! ```
//!
//! Log with the [`log`] crate's macros. A panic is logged with its message, and
//! ends the call with it: the host then tells nobody new.
//!
//! # State
//!
//! Filters and redactors are pure, so that the host may reuse what they decided
//! until something they read has changed, ask again at any time (after a change,
//! for a query, to explain), and come to the same answer in each of its workers.
//! A rule that remembered its calls would break that: who sees whom would depend
//! on how often it was asked. What a rule is to remember about users belongs into
//! the directory.
//!
//! An [`Enricher`] is asked exactly once an event, and may keep state. Where that
//! is to outlive a reload, it is [`Stateful`].

mod audience;
#[doc(hidden)]
pub mod bindings;
pub mod directory;
mod event;
mod export;
mod host;
mod role;
#[doc(hidden)]
pub mod stateful;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod time;

pub use audience::Audience;
pub use event::{Event, Kind, Reason, Value};
#[doc(hidden)]
pub use export::Slot;
pub use host::{explain, explain_for, now, reconsider_at};
pub use log;
pub use role::{Change, Enricher, Filter, NoConfig, Redactor, Rendition};
pub use stateful::Stateful;
pub use time::{LocalTime, local_time};

#[cfg(all(feature = "allocator", target_arch = "wasm32"))]
#[global_allocator]
static ALLOCATOR: talc::wasm::WasmDynamicTalc = talc::wasm::new_wasm_dynamic_allocator();
