//! Names whose bytes are no text. A cluster without an encoding (`SQL_ASCII`) takes any bytes for a name, and databases of
//! one cluster may have different encodings, so the server may be unable to send a name to a client that speaks UTF-8.

use std::fmt::Write;

/// An expression for the bytes of a text, which the server does not convert.
pub(super) fn bytes_of(text: &str) -> String {
    // A backslash would begin an escape when the text is read as bytes.
    format!("replace({text}, chr(92), chr(92) || chr(92))::bytea")
}

/// The name as text: as it is if it is UTF-8, else with other bytes as `\xE9` and backslashes doubled.
pub(super) fn escaped(name: Vec<u8>) -> String {
    let name = match String::from_utf8(name) {
        Ok(name) => return name,
        Err(e) => e.into_bytes(),
    };
    let mut out = String::with_capacity(name.len() + 8);
    for chunk in name.utf8_chunks() {
        out.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(out, "\\x{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_text_is_escaped() {
        assert_eq!(escaped("caf\u{e9} \\".into()), "caf\u{e9} \\");
        assert_eq!(escaped(b"caf\xe9 \\x".to_vec()), "caf\\xE9 \\\\x");
        assert_eq!(escaped(b"\xff\xfe".to_vec()), "\\xFF\\xFE");
    }
}
