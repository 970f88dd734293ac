//! The resolved options of one run, read through accessors that cannot fail.
//!
//! Everything was validated when this was made: required options are there, values are in range. An accessor
//! asked for an option of another type, or one the command does not take, answers with the empty value of its
//! type; a test over the table keeps the named accessors and their types in step.

use super::command::{Command, Role};
use super::program::Program;
use super::table::Opt;
use super::value::{Secret, Value};
use crate::size::CpuShare;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A configuration file.
    File,
    /// The environment.
    Environment,
    /// The command line.
    CommandLine,
}

/// A value and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The value; `None` after `--reset-x` or `--no-x` of an option without default.
    pub value: Option<Value>,
    /// Its origin.
    pub source: Source,
}

/// All options of one run, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) program: &'static Program,
    pub(super) exe: PathBuf,
    pub(super) command: Command,
    pub(super) role: Role,
    pub(super) params: Vec<OsString>,
    pub(super) values: BTreeMap<(Opt, u16), Setting>,
    pub(super) repo_keys: Vec<u16>,
    pub(super) pg_keys: Vec<u16>,
    pub(super) stanzas: Vec<String>,
}

/// How a repository is unlocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher<'a> {
    /// No passphrase: sealed with secrets that lie open in the repository.
    None,
    /// This passphrase.
    Passphrase(&'a Secret),
    /// The passphrase is the first line of this file.
    PassphraseFile(&'a Path),
    /// This file holds the raw key.
    KeyFile(&'a Path),
}

impl Settings {
    /// The names we run under.
    #[must_use]
    pub fn program(&self) -> &'static Program {
        self.program
    }

    /// The running binary, for command lines that the server is told to call.
    #[must_use]
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// The command.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command
    }

    /// Who does its work.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The command as it was typed, with its role: `archive-push:async`.
    #[must_use]
    pub fn shown_command(&self) -> String {
        let colon = if self.role == Role::Main { "" } else { ":" };
        format!("{}{colon}{}", self.command.name(), self.role.as_str())
    }

    /// The command's parameters: as many as its row says.
    #[must_use]
    pub fn params(&self) -> &[OsString] {
        &self.params
    }

    /// One parameter, empty if it was left out.
    #[must_use]
    pub fn param(&self, at: usize) -> &Path {
        self.params.get(at).map_or(Path::new(""), Path::new)
    }

    /// Stanzas that the configuration files name, sorted.
    #[must_use]
    pub fn configured_stanzas(&self) -> &[String] {
        &self.stanzas
    }

    /// An option with its origin. `index` is 0 for options without number.
    #[must_use]
    pub fn setting(&self, opt: Opt, index: u16) -> Option<&Setting> {
        self.values.get(&(opt, index))
    }

    /// All options this command takes, with numbers, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (Opt, u16, &Setting)> {
        self.values.iter().map(|(&(opt, index), setting)| (opt, index, setting))
    }

    /// A value, if there is one.
    #[must_use]
    pub fn value(&self, opt: Opt, index: u16) -> Option<&Value> {
        self.setting(opt, index).and_then(|s| s.value.as_ref())
    }

    /// True if the command line or the environment set it, which are about this run.
    #[must_use]
    pub fn is_said(&self, opt: Opt) -> bool {
        self.setting(opt, 0).is_some_and(|s| matches!(s.source, Source::CommandLine | Source::Environment))
    }

    /// True if somebody set it, to whatever value.
    #[must_use]
    pub fn is_given(&self, opt: Opt) -> bool {
        self.setting(opt, 0).is_some_and(|s| s.source != Source::Default)
    }

    /// A yes or no; no if unset.
    #[must_use]
    pub fn flag(&self, opt: Opt) -> bool {
        self.flag_if_set(opt).unwrap_or(false)
    }

    /// A yes or no that may be unset.
    #[must_use]
    pub fn flag_if_set(&self, opt: Opt) -> Option<bool> {
        flag(self.value(opt, 0))
    }

    /// A number.
    #[must_use]
    pub fn int(&self, opt: Opt) -> Option<i64> {
        int(self.value(opt, 0))
    }

    /// A size in bytes.
    #[must_use]
    pub fn size(&self, opt: Opt) -> Option<u64> {
        match self.value(opt, 0) {
            Some(Value::Size(n)) => Some(*n),
            _ => None,
        }
    }

    /// A share of CPUs.
    #[must_use]
    pub fn cpus(&self, opt: Opt) -> Option<CpuShare> {
        match self.value(opt, 0) {
            Some(Value::Cpus(share)) => Some(*share),
            _ => None,
        }
    }

    /// A time; zero if unset.
    #[must_use]
    pub fn time(&self, opt: Opt) -> Duration {
        match self.value(opt, 0) {
            Some(Value::Time(t)) => *t,
            _ => Duration::ZERO,
        }
    }

    /// A text, word or path.
    #[must_use]
    pub fn text(&self, opt: Opt) -> Option<&str> {
        text(self.value(opt, 0))
    }

    /// A path.
    #[must_use]
    pub fn path(&self, opt: Opt) -> Option<&Path> {
        self.text(opt).map(Path::new)
    }

    /// A list; empty if unset.
    #[must_use]
    pub fn list(&self, opt: Opt) -> &[String] {
        match self.value(opt, 0) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// Pairs, in the order given; empty if unset.
    #[must_use]
    pub fn pairs(&self, opt: Opt) -> &[(String, String)] {
        match self.value(opt, 0) {
            Some(Value::Hash(pairs)) => pairs,
            _ => &[],
        }
    }

    /// The stanza. Always there for commands that require one.
    #[must_use]
    pub fn stanza(&self) -> Option<&str> {
        self.text(Opt::Stanza)
    }

    /// The stanza, or an empty text, for commands that require one.
    #[must_use]
    pub fn stanza_name(&self) -> &str {
        self.stanza().unwrap_or("")
    }

    /// Worker threads.
    #[must_use]
    pub fn process_max(&self) -> usize {
        self.int(Opt::ProcessMax).and_then(|n| usize::try_from(n).ok()).unwrap_or(1).max(1)
    }

    /// Directory of lock and stop files.
    #[must_use]
    pub fn lock_path(&self) -> &Path {
        self.path(Opt::LockPath).unwrap_or(Path::new("/tmp"))
    }

    /// The zstd level, or `None` for no compression. Levels of other compressors count for nothing.
    #[must_use]
    pub fn compress_level(&self) -> Option<i32> {
        let given = self.setting(Opt::CompressType, 0).is_some_and(|s| s.source != Source::Default);
        let level = || self.int(Opt::CompressLevel).and_then(|n| i32::try_from(n).ok());
        match self.text(Opt::CompressType) {
            Some("none") => None,
            _ if self.flag_if_set(Opt::Compress) == Some(false) && !given => None,
            Some("zst") => level().or(Some(3)),
            _ => Some(3),
        }
    }

    /// The repository that `--repo` names.
    #[must_use]
    pub fn chosen_repo(&self) -> Option<u16> {
        self.int(Opt::RepoKey).and_then(|n| u16::try_from(n).ok())
    }

    /// All configured repositories in the order of their numbers; at least one.
    pub fn repos(&self) -> impl Iterator<Item = Repo<'_>> {
        self.repo_keys.iter().map(|&key| Repo { settings: self, key })
    }

    /// The repositories to work on: the one `--repo` names, or all.
    pub fn target_repos(&self) -> impl Iterator<Item = Repo<'_>> {
        let chosen = self.chosen_repo();
        self.repos().filter(move |repo| chosen.is_none_or(|key| key == repo.key))
    }

    /// One repository, configured or not.
    #[must_use]
    pub fn repo(&self, key: u16) -> Repo<'_> {
        Repo { settings: self, key }
    }

    /// All configured clusters in the order of their numbers; number 1 always.
    pub fn pgs(&self) -> impl Iterator<Item = Pg<'_>> {
        self.pg_keys.iter().map(|&key| Pg { settings: self, key })
    }

    /// One cluster, configured or not.
    #[must_use]
    pub fn pg(&self, key: u16) -> Pg<'_> {
        Pg { settings: self, key }
    }
}

fn flag(value: Option<&Value>) -> Option<bool> {
    match value {
        Some(Value::Bool(yes)) => Some(*yes),
        _ => None,
    }
}

fn int(value: Option<&Value>) -> Option<i64> {
    match value {
        Some(Value::Int(n)) => Some(*n),
        _ => None,
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    match value {
        Some(Value::Text(text)) => Some(text),
        Some(Value::Secret(secret)) => Some(secret.expose()),
        _ => None,
    }
}

/// The options of one repository.
#[derive(Debug, Clone, Copy)]
pub struct Repo<'a> {
    settings: &'a Settings,
    key: u16,
}

impl<'a> Repo<'a> {
    /// Its number, as in `repo1`.
    #[must_use]
    pub fn key(self) -> u16 {
        self.key
    }

    /// The kind of storage: `posix`, `s3`, ...
    #[must_use]
    pub fn kind(self) -> &'a str {
        self.text(Opt::RepoType).unwrap_or("posix")
    }

    /// Its directory.
    #[must_use]
    pub fn path(self) -> &'a Path {
        self.text(Opt::RepoPath).map_or(Path::new("/"), Path::new)
    }

    /// How it is unlocked.
    #[must_use]
    pub fn cipher(self) -> Cipher<'a> {
        let kind = self.settings.setting(Opt::RepoCipherType, self.key);
        if kind.is_some_and(|s| s.source != Source::Default && text(s.value.as_ref()) == Some("none")) {
            return Cipher::None;
        }
        if let Some(Value::Secret(pass)) = self.settings.value(Opt::RepoCipherPass, self.key) {
            return Cipher::Passphrase(pass);
        }
        match (self.text(Opt::RepoCipherPassFile), self.text(Opt::RepoKeyFile)) {
            (Some(path), _) => Cipher::PassphraseFile(Path::new(path)),
            (None, Some(path)) => Cipher::KeyFile(Path::new(path)),
            (None, None) => Cipher::None,
        }
    }

    /// Any text, word, path or secret of it.
    #[must_use]
    pub fn text(self, opt: Opt) -> Option<&'a str> {
        text(self.settings.value(opt, self.key))
    }

    /// Any number of it.
    #[must_use]
    pub fn int(self, opt: Opt) -> Option<i64> {
        int(self.settings.value(opt, self.key))
    }

    /// Any size of it, in bytes.
    #[must_use]
    pub fn size(self, opt: Opt) -> Option<u64> {
        match self.settings.value(opt, self.key) {
            Some(Value::Size(n)) => Some(*n),
            _ => None,
        }
    }

    /// Any yes or no of it; no if unset.
    #[must_use]
    pub fn flag(self, opt: Opt) -> bool {
        flag(self.settings.value(opt, self.key)).unwrap_or(false)
    }

    /// Any pairs of it, in the order given; empty if unset.
    #[must_use]
    pub fn pairs(self, opt: Opt) -> &'a [(String, String)] {
        match self.settings.value(opt, self.key) {
            Some(Value::Hash(pairs)) => pairs,
            _ => &[],
        }
    }

    /// Whether it was set, wherever that may be.
    #[must_use]
    pub fn is_given(self, opt: Opt) -> bool {
        self.settings.setting(opt, self.key).is_some_and(|s| s.source != Source::Default)
    }

    /// Whether it is a directory of this host.
    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self.kind(), "posix" | "cifs")
    }
}

/// The options of one cluster.
#[derive(Debug, Clone, Copy)]
pub struct Pg<'a> {
    settings: &'a Settings,
    key: u16,
}

impl<'a> Pg<'a> {
    /// Its number, as in `pg1`.
    #[must_use]
    pub fn key(self) -> u16 {
        self.key
    }

    /// Its data directory; always there for `pg1` of a command that requires it.
    #[must_use]
    pub fn path(self) -> Option<&'a Path> {
        self.text(Opt::PgPath).map(Path::new)
    }

    /// The port of its server.
    #[must_use]
    pub fn port(self) -> u16 {
        int(self.settings.value(Opt::PgPort, self.key)).and_then(|n| u16::try_from(n).ok()).unwrap_or(5432)
    }

    /// The directory of its socket.
    #[must_use]
    pub fn socket_path(self) -> Option<&'a Path> {
        self.text(Opt::PgSocketPath).map(Path::new)
    }

    /// The host it runs on, if another.
    #[must_use]
    pub fn host(self) -> Option<&'a str> {
        self.text(Opt::PgHost)
    }

    /// The user to connect as.
    #[must_use]
    pub fn user(self) -> Option<&'a str> {
        self.text(Opt::PgUser)
    }

    /// The database to connect to.
    #[must_use]
    pub fn database(self) -> &'a str {
        self.text(Opt::PgDatabase).unwrap_or("postgres")
    }

    /// Any text, word or path of it.
    #[must_use]
    pub fn text(self, opt: Opt) -> Option<&'a str> {
        text(self.settings.value(opt, self.key))
    }
}
