//! The script for fish: a line for each command, and for each option with the commands that take it.

use super::{Values, commands, options, spellings, typed, values, words};
use std::collections::BTreeMap;
use std::fmt::Write as _;

pub(super) fn script(program: &str) -> String {
    let mut text = format!(
        "# Completion of {program} for fish: put it into ~/.config/fish/completions/{program}.fish.\ncomplete -c {program} -f\n"
    );
    for (name, help, command) in commands() {
        let _ = writeln!(text, "complete -c {program} -n __fish_use_subcommand -a {name} -d {}", quoted(help));
        let words = words(command);
        let seen = format!("-n '__fish_seen_subcommand_from {name}'");
        if words.is_empty() && !command.def().params.is_empty() {
            let _ = writeln!(text, "complete -c {program} {seen} -F");
        } else if !words.is_empty() {
            let _ = writeln!(text, "complete -c {program} {seen} -a '{}'", words.join(" "));
        }
    }
    // What is said of an option in one line is said of it for all commands of which it is so.
    let mut lines: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for (name, _, command) in commands() {
        for def in options(command) {
            let value = match values(def, command) {
                Values::Flag => String::new(),
                Values::Words(words) => format!(" -x -a '{}'", words.join(" ")),
                Values::Path => " -r -F".to_owned(),
                Values::Any => " -x".to_owned(),
            };
            for spelling in spellings(def, command) {
                let value = if spelling == typed(def) { value.as_str() } else { "" };
                let line = format!("{value} -d {}", quoted(def.help_for(command)));
                lines.entry((spelling, line)).or_default().push(name);
            }
        }
    }
    for ((option, line), names) in lines {
        let seen = names.join(" ");
        let _ = writeln!(text, "complete -c {program} -n '__fish_seen_subcommand_from {seen}' -l {option}{line}");
    }
    text
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
