//! From an invocation to resolved settings: command line over environment over files over defaults.
//!
//! The first place that sets an option (with its number) wins and replaces; lists are not merged across places.
//! What contradicts is an error; what cannot be meant but does no harm is a warning.

use super::argv::{self, Given, Line, Written};
use super::command::{COMMANDS, Command, Role, StanzaUse};
use super::def::{Def, Group, Scope};
use super::error::OptionError;
use super::files::{self, Places};
use super::lookup::{self, Lookup};
use super::program::{PGBACKREST, Program};
use super::settings::{Setting, Settings, Source};
use super::table::{Opt, TABLE};
use super::value::{self, Secret, Value};
use super::{action, env, ini, rules};
use crate::exit::Status;
use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Everything a run is told from outside.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The name it was called by.
    pub argv0: OsString,
    /// The arguments after it.
    pub args: Vec<OsString>,
    /// The environment.
    pub vars: Vec<(OsString, OsString)>,
    /// The effective user id.
    pub euid: u32,
    /// The working directory.
    pub cwd: PathBuf,
    /// The binary.
    pub exe: PathBuf,
    /// Where configuration lives: `/etc`.
    pub etc: PathBuf,
}

impl Invocation {
    /// This process's.
    #[must_use]
    pub fn of_process() -> Self {
        let mut args = std::env::args_os();
        let argv0 = args.next().unwrap_or_default();
        Self {
            exe: std::env::current_exe().unwrap_or_else(|_| PathBuf::from(&argv0)),
            argv0,
            args: args.collect(),
            vars: std::env::vars_os().collect(),
            euid: rustix::process::geteuid().as_raw(),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            etc: PathBuf::from("/etc"),
        }
    }

    /// The path by which this program was called, which may be a link: its name decides about paths and variables, and it stays
    /// when the next version of the binary takes the place of this one. Otherwise the binary.
    fn called_path(&self) -> PathBuf {
        let named = Path::new(&self.argv0);
        let mut places: Vec<PathBuf> = if named.components().count() > 1 {
            vec![self.cwd.join(named).components().filter(|c| *c != Component::CurDir).collect()]
        } else {
            let path = self.vars.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
            std::env::split_paths(path.unwrap_or_default()).map(|dir| self.cwd.join(dir).join(named)).collect()
        };
        if Program::called(&self.argv0).name == PGBACKREST.name {
            places.push(self.exe.with_file_name(PGBACKREST.name));
        }
        let is_this = |path: &PathBuf| std::fs::canonicalize(path).is_ok_and(|found| found == self.exe);
        places.into_iter().find(is_this).unwrap_or_else(|| self.exe.clone())
    }

    /// The options of the command line as they were typed, without command and parameters.
    ///
    /// # Errors
    /// As [`load`].
    pub fn typed_options(&self) -> Result<Vec<OsString>, OptionError> {
        Ok(argv::parse(self.args.iter().cloned())?.typed)
    }

    /// The same invocation for one stanza, for commands that go through all of them.
    #[must_use]
    pub fn for_stanza(&self, stanza: &str) -> Self {
        let mut one = self.clone();
        one.args.insert(0, format!("--stanza={stanza}").into());
        one
    }
}

/// How much a notice matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something is wrong and was ignored.
    Warn,
    /// The same about the host rather than the command: it is said with every command but those that run with every WAL
    /// file, and never on standard output.
    Aside,
    /// Something is different here.
    Info,
    /// The same, where saying so would be noise.
    Debug,
}

/// Something to log once logging is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub level: Level,
    /// What to say.
    pub text: String,
}

/// Settings and what to say about them.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// In the order of discovery.
    pub notices: Vec<Notice>,
}

/// What was written for an option, before its type is looked at.
#[derive(Debug, Clone)]
enum Raw {
    Values(Vec<String>),
    Negated,
    Reset,
}

#[derive(Debug, Clone)]
struct Found {
    raw: Raw,
    source: Source,
}

/// Options being collected for one command.
pub(super) struct Draft<'a> {
    pub(super) invocation: &'a Invocation,
    pub(super) program: &'static Program,
    pub(super) command: Command,
    role: Role,
    found: BTreeMap<(Opt, u16), Found>,
    pub(super) notices: Vec<Notice>,
    stanzas: BTreeSet<String>,
    /// Help wants values, not obedience.
    lenient: bool,
}

/// Resolves an invocation. `help` and `version` read neither environment nor files.
///
/// # Errors
/// Every status of option, command and parameter errors, and those of unreadable files.
pub fn load(invocation: &Invocation) -> Result<Loaded, OptionError> {
    let line = argv::parse(invocation.args.iter().cloned())?;
    let (command, role, params) = command_of(&line)?;
    let mut draft = Draft::new(invocation, command);
    draft.role = role;
    if matches!(command, Command::Completion | Command::Help | Command::Version) {
        check_params(command, role, &params)?;
    }
    if matches!(command, Command::Completion | Command::Help | Command::Version) {
        draft.lenient = true;
        draft.take_line(&line)?;
    } else {
        check_params(command, role, &params)?;
        draft.take_line(&line)?;
        draft.take_env()?;
        draft.take_files()?;
    }
    draft.finish(params)
}

/// The settings that `command` would have in this invocation, for showing them. Nothing is required.
///
/// # Errors
/// As [`load`], but for what is missing.
pub fn load_for_help(invocation: &Invocation, command: Command) -> Result<Settings, OptionError> {
    let line = argv::parse(invocation.args.iter().cloned())?;
    let mut draft = Draft::new(invocation, command);
    draft.lenient = true;
    draft.take_line(&line)?;
    draft.take_env()?;
    draft.take_files()?;
    draft.finish(Vec::new()).map(|loaded| loaded.settings)
}

/// pgBackRest's commands that this program does not have, and why.
const NOT_OFFERED: [(&str, &str); 4] = [
    ("repo-put", "what is in a repository is sealed, and only backups and WAL are added to it"),
    ("repo-rm", "backups leave a repository by 'expire --set', stanzas by 'stanza-delete'"),
    ("server", "repositories and clusters on other hosts are not supported yet"),
    ("server-ping", "repositories and clusters on other hosts are not supported yet"),
];

fn command_of(line: &Line) -> Result<(Command, Role, Vec<OsString>), OptionError> {
    if line.version {
        return Ok((Command::Version, Role::Main, Vec::new()));
    }
    let Some((first, rest)) = line.words.split_first() else {
        if line.help || line.options.is_empty() {
            return Ok((Command::Help, Role::Main, Vec::new()));
        }
        return Err(OptionError::new(Status::COMMAND_REQUIRED, "no command given"));
    };
    let name = first.to_string_lossy();
    let Some((command, role)) = Command::with_role(&name) else {
        if let Some((_, why)) = NOT_OFFERED.iter().find(|(other, _)| *other == name) {
            return Err(OptionError::new(
                Status::FEATURE_NOT_SUPPORTED,
                format!("there is no command '{name}': {why}"),
            ));
        }
        return Err(
            OptionError::new(Status::COMMAND_INVALID, format!("there is no command '{name}'")).hint(near(&name))
        );
    };
    if line.help && command != Command::Help {
        return Ok((Command::Help, Role::Main, vec![command.name().into()]));
    }
    Ok((command, role, rest.to_vec()))
}

/// Commands that a mistyped one may have meant.
fn near(name: &str) -> String {
    let start = name.get(..3).unwrap_or(name);
    let like: Vec<_> =
        COMMANDS.iter().filter(|c| !start.is_empty() && c.name.contains(start)).map(|c| c.name).collect();
    match like.as_slice() {
        [] => "'help' lists the commands".to_owned(),
        some => format!("did you mean {}?", some.join(" or ")),
    }
}

fn check_params(command: Command, role: Role, params: &[OsString]) -> Result<(), OptionError> {
    let def = command.def();
    let names = if role == Role::Async { def.async_params } else { def.params };
    if let Some(extra) = params.get(names.len()) {
        let takes = if names.is_empty() { "no parameters".to_owned() } else { names.join(" and ") };
        let message = format!("parameter '{}' is too much: command {} takes {takes}", extra.display(), def.name);
        return Err(OptionError::new(Status::PARAM_INVALID, message));
    }
    let needed = names.len().saturating_sub(def.optional);
    match names.get(params.len()) {
        Some(missing) if params.len() < needed => {
            let message = format!("command {} needs the parameter {missing}", def.name);
            return Err(OptionError::new(Status::PARAM_REQUIRED, message));
        }
        _ => {}
    }
    // Before all options: those of another action than was meant would be asked for.
    for (words, typed) in names.iter().zip(params) {
        action::check(command, words, &typed.to_string_lossy())
            .map_err(|(message, hint)| OptionError::new(Status::PARAM_INVALID, message).hint(hint))?;
    }
    Ok(())
}

impl<'a> Draft<'a> {
    fn new(invocation: &'a Invocation, command: Command) -> Self {
        Self {
            invocation,
            program: Program::called(&invocation.argv0),
            command,
            role: Role::Main,
            found: BTreeMap::new(),
            notices: Vec::new(),
            stanzas: BTreeSet::new(),
            lenient: false,
        }
    }

    pub(super) fn warn(&mut self, text: impl Into<String>) {
        self.notices.push(Notice { level: Level::Warn, text: text.into() });
    }

    /// Says what is wrong with the host. Those that run with every WAL file say it at DEBUG: the others say it often enough.
    pub(super) fn warn_of_host(&mut self, text: impl Into<String>) {
        self.note_of_host(Level::Warn, text.into());
    }

    fn note_of_host(&mut self, level: Level, text: String) {
        let level = if self.comes_often() { Level::Debug } else { level };
        self.notices.push(Notice { level, text });
    }

    fn comes_often(&self) -> bool {
        matches!(self.command, Command::ArchivePush | Command::ArchiveGet)
    }

    /// Says what is different here: INFO where a person reads it, DEBUG where programs do or where it would
    /// come with every WAL file.
    pub(super) fn remark(&mut self, text: impl Into<String>) {
        let level = if self.command.def().announces && !self.comes_often() { Level::Info } else { Level::Debug };
        self.notices.push(Notice { level, text: text.into() });
    }

    fn take_line(&mut self, line: &Line) -> Result<(), OptionError> {
        for given in &line.options {
            let def = given.opt.def();
            // What was typed for another command is none of help's business.
            if self.lenient && !self.fits(given) {
                continue;
            }
            if !def.is_valid_for(self.command) {
                let message =
                    format!("option '{}' is not valid for command {}", def.display(given.index), self.command.name());
                return Err(OptionError::new(Status::OPTION_INVALID, message));
            }
            let raw = match &given.written {
                Written::Value(text) => Raw::Values(vec![text.clone()]),
                Written::Negated => Raw::Negated,
                Written::Reset => Raw::Reset,
            };
            match self.found.entry((given.opt, given.index)) {
                Entry::Vacant(slot) => {
                    slot.insert(Found { raw, source: Source::CommandLine });
                }
                Entry::Occupied(mut slot) => match (&mut slot.get_mut().raw, raw) {
                    (Raw::Values(values), Raw::Values(more)) if def.ty.is_multi() => values.extend(more),
                    _ => return Err(twice(def, given.index, "on the command line")),
                },
            }
        }
        Ok(())
    }

    /// Whether the command takes the option, and its value.
    fn fits(&self, given: &Given) -> bool {
        let def = given.opt.def();
        let is_value = |text: &String| {
            let written = std::slice::from_ref(text);
            value::parse(def.name, def.type_for(self.command), written, &self.invocation.cwd).is_ok()
        };
        def.is_valid_for(self.command) && !matches!(&given.written, Written::Value(text) if !is_value(text))
    }

    fn take_env(&mut self) -> Result<(), OptionError> {
        let mut warnings = Vec::new();
        let variables = env::read(self.program, &self.invocation.vars, &mut warnings)?;
        for text in warnings {
            self.warn(text);
        }
        let mut new = BTreeMap::new();
        for variable in variables.into_iter().filter(|v| v.def.is_valid_for(self.command)) {
            let found = Found { raw: Raw::Values(variable.written), source: Source::Environment };
            if new.insert((variable.def.opt, variable.index), found).is_some() {
                return Err(twice(variable.def, variable.index, "in the environment"));
            }
        }
        self.merge(new);
        Ok(())
    }

    fn take_files(&mut self) -> Result<(), OptionError> {
        let places = Places {
            config: self.given_path(Opt::Config)?,
            no_config: matches!(self.found.get(&(Opt::Config, 0)), Some(Found { raw: Raw::Negated, .. })),
            include: self.given_path(Opt::ConfigIncludePath)?,
            base: self.given_path(Opt::ConfigPath)?,
        };
        let files = files::load(&places, self.program, &self.invocation.etc)?;
        if let Some(text) = files.stand_in {
            self.note_of_host(Level::Aside, text);
        }
        let mut entries = Vec::new();
        for file in &files.texts {
            let parsed = ini::parse(&file.name, &file.text)?;
            let secret = parsed.iter().find(|e| matches!(lookup::exact(e.key), Lookup::Found(def, _) if def.secret));
            if let Some(secret) = secret
                && files::is_exposed(Path::new(&file.name))
            {
                self.warn_of_host(files::exposed(&file.name, &format!("holds the secret '{}'", secret.key)));
            }
            entries.extend(parsed.into_iter().map(|e| (file.name.as_str(), e)));
        }
        self.stanzas.extend(entries.iter().filter_map(|(_, e)| {
            let stanza = e.section.split_once(':').map_or(e.section, |(stanza, _)| stanza);
            (stanza != "global").then(|| stanza.to_owned())
        }));
        let stanza = self.written(Opt::Stanza, 0).map(Cow::into_owned);
        let command = self.command.name();
        let sections = stanza.iter().flat_map(|s| [format!("{s}:{command}"), s.clone()]);
        for section in sections.chain([format!("global:{command}"), "global".to_owned()]) {
            self.take_section(&section, &entries)?;
        }
        Ok(())
    }

    fn take_section(&mut self, section: &str, entries: &[(&str, ini::Entry<'_>)]) -> Result<(), OptionError> {
        let is_global = section == "global" || section.starts_with("global:");
        let mut new: BTreeMap<(Opt, u16), Found> = BTreeMap::new();
        for (file, entry) in entries.iter().filter(|(_, e)| e.section == section) {
            let place = || format!("option '{}' in section '{section}', line {} of '{file}'", entry.key, entry.line);
            let (def, index) = match lookup::exact(entry.key) {
                Lookup::Found(def, index) => (def, index),
                Lookup::Unknown => {
                    let form = ["no-", "reset-"].into_iter().find_map(|form| entry.key.strip_prefix(form));
                    let why = match form.map(lookup::exact) {
                        Some(Lookup::Found(..)) => "a file cannot negate or reset, write 'option=n'",
                        _ => "there is no such option",
                    };
                    self.warn(format!("{} is ignored: {why}", place()));
                    continue;
                }
                other => return Err(argv::not_found(entry.key, other).hint(format!("see {}", place()))),
            };
            if def.scope == Scope::CommandLine {
                self.warn(format!("{} is ignored: it belongs on the command line", place()));
            } else if def.scope == Scope::Stanza && is_global {
                self.warn(format!("{} is ignored: it belongs in the section of a stanza", place()));
            } else if !def.is_valid_for(self.command) {
                if section.contains(':') {
                    self.warn(format!("{} is ignored: it is not valid for this command", place()));
                }
            } else {
                let value = entry.value.to_owned();
                match new.entry((def.opt, index)) {
                    Entry::Vacant(slot) => {
                        slot.insert(Found { raw: Raw::Values(vec![value]), source: Source::File });
                    }
                    Entry::Occupied(mut slot) => match &mut slot.get_mut().raw {
                        Raw::Values(values) if def.ty.is_multi() => values.push(value),
                        _ => return Err(twice(def, index, &format!("in section '{section}'"))),
                    },
                }
            }
        }
        self.merge(new);
        Ok(())
    }

    /// What is there already came from a higher place.
    fn merge(&mut self, new: BTreeMap<(Opt, u16), Found>) {
        for (key, found) in new {
            self.found.entry(key).or_insert(found);
        }
    }

    fn given_path(&self, opt: Opt) -> Result<Option<PathBuf>, OptionError> {
        let Some(Found { raw: Raw::Values(values), .. }) = self.found.get(&(opt, 0)) else { return Ok(None) };
        match value::parse(opt.def().name, opt.def().ty, values, &self.invocation.cwd)? {
            Value::Text(path) => Ok(Some(PathBuf::from(path))),
            _ => Ok(None),
        }
    }

    /// The text that counts for an option: written or default; `None` if it is unset or not valid here.
    fn written(&self, opt: Opt, index: u16) -> Option<Cow<'_, str>> {
        let def = opt.def();
        if !self.holds(def, index) {
            return None;
        }
        match self.found.get(&(opt, index)).map(|f| &f.raw) {
            Some(Raw::Values(values)) => values.first().map(|v| Cow::Borrowed(v.as_str())),
            Some(Raw::Negated) => None,
            Some(Raw::Reset) | None => def.default_for(self.command).map(|d| Cow::Owned(self.program.fill(d))),
        }
    }

    /// True if what an option depends on is so. An option the command does not take forbids nothing.
    fn holds(&self, def: &Def, index: u16) -> bool {
        let Some(depend) = def.depend else { return true };
        let on = depend.on.def();
        if !on.is_valid_for(self.command) {
            return true;
        }
        let index = if on.group == Group::None { 0 } else { index };
        self.written(depend.on, index)
            .is_some_and(|text| depend.values.is_empty() || depend.values.contains(&text.as_ref()))
    }

    fn keys(&self, group: Group) -> Vec<u16> {
        let mut keys: BTreeSet<u16> = self
            .found
            .iter()
            .filter(|((opt, _), found)| opt.def().group == group && matches!(found.raw, Raw::Values(_)))
            .map(|((_, index), _)| *index)
            .collect();
        if group == Group::Pg || keys.is_empty() {
            keys.insert(1);
        }
        keys.into_iter().collect()
    }

    fn finish(mut self, params: Vec<OsString>) -> Result<Loaded, OptionError> {
        let (repo_keys, pg_keys) = (self.keys(Group::Repo), self.keys(Group::Pg));
        let mut values = BTreeMap::new();
        if !self.lenient {
            rules::check_user(&self)?;
            self.check_stanza()?;
        }
        for def in TABLE.iter().filter(|d| d.is_valid_for(self.command)) {
            let indexes: &[u16] = match def.group {
                Group::None => &[0],
                Group::Repo => &repo_keys,
                Group::Pg => &pg_keys,
            };
            for &index in indexes {
                let setting = self.setting(def, index)?;
                if setting.value.is_none() && !self.lenient {
                    rules::check_required(&self, def, index)?;
                }
                values.insert((def.opt, index), setting);
            }
        }
        let mut settings = Settings {
            program: self.program,
            exe: self.invocation.called_path(),
            command: self.command,
            role: self.role,
            params,
            values,
            repo_keys,
            pg_keys,
            stanzas: std::mem::take(&mut self.stanzas).into_iter().collect(),
        };
        if !self.lenient {
            rules::check_together(&mut settings, &mut self)?;
        }
        Ok(Loaded { settings, notices: self.notices })
    }

    fn setting(&self, def: &'static Def, index: u16) -> Result<Setting, OptionError> {
        let found = self.found.get(&(def.opt, index));
        let holds = self.holds(def, index);
        if let (Some(Found { source: Source::CommandLine, raw: Raw::Values(_) }), false) = (found, holds) {
            return Err(rules::needs_other(def, index));
        }
        let (written, source) = match found {
            _ if !holds => return Ok(Setting { value: None, source: Source::Default }),
            Some(Found { raw: Raw::Negated, source }) => return Ok(Setting { value: None, source: *source }),
            Some(Found { raw: Raw::Values(values), source }) => (Cow::Borrowed(values.as_slice()), *source),
            Some(Found { raw: Raw::Reset, .. }) | None => match def.default_for(self.command) {
                Some(default) => (Cow::Owned(vec![self.program.fill(default)]), Source::Default),
                None => return Ok(Setting { value: None, source: Source::Default }),
            },
        };
        let name = def.display(index);
        let value = match value::parse(&name, def.type_for(self.command), &written, &self.invocation.cwd)? {
            Value::Text(text) if def.secret => Value::Secret(Secret::new(text)),
            value => value,
        };
        Ok(Setting { value: Some(value), source })
    }

    /// The stanza's name becomes part of paths.
    fn check_stanza(&self) -> Result<(), OptionError> {
        match self.written(Opt::Stanza, 0) {
            Some(name)
                if name.contains(['/', ':'])
                    || name.chars().any(char::is_control)
                    || matches!(&*name, "." | ".." | "global") =>
            {
                Err(OptionError::new(
                    Status::OPTION_INVALID_VALUE,
                    format!("'{name}' is not allowed for option 'stanza'"),
                ))
            }
            None if self.command.def().stanza == StanzaUse::Required => Err(OptionError::new(
                Status::OPTION_REQUIRED,
                format!("command {} needs option 'stanza'", self.command.name()),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn has_stanza(&self) -> bool {
        self.written(Opt::Stanza, 0).is_some()
    }

    /// True if no file says anything of the stanza.
    pub(super) fn stanza_is_unknown(&self) -> bool {
        self.written(Opt::Stanza, 0).is_none_or(|name| !self.stanzas.contains(&*name))
    }

    pub(super) fn applies(&self, def: &Def, index: u16) -> bool {
        self.holds(def, index)
    }

    pub(super) fn runs_as_root(&self) -> bool {
        self.invocation.euid == 0
    }

    pub(super) fn root_is_allowed(&self) -> bool {
        self.written(Opt::AllowRoot, 0).as_deref() == Some("y")
    }
}

fn twice(def: &Def, index: u16, place: &str) -> OptionError {
    OptionError::new(Status::OPTION_INVALID, format!("option '{}' is set more than once {place}", def.display(index)))
}
