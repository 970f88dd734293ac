//! `completion`: a script for a shell that completes commands, options and their values.
//!
//! The scripts ask the program for nothing: what it knows when the script is made stands in it.

mod bash;
mod fish;
mod zsh;

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::command::COMMANDS;
use crate::option::def::Group;
use crate::option::{Command, Def, Type, actions, options_of};
use crate::render;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let program = context.settings.program().name;
    // Another word has been refused before.
    let script = match context.settings.param(0).to_str() {
        Some("fish") => fish::script(program),
        Some("zsh") => zsh::script(program),
        _ => bash::script(program),
    };
    render::print(&script)?;
    Ok(Status::OK)
}

/// The commands there are.
fn commands() -> impl Iterator<Item = (&'static str, &'static str, Command)> {
    COMMANDS.iter().map(|c| (c.name, c.help, c.command))
}

/// An option as it is typed, with the number 1 where there is one, and without its value.
fn typed(def: &Def) -> String {
    def.display(u16::from(def.group != Group::None))
}

/// The words that may follow a command.
fn words(command: Command) -> Vec<&'static str> {
    if !actions(command).is_empty() {
        return actions(command).iter().map(|action| action.name).collect();
    }
    let choice = command.def().params.first().filter(|words| words.contains('|'));
    match (command, choice) {
        (Command::Help, _) => commands().map(|(name, ..)| name).collect(),
        (_, Some(words)) => words.split('|').collect(),
        (_, None) => Vec::new(),
    }
}

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Values {
    /// None is needed: the option stands for `y`.
    Flag,
    /// One of these.
    Words(&'static [&'static str]),
    /// A path.
    Path,
    /// Something that is not known.
    Any,
}

fn values(def: &Def, command: Command) -> Values {
    match def.type_for(command) {
        Type::Bool => Values::Flag,
        Type::Enum(words) => Values::Words(words),
        Type::Path | Type::AnyPath => Values::Path,
        _ => Values::Any,
    }
}

/// Every way in which an option of a command may begin: its name, with `no-` where that means something.
fn spellings(def: &Def, command: Command) -> Vec<String> {
    let name = typed(def);
    let is_flag = def.type_for(command) == Type::Bool;
    if is_flag || def.negate { vec![name.clone(), format!("no-{name}")] } else { vec![name] }
}

/// The options of a command, none of which is secret: those are not typed.
fn options(command: Command) -> impl Iterator<Item = &'static Def> {
    options_of(command).into_iter().filter(|def| !def.secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command as Process, Stdio};

    /// What bash offers for the last of these words.
    fn offered(words: &[&str]) -> Vec<String> {
        let script = format!(
            "{}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_pgkeep\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            bash::script("pgkeep"),
            words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            words.len() - 1
        );
        let mut bash = Process::new("bash");
        let run = bash.args(["--norc", "-c", &script]).stdin(Stdio::null()).output().expect("bash is part of Debian");
        assert!(run.status.success() && run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap().lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn bash_offers_what_fits() {
        assert_eq!(offered(&["pgkeep", "archive-"]), ["archive-get", "archive-push"]);
        assert_eq!(offered(&["pgkeep", "--stanza", "=", "main", "bac"]), ["backup"]);
        assert_eq!(offered(&["pgkeep", "backup", "--io-"]), ["--io-limit=", "--io-timeout="]);
        assert_eq!(offered(&["pgkeep", "backup", "--type", "=", ""]), ["full", "diff", "incr"]);
        assert_eq!(offered(&["pgkeep", "backup", "--type", "="]), ["full", "diff", "incr"]);
        assert_eq!(offered(&["pgkeep", "restore", "--type", "=", "im"]), ["immediate"]);
        assert_eq!(offered(&["pgkeep", "info", "--output", "js"]), ["json"]);
        assert_eq!(offered(&["pgkeep", "backup", "--no-expire-a"]), ["--no-expire-auto"]);
        assert_eq!(offered(&["pgkeep", "clone", "hy"]), ["hydrate"]);
        assert_eq!(offered(&["pgkeep", "help", "repo-"]), ["repo-get", "repo-ls", "repo-stats", "repo-sync"]);
        assert_eq!(offered(&["pgkeep", "completion", ""]), ["bash", "zsh", "fish"]);
        // Before the command is known, what every command that does something takes.
        assert!(offered(&["pgkeep", "--stan"]).contains(&"--stanza=".to_owned()));
        assert!(offered(&["pgkeep", "backup", "--repo1-cipher-pass"]).iter().all(|o| o != "--repo1-cipher-pass="));
    }

    #[test]
    fn every_script_knows_every_command_and_option() {
        for (shell, script) in
            [("bash", bash::script("pgkeep")), ("zsh", zsh::script("pgkeep")), ("fish", fish::script("pgkeep"))]
        {
            for (name, _, command) in commands() {
                assert!(script.contains(name), "{shell} does not know {name}");
                for def in options(command) {
                    assert!(script.contains(&typed(def)), "{shell} does not know {}", typed(def));
                }
            }
        }
    }
}
