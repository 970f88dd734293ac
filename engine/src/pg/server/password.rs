//! libpq's password file.
//!
//! Lines are `host:port:database:user:password`; `*` stands for anything, a backslash takes the next
//! character literally, the first line that fits wins. As in libpq a file that others may read is
//! ignored, with a warning. Which file it is, the caller says.
//! Source: src/interfaces/libpq/fe-connect.c, passwordFromFile.

use super::{ConnectOptions, ServerError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use zeroize::Zeroizing;

/// Finds the password for a connection in a file in libpq's form.
///
/// `user` is the user that will connect. `None` if the file is not there, is open to others, or has no
/// line for this connection.
///
/// # Errors
/// [`ServerError::PasswordFile`] if the file is there and cannot be read.
pub fn password_from_file(
    path: &Path,
    options: &ConnectOptions,
    user: &str,
) -> Result<Option<Zeroizing<String>>, ServerError> {
    let failed = |source| ServerError::PasswordFile { path: path.to_path_buf(), source };
    let facts = match std::fs::metadata(path) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.map_err(failed)?,
    };
    if !facts.is_file() {
        tracing::warn!("password file '{}' is not a plain file and is ignored", path.display());
        return Ok(None);
    }
    if facts.mode() & 0o077 != 0 {
        tracing::warn!("password file '{}' is open to others and is ignored", path.display());
        return Ok(None);
    }
    let content = Zeroizing::new(std::fs::read(path).map_err(failed)?);
    // A socket connection is "localhost" to this file, whatever directory the socket is in.
    let host = options.host.as_deref().unwrap_or("localhost");
    let port = options.port.to_string();
    Ok(find(&content, [host, &port, &options.database, user]))
}

fn find(content: &[u8], wanted: [&str; 4]) -> Option<Zeroizing<String>> {
    content.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).find_map(|line| {
        if line.first() == Some(&b'#') {
            return None;
        }
        let mut rest = line;
        for value in wanted {
            rest = field(rest, value.as_bytes())?;
        }
        let mut password = Zeroizing::new(Vec::with_capacity(rest.len()));
        let mut bytes = rest.iter();
        while let Some(&b) = bytes.next() {
            password.push(if b == b'\\' { bytes.next().copied().unwrap_or(b) } else { b });
        }
        std::str::from_utf8(&password).ok().map(|text| Zeroizing::new(text.to_owned()))
    })
}

/// The rest of the line after a field that fits `value`.
fn field<'a>(line: &'a [u8], value: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let mut wanted = value.iter();
    let mut at = 0;
    loop {
        match *line.get(at)? {
            b':' => return if wanted.next().is_none() { line.get(at + 1..) } else { None },
            b'\\' if line.get(at + 1).is_some() => at += 1,
            _ => {}
        }
        if line.get(at) != wanted.next() {
            return None;
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(content: &str, wanted: [&str; 4]) -> Option<String> {
        find(content.as_bytes(), wanted).map(|p| p.to_string())
    }

    #[test]
    fn the_first_line_that_fits_wins() {
        let file = "# db:1:*:*:comment\nother:5432:*:*:no\ndb:5432:*:backup:first\n*:*:*:*:last\n";
        assert_eq!(found(file, ["db", "5432", "postgres", "backup"]).as_deref(), Some("first"));
        assert_eq!(found(file, ["db", "5433", "postgres", "backup"]).as_deref(), Some("last"));
        assert_eq!(found("db:5432:*:backup:x", ["db", "5432", "postgres", "back"]), None);
        assert_eq!(found("db:5432:*:back:x", ["db", "5432", "postgres", "backup"]), None);
    }

    #[test]
    fn backslashes_protect_colons_and_themselves() {
        let file = r"fe80\:\:1:5432:a\\b:u:p\:w\\d:e";
        assert_eq!(found(file, ["fe80::1", "5432", r"a\b", "u"]).as_deref(), Some(r"p:w\d:e"));
    }

    #[test]
    fn broken_lines_fit_nothing() {
        for line in ["", ":", "db:5432", "db:5432:*:u", "\\", "db\\"] {
            assert_eq!(found(line, ["db", "5432", "x", "u"]), None, "{line}");
        }
        assert_eq!(found("db:5432:*:u:", ["db", "5432", "x", "u"]).as_deref(), Some(""));
        assert_eq!(found("*:*:*:*:pw\r\n", ["db", "5432", "x", "u"]).as_deref(), Some("pw"));
    }
}
