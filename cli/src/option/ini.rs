//! Configuration files: sections and `key=value` lines.
//!
//! A line that begins with `#` is a comment; nothing else is. There is no quoting: a value is the rest of its
//! line without the spaces around it. A section may come again and goes on then. Repetition of keys is judged
//! by `resolve`, which knows the options.

use super::error::OptionError;
use crate::exit::Status;

/// One `key=value` line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The section it stands in.
    pub section: &'a str,
    /// The key.
    pub key: &'a str,
    /// The value, not empty.
    pub value: &'a str,
    /// The number of its line, from 1.
    pub line: u32,
}

/// Reads a file's text. `name` is for messages.
///
/// # Errors
/// Status 29 for a line that is nothing of the above or stands before the first section, 32 for an empty value.
/// Messages never repeat a value.
pub fn parse<'a>(name: &str, text: &'a str) -> Result<Vec<Entry<'a>>, OptionError> {
    let mut entries = Vec::new();
    let mut section = None;
    for (at, line) in (1_u32..).zip(text.lines()) {
        let refuse = |what: &str| OptionError::new(Status::FORMAT, format!("{what} in line {at} of '{name}'"));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let title = rest.strip_suffix(']').ok_or_else(|| refuse("section without ']' at its end"))?.trim();
            if title.is_empty() {
                return Err(refuse("section without a name"));
            }
            section = Some(title);
            continue;
        }
        let (key, value) = line.split_once('=').ok_or_else(|| refuse("neither a section nor key=value"))?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() {
            return Err(refuse("value without a key"));
        }
        let section = section.ok_or_else(|| refuse(&format!("key '{key}' before the first section")))?;
        if value.is_empty() {
            let message = format!("key '{key}' of section '{section}' has no value in line {at} of '{name}'");
            return Err(OptionError::new(Status::OPTION_INVALID_VALUE, message));
        }
        entries.push(Entry { section, key, value, line: at });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sections_keys_and_comments() {
        let text =
            "\u{20}# a comment\n[global]\nrepo1-path = /a # b\n\n[ demo ]\r\npg1-path=/p=q\r\n[global]\nx=\"y\"\n";
        let entries = parse("f", text).unwrap();
        let shown: Vec<_> = entries.iter().map(|e| format!("{}:{}.{}={}", e.line, e.section, e.key, e.value)).collect();
        assert_eq!(shown, ["3:global.repo1-path=/a # b", "6:demo.pg1-path=/p=q", "8:global.x=\"y\""]);
    }

    #[test]
    fn malformed_lines_name_their_place() {
        for (text, status, message) in [
            ("[global\nx=1", 29, "section without ']' at its end in line 1 of 'f'"),
            ("[]\n", 29, "section without a name in line 1 of 'f'"),
            ("x=1", 29, "key 'x' before the first section in line 1 of 'f'"),
            ("[g]\nx", 29, "neither a section nor key=value in line 2 of 'f'"),
            ("[g]\n=x", 29, "value without a key in line 2 of 'f'"),
            ("[g]\nx=", 32, "key 'x' of section 'g' has no value in line 2 of 'f'"),
            ("[g]\nx= ", 32, "key 'x' of section 'g' has no value in line 2 of 'f'"),
        ] {
            let error = parse("f", text).expect_err(text);
            assert_eq!((error.status.0, error.message.as_str()), (status, message), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\PC|[\\[\\]=#\n\r ]){0,80}") {
            if let Ok(entries) = parse("f", &text) {
                for e in entries {
                    prop_assert!(!e.key.is_empty() && !e.value.is_empty() && !e.section.is_empty());
                }
            }
        }
    }
}
