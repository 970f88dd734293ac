//! The exit statuses: pgBackRest's numbers, and the one table from the engine's causes to them.
//!
//! `archive-get` and `archive-push` are run by the server and bend these; their command files say how.

use pgkeep_engine::Kind;

/// What the process exits with. All but [`Self::OK`] and [`Self::ABSENT`] stand in the message too: `ERROR: [NNN]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Status(pub u8);

impl Status {
    /// All went well.
    pub const OK: Self = Self(0);
    /// What was asked for is not there.
    pub const ABSENT: Self = Self(1);
    /// Our own mistake.
    pub const ASSERT: Self = Self(25);
    /// Configuration is contradictory.
    pub const CONFIG: Self = Self(27);
    /// A configuration file cannot be parsed.
    pub const FORMAT: Self = Self(29);
    /// No command given.
    pub const COMMAND_REQUIRED: Self = Self(30);
    /// An option is unknown, misplaced or not valid for the command.
    pub const OPTION_INVALID: Self = Self(31);
    /// An option's value does not fit.
    pub const OPTION_INVALID_VALUE: Self = Self(32);
    /// An option is missing.
    pub const OPTION_REQUIRED: Self = Self(37);
    /// A file cannot be opened.
    pub const FILE_OPEN: Self = Self(41);
    /// A file cannot be read.
    pub const FILE_READ: Self = Self(42);
    /// A parameter is missing.
    pub const PARAM_REQUIRED: Self = Self(43);
    /// No such command.
    pub const COMMAND_INVALID: Self = Self(48);
    /// A file is missing.
    pub const FILE_MISSING: Self = Self(55);
    /// Ended by a signal.
    pub const TERM: Self = Self(63);
    /// A file cannot be written.
    pub const FILE_WRITE: Self = Self(64);
    /// Understood, but beyond this version.
    pub const FEATURE_NOT_SUPPORTED: Self = Self(67);
    /// A directory is missing.
    pub const PATH_MISSING: Self = Self(73);
    /// Makes a server that ran `archive-get` stop instead of taking the archive for ended: above 125.
    pub const ABORT_RECOVERY: Self = Self(126);
    /// A parameter is not valid.
    pub const PARAM_INVALID: Self = Self(96);

    /// The status that stands for a cause.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self(match kind {
            Kind::Absent => 1,
            Kind::Assert => 25,
            Kind::Checksum => 26,
            Kind::Config => 27,
            Kind::FileInvalid => 28,
            Kind::Format => 29,
            Kind::OptionInvalid => 31,
            Kind::OptionInvalidValue => 32,
            Kind::OptionRequired => 37,
            Kind::PostgresRunning => 38,
            Kind::PathNotEmpty => 40,
            Kind::FileOpen => 41,
            Kind::FileRead => 42,
            Kind::ParamRequired => 43,
            Kind::ArchiveMismatch => 44,
            Kind::ArchiveDuplicate => 45,
            Kind::VersionNotSupported => 46,
            Kind::PathCreate => 47,
            Kind::LockAcquire => 50,
            Kind::BackupMismatch => 51,
            Kind::FileSync => 52,
            Kind::PathOpen => 53,
            Kind::FileMissing => 55,
            Kind::DbConnect => 56,
            Kind::DbQuery => 57,
            Kind::DbMismatch => 58,
            Kind::FileRemove => 60,
            Kind::PathRemove => 61,
            Kind::Stopped => 62,
            Kind::Interrupted => 63,
            Kind::FileWrite => 64,
            Kind::FeatureNotSupported => 67,
            Kind::ArchiveCommandInvalid => 68,
            Kind::LinkExpected => 69,
            Kind::LinkDestination => 70,
            Kind::PathMissing => 73,
            Kind::FileMove => 74,
            Kind::BackupSetInvalid => 75,
            Kind::TablespaceMap => 76,
            Kind::LinkMap => 78,
            Kind::DbMissing => 80,
            Kind::DbInvalid => 81,
            Kind::ArchiveTimeout => 82,
            Kind::FileMode => 83,
            Kind::ArchiveDisabled => 87,
            Kind::FileOwner => 88,
            Kind::UserMissing => 89,
            Kind::FileExists => 93,
            Kind::Memory => 94,
            Kind::Crypto => 95,
            Kind::ParamInvalid => 96,
            Kind::FileInfo => 98,
            Kind::Kernel => 100,
            Kind::Service => 101,
            Kind::Execute => 102,
            Kind::RepoInvalid => 103,
            Kind::Command => 104,
            Kind::Clock => 106,
            Kind::Runtime => 122,
            // Kind is open for growth; a test here reads its source and fails for one without a number.
            _ => 125,
        })
    }
}

impl Status {
    /// What a status means: the text of help and of `docs/exit-codes.md`. Empty for numbers that do not occur.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self.0 {
            0 => "success",
            1 => "certainly not there",
            25 => "our own mistake, or memory and processor are not reliable",
            26 => "stored bytes differ from what was recorded",
            27 => "no usable cluster, or the configuration contradicts itself",
            28 => "a file's content is not what it must be",
            29 => "bytes or a configuration file cannot be parsed",
            30 => "no command given",
            31 => "an option is not valid here",
            32 => "the value of an option is not valid",
            37 => "an option is missing",
            38 => "the server runs on the directory",
            40 => "a directory that must be empty is not",
            41 => "a file cannot be opened",
            42 => "a file cannot be read",
            43 => "a parameter is missing",
            44 => "the WAL belongs to another cluster",
            45 => "WAL of that name is archived with other content",
            46 => "this version of PostgreSQL is not supported",
            47 => "a directory cannot be created",
            48 => "no such command",
            50 => "another process of this host holds the lock, or the session was fenced",
            51 => "the cluster is not the stanza's",
            52 => "a file cannot be synced",
            53 => "a directory cannot be opened",
            55 => "a file, an object or the stanza is missing",
            56 => "the server cannot be reached",
            57 => "the server refused a query",
            58 => "the server or the timeline is not the one expected",
            60 => "a file cannot be removed",
            61 => "a directory cannot be removed",
            62 => "stopped by stop",
            63 => "ended by a signal",
            64 => "a file cannot be written",
            67 => "understood, but beyond this version",
            68 => "archive_command does not call this program, or calls it for other stanzas only",
            69 => "a link was expected",
            70 => "the destination of a link is not usable",
            73 => "a directory is missing",
            74 => "a file cannot be renamed",
            75 => "no backup fits",
            76 => "the tablespace map does not fit",
            78 => "the link map does not fit",
            80 => "a database is missing",
            81 => "a recovered cluster fails a check, or the choice of databases contradicts itself",
            82 => "WAL did not arrive in the archive, or a standby did not replay it, in time",
            83 => "a file's mode is wrong",
            87 => "archiving is off",
            88 => "a file's owner is wrong",
            89 => "a user is missing",
            93 => "a file or object exists that must not",
            94 => "not enough memory",
            95 => "no key opens the repository",
            96 => "a parameter is not valid",
            98 => "a file's facts cannot be read",
            100 => "the kernel refused",
            101 => "a service failed",
            102 => "a program of PostgreSQL failed",
            103 => "no repository is usable",
            104 => "one or more repositories failed, others did not",
            106 => "the clock is wrong",
            122 => "it cannot go on for another reason",
            125 => "a cause without a number",
            126 => "it is not known whether the file exists, and recovery must not go on",
            _ => "",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{:03}]", self.0)
    }
}

#[cfg(test)]
mod tests {
    const DOCUMENT: &str = include_str!("../../docs/exit-codes.md");

    /// The rows of the tables of the document whose first cell is of this kind, without marks of code.
    fn rows(is_first: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
        let rows = DOCUMENT.lines().filter_map(|l| l.strip_prefix("| ")?.strip_suffix('|'));
        let cells = rows.map(|row| row.split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>());
        cells.filter(|cells| cells.first().is_some_and(|first| is_first(first))).collect()
    }

    #[test]
    fn the_document_says_of_statuses_what_help_says() {
        let documented = rows(|first| first.parse::<u8>().is_ok());
        for row in &documented {
            assert_eq!(row[1], super::Status(row[0].parse().unwrap()).meaning(), "status {}", row[0]);
        }
        let numbers: Vec<u8> = documented.iter().map(|row| row[0].parse().unwrap()).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        for number in 0..=u8::MAX {
            assert_eq!(super::Status(number).meaning() != "", numbers.contains(&number), "status {number}");
        }
    }

    #[test]
    fn the_document_says_of_commands_what_help_says() {
        let is_command = |name: &str| crate::option::Command::by_name(name).is_some();
        let documented: Vec<_> = rows(is_command).into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
        let listed = crate::option::command::COMMANDS.iter().filter(|c| !c.statuses.is_empty());
        let expected: Vec<_> = listed
            .map(|c| {
                assert!(c.statuses.is_sorted(), "{}", c.name);
                let numbers: Vec<_> = c.statuses.iter().map(u8::to_string).collect();
                (c.name.to_owned(), numbers.join(", "))
            })
            .collect();
        assert_eq!(documented, expected);
    }

    #[test]
    fn what_help_lists_has_a_meaning() {
        for command in crate::option::command::COMMANDS {
            for number in command.statuses {
                assert_ne!(super::Status(*number).meaning(), "", "{number} of {}", command.name);
            }
        }
    }

    /// What may end any command that gets so far: our own mistakes, options, parameters and configuration files.
    const COMMON: [u8; 16] = [25, 27, 29, 30, 31, 32, 37, 41, 42, 43, 48, 55, 67, 73, 96, 125];

    /// Where the refusals of commands are made, below the workspace: files, and directories with all in them.
    const SOURCES: [(&str, &[&str]); 17] = [
        ("annotate", &["cli/src/commands/annotate.rs", "engine/src/repository/notes.rs"]),
        ("expire", &["cli/src/commands/expire.rs", "engine/src/expire"]),
        ("archive-get", &["engine/src/archive/get.rs", GET_AHEAD, BACKGROUND]),
        ("archive-push", &["engine/src/archive/push.rs", PUSH_TARGETS, PUSH_AHEAD, PUSH_BATCH, BACKGROUND]),
        ("backup", &["engine/src/backup", "engine/src/pg/datadir"]),
        ("check", &["engine/src/check.rs"]),
        ("clone", &[CLONE, CLONES, PROGRAMS, SERVED, MOUNTS, "fuse/src/clone", "fuse/src/clone.rs"]),
        ("diff", &["cli/src/commands/diff.rs", SCRATCH, SCRATCHES, PROGRAMS]),
        ("drill", &["cli/src/commands/drill.rs", "cli/src/commands/drill", SCRATCH, SCRATCHES, PROGRAMS]),
        ("extract", &["cli/src/commands/extract.rs", "cli/src/commands/extract", SCRATCH, SCRATCHES, PROGRAMS]),
        ("mount", &["cli/src/commands/mount.rs", SERVED, MOUNTS]),
        ("repair", &["cli/src/commands/repair.rs"]),
        ("repo-ls", &["cli/src/commands/repo_files.rs"]),
        ("restore", &["engine/src/restore", "cli/src/commands/restore.rs", SERVED, MOUNTS]),
        ("stanza-create", &["engine/src/stanza/mod.rs", "engine/src/stanza/probe.rs"]),
        ("stanza-delete", &["engine/src/stanza/delete.rs"]),
        ("verify", &["engine/src/verify"]),
    ];
    const GET_AHEAD: &str = "engine/src/archive/get_ahead.rs";
    const PUSH_AHEAD: &str = "engine/src/archive/push_ahead.rs";
    const PUSH_BATCH: &str = "engine/src/archive/push_ahead/batch.rs";
    const PUSH_TARGETS: &str = "engine/src/archive/targets.rs";
    const BACKGROUND: &str = "cli/src/background.rs";
    const CLONE: &str = "cli/src/commands/clone.rs";
    const CLONES: &str = "cli/src/commands/clone";
    const SCRATCH: &str = "cli/src/commands/scratch.rs";
    const SCRATCHES: &str = "cli/src/commands/scratch";
    const PROGRAMS: &str = "cli/src/commands/programs.rs";
    const SERVED: &str = "cli/src/daemon.rs";
    const MOUNTS: &str = "cli/src/mounts.rs";

    /// Refusals that do not end the command.
    const KEPT_INSIDE: [(&str, &str); 3] = [
        // What keeps a server from answering is a check that failed.
        ("drill", "DbConnect"),
        // A name that is not in the tree.
        ("mount", "Absent"),
        // A finding.
        ("verify", "ArchiveMismatch"),
    ];

    /// The sources at a path, without tests.
    fn sources(path: &std::path::Path) -> String {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            std::fs::read_dir(path).unwrap().map(|entry| sources(&entry.unwrap().path())).collect()
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let text = std::fs::read_to_string(path).unwrap();
            text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned()
        } else {
            String::new()
        }
    }

    /// The kinds that a source refuses something with.
    fn refusals(source: &str) -> impl Iterator<Item = &str> {
        source.split("refused(").skip(1).filter_map(|rest| {
            let rest = rest.trim_start().strip_prefix("Kind::")?;
            rest.split(|c: char| !c.is_ascii_alphanumeric()).next()
        })
    }

    #[test]
    fn what_a_command_refuses_with_is_listed() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let table =
            include_str!("exit.rs").split_once("Self(match kind {").unwrap().1.split_once("_ => 125").unwrap().0;
        let number = |kind: &str| -> u8 {
            let row = table.lines().find_map(|l| l.trim().strip_prefix(&format!("Kind::{kind} => ")));
            row.unwrap_or_else(|| panic!("there is no Kind::{kind}")).trim_end_matches(',').parse().unwrap()
        };
        let mut missing = std::collections::BTreeSet::new();
        for (name, paths) in SOURCES {
            let listed = crate::option::command::COMMANDS.iter().find(|c| c.name == name).unwrap().statuses;
            let mut found = 0;
            for path in paths {
                let source = sources(&root.join(path));
                for kind in refusals(&source).filter(|kind| !KEPT_INSIDE.contains(&(name, *kind))) {
                    found += 1;
                    let number = number(kind);
                    if !listed.contains(&number) && !COMMON.contains(&number) {
                        missing.insert(format!("{name}: {number} (Kind::{kind} in {path})"));
                    }
                }
            }
            assert!(found > 0, "{name} refuses nothing: its sources have moved");
        }
        assert!(missing.is_empty(), "list them in option/command.rs and docs/exit-codes.md: {missing:#?}");
    }

    /// Names of the variants of an enum, from its source.
    fn variants<'a>(source: &'a str, head: &str) -> Vec<&'a str> {
        let body = source.split_once(head).unwrap().1.split_once("\n}").unwrap().0;
        body.lines()
            .map(str::trim)
            .filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase()))
            .map(|l| l.trim_end_matches(','))
            .collect()
    }

    #[test]
    fn every_kind_has_a_number_of_its_own() {
        let kinds = variants(include_str!("../../engine/src/error.rs"), "pub enum Kind {");
        assert!(kinds.len() > 50, "{kinds:?}");
        let table =
            include_str!("exit.rs").split_once("Self(match kind {").unwrap().1.split_once("_ => 125").unwrap().0;
        let mut numbers = std::collections::HashSet::new();
        for kind in kinds {
            let number = table
                .lines()
                .find_map(|l| l.trim().strip_prefix(&format!("Kind::{kind} => ")))
                .unwrap_or_else(|| panic!("Kind::{kind} has no exit status"));
            assert!(numbers.insert(number), "Kind::{kind} shares {number}");
            let number = number.trim_end_matches(',').parse().unwrap();
            assert_ne!(super::Status(number).meaning(), "", "Kind::{kind} is not explained");
        }
    }
}
