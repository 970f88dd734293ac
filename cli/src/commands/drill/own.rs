//! Checks of the user's own: `NAME.sql`, and beside it `NAME.out` with what psql must print for it (unaligned, tuples
//! only). A first line `-- database: NAME` says where it is run.

use super::checks::{self, Found};
use crate::commands::Context;
use crate::commands::programs::Running;
use crate::commands::scratch::Scratch;
use crate::error::Failure;
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_formats::repo::records::CheckResult;
use std::path::{Path, PathBuf};

const DATABASE: &str = "-- database:";
/// Database of every cluster that is none of its user's.
const MAINTENANCE: &str = "postgres";
/// Most lines of either side that a difference shows.
const LINES_SHOWN: usize = 10;

/// One check.
#[derive(Debug)]
pub(super) struct Own {
    name: String,
    sql: PathBuf,
    expected: String,
    /// The only one of the cluster's user if it is not named.
    database: Option<String>,
}

/// The checks in a directory, by name.
///
/// # Errors
/// `FileMissing` for one without an expected answer; what the file system said.
pub(super) fn load(dir: &Path) -> Result<Vec<Own>, Failure> {
    let listing = |e| Failure::file(FileError::at("list", dir)(e));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(listing)? {
        let path = entry.map_err(listing)?.path();
        if path.extension().is_some_and(|ext| ext == "sql") {
            files.push(path);
        }
    }
    files.sort();
    files.into_iter().map(one).collect()
}

fn one(sql: PathBuf) -> Result<Own, Failure> {
    let out = sql.with_extension("out");
    if !out.exists() {
        let text = format!("'{}' has no '{}' with what it must print", sql.display(), out.display());
        return Err(Error::refused(Kind::FileMissing, text).into());
    }
    let read = |path: &Path| {
        let bytes = std::fs::read(path).map_err(|e| Failure::file(FileError::at("read", path)(e)))?;
        Ok::<_, Failure>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read(&sql)?;
    let first = text.lines().next().unwrap_or_default();
    let database = first.strip_prefix(DATABASE).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    let name = sql.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Own { name, expected: read(&out)?, database, sql })
}

impl Own {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs it and compares what is printed, but for white space at the end.
    pub(super) fn check(&self, context: &Context<'_>, scratch: &Scratch) -> Found {
        let database = match self.database(context, scratch) {
            Ok(database) => database,
            Err(failure) => return checks::failed(failure),
        };
        let mut command = scratch.client("psql", &database);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&self.sql);
        let ended = Running::start_to_ask(&mut command, "psql")?.wait(context.cancel)?;
        let file = self.sql.display();
        if !ended.status.success() {
            return Ok((CheckResult::Failed, format!("'{file}' in database '{database}': {}", ended.said)));
        }
        let printed = String::from_utf8_lossy(&ended.answer);
        Ok(match difference(&self.expected, &printed) {
            None => (CheckResult::Passed, String::new()),
            Some(lines) => {
                (CheckResult::Failed, format!("'{file}' in database '{database}' answers otherwise:\n{lines}"))
            }
        })
    }

    fn database(&self, context: &Context<'_>, scratch: &Scratch) -> Result<String, Failure> {
        if let Some(database) = &self.database {
            return Ok(database.clone());
        }
        let there = scratch.databases(context)?;
        let own: Vec<_> = there.iter().filter(|name| *name != MAINTENANCE).collect();
        match own.as_slice() {
            [] => Ok(MAINTENANCE.to_owned()),
            [only] => Ok((*only).clone()),
            several => {
                let names: Vec<_> = several.iter().map(|name| name.as_str()).collect();
                let text = format!(
                    "'{}' must say in its first line, '{DATABASE} NAME', which database it is for: {}",
                    self.sql.display(),
                    names.join(", ")
                );
                Err(Error::refused(Kind::OptionRequired, text).into())
            }
        }
    }
}

/// What is expected and not there (`-`), and there and not expected (`+`), from the first line that differs to the
/// last.
fn difference(expected: &str, found: &str) -> Option<String> {
    let (expected, found) = (expected.trim_end(), found.trim_end());
    if expected == found {
        return None;
    }
    let (before, after): (Vec<_>, Vec<_>) = (expected.lines().collect(), found.lines().collect());
    let head = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let (before, after) = (before.get(head..).unwrap_or_default(), after.get(head..).unwrap_or_default());
    let tail = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
    let mut out = format!("@@ line {} @@", head + 1);
    for (mark, lines) in [('-', before), ('+', after)] {
        let lines = lines.get(..lines.len() - tail).unwrap_or_default();
        for line in lines.iter().take(LINES_SHOWN) {
            out.push_str(&format!("\n{mark}{line}"));
        }
        if lines.len() > LINES_SHOWN {
            out.push_str(&format!("\n{mark}... {} more", lines.len() - LINES_SHOWN));
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_shown_from_the_first_to_the_last() {
        assert_eq!(difference("a\nb\n", "a\nb"), None);
        assert_eq!(difference("a\nb\nc", "a\nx\ny\nc").unwrap(), "@@ line 2 @@\n-b\n+x\n+y");
        assert_eq!(difference("", "a").unwrap(), "@@ line 1 @@\n+a");
        let many = "x\n".repeat(30);
        assert!(difference("", &many).unwrap().ends_with("\n+x\n+... 20 more"));
    }

    #[test]
    fn checks_are_found_by_name_and_need_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("b.sql", "SELECT 1");
        write("b.out", "1\n");
        write("a.sql", "-- database: shop\nSELECT 2");
        write("a.out", "2\n");
        write("README", "");
        let found = load(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|own| (own.name(), own.database.as_deref())).collect();
        assert_eq!(names, [("a", Some("shop")), ("b", None)]);
        write("c.sql", "");
        let failure = load(dir.path()).unwrap_err();
        assert!(failure.status().0 == 55 && failure.to_string().contains("c.out"), "{failure}");
        assert_eq!(load(&dir.path().join("none")).unwrap_err().status().0, 73);
    }
}
