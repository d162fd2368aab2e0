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
//! [`directory`] and [`now`]. These ask the host, and so work only inside it: on
//! a native target they panic. Keep the rule itself a function of plain
//! arguments, and test that.
//!
//! Log with the [`log`] crate's macros. A panic is logged with its message, and
//! ends the call: the host then tells nobody new.

mod audience;
#[doc(hidden)]
pub mod bindings;
pub mod directory;
mod event;
mod export;
mod host;
mod role;

pub use audience::Audience;
pub use event::{Event, Kind, Reason, Value};
#[doc(hidden)]
pub use export::Slot;
pub use host::{explain, now, reconsider_at};
pub use log;
pub use role::{Change, Enricher, Filter, NoConfig, Redactor, Rendition};

#[cfg(all(feature = "allocator", target_arch = "wasm32"))]
#[global_allocator]
static ALLOCATOR: talc::wasm::WasmDynamicTalc = talc::wasm::new_wasm_dynamic_allocator();
