//! The command by which the server fetches WAL.
//!
//! It passes three readers: the configuration file's quoting (the parent module's), the server's `%`
//! escapes, and the shell. Source: `common/archive.c`, BuildRestoreCommand.

use crate::{Error, Kind, Result};
use std::path::Path;

/// What `archive-get` does when it cannot tell whether a segment exists.
///
/// To the server a status up to 125 means that the archive ends here, and it would end recovery too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnError {
    /// Ends with a status that makes the server stop: right when a target must be reached.
    Abort,
    /// Goes on trying: right for a standby.
    Wait,
}

/// Builds the value of `restore_command`.
///
/// `options` are names without dashes and values, in the order they shall stand; one with an empty value stands alone.
/// `%f` and `%p` are added.
///
/// # Errors
/// [`Kind::OptionInvalidValue`] for the program's path if it is not text.
pub fn restore_command(program: &Path, options: &[(String, String)], on_error: Option<OnError>) -> Result<String> {
    let on_error = match on_error {
        None => "",
        Some(OnError::Abort) => " --on-error=abort",
        Some(OnError::Wait) => " --on-error=wait",
    };
    Ok(format!("{}{on_error} archive-get %f \"%p\"", words(program, options)?))
}

/// Builds the value of `archive_command`, as [`restore_command`].
///
/// # Errors
/// As [`restore_command`].
pub fn archive_command(program: &Path, options: &[(String, String)]) -> Result<String> {
    Ok(format!("{} archive-push \"%p\"", words(program, options)?))
}

/// The program and its options, meant literally, also where they look like one of the server's escapes.
fn words(program: &Path, options: &[(String, String)]) -> Result<String> {
    let program = program.to_str().ok_or_else(|| {
        let message = format!("the program's path '{}' cannot be written into a setting", program.display());
        Error::refused(Kind::OptionInvalidValue, message)
    })?;
    let mut command = shell(program);
    for (name, value) in options {
        command.push(' ');
        let word = if value.is_empty() { format!("--{name}") } else { format!("--{name}={value}") };
        command.push_str(&shell(&word));
    }
    Ok(command.replace('%', "%%"))
}

/// One word for the shell.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}
