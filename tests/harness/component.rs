//! The plugins' components as they are committed. And copies of them with a changed manifest, such
//! as another name, by which a test replaces a plugin's rule.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::tools;

/// A component built from `plugins/`, as committed under `plugins/dist`; a
/// fixture is `fixtures/<name>`.
///
/// # Errors
/// When there is none of that name.
pub fn load(name: &str) -> Result<Vec<u8>> {
    let path = tools::root()
        .join("plugins/dist")
        .join(format!("{name}.wasm"));
    fs::read(&path).with_context(|| {
        format!(
            "reading {}; `cargo xtask plugins` builds it",
            path.display()
        )
    })
}

/// A copy of a component with another name in its manifest, so that it replaces the plugin of this
/// name.
///
/// # Errors
/// When the bytes are no component, or it has no manifest.
pub fn named(component: &[u8], name: &str) -> Result<Vec<u8>> {
    with(component, |manifest| {
        drop(manifest.insert("name".into(), name.into()))
    })
}

/// A copy of a component whose manifest `change` has changed.
///
/// # Errors
/// As [`named`].
pub fn with(component: &[u8], change: impl Fn(&mut Map<String, Value>)) -> Result<Vec<u8>> {
    let (preamble, mut rest) = component
        .split_at_checked(8)
        .context("a component has a preamble")?;
    let mut renamed = preamble.to_vec();
    let mut found = false;
    while let Some((id, after)) = rest.split_first() {
        let (content, after) = sized(after)?;
        let manifest = if *id == 0 {
            with_manifest(content, &change)?
        } else {
            None
        };
        found |= manifest.is_some();
        renamed.push(*id);
        push_sized(&mut renamed, manifest.as_deref().unwrap_or(content));
        rest = after;
    }
    if !found {
        bail!("the component has no manifest");
    }
    Ok(renamed)
}

/// A custom section's content with its manifest changed. `None` if the section isn't the manifest:
/// a JSON object with a name.
fn with_manifest(
    content: &[u8],
    change: impl Fn(&mut Map<String, Value>),
) -> Result<Option<Vec<u8>>> {
    let (title, json) = sized(content)?;
    let Ok(Value::Object(mut manifest)) = serde_json::from_slice(json) else {
        return Ok(None);
    };
    if !manifest.contains_key("name") {
        return Ok(None);
    }
    change(&mut manifest);
    let mut changed = Vec::new();
    push_sized(&mut changed, title);
    changed.extend(serde_json::to_vec(&manifest)?);
    Ok(Some(changed))
}

/// Splits off content that begins with its length, a LEB128 number. Returns it, and the rest.
fn sized(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let mut length = 0;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let parts = bytes
                .get(index + 1..)
                .and_then(|rest| rest.split_at_checked(length));
            return parts.context("a section ends within the component");
        }
    }
    bail!("a length has at most five bytes")
}

fn push_sized(bytes: &mut Vec<u8>, content: &[u8]) {
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_in_the_manifest_changes() -> Result<()> {
        let component = |name: &str| {
            let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
            for (id, title, content) in [
                (0, "producers", "\u{1}\u{2}".to_owned()),
                (7, "types", "x".repeat(300)),
                (
                    0,
                    "manifest",
                    format!(r#"{{"name":"{name}","role":"filter"}}"#),
                ),
            ] {
                let mut section = Vec::new();
                push_sized(&mut section, title.as_bytes());
                section.extend(content.as_bytes());
                bytes.push(id);
                push_sized(&mut bytes, &section);
            }
            bytes
        };
        assert_eq!(
            named(&component("groups"), "contacts")?,
            component("contacts")
        );
        assert!(named(b"\0asm\x0d\0\x01\0", "contacts").is_err());
        assert!(named(b"\0asm\x0d\0\x01\0\x01\x05x", "contacts").is_err());
        Ok(())
    }
}
