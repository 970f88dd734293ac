//! `help`: commands, the options of one, one option with its current value. All text comes from the tables, and so do the
//! reference (submodule `markdown`) and the pages for man(1) (submodule `man`).

mod man;
mod markdown;

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::command::{COMMANDS, StanzaUse};
use crate::option::def::{Group, Scope};
use crate::option::lookup::{self, Lookup};
use crate::option::{
    self, Action, Command, Def, Invocation, Opt, OptionError, Program, Settings, Source, Type, Value, actions,
    options_of,
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
    let command = params.first().map(|name| named(name)).transpose()?;
    match (context.settings.text(Opt::Output), command) {
        (Some("man"), None) => return print(&man::page(program)),
        (Some("man"), Some(command)) => return print(&man::of_command(program, command)),
        (Some("markdown"), None) => return print(&markdown::reference(program)),
        (Some("markdown"), Some(command)) => return print(&markdown::command(program, command)),
        _ => {}
    }
    let text = match params.as_slice() {
        [] => overview(program),
        [command] => of_command(program, named(command)?, None),
        [command, option, ..] => {
            let command = named(command)?;
            // `help clone create`, `help repair index`.
            if command.def().params.iter().any(|words| words.split('|').any(|word| word == option)) {
                let action = actions(command).iter().find(|action| action.name == option);
                return print(&of_command(program, command, action));
            }
            of_option(program, command, option, &current(context.invocation, command)?)?
        }
    };
    print(&text)
}

fn print(text: &str) -> Result<Status, Failure> {
    render::print(text)?;
    Ok(Status::OK)
}

fn named(name: &str) -> Result<Command, OptionError> {
    Command::by_name(name)
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
    for command in COMMANDS {
        entry(&mut text, command.name, 18, command.help);
    }
    let _ = writeln!(
        text,
        "\n'{0} help <command>' lists its options, '{0} help <command> <option>' explains one.",
        program.name
    );
    text
}

/// What a command takes, or one action of it.
fn of_command(program: &Program, command: Command, action: Option<&Action>) -> String {
    let def = command.def();
    let mut text = match action {
        None => format!("{}: {}\n", def.name, def.help),
        Some(action) => {
            let mut text = String::new();
            paragraph(&mut text, 0, &format!("{} {}: {}", def.name, action.name, action.help));
            text
        }
    };
    let _ = writeln!(text, "\nUsage:\n    {}", usage(program, command, action));
    if action.is_none() && !actions(command).is_empty() {
        text.push_str("\nActions:\n");
        for action in actions(command) {
            entry(&mut text, action.name, 10, action.help);
        }
        let _ = writeln!(text, "\n'{} help {} <action>' lists what is about one of them.", program.name, def.name);
    }
    let rows = action.map_or_else(|| options_of(command), |action| action.rows(command));
    let (options, inert): (Vec<_>, Vec<_>) = rows.into_iter().partition(|d| d.effect.is_none());
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
                &format!("{}{}", row.help_for(command), default.unwrap_or_default()),
            );
        }
    }
    // Who asks about one action wants what counts for it.
    if !inert.is_empty() && action.is_none() {
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

/// How a command, or one action of it, is typed.
fn usage(program: &Program, command: Command, action: Option<&Action>) -> String {
    let def = command.def();
    let stanza = match (def.stanza, action) {
        (StanzaUse::Never, _) => "",
        (StanzaUse::Required, _) | (_, Some(Action { reads: true, .. })) => " --stanza=<name>",
        (StanzaUse::Optional, _) => " [--stanza=<name>]",
    };
    let mut text = format!("{}{stanza} [options] {}", program.name, def.name);
    if let Some(action) = action {
        let _ = write!(text, " {}", action.name);
        for opt in action.needs {
            let _ = write!(text, " --{}=<path>", opt.def().name);
        }
        return text;
    }
    for (at, param) in def.params.iter().enumerate() {
        let optional = at + def.optional >= def.params.len();
        let param = if actions(command).is_empty() { param } else { &"action" };
        let _ = if optional { write!(text, " [{param}]") } else { write!(text, " <{param}>") };
    }
    text
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
    if let Some(effect) = def.effect {
        fact("no effect", effect);
    }
    for more in def.more {
        text.push('\n');
        paragraph(&mut text, 2, more);
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

/// Writes words in lines that begin at a column.
fn paragraph(text: &mut String, indent: usize, words: &str) {
    let mut at = WIDTH;
    for (number, word) in words.split(' ').enumerate() {
        let len = word.chars().count();
        if number == 0 || at + 1 + len > WIDTH {
            let _ = write!(text, "{}{:indent$}", if number == 0 { "" } else { "\n" }, "");
            at = indent;
        } else {
            text.push(' ');
            at += 1;
        }
        text.push_str(word);
        at += len;
    }
    text.push('\n');
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
