//! Command lines that the server is told to call.

use super::command::Command;
use super::settings::{Settings, Source};
use super::table::Opt;
use super::value::Value;
use std::path::Path;

/// Options that are about this run, not about the server's later ones.
const OF_THIS_RUN: &[Opt] = &[
    Opt::AllowRoot,
    Opt::Cmd,
    Opt::ExecId,
    Opt::JobRetry,
    Opt::JobRetryInterval,
    Opt::LogLevelConsole,
    Opt::LogLevelFile,
    Opt::LogLevelStderr,
    Opt::LogSubprocess,
    Opt::LogTimestamp,
    Opt::Priority,
    Opt::ProcessMax,
];

/// The `restore_command` that leads the server to this program with the same repository and configuration:
/// what was typed or in the environment for this run, if `archive-get` takes it, but no secrets.
///
/// Percent signs are doubled and words quoted for the shell; quoting for a configuration file is the caller's.
#[must_use]
pub fn restore_command(settings: &Settings) -> String {
    compose(settings, None)
}

/// As [`restore_command`], for a server whose data directory is not the configured one.
#[must_use]
pub fn restore_command_in(settings: &Settings, pgdata: &Path) -> String {
    compose(settings, Some(pgdata))
}

fn compose(settings: &Settings, pgdata: Option<&Path>) -> String {
    let program = settings.text(Opt::Cmd).map_or_else(|| settings.exe().to_string_lossy().into_owned(), str::to_owned);
    let mut options = Vec::new();
    options.extend(pgdata.map(|path| format!("--{}={}", Opt::PgPath.def().display(1), path.display())));
    for (opt, index, setting) in settings.iter() {
        let def = opt.def();
        let said = matches!(setting.source, Source::CommandLine | Source::Environment);
        let always = matches!((opt, index), (Opt::Stanza, _) | (Opt::PgPath, 1));
        let replaced = pgdata.is_some() && matches!((opt, index), (Opt::PgPath, 1));
        if replaced || !(said || always) || !def.is_valid_for(Command::ArchiveGet) || OF_THIS_RUN.contains(&opt) {
            continue;
        }
        let name = def.display(index);
        match &setting.value {
            Some(Value::Bool(true)) => options.push(format!("--{name}")),
            Some(Value::Bool(false)) => options.push(format!("--no-{name}")),
            Some(Value::Secret(_)) => {}
            Some(Value::List(list)) => options.extend(list.iter().map(|v| format!("--{name}={v}"))),
            Some(Value::Hash(pairs)) => options.extend(pairs.iter().map(|(k, v)| format!("--{name}={k}={v}"))),
            Some(value) => options.push(format!("--{name}={}", crate::run::plain(value))),
            None if opt == Opt::Config => options.push(format!("--no-{name}")),
            None => {}
        }
    }
    options.sort();
    let words: Vec<_> = std::iter::once(program).chain(options).map(|word| quoted(&word)).collect();
    format!("{} archive-get %f \"%p\"", words.join(" "))
}

/// A word for a shell inside a server setting where `%` is special.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,+@%".contains(c);
    let doubled = word.replace('%', "%%");
    if doubled.chars().all(plain) {
        return doubled;
    }
    let mut text = String::from("\"");
    for c in doubled.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        for (word, expected) in [
            ("--pg1-path=/var/lib/x", "--pg1-path=/var/lib/x"),
            ("/a b", "\"/a b\""),
            ("a\"$`\\b", "\"a\\\"\\$\\`\\\\b\""),
            ("50%", "50%%"),
            ("é", "\"é\""),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
