//! An invented version of the API, to test that a version can differ from the newest one: its
//! filters get only the user's id, and import `nobody` under the name `empty`.

use std::sync::Arc;

use presence_core::audience::Audience;
use serde_json::json;
use wasmtime::bail;
use wasmtime::component::TypedFunc;

use super::*;
use crate::call::Call;
use crate::{Engine, Limits, Manifest, Plugin, Quarantine, self_test};

static ANCIENT: Api = Api {
    version: "0.0.9",
    link: |linker, _| {
        let mut audiences = linker.instance("presence:plugin/audiences@0.0.9")?;
        audiences.func_wrap(
            "empty",
            |mut store: wasmtime::StoreContextMut<'_, Call>, (): ()| {
                Ok((store.data_mut().put(Audience::nobody())?,))
            },
        )
    },
    // This version has no configuration.
    configure: |_, _| Ok(Box::new(|_, _| Ok(Ok(())))),
    enrich: |_, _| bail!("there were no enrichers"),
    filter: |instance, store| {
        let filter: TypedFunc<(Arc<str>, u32), (u32,)> =
            instance.get_typed_func(&mut *store, "decide")?;
        Ok(Box::new(move |store, (event, audience)| {
            let (audience,) = filter.call(store, (event.user, audience))?;
            Ok(audience)
        }))
    },
    redact: |_, _| bail!("there were no redactors"),
    keeps_state: |_| false,
    stateful: |_, _| Ok(None),
};

/// A filter that returns its audience unchanged if the user's id has three bytes, and an empty
/// audience otherwise.
const COMPONENT: &str = r#"(component
    (import "presence:plugin/audiences@0.0.9" (instance $audiences
        (export "empty" (func (result u32)))))
    (core module $Libc
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $libc (instantiate $Libc))
    (core func $empty (canon lower (func $audiences "empty")))
    (core instance $host (export "empty" (func $empty)))
    (core module $Rule
        (import "host" "empty" (func $empty (result i32)))
        (func (export "decide") (param i32 i32 i32) (result i32)
            (if (result i32) (i32.eq (local.get 1) (i32.const 3))
                (then (local.get 2))
                (else (call $empty)))))
    (core instance $rule (instantiate $Rule (with "host" (instance $host))))
    (func (export "decide") (param "user" string) (param "audience" u32) (result u32)
        (canon lift (core func $rule "decide")
            (memory $libc "memory") (realloc (func $libc "realloc")))))"#;

#[test]
fn components_of_a_version_that_differs_are_called_as_those_of_the_newest() {
    let case = |user: &str, expect: &[&str]| {
        json!({
            "name": user,
            "event": {"type": "user_online", "userId": user, "timestamp": 1, "metadata": {}},
            "audience": ["ben"],
            "expect": {"audience": expect},
        })
    };
    let manifest: Manifest = serde_json::from_value(json!({
        "name": "old", "version": "1.0.0", "api": "0.0.9", "role": "filter",
        "tests": [case("ada", &["ben"]), case("cleo", &[])],
    }))
    .unwrap();
    let bytes = wat::parse_str(COMPONENT).unwrap();
    let engine = Engine::new().unwrap();
    let plugin = Plugin::link(&engine, "old", &bytes, manifest.clone(), &ANCIENT).unwrap();
    let outcomes: Vec<_> = self_test::run(&Arc::new(plugin), LIMITS).collect();
    assert_eq!(outcomes.len(), 2);
    for outcome in outcomes {
        assert!(outcome.passes(), "{outcome:?}");
    }
    // The newest version doesn't offer what the component imports.
    let refusal = Plugin::link(&engine, "old", &bytes, manifest, &v0_2_0::API);
    let refusal = refusal.err().unwrap().to_string();
    assert_eq!(
        refusal,
        "`old` can't be linked: it imports presence:plugin/audiences@0.0.9, and plugins are \
         given nothing but presence:plugin 0.2.0"
    );
}

const LIMITS: Limits = Limits {
    fuel: 1_000_000,
    memory_bytes_max: 1 << 20,
    deadline_ms: None,
    quarantine: Quarantine {
        users: 3,
        window_ms: 10_000,
        ms: 1_000,
    },
    metadata: presence_core::metadata::Limits {
        keys: 256,
        bytes: 16_384,
        depth: 16,
    },
};

#[test]
fn a_version_that_is_not_spoken_says_what_to_do() {
    let what = |version: &str| Api::of(version).err().unwrap();
    assert_eq!(
        what("0.3.0"),
        "it was built for presence:plugin 0.3.0, and this host speaks 0.1.0, 0.2.0: \
         update the host, or build it against 0.2.0"
    );
    for older in ["0.0.1", "0.1.0-rc.1", "of yore"] {
        assert_eq!(
            what(older),
            format!(
                "it was built for presence:plugin {older}, and this host speaks 0.1.0, 0.2.0: \
                 build it against 0.2.0"
            )
        );
    }
    for version in ["0.1.0", "0.2.0"] {
        assert!(Api::of(version).is_ok());
    }
}
