//! From a written name to a row of the table and a number.
//!
//! The table has one row for `repo1-path` .. `repo256-path`; names are compared in two pieces instead of
//! being expanded. A look-up is one pass over some two hundred rows.

use super::def::{Def, Group};
use super::table::TABLE;

/// Numbers of repositories and clusters run from 1 to this.
pub const INDEX_MAX: u16 = 256;

/// What a name means.
#[derive(Debug, Clone, Copy)]
pub enum Lookup {
    /// This option, of this number (0 if it has none).
    Found(&'static Def, u16),
    /// The option exists but its number is missing.
    NumberMissing(&'static Def),
    /// The option exists but its number is not within 1 and [`INDEX_MAX`].
    NumberOutOfRange,
    /// More than one option begins like this.
    Ambiguous,
    /// There is no such option.
    Unknown,
}

/// A name cut at its number: `("repo", Some("12"), "-path")`.
struct Pieces<'a> {
    stem: &'a str,
    number: Option<&'a str>,
    rest: &'a str,
}

fn cut(name: &str) -> Pieces<'_> {
    for stem in ["repo", "pg", "db"] {
        if let Some(rest) = name.strip_prefix(stem) {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits > 0
                && let Some((number, rest)) = rest.split_at_checked(digits)
                && rest.starts_with('-')
            {
                return Pieces { stem, number: Some(number), rest };
            }
        }
    }
    Pieces { stem: name, number: None, rest: "" }
}

fn stem(group: Group) -> &'static str {
    match group {
        Group::None => "",
        Group::Repo => "repo",
        Group::Pg => "pg",
    }
}

/// `None` if the number is not one of ours.
fn number(text: &str) -> Option<u16> {
    let number = text.parse().ok()?;
    (!text.starts_with('0') && (1..=INDEX_MAX).contains(&number)).then_some(number)
}

/// Looks up a full name or an old name.
#[must_use]
pub fn exact(name: &str) -> Lookup {
    let pieces = cut(name);
    if let Some(text) = pieces.number {
        let found = TABLE.iter().find(|def| {
            (def.group != Group::None && stem(def.group) == pieces.stem && def.rest() == pieces.rest)
                || def.aliases.iter().any(|alias| {
                    alias.split_once('?').is_some_and(|(stem, rest)| stem == pieces.stem && rest == pieces.rest)
                })
        });
        return match (found, number(text)) {
            (Some(def), Some(index)) => Lookup::Found(def, index),
            (Some(_), None) => Lookup::NumberOutOfRange,
            (None, _) => Lookup::Unknown,
        };
    }
    for def in TABLE {
        if def.aliases.contains(&name) {
            return Lookup::Found(def, u16::from(def.group != Group::None));
        }
        if def.name == name {
            return if def.group == Group::None { Lookup::Found(def, 0) } else { Lookup::NumberMissing(def) };
        }
    }
    Lookup::Unknown
}

/// Looks up a full name, an old name, or the beginning of exactly one full name.
#[must_use]
pub fn by_prefix(name: &str) -> Lookup {
    let found = exact(name);
    if !matches!(found, Lookup::Unknown) || name.is_empty() {
        return found;
    }
    let pieces = cut(name);
    let mut only = None;
    for def in TABLE.iter().filter(|def| !def.hidden) {
        let begins = match pieces.number {
            Some(_) => {
                def.group != Group::None && stem(def.group) == pieces.stem && def.rest().starts_with(pieces.rest)
            }
            None => def.group == Group::None && def.name.starts_with(name),
        };
        if begins && only.replace(def).is_some() {
            return Lookup::Ambiguous;
        }
    }
    match (only, pieces.number.map(number)) {
        (None, _) => Lookup::Unknown,
        (Some(def), None) => Lookup::Found(def, 0),
        (Some(def), Some(Some(index))) => Lookup::Found(def, index),
        (Some(_), Some(None)) => Lookup::NumberOutOfRange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(found: Lookup) -> String {
        match found {
            Lookup::Found(def, index) => format!("{} {index}", def.name),
            Lookup::NumberMissing(def) => format!("{} needs a number", def.name),
            Lookup::NumberOutOfRange => "out of range".to_owned(),
            Lookup::Ambiguous => "ambiguous".to_owned(),
            Lookup::Unknown => "unknown".to_owned(),
        }
    }

    #[test]
    fn names_numbers_and_old_names() {
        for (name, expected) in [
            ("stanza", "stanza 0"),
            ("repo", "repo 0"),
            ("repo1-path", "repo-path 1"),
            ("repo256-s3-key", "repo-s3-key 256"),
            ("repo257-path", "out of range"),
            ("repo0-path", "out of range"),
            ("repo01-path", "out of range"),
            ("repo99999999999999999999-path", "out of range"),
            ("pg2-socket-path", "pg-socket-path 2"),
            ("pg-path", "pg-path needs a number"),
            ("repo-bundle", "repo-bundle needs a number"),
            ("repo-path", "repo-path 1"),
            ("db-path", "pg-path 1"),
            ("db3-path", "pg-path 3"),
            ("backup-host", "repo-host 1"),
            ("retention-full", "repo-retention-full 1"),
            ("hardlink", "repo-hardlink 1"),
            ("archive-queue-max", "archive-push-queue-max 0"),
            ("repo4-s3-verify-ssl", "repo-storage-verify-tls 4"),
            ("repo-target-time", "repo-target-time 0"),
            ("repo2-target-time", "unknown"),
            ("repo1-", "unknown"),
            ("repo1", "unknown"),
            ("", "unknown"),
            ("stanz", "unknown"),
        ] {
            assert_eq!(show(exact(name)), expected, "{name}");
        }
    }

    #[test]
    fn beginnings_count_when_only_one_fits() {
        for (name, expected) in [
            ("stanz", "stanza 0"),
            ("process", "process-max 0"),
            ("log-level-c", "log-level-console 0"),
            ("log-level", "ambiguous"),
            ("repo1-ha", "repo-hardlink 1"),
            ("repo1-retention-f", "ambiguous"),
            ("repo1-retention-full", "repo-retention-full 1"),
            ("repo0-ha", "out of range"),
            ("se", "set 0"),
            ("config", "config 0"),
            ("bet", "unknown"),
            ("", "unknown"),
        ] {
            assert_eq!(show(by_prefix(name)), expected, "{name}");
        }
    }
}
