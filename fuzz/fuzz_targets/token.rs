//! Ids as tokens in subjects and keys: each id has one token, and each token one id.
#![no_main]

use presence_core::token;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Some(id) = token::decode(text) {
        assert_eq!(token::encode(&id), text);
    }
    if !text.is_empty() {
        let token = token::encode(text);
        assert_eq!(token::decode(&token).as_deref(), Some(text));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-=".contains(&byte);
        assert!(token.bytes().all(plain), "{token:?}");
    }
});
