//! Writing JSON by hand, where a body is a few known fields around bytes that
//! are JSON already.

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut json = Vec::with_capacity(text.len() + 3);
    push_quoted(&mut json, text);
    String::from_utf8(json).unwrap_or_default()
}

/// Appends a text as a JSON string.
pub fn push_quoted(json: &mut Vec<u8>, text: &str) {
    // Writing a string to a vector can't fail.
    let _ = serde_json::to_writer(json, text);
}

/// Appends a number.
pub fn push_number(json: &mut Vec<u8>, number: u64) {
    let _ = serde_json::to_writer(json, &number);
}
