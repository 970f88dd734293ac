//! Command lines that the server is told to call.

use super::command::Command;
use super::settings::{Settings, Source};
use super::table::Opt;
use super::value::Value;
use pgkeep_engine::restore::recovery::{self, OnError};
use std::path::{Path, PathBuf};

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
/// Quoting for a configuration file is the caller's.
///
/// # Errors
/// `OptionInvalidValue` if the program's path is not text.
pub fn restore_command(settings: &Settings, on_error: Option<OnError>) -> pgkeep_engine::Result<String> {
    recovery::restore_command(&program(settings), &options(settings, Command::ArchiveGet, None), on_error)
}

/// As [`restore_command`], for the server of a clone, whose data directory is not the configured one.
///
/// # Errors
/// As [`restore_command`].
pub fn restore_command_of_clone(
    settings: &Settings,
    on_error: Option<OnError>,
    pgdata: &Path,
) -> pgkeep_engine::Result<String> {
    let mut options = options(settings, Command::ArchiveGet, Some(pgdata));
    options.push((Opt::ForClone.def().name.to_owned(), String::new()));
    options.sort();
    recovery::restore_command(&program(settings), &options, on_error)
}

/// The `archive_command` of a clone's server, which archives for a stanza of its own in the same repositories.
///
/// # Errors
/// As [`restore_command`].
pub fn archive_command_of_clone(settings: &Settings, stanza: &str, pgdata: &Path) -> pgkeep_engine::Result<String> {
    let mut options = options(settings, Command::ArchivePush, Some(pgdata));
    let name = Opt::Stanza.def().name;
    options.retain(|(option, _)| option != name);
    options.push((name.to_owned(), stanza.to_owned()));
    options.sort();
    recovery::archive_command(&program(settings), &options)
}

fn program(settings: &Settings) -> PathBuf {
    settings.text(Opt::Cmd).map_or_else(|| settings.exe().to_path_buf(), PathBuf::from)
}

/// Options for `command` as the server shall call it.
fn options(settings: &Settings, command: Command, pgdata: Option<&Path>) -> Vec<(String, String)> {
    let mut options: Vec<(String, String)> = Vec::new();
    if let Some(path) = pgdata {
        options.push((Opt::PgPath.def().display(1), path.display().to_string()));
    }
    for (opt, index, setting) in settings.iter() {
        let def = opt.def();
        let said = matches!(setting.source, Source::CommandLine | Source::Environment);
        let always = matches!((opt, index), (Opt::Stanza, _) | (Opt::PgPath, 1));
        let replaced = pgdata.is_some() && matches!((opt, index), (Opt::PgPath, 1));
        if replaced || !(said || always) || !def.is_valid_for(command) || OF_THIS_RUN.contains(&opt) {
            continue;
        }
        let name = def.display(index);
        match &setting.value {
            Some(Value::Bool(true)) => options.push((name, String::new())),
            Some(Value::Bool(false)) => options.push((format!("no-{name}"), String::new())),
            Some(Value::Secret(_)) => {}
            Some(Value::List(list)) => options.extend(list.iter().map(|v| (name.clone(), v.clone()))),
            Some(Value::Hash(pairs)) => options.extend(pairs.iter().map(|(k, v)| (name.clone(), format!("{k}={v}")))),
            Some(value) => options.push((name, crate::run::plain(value))),
            None if opt == Opt::Config => options.push((format!("no-{name}"), String::new())),
            None => {}
        }
    }
    options.sort();
    options
}
