//! `help`: commands, the options of one, one option with its current value. All text comes from the tables.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::command::{COMMANDS, StanzaUse};
use crate::option::def::{Group, Scope};
use crate::option::lookup::{self, Lookup};
use crate::option::{
    self, Command, Def, Invocation, OptionError, Program, Settings, Source, Type, Value, idle, options_of,
};
use crate::render;
use crate::run::plain;
use crate::{VERSION, size};
use std::fmt::Write as _;

/// Lines are broken before this column.
const WIDTH: usize = 100;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let program = context.settings.program();
    let params: Vec<_> = context.settings.params().iter().map(|p| p.to_string_lossy()).collect();
    let text = match params.as_slice() {
        [] => overview(program),
        [command] => of_command(program, named(command)?),
        [command, option, ..] => {
            let command = named(command)?;
            // `help clone create`: what it does is in the command's help.
            if command.def().params.iter().any(|words| words.split('|').any(|word| word == option)) {
                render::print(&of_command(program, command))?;
                return Ok(Status::OK);
            }
            of_option(program, command, option, &current(context.invocation, command)?)?
        }
    };
    render::print(&text)?;
    Ok(Status::OK)
}

fn named(name: &str) -> Result<Command, OptionError> {
    Command::by_name(name)
        .filter(|c| c.def().available)
        .ok_or_else(|| OptionError::new(Status::COMMAND_INVALID, format!("there is no command '{name}'")))
}

/// The settings a command would have now.
fn current(invocation: &Invocation, command: Command) -> Result<Settings, OptionError> {
    option::load_for_help(invocation, command)
}

fn overview(program: &Program) -> String {
    let mut text = format!(
        "{} {VERSION}: backup, restore and instant clones of PostgreSQL\n\nUsage:\n    {} [options] <command> [parameters]\n\nCommands:\n",
        program.name, program.name
    );
    for command in COMMANDS.iter().filter(|c| c.available) {
        entry(&mut text, command.name, 18, command.help);
    }
    let _ = writeln!(
        text,
        "\n'{0} help <command>' lists its options, '{0} help <command> <option>' explains one.",
        program.name
    );
    text
}

fn of_command(program: &Program, command: Command) -> String {
    let def = command.def();
    let stanza = match def.stanza {
        StanzaUse::Required => " --stanza=<name>",
        StanzaUse::Optional => " [--stanza=<name>]",
        StanzaUse::Never => "",
    };
    let mut text = format!("{}: {}\n\nUsage:\n    {}{stanza} [options] {}", def.name, def.help, program.name, def.name);
    for (at, param) in def.params.iter().enumerate() {
        let optional = at + def.optional >= def.params.len();
        let param = if actions(command).is_empty() { param } else { &"action" };
        let _ = if optional { write!(text, " [{param}]") } else { write!(text, " <{param}>") };
    }
    text.push('\n');
    if !actions(command).is_empty() {
        text.push_str("\nActions:\n");
    }
    for (action, help) in actions(command) {
        entry(&mut text, action, 10, help);
    }
    let (options, inert): (Vec<_>, Vec<_>) = options_of(command).into_iter().partition(|d| d.effect.is_none());
    for heading in ["Command", "General", "Log", "Repository", "Stanza"] {
        let rows: Vec<_> = options.iter().filter(|d| heading_of(d) == heading).collect();
        if !rows.is_empty() {
            let _ = writeln!(text, "\n{heading} options:");
        }
        for row in rows {
            let default = row.default_for(command).map(|d| format!(" [{}]", program.fill(shown_default(d))));
            entry(
                &mut text,
                &format!("--{}", typed_name(row)),
                30,
                &format!(
                    "{}{}{}",
                    row.help_for(command),
                    default.unwrap_or_default(),
                    idle(row).map_or("", |_| " (no effect yet)")
                ),
            );
        }
    }
    if !inert.is_empty() {
        let names: Vec<_> = inert.iter().map(typed_name).collect();
        text.push_str("\nAccepted for compatibility, without effect:\n");
        entry(&mut text, "", 0, &names.join(", "));
    }
    if !examples(command).is_empty() {
        text.push_str("\nExamples:\n");
    }
    for (what, lines) in examples(command) {
        let _ = writeln!(text, "  {what}:\n    {} {}", program.name, lines.join("\n    "));
    }
    if !def.statuses.is_empty() {
        text.push_str("\nExit statuses:\n");
        for status in std::iter::once(&0).chain(def.statuses) {
            entry(&mut text, &status.to_string(), 5, Status(*status).meaning());
        }
    }
    text
}

/// What the words do that a command takes, and what each needs.
fn actions(command: Command) -> &'static [(&'static str, &'static str)] {
    match command {
        Command::Clone => &[
            (
                "create",
                "make a clone of a backup and mount it; needs --dir (an empty directory for what the clone writes), --mountpoint (an empty directory), and --stanza; --start starts its server as well, else the output tells how to",
            ),
            ("mount", "serve a clone again, after a reboot for example; needs --dir and --stanza"),
            ("start", "the same, and start its server; waits until recovery has ended, if it is to end"),
            ("stop", "end its server in order and unmount it; nothing is lost; needs --dir"),
            (
                "reset",
                "make it anew as it was made and mount it; what was written to it is gone; needs --dir and --stanza; --force ends a server that runs on it, --start starts one",
            ),
            (
                "hydrate",
                "fetch everything it still lacks while it is used, and wait for it; needs --dir; --io-limit bounds it",
            ),
            (
                "promote",
                "hydrate it and make it an ordinary data directory in place of the mountpoint, which must be on the file system of --dir; its server is stopped for a moment",
            ),
            ("list", "list the clones in --dir"),
            ("info", "show the clone in --dir"),
            ("destroy", "unmount a clone and remove what it wrote; needs --dir; --force ends a server that runs on it"),
        ],
        _ => &[],
    }
}

/// What a command is mostly used for.
fn examples(command: Command) -> &'static [(&'static str, &'static [&'static str])] {
    match command {
        Command::Diff => &[
            ("what the last backup has that the one before had not", &["--stanza=main diff"]),
            (
                "a week, for a program, without starting a server for the names",
                &["--stanza=main diff --compare-with=20261114-030000F --no-names --output=json"],
            ),
        ],
        Command::Extract => &[
            (
                "one table as it was before a mistake",
                &[
                    "--stanza=main extract --table=public.orders --type=time \\",
                    "    --target='2026-11-21 10:00:00+00' > orders.sql",
                ],
            ),
            (
                "its rows alone, into a server that runs, in one transaction",
                &[
                    "--stanza=main extract --table=public.orders --type=time \\",
                    "    --target='2026-11-21 10:00:00+00' --data-only --into='host=/tmp dbname=shop'",
                ],
            ),
            (
                "a schema for pg_restore, from the end of the archive",
                &["--stanza=main extract --database=shop --schema=sales \\", "    --format=custom --file=sales.dump"],
            ),
        ],
        Command::Drill => &[
            ("the newest backup, recovered to the end of the archive", &["--stanza=main drill"]),
            (
                "a backup and a time, with checks of your own: NAME.sql and what it must print, NAME.out",
                &[
                    "--stanza=main drill --set=20261121-100000F --drill-dir=/etc/pgkeep/drill.d \\",
                    "    --type=time --target='2026-11-21 12:00:00+00'",
                ],
            ),
        ],
        _ => &[],
    }
}

fn of_option(program: &Program, command: Command, name: &str, settings: &Settings) -> Result<String, OptionError> {
    let (def, index) = match lookup::by_prefix(name) {
        Lookup::Found(def, index) => (def, index),
        Lookup::NumberMissing(def) => (def, 1),
        _ => return Err(OptionError::new(Status::OPTION_INVALID, format!("there is no option '{name}'"))),
    };
    if !def.is_valid_for(command) {
        let message = format!("option '{name}' is not valid for command {}", command.name());
        return Err(OptionError::new(Status::OPTION_INVALID, message));
    }
    let mut text = format!("{} --{}: {}\n\n", command.name(), typed_name(def), def.help_for(command));
    let mut fact = |name: &str, value: &str| entry(&mut text, name, 13, value);
    fact("value", &kind(def.type_for(command)));
    if let Some(default) = def.default_for(command) {
        fact("default", &program.fill(shown_default(default)));
    }
    let setting = settings.setting(def.opt, index).filter(|s| s.source != Source::Default);
    if let Some(value) = setting.and_then(|s| s.value.as_ref()) {
        fact("current", &plain(value));
    }
    let variable = def.display(index).to_ascii_uppercase().replace('-', "_");
    fact("environment", &format!("{}{variable}", program.env_prefix));
    fact(
        "file",
        match def.scope {
            Scope::CommandLine => "not in files",
            Scope::Stanza => "in the section of a stanza",
            Scope::Global => "in any section",
        },
    );
    if def.secret {
        fact("secret", "not allowed on the command line");
    }
    if let Some(depend) = def.depend {
        let how = if depend.values.is_empty() { String::new() } else { format!(" = {}", depend.values.join(" or ")) };
        fact("only with", &format!("{}{how}", typed_name(depend.on.def())));
    }
    if !def.aliases.is_empty() {
        fact("old names", &def.aliases.join(", ").replace('?', "N"));
    }
    if let Some(effect) = def.effect.or_else(|| idle(def)) {
        fact("no effect", effect);
    }
    Ok(text)
}

fn shown_default(default: &'static str) -> &'static str {
    if default == "#" { "number of cores" } else { default }
}

/// `repo<N>-path`.
fn typed_name(def: &Def) -> String {
    match def.group {
        Group::None => def.name.to_owned(),
        Group::Repo => format!("repo<N>{}", def.rest()),
        Group::Pg => format!("pg<N>{}", def.rest()),
    }
}

fn heading_of(def: &Def) -> &'static str {
    /// Options of fewer commands than this belong to the command.
    const FEW: u32 = 5;
    match def.group {
        Group::Repo => "Repository",
        Group::Pg => "Stanza",
        Group::None if def.name.starts_with("log-") => "Log",
        Group::None if def.commands.count_ones() < FEW || matches!(def.name, "set" | "type" | "repo") => "Command",
        Group::None => "General",
    }
}

fn kind(ty: Type) -> String {
    match ty {
        Type::Bool => "y or n".to_owned(),
        Type::Int(least, most) => format!("a whole number, {least} to {most}"),
        Type::Size(least, most) => {
            format!("a size, {} to {}, such as 20MiB", size::exact_size(least), size::exact_size(most))
        }
        Type::Time(least, most) => {
            let exact = |ms| plain(&Value::Time(std::time::Duration::from_millis(ms)));
            format!("a time, {} to {}: seconds, or with a unit such as 15m", exact(least), exact(most))
        }
        Type::Cpus => "a percentage of the machine's CPUs such as 50%, or a number of CPUs such as 1.5".to_owned(),
        Type::Path => "an absolute path".to_owned(),
        Type::AnyPath => "a path".to_owned(),
        Type::Text => "a text".to_owned(),
        Type::List => "a text; may be repeated".to_owned(),
        Type::Hash => "key=value; may be repeated".to_owned(),
        Type::Enum(words) => words.join(", "),
    }
}

/// Writes `  name   words`, the words broken at [`WIDTH`] and kept in their column.
fn entry(text: &mut String, name: &str, column: usize, words: &str) {
    let indent = 2 + column;
    let _ = write!(text, "  {name:<column$}");
    let mut at = indent.max(2 + name.len());
    if !name.is_empty() && name.len() >= column {
        let _ = write!(text, "\n{:indent$}", "");
        at = indent;
    }
    let start = at;
    for word in words.split(' ') {
        let len = word.chars().count();
        if at > start && at + 1 + len > WIDTH {
            let _ = write!(text, "\n{:indent$}", "");
            at = indent;
        } else if at > start {
            text.push(' ');
            at += 1;
        }
        text.push_str(word);
        at += len;
    }
    text.push('\n');
}
