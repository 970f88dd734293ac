//! POSIX extended regular expressions, by the C library: what `--filter` is written in.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;

/// A compiled expression.
pub(crate) struct Pattern(Box<libc::regex_t>);

/// Longest message of the library that is shown.
const MESSAGE_BYTES_MAX: usize = 256;

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it, in the library's words.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let text = CString::new(text).map_err(|_| "it has a zero byte in it".to_owned())?;
        let mut compiled = Box::new(MaybeUninit::<libc::regex_t>::zeroed());
        let flags = libc::REG_EXTENDED | libc::REG_NOSUB;
        // SAFETY: both pointers are valid for the call, and the text ends with a zero.
        let status = unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), flags) };
        if status == 0 {
            // SAFETY: regcomp has succeeded, so it has filled the structure in; the box keeps its place.
            return Ok(Self(unsafe { compiled.assume_init() }));
        }
        let mut message = [0u8; MESSAGE_BYTES_MAX];
        // SAFETY: the message is valid for the length given, in which regerror keeps, with a zero at the end.
        unsafe { libc::regerror(status, compiled.as_ptr(), message.as_mut_ptr().cast(), message.len()) };
        let message = CStr::from_bytes_until_nul(&message).map(|text| text.to_string_lossy().into_owned());
        Err(message.unwrap_or_else(|_| format!("error {status}")))
    }

    /// Whether it is found anywhere in a text. A text with a zero byte, which no listed name has, matches nothing.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        let Ok(text) = CString::new(text) else { return false };
        // SAFETY: the expression is compiled, the text ends with a zero, and no matches are asked for.
        unsafe { libc::regexec(&raw const *self.0, text.as_ptr(), 0, std::ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: it was compiled and is freed once.
        unsafe { libc::regfree(&raw mut *self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_posix_extended_ones() {
        let is_in = |pattern: &str, text: &str| Pattern::new(pattern).unwrap().is_in(text);
        assert!(is_in("(F|D|I)$", "20260101-000000F") && !is_in("(F|D|I)$", "backup.info"));
        assert!(is_in("^[0-9A-F]{24}(-[0-9a-f]{40})?", "000000010000000000000003"));
        assert!(is_in("", "anything") && is_in("info", "backup/demo/backup.info"));
        assert!(!is_in("x", "y\0x"));
    }

    #[test]
    fn a_wrong_expression_is_told_and_does_no_harm() {
        for wrong in ["[", "(", "a{2,1}"] {
            assert!(Pattern::new(wrong).is_err_and(|e| !e.is_empty()), "{wrong}");
        }
        assert!(Pattern::new("a\0b").is_err());
    }
}
