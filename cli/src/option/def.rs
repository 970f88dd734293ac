//! What a row of the option table says.
//!
//! Rows are built by `const` functions, so the table is static data and costs nothing at start.

use super::command::Command;
use super::table::Opt;

/// A set of commands, one bit each: see [`Command::bit`].
pub type Commands = u32;

/// How a value is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `y` or `n`; on the command line also `--x` and `--no-x`.
    Bool,
    /// A whole number, least and greatest included.
    Int(i64, i64),
    /// Bytes, least and greatest included: a whole number with an optional binary unit.
    Size(u64, u64),
    /// Milliseconds, least and greatest included: seconds unless a unit is given.
    Time(u64, u64),
    /// A share of the machine's CPUs: a percentage, or how many.
    Cpus,
    /// An absolute path.
    Path,
    /// A path; a relative one counts from the working directory.
    AnyPath,
    /// Any text.
    Text,
    /// Any texts; the option may be repeated.
    List,
    /// `key=value` pairs; the option may be repeated.
    Hash,
    /// One of these words.
    Enum(&'static [&'static str]),
}

impl Type {
    /// True when the option may be given more than once.
    #[must_use]
    pub fn is_multi(self) -> bool {
        matches!(self, Self::List | Self::Hash)
    }

    /// True when the name alone stands for `y`, and with `no-` in front for `n`: of a boolean, and of words with these two
    /// among them.
    #[must_use]
    pub fn is_switch(self) -> bool {
        matches!(self, Self::Bool) || matches!(self, Self::Enum(words) if words.contains(&"y") && words.contains(&"n"))
    }
}

/// Whether an option is numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Not numbered.
    None,
    /// `repoN-...`
    Repo,
    /// `pgN-...`
    Pg,
}

/// Where an option may stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nowhere: command line and environment only.
    CommandLine,
    /// In sections of a stanza.
    Stanza,
    /// In any section.
    Global,
}

/// An option that counts only when another has one of some values.
#[derive(Debug, Clone, Copy)]
pub struct Depend {
    /// The other option, of the same number if both are numbered.
    pub on: Opt,
    /// Its values, as written; empty means that it only has to be set.
    pub values: &'static [&'static str],
}

/// A type or default that differs for some commands.
#[derive(Debug, Clone, Copy)]
pub struct Override {
    /// For these.
    pub commands: Commands,
    /// The type there.
    pub ty: Type,
    /// The default there.
    pub default: Option<&'static str>,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Def {
    /// The option.
    pub opt: Opt,
    /// Its full name; for a numbered one without the number (`repo-path` stands for `repo1-path`).
    pub name: &'static str,
    /// One line of help: lower case, no final stop.
    pub help: &'static str,
    /// What to know beyond that, in paragraphs: what it does exactly, when to change it, what it costs.
    pub more: &'static [&'static str],
    /// What it means to some commands, where that differs; the first that fits counts.
    pub meanings: &'static [(Commands, &'static str)],
    /// How its value is read.
    pub ty: Type,
    /// Whether it is numbered.
    pub group: Group,
    /// Where it may stand in a file.
    pub scope: Scope,
    /// Never on a command line, never printed.
    pub secret: bool,
    /// Takes `--no-x` although it is no boolean.
    pub negate: bool,
    /// The default as it would be written. `@` stands for the program's name, `#` for the number of cores.
    pub default: Option<&'static str>,
    /// The commands that take it.
    pub commands: Commands,
    /// Exceptions for some of these commands; the first that fits counts.
    pub overrides: &'static [Override],
    /// Old names. `?` stands for the number; without it the number is 1.
    pub aliases: &'static [&'static str],
    /// What must be so for the option to count.
    pub depend: Option<Depend>,
    /// The commands that cannot do without it, once [`Self::depend`] holds.
    pub required: Commands,
    /// Why a value is accepted here but has no effect of its own.
    pub effect: Option<&'static str>,
    /// Understood and checked, but about something this version cannot do; see `check_supported`.
    pub later: bool,
    /// Left out of help, and not found by a beginning of its name.
    pub hidden: bool,
}

impl Def {
    pub(super) const fn new(ty: Type, default: Option<&'static str>) -> Self {
        Self {
            opt: Opt::AllowRoot,
            name: "",
            help: "",
            more: &[],
            meanings: &[],
            ty,
            group: Group::None,
            scope: Scope::Global,
            secret: false,
            negate: false,
            default,
            commands: 0,
            overrides: &[],
            aliases: &[],
            depend: None,
            required: 0,
            effect: None,
            later: false,
            hidden: false,
        }
    }

    pub(super) const fn named(mut self, opt: Opt, name: &'static str, help: &'static str) -> Self {
        self.opt = opt;
        self.name = name;
        self.help = help;
        self
    }

    pub(super) const fn on(mut self, commands: Commands) -> Self {
        self.commands = commands;
        self
    }

    pub(super) const fn group(mut self, group: Group) -> Self {
        self.group = group;
        if matches!(group, Group::Pg) {
            self.scope = Scope::Stanza;
        }
        self
    }

    pub(super) const fn typed(mut self) -> Self {
        self.scope = Scope::CommandLine;
        self
    }

    pub(super) const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    pub(super) const fn negate(mut self) -> Self {
        self.negate = true;
        self
    }

    pub(super) const fn over(mut self, overrides: &'static [Override]) -> Self {
        self.overrides = overrides;
        self
    }

    pub(super) const fn tells(mut self, more: &'static [&'static str]) -> Self {
        self.more = more;
        self
    }

    pub(super) const fn means(mut self, meanings: &'static [(Commands, &'static str)]) -> Self {
        self.meanings = meanings;
        self
    }

    pub(super) const fn was(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    pub(super) const fn when(mut self, on: Opt, values: &'static [&'static str]) -> Self {
        self.depend = Some(Depend { on, values });
        self
    }

    pub(super) const fn need(mut self, commands: Commands) -> Self {
        self.required = commands;
        self
    }

    pub(super) const fn ignored(mut self, effect: &'static str) -> Self {
        self.effect = Some(effect);
        self
    }

    pub(super) const fn later(mut self) -> Self {
        self.later = true;
        self
    }

    pub(super) const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    /// True when `command` takes it.
    #[must_use]
    pub fn is_valid_for(&self, command: Command) -> bool {
        self.commands & command.bit() != 0
    }

    /// Its type for `command`.
    #[must_use]
    pub fn type_for(&self, command: Command) -> Type {
        self.exception(command).map_or(self.ty, |o| o.ty)
    }

    /// Its default for `command`, as written in the table.
    #[must_use]
    pub fn default_for(&self, command: Command) -> Option<&'static str> {
        self.exception(command).map_or(self.default, |o| o.default)
    }

    /// Its line of help for `command`.
    #[must_use]
    pub fn help_for(&self, command: Command) -> &'static str {
        self.meanings.iter().find(|(commands, _)| commands & command.bit() != 0).map_or(self.help, |(_, help)| help)
    }

    fn exception(&self, command: Command) -> Option<&Override> {
        self.overrides.iter().find(|o| o.commands & command.bit() != 0)
    }

    /// The name with its number, as a person writes it: `repo2-path`.
    #[must_use]
    pub fn display(&self, index: u16) -> String {
        match self.group {
            Group::None => self.name.to_owned(),
            Group::Repo => format!("repo{index}{}", self.rest()),
            Group::Pg => format!("pg{index}{}", self.rest()),
        }
    }

    /// The name after the number, with its dash; the whole name if not numbered.
    #[must_use]
    pub fn rest(&self) -> &'static str {
        let skip = match self.group {
            Group::None => 0,
            Group::Repo => 4,
            Group::Pg => 2,
        };
        self.name.get(skip..).unwrap_or("")
    }
}
