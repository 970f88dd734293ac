//! The command line: options before or after the command, in any order.
//!
//! `clap_lex` splits the words; names, prefixes and numbers are the table's. What is wrong with a value is
//! found later, when the command is known.

use super::def::{Scope, Type};
use super::error::OptionError;
use super::lookup::{self, INDEX_MAX, Lookup};
use super::table::Opt;
use super::value::parse_bool;
use crate::exit::Status;
use clap_lex::RawArgs;
use std::ffi::{OsStr, OsString};

/// What was written for an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// One value.
    Value(String),
    /// `--no-x` of an option that is no boolean.
    Negated,
    /// `--reset-x`.
    Reset,
}

/// One option of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The option.
    pub opt: Opt,
    /// Its number, 0 if it has none.
    pub index: u16,
    /// What was written.
    pub written: Written,
}

/// A command line, split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// Command and parameters.
    pub words: Vec<OsString>,
    /// Options in their order.
    pub options: Vec<Given>,
    /// The same as they were typed: what a process that is started for this one is given.
    pub typed: Vec<OsString>,
    /// `--help` or `-h` was there.
    pub help: bool,
    /// `--version` or `-V` was there.
    pub version: bool,
}

/// Splits the arguments, without the program's name.
///
/// # Errors
/// Status 31 for an option that does not exist, is ambiguous, lacks its number or its value, or has a value it
/// does not take; 32 for a boolean that is neither `y` nor `n`.
pub fn parse<I: IntoIterator<Item = OsString>>(args: I) -> Result<Line, OptionError> {
    let raw = RawArgs::new(args);
    let mut cursor = raw.cursor();
    let mut line = Line::default();
    while let Some(arg) = raw.next(&mut cursor) {
        if arg.is_escape() {
            line.words.extend(raw.remaining(&mut cursor).map(OsStr::to_os_string));
        } else if let Some((name, value)) = arg.to_long() {
            let name = name.map_err(|name| invalid(format!("option '--{}' is not valid text", name.display())))?;
            match (name, value) {
                ("help", None) => line.help = true,
                ("version", None) => line.version = true,
                _ => {
                    line.typed.push(arg.to_value_os().to_os_string());
                    let typed = &mut line.typed;
                    let next = || raw.next_os(&mut cursor).inspect(|value| typed.push(value.to_os_string()));
                    let given = option(name, value, next)?;
                    line.options.push(given);
                }
            }
        } else if arg.is_short() {
            match arg.to_value_os().to_str() {
                Some("-h" | "-?") => line.help = true,
                Some("-V") => line.version = true,
                _ => return Err(invalid(format!("option '{}' does not exist", arg.display()))),
            }
        } else {
            line.words.push(arg.to_value_os().to_os_string());
        }
    }
    Ok(line)
}

fn invalid(message: String) -> OptionError {
    OptionError::new(Status::OPTION_INVALID, message)
}

/// Tells why a name found nothing.
pub(super) fn not_found(name: &str, found: Lookup) -> OptionError {
    match found {
        Lookup::NumberMissing(def) => invalid(format!("option '{name}' needs a number"))
            .hint(format!("write '{}' for the first one", def.display(1))),
        Lookup::NumberOutOfRange => invalid(format!("option '{name}' has a number outside of 1 to {INDEX_MAX}")),
        Lookup::Ambiguous => invalid(format!("option '{name}' is ambiguous")).hint("write more of its name"),
        Lookup::Unknown | Lookup::Found(..) => invalid(format!("option '{name}' does not exist")),
    }
}

fn option<'a>(
    name: &str,
    value: Option<&OsStr>,
    next: impl FnOnce() -> Option<&'a OsStr>,
) -> Result<Given, OptionError> {
    // A name that begins like a prefix may still be a name of its own, so the whole is tried first.
    let (form, found) = match lookup::by_prefix(name) {
        Lookup::Unknown => match (name.strip_prefix("no-"), name.strip_prefix("reset-")) {
            (Some(rest), _) => (Some(Written::Negated), lookup::by_prefix(rest)),
            (_, Some(rest)) => (Some(Written::Reset), lookup::by_prefix(rest)),
            _ => (None, Lookup::Unknown),
        },
        found => (None, found),
    };
    let Lookup::Found(def, index) = found else {
        return Err(not_found(&format!("--{name}"), found));
    };
    let shown = def.display(index);
    let written = match form {
        Some(form) => {
            if value.is_some() {
                return Err(invalid(format!("option '--{name}' takes no value")));
            }
            match (form, def.ty) {
                (Written::Negated, ty) if ty.is_switch() => Written::Value("n".to_owned()),
                (Written::Negated, _) if !def.negate => {
                    return Err(invalid(format!("option '{shown}' cannot be negated")));
                }
                (Written::Reset, _) if def.scope == Scope::CommandLine => {
                    return Err(invalid(format!("option '{shown}' cannot be reset")))
                        .map_err(|e| e.hint("it comes from nowhere but the command line: leave it out"));
                }
                (form, _) => form,
            }
        }
        None if def.secret => {
            return Err(invalid(format!("option '{shown}' is a secret and not allowed on the command line"))
                .hint("other users can see the command line in the list of processes")
                .hint("put it into the configuration file or the environment"));
        }
        None => {
            let text = match (value, def.ty) {
                (None, ty) if ty.is_switch() => Some(OsStr::new("y")),
                (None, _) => next(),
                (value, _) => value,
            };
            let text = text.ok_or_else(|| invalid(format!("option '--{name}' needs a value")))?;
            let text =
                text.to_str().ok_or_else(|| invalid(format!("the value of option '{shown}' is not valid text")))?;
            if def.ty == Type::Bool && parse_bool(text).is_none() {
                let message = format!("'{text}' is neither 'y' nor 'n' for option '{shown}'");
                return Err(OptionError::new(Status::OPTION_INVALID_VALUE, message));
            }
            Written::Value(text.to_owned())
        }
    };
    Ok(Given { opt: def.opt, index, written })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(args: &str) -> Result<Line, OptionError> {
        parse(args.split(' ').filter(|a| !a.is_empty()).map(OsString::from))
    }

    fn shown(args: &str) -> String {
        match split(args) {
            Ok(line) => {
                let words: Vec<_> = line.words.iter().map(|w| w.to_string_lossy()).collect();
                let options: Vec<_> = line
                    .options
                    .iter()
                    .map(|g| match &g.written {
                        Written::Value(v) => format!("{}={v}", g.opt.def().display(g.index)),
                        other => format!("{}:{other:?}", g.opt.def().display(g.index)),
                    })
                    .collect();
                format!("{} | {}", words.join(" "), options.join(" "))
            }
            Err(e) => format!("{} {}", e.status.0, e.message),
        }
    }

    #[test]
    fn options_stand_anywhere() {
        for (args, expected) in [
            ("--stanza=demo backup", "backup | stanza=demo"),
            ("backup --stanza demo --type full", "backup | stanza=demo type=full"),
            ("--delta restore --no-link-all --force=n", "restore | delta=y link-all=n force=n"),
            ("archive-push pg_wal/x --log-level-c=info", "archive-push pg_wal/x | log-level-console=info"),
            ("--pg2-path=/x --reset-pg1-host --db-path=/y", " | pg2-path=/x pg1-host:Reset pg1-path=/y"),
            ("--no-config info", "info | config:Negated"),
            ("--backup-standby backup --no-backup-standby", "backup | backup-standby=y backup-standby=n"),
            ("--backup-standby=prefer backup", "backup | backup-standby=prefer"),
            ("--set --type restore", "restore | set=--type"),
            (
                "--stanza=S --set=L clone create --dir D --mountpoint M",
                "clone create | stanza=S set=L dir=D mountpoint=M",
            ),
            ("backup -- --stanza", "backup --stanza | "),
        ] {
            assert_eq!(shown(args), expected, "{args}");
        }
    }

    #[test]
    fn options_are_kept_as_they_were_typed() {
        let line = split("--set --type x --delta=y --stanza=a=b -- --no-delta").unwrap();
        assert_eq!(line.typed, ["--set", "--type", "--delta=y", "--stanza=a=b"]);
        assert_eq!(line.words, ["x", "--no-delta"]);
    }

    #[test]
    fn wrong_options_have_their_status() {
        for (args, status) in [
            ("--bogus", 31),
            ("-x", 31),
            ("--l=x", 31),
            ("--stanza", 31),
            ("--no-stanza", 31),
            ("--no-online=y", 31),
            ("--reset-set", 31),
            ("--repo-bundle", 31),
            ("--repo0-path=/x", 31),
            ("--repo257-path=/x", 31),
            ("--repo1-cipher-pass=x", 31),
            ("--repo1-s3-key=x", 31),
            ("--repo-cipher-pass=x", 31),
            ("--repo1-azure-account=x", 31),
            ("--online=q", 32),
            ("--no-no-online", 31),
        ] {
            let error = split(args).expect_err(args);
            assert_eq!(error.status.0, status, "{args}: {error}");
        }
    }

    #[test]
    fn a_refused_secret_is_not_repeated() {
        let error = split("--repo1-cipher-pass=hush").unwrap_err();
        assert!(!format!("{error:?}").contains("hush"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_or_refused(args in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..12), 0..6)) {
            use std::os::unix::ffi::OsStringExt;
            let _ = parse(args.into_iter().map(OsString::from_vec));
        }

        #[test]
        fn option_like_words_are_split_or_refused(args in proptest::collection::vec(
            "(--)?(no-|reset-)?(repo|pg|db|log|tar|archive)[0-9]{0,4}-?[a-z-]{0,12}(=[a-zé/]{0,4})?", 0..6)) {
            let _ = parse(args.into_iter().map(OsString::from));
        }
    }
}
