//! Plugin files: their sections, and the manifest in one of them.
#![no_main]

use presence_sandbox::Manifest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The bytes are a whole file, and then the manifest in an otherwise valid file.
    let whole = Manifest::read("plugin", bytes);
    assert_eq!(
        whole.is_ok(),
        whole.is_ok() && presence_component::manifest(bytes).is_ok()
    );
    let mut file = b"\0asm\x0d\0\x01\0".to_vec();
    let name = presence_component::SECTION.as_bytes();
    if let (Ok(size), Ok(name_size)) = (
        u32::try_from(bytes.len() + name.len() + 1),
        u8::try_from(name.len()),
    ) {
        file.push(0);
        file.extend(leb128(size));
        file.push(name_size);
        file.extend(name);
        file.extend(bytes);
        let found = presence_component::manifest(&file).expect("there is one");
        assert_eq!(found, bytes);
        let _ = Manifest::read("plugin", &file);
    }
});

/// A number in LEB128, as in WebAssembly.
fn leb128(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}
