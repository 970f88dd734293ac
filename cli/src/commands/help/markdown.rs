//! `help --output=markdown`: the reference, `docs/reference.md`.

use super::{heading_of, kind, shown_default, typed_name, usage};
use crate::option::command::COMMANDS;
use crate::option::def::Scope;
use crate::option::table::TABLE;
use crate::option::{Command, Def, Program, actions, options_of};
use std::fmt::Write as _;

/// Options of so many commands are said to be of all but the others.
const MANY: usize = 12;

const HEAD: &str = "# Reference

Every command and every option, from the tables that the program itself works with: `pgkeep help --output=markdown`.
What commands are for and how they go together is in [operations](operations.md); what is different from pgBackRest, in
[compat](compat.md); statuses, in [exit-codes](exit-codes.md).

Options stand before or after the command, `--name=value` or `--name value`; a beginning that is of one option only is
enough. `y` and `n` are `--name` and `--no-name`. `--reset-name` brings back the default. In files an option stands without
the dashes, in a section `[stanza:command]`, `[stanza]`, `[global:command]` or `[global]`; the first that has it counts. In
the environment it is `PGKEEP_` and its name in capitals, with `_` for `-`. The command line counts before the environment,
that before files, those before defaults. `<N>` is 1 to 256. A secret is refused on the command line.
";

/// The whole reference.
pub(super) fn reference(program: &Program) -> String {
    let mut text = HEAD.to_owned();
    text.push_str("\n## Commands\n");
    for command in COMMANDS {
        of_command(&mut text, program, command.command);
    }
    text.push_str("\n## Options\n");
    for heading in ["Command", "General", "Log", "Repository", "Stanza"] {
        let _ = writeln!(
            text,
            "\n### {heading}\n\n| option | value | default | in files | commands | |\n|---|---|---|---|---|---|"
        );
        for def in shown().into_iter().filter(|def| heading_of(def) == heading) {
            row(&mut text, program, def);
        }
        for def in shown().into_iter().filter(|def| heading_of(def) == heading && !def.more.is_empty()) {
            let _ = writeln!(text, "\n`{}`:\n", typed_name(def));
            def.more.iter().for_each(|more| _ = writeln!(text, "- {}", escaped(more)));
        }
    }
    text
}

/// One command and its actions.
pub(super) fn command(program: &Program, command: Command) -> String {
    let mut text = String::new();
    of_command(&mut text, program, command);
    text.trim_start().to_owned()
}

fn of_command(text: &mut String, program: &Program, command: Command) {
    let def = command.def();
    let _ = writeln!(text, "\n### {}\n\n{}\n\n    {}\n", def.name, escaped(def.help), usage(program, command, None));
    for action in actions(command) {
        let _ = writeln!(text, "- `{} {}`: {}", def.name, action.name, escaped(action.help));
    }
    if !actions(command).is_empty() {
        text.push('\n');
    }
    let (rows, inert): (Vec<_>, Vec<_>) = options_of(command).into_iter().partition(|d| d.effect.is_none());
    let names = |rows: &[&Def]| rows.iter().map(|d| format!("`{}`", typed_name(d))).collect::<Vec<_>>().join(", ");
    if !rows.is_empty() {
        let _ = writeln!(text, "Options: {}.", names(&rows));
    }
    if !inert.is_empty() {
        let _ = writeln!(text, "\nAccepted without effect: {}.", names(&inert));
    }
    if !def.statuses.is_empty() {
        let numbers: Vec<_> = def.statuses.iter().map(u8::to_string).collect();
        let _ = writeln!(text, "\nExit statuses beside 0: {}.", numbers.join(", "));
    }
}

/// Options that some command takes and help shows, by name.
fn shown() -> Vec<&'static Def> {
    let mut rows: Vec<_> = TABLE.iter().filter(|d| !d.hidden && !d.later && !takers(d).is_empty()).collect();
    rows.sort_by_key(|d| d.name);
    rows
}

fn takers(def: &Def) -> Vec<&'static str> {
    COMMANDS.iter().filter(|c| def.is_valid_for(c.command)).map(|c| c.name).collect()
}

fn row(text: &mut String, program: &Program, def: &Def) {
    let default = |default: Option<&'static str>| match default {
        Some(default) => format!("`{}`", program.fill(shown_default(default))),
        None => String::new(),
    };
    let (mut value, mut defaults) = (kind(def.ty), default(def.default));
    for over in def.overrides {
        let of = COMMANDS.iter().filter(|c| over.commands & c.command.bit() != 0).map(|c| c.name);
        let of = of.collect::<Vec<_>>().join(", ");
        if over.ty != def.ty {
            let _ = write!(value, "; of {of}: {}", kind(over.ty));
        }
        if over.default != def.default {
            let shown = over.default.map_or_else(|| "none".to_owned(), |d| default(Some(d)));
            let _ = write!(defaults, "{}of {of}: {shown}", if defaults.is_empty() { "" } else { "; " });
        }
    }
    let place = match def.scope {
        Scope::CommandLine => "no",
        Scope::Stanza => "of a stanza",
        Scope::Global => "yes",
    };
    let _ = writeln!(
        text,
        "| `{}` | {} | {} | {place} | {} | {} |",
        typed_name(def),
        cell(&value),
        cell(&defaults),
        commands(def),
        cell(&about(def))
    );
}

/// The commands that take it, by what is shorter.
fn commands(def: &Def) -> String {
    let (takers, all) = (takers(def), COMMANDS.iter());
    let others: Vec<_> = all.map(|c| c.name).filter(|name| !takers.contains(name)).collect();
    match (takers.len() > MANY, others.is_empty()) {
        (false, _) => takers.join(", "),
        (true, true) => "all".to_owned(),
        (true, false) => format!("all but {}", others.join(", ")),
    }
}

/// What it does, and what else there is to know.
fn about(def: &Def) -> String {
    let mut parts = vec![def.help.to_owned()];
    for (commands, meaning) in def.meanings {
        let of = COMMANDS.iter().filter(|c| commands & c.command.bit() != 0).map(|c| c.name);
        parts.push(format!("of {}: {meaning}", of.collect::<Vec<_>>().join(", ")));
    }
    if def.secret {
        parts.push("secret".to_owned());
    }
    if let Some(depend) = def.depend {
        let how = if depend.values.is_empty() { String::new() } else { format!(" {}", depend.values.join(" or ")) };
        parts.push(format!("counts only with `{}`{how}", typed_name(depend.on.def())));
    }
    if !def.aliases.is_empty() {
        parts.push(format!("old names: `{}`", def.aliases.join("`, `").replace('?', "N")));
    }
    if let Some(effect) = def.effect {
        parts.push(format!("no effect: {effect}"));
    }
    parts.join("; ")
}

/// Text that may stand in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn escaped(text: &str) -> String {
    text.replace('*', "\\*")
}

#[cfg(test)]
mod tests {
    use crate::option::PGKEEP;

    #[test]
    fn the_document_is_what_the_tables_say() {
        let generated = super::reference(&PGKEEP);
        let document = include_str!("../../../../docs/reference.md");
        let other = generated.lines().zip(document.lines()).find(|(ours, theirs)| ours != theirs);
        assert!(
            generated == document,
            "docs/reference.md is not up to date: run\n  cargo run --release -p pgkeep-cli -- help --output=markdown > docs/reference.md\n{other:#?}"
        );
    }

    #[test]
    fn every_command_and_option_that_help_shows_is_in_it() {
        let text = super::reference(&PGKEEP);
        for command in crate::option::command::COMMANDS {
            assert!(text.contains(&format!("\n### {}\n", command.name)), "{}", command.name);
            for def in crate::option::options_of(command.command) {
                assert!(text.contains(&format!("\n| `{}` | ", super::typed_name(def))), "{}", def.name);
            }
        }
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        assert!(text.lines().filter(|line| line.starts_with('|')).all(|line| columns(line) == 7));
    }
}
