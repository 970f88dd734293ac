//! The actions of commands that do several things: what each does, what it needs, and which options are about it.

use super::command::Command;
use super::def::{Def, Group};
use super::nearest::nearest;
use super::rules::options_of;
use super::table::Opt;

/// One action of a command.
#[derive(Debug)]
pub struct Action {
    /// The word that is typed.
    pub name: &'static str,
    /// What it does and what it needs.
    pub help: &'static str,
    /// What it cannot do without.
    pub needs: &'static [Opt],
    /// It reads a repository.
    pub reads: bool,
    /// What else is about it, beside what is about every action.
    options: &'static [&'static [Opt]],
}

/// Options about reading a repository, beside those of repositories.
const OF_READING: [Opt; 8] = [
    Opt::Stanza,
    Opt::RepoKey,
    Opt::CachePath,
    Opt::IoTimeout,
    Opt::JobRetry,
    Opt::JobRetryInterval,
    Opt::ProcessMax,
    Opt::Priority,
];

/// What a clone is made of and what its server is told.
pub(crate) const OF_MAKING: [Opt; 10] = [
    Opt::Set,
    Opt::Type,
    Opt::Target,
    Opt::TargetAction,
    Opt::TargetExclusive,
    Opt::TargetTimeline,
    Opt::RecoveryOption,
    Opt::ArchiveTo,
    Opt::Port,
    Opt::SocketPath,
];
/// Those of them that `clone reset` takes.
pub(crate) const OF_RESET: [Opt; 2] = [Opt::Port, Opt::SocketPath];

/// How a clone is served and its server started.
const OF_SERVING: [Opt; 4] = [Opt::Force, Opt::PgBin, Opt::CloneOpenMode, Opt::CloneTrace];

const CLONE: [Action; 10] = [
    Action {
        name: "create",
        help: "make a clone of a backup and mount it; needs --dir (an empty directory for what the clone writes), \
               --mountpoint (an empty directory), and --stanza; --start starts its server as well, else the output \
               tells how to",
        needs: &[Opt::Dir, Opt::Mountpoint],
        reads: true,
        options: &[&OF_MAKING, &OF_SERVING, &[Opt::Foreground, Opt::Start, Opt::Cmd]],
    },
    Action {
        name: "mount",
        help: "serve a clone again, after a reboot for example; needs --dir and --stanza",
        needs: &[Opt::Dir],
        reads: true,
        options: &[&OF_SERVING, &[Opt::Mountpoint, Opt::Foreground, Opt::Start]],
    },
    Action {
        name: "start",
        help: "the same, and start its server; waits until recovery has ended, if it is to end",
        needs: &[Opt::Dir],
        reads: true,
        options: &[&OF_SERVING, &[Opt::Mountpoint]],
    },
    Action {
        name: "stop",
        help: "end its server in order and unmount it; nothing is lost; needs --dir",
        needs: &[Opt::Dir],
        reads: false,
        options: &[],
    },
    Action {
        name: "reset",
        help: "make it anew as it was made and mount it; what was written to it is gone; needs --dir and --stanza; \
               --force ends a server that runs on it, --start starts one",
        needs: &[Opt::Dir],
        reads: true,
        options: &[&OF_RESET, &OF_SERVING, &[Opt::Mountpoint, Opt::Foreground, Opt::Start, Opt::Cmd]],
    },
    Action {
        name: "hydrate",
        help: "fetch everything it still lacks while it is used, and wait for it; needs --dir; --io-limit bounds it",
        needs: &[Opt::Dir],
        reads: false,
        options: &[&[Opt::IoLimit]],
    },
    Action {
        name: "promote",
        help: "hydrate it and make it an ordinary data directory in place of the mountpoint, which must be on the \
               file system of --dir; its server is stopped for a moment",
        needs: &[Opt::Dir],
        reads: false,
        options: &[&[Opt::Mountpoint, Opt::Force, Opt::PgBin]],
    },
    Action {
        name: "list",
        help: "list the clones in --dir; without it those that are mounted on this host",
        needs: &[],
        reads: false,
        options: &[&[Opt::Dir]],
    },
    Action { name: "info", help: "show the clone in --dir", needs: &[Opt::Dir], reads: false, options: &[] },
    Action {
        name: "destroy",
        help: "unmount a clone and remove what it wrote; needs --dir; --force ends a server that runs on it",
        needs: &[Opt::Dir],
        reads: false,
        options: &[&[Opt::Force]],
    },
];

/// The actions of a command that has some.
#[must_use]
pub fn actions(command: Command) -> &'static [Action] {
    match command {
        Command::Clone => &CLONE,
        _ => &[],
    }
}

impl Action {
    /// What is about it and not about every action.
    fn own_options(&self) -> impl Iterator<Item = &Opt> {
        self.options.iter().copied().flatten().chain(self.needs)
    }

    fn has(&self, opt: Opt) -> bool {
        self.own_options().any(|own| *own == opt)
    }

    /// What to give for an option it needs.
    pub(super) fn hint(&self, opt: Opt) -> &'static str {
        match (opt, self.name) {
            (Opt::Dir, "create") => {
                "--dir names an empty directory, or one that is not there yet, for what the clone writes"
            }
            (Opt::Dir, _) => {
                "--dir names the clone's own directory; 'clone list' shows those of clones that are mounted"
            }
            _ => "--mountpoint names an empty directory, or one that is not there yet: the clone's data directory",
        }
    }

    /// The rows of a command that are about this action, by name.
    #[must_use]
    pub fn rows(&self, command: Command) -> Vec<&'static Def> {
        let is_of_some = |opt: Opt| actions(command).iter().any(|action| action.has(opt));
        let is_about = |def: &&Def| {
            if is_of_some(def.opt) {
                return self.has(def.opt);
            }
            self.reads || !(def.group == Group::Repo || OF_READING.contains(&def.opt))
        };
        options_of(command).into_iter().filter(is_about).collect()
    }
}

/// Whether a command's parameter may be this word; else what to say instead.
pub(super) fn check(command: Command, words: &str, typed: &str) -> Result<(), (String, String)> {
    let all: Vec<&str> = words.split('|').collect();
    if all.len() < 2 || all.contains(&typed) {
        return Ok(());
    }
    let hint = match nearest(typed, &all) {
        Some(meant) => format!("did you mean '{} {meant}'?", command.name()),
        None => format!("there is {}", all.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ")),
    };
    Err((format!("there is no '{} {typed}'", command.name()), hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_those_of_the_command_and_their_options_its_own() {
        let names: Vec<_> = CLONE.iter().map(|action| action.name).collect();
        assert_eq!(Command::Clone.def().params, [names.join("|")]);
        for action in &CLONE {
            for opt in action.own_options() {
                assert!(opt.def().is_valid_for(Command::Clone), "{} {}", action.name, opt.def().name);
            }
        }
    }

    #[test]
    fn what_would_change_nothing_is_in_nobodys_help() {
        for action in &CLONE {
            for opt in OF_MAKING {
                let used = action.name == "create" || action.name == "reset" && OF_RESET.contains(&opt);
                assert_eq!(action.has(opt), used, "{} {}", action.name, opt.def().name);
            }
        }
        let has = |name: &str, opt| {
            let action = CLONE.iter().find(|action| action.name == name).unwrap();
            action.rows(Command::Clone).iter().any(|def| def.opt == opt)
        };
        assert!(has("create", Opt::RepoPath) && has("create", Opt::Stanza) && has("create", Opt::LogPath));
        assert!(!has("info", Opt::RepoPath) && !has("info", Opt::Stanza) && has("info", Opt::LogPath));
        assert!(has("info", Opt::Dir) && has("info", Opt::Output) && !has("info", Opt::Force));
    }

    #[test]
    fn a_word_that_was_mistyped_is_told_with_the_nearest() {
        let words = Command::Clone.def().params[0];
        let told = |typed| check(Command::Clone, words, typed);
        assert_eq!(told("create"), Ok(()));
        let (message, hint) = told("creat").unwrap_err();
        assert_eq!((message.as_str(), hint.as_str()), ("there is no 'clone creat'", "did you mean 'clone create'?"));
        assert!(told("frobnicate").unwrap_err().1.starts_with("there is 'create', 'mount', "));
        assert_eq!(check(Command::Mount, "mountpoint", "/mnt"), Ok(()));
    }
}
