//! `help --output=man`: a page for man(1), of all commands or of one, in roff's man macros.

use super::{heading_of, kind, shown_default, typed_name, usage};
use crate::VERSION;
use crate::exit::Status;
use crate::option::command::COMMANDS;
use crate::option::{Action, Command, Def, Program, actions, options_of};
use std::fmt::Write as _;

const ABOUT: &str = "takes physical backups of PostgreSQL clusters into repositories in which content is stored once, restores them, \
                     and makes writable clones of them that answer before they are copied.";

/// The page of the program.
pub(super) fn page(program: &Program) -> String {
    let name = program.name;
    let mut text = head(program, name, "backup, restore and instant clones of PostgreSQL");
    section(&mut text, "SYNOPSIS");
    let _ = writeln!(text, "\\fB{}\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIparameters\\fR]", plain(name));
    section(&mut text, "DESCRIPTION");
    paragraph(&mut text, &format!("{name} {ABOUT}"));
    let files = "An option counts from the command line, else from the environment (its name in capitals with ENV before it), else from \
                 the section [stanza:command], [stanza], [global:command] or [global] of the configuration, else it has its default.";
    text.push_str(".PP\n");
    paragraph(&mut text, &files.replace("ENV", program.env_prefix));
    section(&mut text, "COMMANDS");
    for command in COMMANDS {
        entry(&mut text, command.name, command.help);
    }
    text.push_str(".PP\n");
    paragraph(
        &mut text,
        &format!("'{name} help COMMAND' tells a command's options, 'help --output=man COMMAND' as a page."),
    );
    section(&mut text, "FILES");
    for (file, what) in [
        ("/etc/@/@.conf", "configuration"),
        ("/etc/@/conf.d/*.conf", "more of it, in the order of names"),
        ("/var/lib/@", "repository, unless repo1-path names another"),
        ("/var/log/@", "log files"),
        ("/var/cache/@", "what can be rebuilt"),
        ("/tmp/@", "lock and stop files"),
    ] {
        entry(&mut text, &program.fill(file), what);
    }
    section(&mut text, "EXIT STATUS");
    for number in 0..=u8::MAX {
        let meaning = Status(number).meaning();
        if !meaning.is_empty() {
            entry(&mut text, &number.to_string(), meaning);
        }
    }
    text
}

/// The page of one command.
pub(super) fn of_command(program: &Program, command: Command) -> String {
    let def = command.def();
    let mut text = head(program, &format!("{}-{}", program.name, def.name), def.help.trim_end_matches('.'));
    section(&mut text, "SYNOPSIS");
    let _ = writeln!(text, "{}", plain(&usage(program, command, None)));
    if !actions(command).is_empty() {
        section(&mut text, "ACTIONS");
        for Action { name, help, .. } in actions(command) {
            entry(&mut text, name, help);
        }
    }
    let (options, inert): (Vec<_>, Vec<_>) = options_of(command).into_iter().partition(|d| d.effect.is_none());
    for heading in ["Command", "General", "Log", "Repository", "Stanza"] {
        let rows: Vec<_> = options.iter().filter(|d| heading_of(d) == heading).collect();
        if !rows.is_empty() {
            section(&mut text, &format!("{} OPTIONS", heading.to_ascii_uppercase()));
        }
        for row in rows {
            option(&mut text, program, command, row);
        }
    }
    if !inert.is_empty() {
        section(&mut text, "OPTIONS WITHOUT EFFECT");
        paragraph(&mut text, &inert.iter().map(typed_name).collect::<Vec<_>>().join(", "));
    }
    if !def.statuses.is_empty() {
        section(&mut text, "EXIT STATUS");
        for status in std::iter::once(&0).chain(def.statuses) {
            entry(&mut text, &status.to_string(), Status(*status).meaning());
        }
    }
    section(&mut text, "SEE ALSO");
    let _ = writeln!(text, "\\fB{}\\fR(1)", plain(program.name));
    text
}

fn option(text: &mut String, program: &Program, command: Command, row: &Def) {
    let default = row.default_for(command).map(|d| format!(" Default: {}.", program.fill(shown_default(d))));
    let what = format!("{}: {}.{}", row.help_for(command), kind(row.type_for(command)), default.unwrap_or_default());
    entry(text, &format!("--{}", typed_name(row)), &what);
    for more in row.more {
        text.push_str(".IP\n");
        paragraph(text, more);
    }
}

fn head(program: &Program, title: &str, what: &str) -> String {
    let mut text = format!(".TH \"{}\" 1 \"\" \"{} {VERSION}\"\n", plain(&title.to_ascii_uppercase()), program.name);
    section(&mut text, "NAME");
    let _ = writeln!(text, "{} \\- {}", plain(title), plain(what));
    text
}

fn section(text: &mut String, name: &str) {
    let _ = writeln!(text, ".SH {name}");
}

fn entry(text: &mut String, name: &str, what: &str) {
    let _ = writeln!(text, ".TP\n\\fB{}\\fR", plain(name));
    paragraph(text, what);
}

fn paragraph(text: &mut String, words: &str) {
    let words = plain(words);
    // A line that begins with one of these would be taken for a macro.
    let guard = if words.starts_with(['.', '\'']) { "\\&" } else { "" };
    let _ = writeln!(text, "{guard}{words}");
}

/// Text in which nothing is a macro or turns into another sign.
fn plain(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('`', "\\(ga")
        .replace('^', "\\(ha")
        .replace('~', "\\(ti")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::option::PGKEEP;

    #[test]
    fn pages_have_their_parts_and_no_line_is_a_macro_by_accident() {
        let known = [".TH", ".SH", ".TP", ".PP", ".IP"];
        let mut pages = vec![page(&PGKEEP)];
        pages.extend(COMMANDS.iter().map(|c| of_command(&PGKEEP, c.command)));
        for page in &pages {
            assert!(page.starts_with(".TH \"PGKEEP"), "{page}");
            for line in page.lines() {
                assert!(!line.is_empty() && !line.starts_with('\''), "{line}");
                assert!(!line.starts_with('.') || known.iter().any(|m| line.starts_with(m)), "{line}");
            }
        }
        assert!(pages[0].contains("\\fBarchive\\-push\\fR\nStore one WAL file"), "{}", pages[0]);
        let backup = of_command(&PGKEEP, Command::Backup);
        assert!(backup.contains(
            "\\fB\\-\\-repo<N>\\-path\\fR\ndirectory of the repository: an absolute path. Default: /var/lib/pgkeep."
        ));
    }
}
