//! The commands: one table with what each takes, needs and logs.

use super::def::Commands;

/// What a command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// Change the notes of a backup.
    Annotate,
    /// Fetch one WAL file: PostgreSQL's `restore_command`.
    ArchiveGet,
    /// Store one WAL file: PostgreSQL's `archive_command`.
    ArchivePush,
    /// Back up a cluster.
    Backup,
    /// Try out the configuration.
    Check,
    /// Make, list and remove writable clones.
    Clone,
    /// Print a script of completions for a shell.
    Completion,
    /// Compare two backups.
    Diff,
    /// Prove that a backup can be recovered.
    Drill,
    /// Apply retention.
    Expire,
    /// Take tables out of a backup.
    Extract,
    /// Give back the space of what no backup needs.
    Gc,
    /// Explain commands and options.
    Help,
    /// List backups.
    Info,
    /// List the files of a backup.
    Manifest,
    /// Serve all backups as a read-only tree.
    Mount,
    /// Make again what can be made again.
    Repair,
    /// Print a repository file.
    RepoGet,
    /// List repository files.
    RepoLs,
    /// Count what a repository holds.
    RepoStats,
    /// Copy from one repository to another.
    RepoSync,
    /// Restore a cluster.
    Restore,
    /// Create a stanza.
    StanzaCreate,
    /// Remove a stanza.
    StanzaDelete,
    /// Take a stanza to a new PostgreSQL version.
    StanzaUpgrade,
    /// Allow work on this host again.
    Start,
    /// Forbid work on this host.
    Stop,
    /// Read and check everything in a repository.
    Verify,
    /// Print the version.
    Version,
}

/// Who does a command's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// The process that was asked.
    #[default]
    Main,
    /// A process that another one has started in the background, and does not wait for: `archive-push:async`.
    Async,
}

impl Role {
    /// As it stands behind a colon, or in the name of a log file; nothing of the main one.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Async => "async",
        }
    }
}

/// Whether a command works for one stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StanzaUse {
    /// It must be named.
    Required,
    /// It may be named; otherwise all are meant.
    Optional,
    /// It means nothing.
    Never,
}

/// One row of the command table.
#[derive(Debug, Clone, Copy)]
pub struct CommandDef {
    /// The command.
    pub command: Command,
    /// Its name.
    pub name: &'static str,
    /// One line of help: an imperative sentence.
    pub help: &'static str,
    /// Names of its parameters, for help and for messages.
    pub params: &'static [&'static str],
    /// How many of these may be left out, from the end.
    pub optional: usize,
    /// Names of the parameters of its asynchronous role; empty if it has none.
    pub async_params: &'static [&'static str],
    /// Whether it works for one stanza.
    pub stanza: StanzaUse,
    /// Begin and end lines are INFO if true, DEBUG if false (the command's output is read by programs).
    pub announces: bool,
    /// Writes a log file.
    pub log_file: bool,
    /// Exit statuses worth knowing, beyond those of options and configuration.
    pub statuses: &'static [u8],
}

impl Command {
    /// Its bit in a [`Commands`] set.
    #[must_use]
    pub const fn bit(self) -> Commands {
        1 << self as u8
    }

    /// Its row.
    #[must_use]
    pub fn def(self) -> &'static CommandDef {
        // The table holds a row per command in their order, which a test checks.
        COMMANDS.get(self as usize).unwrap_or(&COMMANDS[0])
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.def().name
    }

    /// The command and role that a command line names: `archive-push`, `archive-push:async`.
    #[must_use]
    pub fn with_role(name: &str) -> Option<(Self, Role)> {
        let (name, role) = match name.split_once(':') {
            None => (name, Role::Main),
            Some((name, role)) if role == Role::Async.as_str() => (name, Role::Async),
            Some(_) => return None,
        };
        let command = Self::by_name(name)?;
        (role == Role::Main || !command.def().async_params.is_empty()).then_some((command, role))
    }

    /// The command of that exact name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        COMMANDS.iter().find(|d| d.name == name).map(|d| d.command)
    }
}

const fn row(command: Command, name: &'static str, help: &'static str, stanza: StanzaUse) -> CommandDef {
    CommandDef {
        command,
        name,
        help,
        params: &[],
        optional: 0,
        async_params: &[],
        stanza,
        announces: true,
        log_file: true,
        statuses: &[],
    }
}

impl CommandDef {
    const fn takes(mut self, params: &'static [&'static str], optional: usize) -> Self {
        self.params = params;
        self.optional = optional;
        self
    }

    const fn ahead(mut self, params: &'static [&'static str]) -> Self {
        self.async_params = params;
        self
    }

    const fn ends(mut self, statuses: &'static [u8]) -> Self {
        self.statuses = statuses;
        self
    }

    const fn quiet(mut self) -> Self {
        self.announces = false;
        self.log_file = false;
        self
    }

    const fn fileless(mut self) -> Self {
        self.log_file = false;
        self
    }
}

use Command as C;
use StanzaUse::{Never, Optional, Required};

/// All commands, in the order of [`Command`].
pub static COMMANDS: &[CommandDef] = &[
    row(C::Annotate, "annotate", "Change the notes of a backup, or pin it.", Required)
        .ends(&[32, 50, 55, 62, 75, 95, 104]),
    row(C::ArchiveGet, "archive-get", "Fetch one WAL file from the archive.", Required)
        .takes(&["wal-name", "destination"], 0)
        .ahead(&["wal-name"])
        .ends(&[1, 26, 44, 55, 64, 82, 95, 100, 103, 104, 126])
        .fileless(),
    row(C::ArchivePush, "archive-push", "Store one WAL file in the archive.", Required)
        .takes(&["wal-path"], 0)
        .ahead(&["wal-directory"])
        .ends(&[28, 44, 45, 46, 55, 62, 82, 95, 100, 103, 104])
        .fileless(),
    row(C::Backup, "backup", "Back up a cluster.", Required)
        .ends(&[26, 28, 38, 41, 45, 50, 51, 53, 55, 56, 57, 58, 62, 63, 64, 68, 69, 70, 76, 82, 87, 95, 100, 104, 106]),
    row(C::Check, "check", "Try out the configuration and the archive.", Optional)
        .ends(&[28, 45, 55, 56, 57, 58, 63, 67, 68, 82, 87, 95, 104])
        .fileless(),
    row(C::Clone, "clone", "Make, run, keep or remove writable clones of a backup.", Optional)
        .takes(&["create|mount|start|stop|reset|hydrate|promote|list|info|destroy"], 0)
        .ends(&[26, 28, 38, 40, 42, 47, 50, 53, 55, 56, 63, 64, 73, 75, 95, 100, 102, 122]),
    row(C::Completion, "completion", "Print a script that completes commands and options in a shell.", Never)
        .takes(&["bash|zsh|fish"], 0)
        .quiet(),
    row(C::Diff, "diff", "Tell which relations differ between two backups.", Required)
        .ends(&[26, 28, 29, 32, 38, 40, 42, 47, 50, 53, 55, 56, 57, 58, 63, 64, 75, 89, 95, 100, 102, 122])
        .quiet(),
    row(C::Drill, "drill", "Prove a backup: recover it, start it, check all of it.", Required)
        .ends(&[37, 38, 53, 55, 57, 63, 64, 75, 81, 89, 95, 100, 102, 122]),
    row(C::Expire, "expire", "Remove backups and WAL that retention no longer keeps.", Required)
        .ends(&[31, 32, 50, 55, 60, 62, 63, 75, 95, 104]),
    row(C::Extract, "extract", "Dump tables as they were at some time.", Required).ends(&[
        1, 26, 28, 29, 32, 37, 38, 40, 42, 47, 50, 53, 55, 56, 57, 58, 63, 64, 75, 80, 89, 93, 95, 100, 102, 122,
    ]),
    row(C::Gc, "gc", "Give back the space of what no backup needs any more.", Never)
        .ends(&[26, 29, 50, 55, 62, 63, 95, 104]),
    row(C::Help, "help", "Explain commands and options.", Never).takes(&["command", "option"], 2).quiet(),
    row(C::Info, "info", "List stanzas, backups and archived WAL.", Optional).ends(&[41, 55]).quiet(),
    row(C::Manifest, "manifest", "List the files of a backup.", Required)
        .ends(&[26, 29, 42, 53, 55, 63, 64, 75, 95])
        .quiet(),
    row(C::Mount, "mount", "Serve all backups of a stanza as a read-only tree.", Required)
        .takes(&["mountpoint"], 0)
        .ends(&[32, 38, 40, 53, 55, 63, 95, 100, 122]),
    row(C::Repair, "repair", "Make the chunk index, stanzas' histories, or a lost generation anew.", Never)
        .takes(&["index|history|generation"], 0)
        .ends(&[26, 50, 51, 55, 62, 63, 64, 95, 104]),
    row(C::RepoGet, "repo-get", "Print a file of a repository, by the name pgBackRest's readers know.", Optional)
        .takes(&["file"], 0)
        .ends(&[1, 26, 42, 55, 95])
        .quiet(),
    row(C::RepoLs, "repo-ls", "List a repository's files, by the names pgBackRest's readers know.", Optional)
        .takes(&["path"], 1)
        .ends(&[26, 29, 53, 55, 63, 64, 95])
        .quiet(),
    row(C::RepoStats, "repo-stats", "Count what backups hold and what they cost to store.", Optional)
        .ends(&[26, 55, 63, 75, 95, 104])
        .quiet(),
    row(C::RepoSync, "repo-sync", "Copy backups and WAL that one repository has and another lacks.", Required)
        .takes(&["from", "to"], 0)
        .ends(&[26, 28, 29, 45, 50, 51, 55, 62, 63, 64, 75, 82, 95]),
    row(C::Restore, "restore", "Restore a cluster from a backup.", Required)
        .ends(&[26, 28, 29, 32, 38, 40, 42, 47, 50, 53, 55, 58, 61, 63, 64, 70, 73, 75, 76, 78, 80, 81, 95, 100, 122]),
    row(C::StanzaCreate, "stanza-create", "Create a stanza in every repository.", Required)
        .ends(&[28, 40, 47, 50, 56, 57, 58, 62, 64, 95, 103, 104]),
    row(C::StanzaDelete, "stanza-delete", "Remove a stanza from one repository.", Required).ends(&[38, 50, 55, 60, 95]),
    row(C::StanzaUpgrade, "stanza-upgrade", "Take a stanza to the cluster's new version.", Required)
        .ends(&[47, 50, 55, 56, 57, 58, 62, 64, 95, 104]),
    row(C::Start, "start", "Allow work on this host again.", Optional).ends(&[60]),
    row(C::Stop, "stop", "Forbid work on this host.", Optional).ends(&[47, 64]),
    row(C::Verify, "verify", "Read and check everything a stanza has stored.", Required)
        .ends(&[26, 29, 55, 63, 75, 82, 95, 100, 104]),
    row(C::Version, "version", "Print the version.", Never).quiet(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_finds_its_own_row_and_rows_are_in_order_of_name_or_life() {
        for (at, row) in COMMANDS.iter().enumerate() {
            assert_eq!(row.command as usize, at, "{}", row.name);
            assert_eq!(Command::by_name(row.name), Some(row.command));
            assert_eq!(row.command.def().name, row.name);
            assert!(row.optional <= row.params.len());
            assert!(row.help.ends_with('.'));
        }
        assert!(COMMANDS.len() <= 32, "Commands is a u32");
        assert_eq!(Command::by_name("backu"), None);
    }

    #[test]
    fn only_commands_with_work_ahead_have_the_role() {
        assert_eq!(Command::with_role("archive-push"), Some((Command::ArchivePush, Role::Main)));
        assert_eq!(Command::with_role("archive-push:async"), Some((Command::ArchivePush, Role::Async)));
        assert_eq!(Command::with_role("archive-get:async"), Some((Command::ArchiveGet, Role::Async)));
        for name in ["backup:async", "archive-push:", "archive-push:local", "archive-push:async:async", ":async", ""] {
            assert_eq!(Command::with_role(name), None, "{name}");
        }
    }
}
