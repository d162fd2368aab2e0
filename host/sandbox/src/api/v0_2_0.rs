//! `presence:plugin` 0.2.0: the interfaces that the host links, their types, and the exports of
//! components that were built against this version.

// The derives of wasmtime generate `unsafe impl`s. There is no other unsafe code here.
#![allow(unsafe_code)]

mod host;

use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::{Question, Setting};
use presence_core::event::{Change, Reason};
use presence_core::message::ID_BYTES_MAX;
use presence_core::metadata::MetadataChange;
use presence_core::names::Id;
use wasmtime::component::{
    ComponentNamedList, ComponentType, Instance, Lift, Linker, LinkerInstance, Lower, TypedFunc,
    WasmStr,
};
use wasmtime::{AsContextMut, Result, Store, StoreContextMut, Trap, bail, format_err};

use super::export::Export;
use super::stateful::Stateful;
use super::types::{EventArg, RenditionResult, State};
use super::version::Api;
use crate::call::Call;
use crate::capability::{Capabilities, Capability};

use host::link_added_in_0_2_0;

pub(super) use host::host;

type Calling<'a> = StoreContextMut<'a, Call>;

/// How many bytes of a newly made set cost one unit of fuel.
const SET_BYTES_A_FUEL: u64 = 4;

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
enum Why {
    #[component(name = "disconnect")]
    Disconnect,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "logout")]
    Logout,
}

#[derive(Clone, ComponentType, Lift, Lower)]
#[component(variant)]
enum Value {
    #[component(name = "text")]
    Text(String),
    #[component(name = "json")]
    Json(String),
}

#[derive(Clone, ComponentType, Lift)]
#[component(record)]
struct ChangeResult {
    key: String,
    value: Option<Value>,
}

impl ChangeResult {
    fn bytes(&self) -> usize {
        let value = match &self.value {
            Some(Value::Text(text) | Value::Json(text)) => text.len(),
            None => 0,
        };
        self.key.len() + value
    }
}

impl Value {
    /// Converts JSON text: a JSON string becomes `Text`, any other value `Json`.
    fn of(json: &str) -> Self {
        match serde_json::from_str(json) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Json(json.into()),
        }
    }

    /// The value as JSON text. Fails if `Json` doesn't hold valid JSON.
    fn into_json(self) -> Result<String, serde_json::Error> {
        match self {
            Self::Text(text) => serde_json::to_string(&text),
            Self::Json(json) => {
                serde_json::from_str::<serde::de::IgnoredAny>(&json)?;
                Ok(json)
            }
        }
    }
}

pub(super) const API: Api = Api {
    version: "0.2.0",
    link,
    configure: |instance, store| {
        let params = |json: String| (json,);
        export(instance, store, "configure", params, |_, (taken,)| {
            Ok(taken)
        })
    },
    enrich: |instance, store| {
        let params = |event: EventArg| (event,);
        export(instance, store, "enrich", params, |store, (changes,)| {
            let changes: Vec<ChangeResult> = changes;
            let bytes = changes.iter().map(ChangeResult::bytes).sum();
            store.data().check_changes(changes.len(), bytes)?;
            changes.into_iter().map(change).collect()
        })
    },
    filter: |instance, store| {
        let params = |params: (EventArg, u32)| params;
        export(instance, store, "filter", params, |_, (audience,)| {
            Ok(audience)
        })
    },
    redact: |instance, store| {
        let params = |params: (EventArg, u32)| params;
        export(instance, store, "redact", params, |store, (parts,)| {
            let parts: Vec<RenditionResult> = parts;
            let keys = || parts.iter().flat_map(|part| &part.keys);
            let bytes = keys().map(String::len).sum();
            store
                .data()
                .check_renditions(parts.len(), keys().count(), bytes)?;
            // The host intersects each part with the audience: charge for that.
            for part in &parts {
                let work = store.data().audience(part.audience)?.work();
                charge(&mut *store, work)?;
            }
            Ok(parts)
        })
    },
    keeps_state: |component| {
        let has = |name: &&str| component.get_export_index(None, name).is_some();
        ["save", "restore"].iter().any(has)
    },
    stateful: |instance, store| {
        let mut has = |name| instance.get_func(&mut *store, name).is_some();
        if !has("save") && !has("restore") {
            return Ok(None);
        }
        let params = |state: State| (state,);
        Ok(Some(Stateful {
            save: export(instance, store, "save", |()| (), |_, (state,)| Ok(state))?,
            restore: export(instance, store, "restore", params, |_, (taken,)| Ok(taken))?,
        }))
    },
};

/// Looks up an export by its name in WIT, and converts its parameters and results.
fn export<A: 'static, P, Q, R: 'static>(
    instance: &Instance,
    store: &mut Store<Call>,
    name: &str,
    params: fn(A) -> P,
    results: fn(&mut Store<Call>, Q) -> Result<R>,
) -> Result<Export<A, R>>
where
    P: ComponentNamedList + Lower + 'static,
    Q: ComponentNamedList + Lift + 'static,
{
    let function: TypedFunc<P, Q> = instance.get_typed_func(&mut *store, name)?;
    Ok(Box::new(move |store, args| {
        let answer = function.call(&mut *store, params(args))?;
        results(store, answer)
    }))
}

/// An enricher's change, with its value as JSON text.
fn change(change: ChangeResult) -> Result<MetadataChange> {
    let value = change.value.map(Value::into_json).transpose();
    let value =
        value.map_err(|error| format_err!("set `{}` to what is not JSON: {error}", change.key))?;
    Ok((change.key, value))
}

/// Links the four interfaces of this version.
fn link(linker: &mut Linker<Call>, granted: Capabilities) -> Result<()> {
    events(&mut linker.instance("presence:plugin/events@0.2.0")?)?;
    audiences(&mut linker.instance("presence:plugin/audiences@0.2.0")?)?;
    let mut directory = linker.instance("presence:plugin/directory@0.2.0")?;
    questions(&mut directory, granted)?;
    if granted.has(Capability::Blocks) {
        question(&mut directory, "blockers", Question::Blockers)?;
    }
    let mut linked = linker.instance("presence:plugin/host@0.2.0")?;
    host(&mut linked, granted)?;
    link_added_in_0_2_0(&mut linked)
}

pub(super) fn events(events: &mut LinkerInstance<'_, Call>) -> Result<()> {
    events.func_wrap("timestamp", |mut store: Calling<'_>, (): ()| {
        store.data_mut().observed.reads.timestamp = true;
        Ok((store.data().context()?.event.timestamp,))
    })?;
    // `last-seen` and `reason` aren't recorded as reads: the verdicts that are reused are about
    // online users, for whom both are always none.
    events.func_wrap("last-seen", |store: Calling<'_>, (): ()| {
        Ok((match store.data().context()?.event.change {
            Change::Online | Change::Updated => None,
            Change::Offline { last_seen, .. } => Some(last_seen),
        },))
    })?;
    events.func_wrap("reason", |store: Calling<'_>, (): ()| {
        Ok((match store.data().context()?.event.change {
            Change::Online | Change::Updated => None,
            Change::Offline {
                reason: Reason::Disconnect,
                ..
            } => Some(Why::Disconnect),
            Change::Offline {
                reason: Reason::Timeout,
                ..
            } => Some(Why::Timeout),
            Change::Offline {
                reason: Reason::Logout,
                ..
            } => Some(Why::Logout),
        },))
    })?;
    events.func_wrap("get", |mut store: Calling<'_>, (key,): (WasmStr,)| {
        let key: Box<str> = key.to_str(&store)?.into();
        let value = store.data().context()?.event.metadata.get(&key);
        let (bytes, value) = (value.map_or(0, str::len), value.map(Value::of));
        charge(&mut store, (key.len() + bytes) as u64)?;
        store.data_mut().read_key(key)?;
        Ok((value,))
    })?;
    events.func_wrap("entries", |mut store: Calling<'_>, (): ()| {
        store.data_mut().observed.reads.all_metadata = true;
        let bytes = store.data().context()?.event.metadata.bytes();
        charge(&mut store, bytes as u64)?;
        let metadata = &store.data().context()?.event.metadata;
        let entries = metadata
            .entries()
            .map(|entry| (entry.key.to_owned(), Value::of(entry.value)));
        Ok((entries.collect::<Vec<_>>(),))
    })?;
    Ok(())
}

pub(super) fn audiences(audiences: &mut LinkerInstance<'_, Call>) -> Result<()> {
    audiences.func_wrap("nobody", |mut store: Calling<'_>, (): ()| {
        Ok((store.data_mut().put(Audience::nobody())?,))
    })?;
    audiences.func_wrap("of", |mut store: Calling<'_>, (users,): (Vec<WasmStr>,)| {
        charge(&mut store, 64 * users.len() as u64)?;
        let users = users.iter().map(|name| user(&mut store, name));
        let users = users.collect::<Result<Audience>>()?;
        Ok((store.data_mut().put(users)?,))
    })?;
    for (name, combine) in [
        (
            "union",
            Audience::union as fn(&Audience, &Audience) -> Audience,
        ),
        ("intersection", Audience::intersection),
        ("difference", Audience::difference),
    ] {
        audiences.func_wrap(name, move |mut store: Calling<'_>, (a, b): (u32, u32)| {
            let work = store.data().audience(a)?.work() + store.data().audience(b)?.work();
            charge(&mut store, work)?;
            let (a, b) = (store.data().audience(a)?, store.data().audience(b)?);
            let result = combine(a, b);
            if !result.shares(a) && !result.shares(b) {
                let bytes = result.bytes();
                charge(&mut store, bytes / SET_BYTES_A_FUEL)?;
            }
            Ok((store.data_mut().put(result)?,))
        })?;
    }
    audiences.func_wrap(
        "contains",
        |mut store: Calling<'_>, (a, name): (u32, WasmStr)| {
            let user = with_id(&mut store, &name, Call::known_user)?;
            let audience = store.data().audience(a)?;
            Ok((user.is_some_and(|user| audience.contains(user)),))
        },
    )?;
    audiences.func_wrap("len", |store: Calling<'_>, (a,): (u32,)| {
        Ok((u32::try_from(store.data().audience(a)?.len()).unwrap_or(u32::MAX),))
    })?;
    audiences.func_wrap("viewers", |mut store: Calling<'_>, (a,): (u32,)| {
        let work = 64 * store.data().audience(a)?.len();
        charge(&mut store, work)?;
        let names = store.data().context()?.names.read();
        let ids = store.data().audience(a)?.ids();
        let viewers = ids.filter_map(|id| Some(names.name(id)?.as_str().to_owned()));
        let viewers: Vec<_> = viewers.collect();
        drop(names);
        charge(
            &mut store,
            viewers.iter().map(String::len).sum::<usize>() as u64,
        )?;
        Ok((viewers,))
    })?;
    Ok(())
}

/// Links a question about one user. The directory holds the answer as a finished set, so that only
/// the bytes of the id are charged.
fn question(
    directory: &mut LinkerInstance<'_, Call>,
    name: &str,
    question: fn(Id) -> Question,
) -> Result<()> {
    directory.func_wrap(name, move |mut store: Calling<'_>, (name,): (WasmStr,)| {
        let user = user(&mut store, &name)?;
        Ok((store.data_mut().ask(question(user))?,))
    })
}

/// Links the granted questions to the directory that all versions of the API have.
pub(super) fn questions(
    directory: &mut LinkerInstance<'_, Call>,
    granted: Capabilities,
) -> Result<()> {
    if granted.has(Capability::Contacts) {
        question(directory, "contacts", Question::Contacts)?;
        question(directory, "with-contact", Question::WithContact)?;
    }
    if granted.has(Capability::Groups) {
        groups(directory)?;
    }
    if granted.has(Capability::Blocks) {
        question(directory, "blocked-by", Question::BlockedBy)?;
    }
    if granted.has(Capability::Settings) {
        settings(directory)?;
    }
    if granted.has(Capability::Everyone) {
        directory.func_wrap("everyone", |mut store: Calling<'_>, (): ()| {
            Ok((store.data_mut().ask(Question::Everyone)?,))
        })?;
    }
    Ok(())
}

/// Links the questions about groups.
fn groups(directory: &mut LinkerInstance<'_, Call>) -> Result<()> {
    // The only question whose answer is a newly made set: making it is charged.
    directory.func_wrap(
        "co-members",
        |mut store: Calling<'_>, (name,): (WasmStr,)| {
            let question = Question::CoMembers(user(&mut store, &name)?);
            let work = store.data().context()?.directory.work(&question);
            charge(&mut store, work)?;
            let members = store.data_mut().ask(question)?;
            let bytes = store.data().audience(members)?.bytes();
            charge(&mut store, bytes / SET_BYTES_A_FUEL)?;
            Ok((members,))
        },
    )?;
    directory.func_wrap("members", |mut store: Calling<'_>, (group,): (WasmStr,)| {
        let group = with_id(&mut store, &group, |_, group| Ok(group.into()))?;
        Ok((store.data_mut().ask(Question::Members(group))?,))
    })?;
    directory.func_wrap("groups", |mut store: Calling<'_>, (name,): (WasmStr,)| {
        let user = user(&mut store, &name)?;
        let groups = store.data().context()?.directory.groups(user);
        let groups = groups.map(|groups| groups.iter().map(|group| group.to_string()).collect());
        let is_cached = groups.is_ok();
        let groups: Vec<String> = groups.unwrap_or_default();
        let bytes: usize = groups.iter().map(String::len).sum();
        charge(&mut store, (64 * groups.len() + bytes) as u64)?;
        store.data_mut().read(Question::Groups(user), is_cached)?;
        Ok((groups,))
    })
}

/// Links the questions about settings.
fn settings(directory: &mut LinkerInstance<'_, Call>) -> Result<()> {
    directory.func_wrap(
        "with-setting",
        |mut store: Calling<'_>, (key, value): (WasmStr, WasmStr)| {
            let bytes = key.to_str(&store)?.len() + value.to_str(&store)?.len();
            charge(&mut store, 16 * bytes as u64)?;
            let setting = Setting::new(&key.to_str(&store)?, &value.to_str(&store)?);
            let setting = setting
                .map_err(|error| format_err!("asked for a setting that is not JSON: {error}"))?;
            let question = Question::WithSetting(Arc::new(setting));
            Ok((store.data_mut().ask(question)?,))
        },
    )?;
    directory.func_wrap(
        "setting",
        |mut store: Calling<'_>, (name, key): (WasmStr, WasmStr)| {
            let user = user(&mut store, &name)?;
            let key = key.to_str(&store)?.into_owned();
            let setting = store.data().context()?.directory.setting(user, &key);
            let setting = setting.map(|setting| setting.map(str::to_owned));
            let is_cached = setting.is_ok();
            let setting = setting.unwrap_or_default();
            let bytes = key.len() + setting.as_ref().map_or(0, String::len);
            charge(&mut store, bytes as u64)?;
            store.data_mut().read(Question::Settings(user), is_cached)?;
            Ok((setting,))
        },
    )
}

/// The interned number of a user whom a component names by id.
fn user(store: &mut Calling<'_>, name: &WasmStr) -> Result<Id> {
    with_id(store, name, Call::user)
}

/// Passes the id of a user or a group that a component names to `act`, and charges for the bytes of
/// the id. Fails if the id has more than `ID_BYTES_MAX` bytes, which is the limit for ids in
/// messages and directories: no such user or group exists.
fn with_id<T>(
    store: &mut Calling<'_>,
    id: &WasmStr,
    act: impl FnOnce(&Call, &str) -> Result<T>,
) -> Result<T> {
    let id = id.to_str(&*store)?;
    let bytes = id.len();
    if bytes > ID_BYTES_MAX {
        bail!("named an id of {bytes} bytes, and ids have at most {ID_BYTES_MAX}");
    }
    let outcome = act(store.data(), &id)?;
    drop(id);
    charge(store, bytes as u64)?;
    Ok(outcome)
}

/// Takes fuel for work that the host does for a component, such as copying bytes.
fn charge(mut store: impl AsContextMut<Data = Call>, work: u64) -> Result<()> {
    let mut store = store.as_context_mut();
    match store.get_fuel()?.checked_sub(work) {
        Some(left) => store.set_fuel(left),
        None => Err(Trap::OutOfFuel.into()),
    }
}
