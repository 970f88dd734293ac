//! Recovery settings of a restored cluster: what goes into `postgresql.auto.conf`, which signal file.
//!
//! Pure functions from options to bytes; writing them, and in which order, is the restore's. Settings are
//! appended, because the last line of a name counts. Targets of an earlier recovery in the same file must
//! go, because the server refuses to have two: their lines are commented out and stay readable. The rules
//! are pgBackRest's for PostgreSQL 12 and later (the oldest supported here is 13).
//!
//! Source: `access/transam/xlogrecovery.c` for the settings, `utils/misc/guc-file.l` for the file's syntax.

mod command;
#[cfg(test)]
mod tests;

pub use command::{OnError, archive_command, restore_command};

use crate::{Error, Kind, Result};
use pgkeep_formats::pg::lsn::Lsn;

/// The longest name of a restore point the server accepts, in bytes.
const NAME_LEN_MAX: usize = 63;

/// Where recovery shall end, by pgBackRest's option `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecoveryType {
    /// At the end of the archived WAL.
    Default,
    /// As soon as the files are consistent.
    Immediate,
    /// At a named restore point.
    Name,
    /// At a time.
    Time,
    /// At a transaction.
    Xid,
    /// At a position in the WAL.
    Lsn,
    /// Never: the cluster becomes a standby.
    Standby,
    /// As the settings in the backup say.
    Preserve,
    /// No recovery from the archive, only the crash recovery that every online backup needs.
    None,
}

impl RecoveryType {
    /// Reads the option's value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        const ALL: [RecoveryType; 9] = [
            RecoveryType::Default,
            RecoveryType::Immediate,
            RecoveryType::Name,
            RecoveryType::Time,
            RecoveryType::Xid,
            RecoveryType::Lsn,
            RecoveryType::Standby,
            RecoveryType::Preserve,
            RecoveryType::None,
        ];
        ALL.into_iter().find(|t| t.as_str() == text)
    }

    /// The option's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Immediate => "immediate",
            Self::Name => "name",
            Self::Time => "time",
            Self::Xid => "xid",
            Self::Lsn => "lsn",
            Self::Standby => "standby",
            Self::Preserve => "preserve",
            Self::None => "none",
        }
    }

    /// The setting that holds the target, for types that have one.
    fn target_setting(self) -> Option<&'static str> {
        match self {
            Self::Name => Some("recovery_target_name"),
            Self::Time => Some("recovery_target_time"),
            Self::Xid => Some("recovery_target_xid"),
            Self::Lsn => Some("recovery_target_lsn"),
            _ => None,
        }
    }

    /// True if recovery ends somewhere before the end of the WAL.
    #[must_use]
    pub fn has_end(self) -> bool {
        self == Self::Immediate || self.target_setting().is_some()
    }

    /// True if the server asks the archive for WAL.
    #[must_use]
    pub fn reads_archive(self) -> bool {
        !matches!(self, Self::Preserve | Self::None)
    }
}

/// What the server does when it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetAction {
    /// Waits, open for reading; the server's default.
    Pause,
    /// Becomes a primary.
    Promote,
    /// Stops.
    Shutdown,
}

impl TargetAction {
    /// Reads the option's value.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pause, Self::Promote, Self::Shutdown].into_iter().find(|a| a.as_str() == text)
    }

    /// The option's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

/// The options of a restore that decide about recovery. `None` and empty mean not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryOptions {
    /// `type`.
    pub recovery_type: RecoveryType,
    /// `target`.
    pub target: Option<String>,
    /// `target-action`.
    pub action: Option<TargetAction>,
    /// `target-exclusive`.
    pub exclusive: bool,
    /// `target-timeline`: `current`, `latest`, or a number.
    pub timeline: Option<String>,
    /// `recovery-option`, in the order given. Names may have dashes.
    pub settings: Vec<(String, String)>,
    /// `archive-mode=off`.
    pub archive_mode_off: bool,
}

impl RecoveryOptions {
    /// Options of a type with nothing else given.
    #[must_use]
    pub fn of(recovery_type: RecoveryType) -> Self {
        Self {
            recovery_type,
            target: None,
            action: None,
            exclusive: false,
            timeline: None,
            settings: Vec::new(),
            archive_mode_off: false,
        }
    }

    /// Checks that the options fit each other and that the server will accept their values. The text of a
    /// time is for whoever chooses the backup to read.
    ///
    /// # Errors
    /// [`Kind::OptionRequired`] for a missing target, [`Kind::OptionInvalid`] for options that do not go with
    /// the type, [`Kind::OptionInvalidValue`] for values the server would refuse.
    pub fn validate(&self) -> Result<()> {
        let kind = self.recovery_type;
        let unfit = |option: &str| {
            let message = format!("option '{option}' is not valid with type '{}'", kind.as_str());
            Err(Error::refused(Kind::OptionInvalid, message))
        };
        match (&self.target, kind.target_setting()) {
            (None, Some(_)) => {
                let message = format!("restore with type '{}' requires option 'target'", kind.as_str());
                return Err(Error::refused(Kind::OptionRequired, message));
            }
            (Some(_), None) => return unfit("target"),
            (Some(target), Some(_)) => validate_target(kind, target)?,
            (None, None) => {}
        }
        if self.action.is_some() && !kind.has_end() {
            return unfit("target-action");
        }
        if self.exclusive && !matches!(kind, RecoveryType::Time | RecoveryType::Xid | RecoveryType::Lsn) {
            return unfit("target-exclusive");
        }
        if !self.settings.is_empty() && !kind.reads_archive() {
            return unfit("recovery-option");
        }
        if self.archive_mode_off && kind == RecoveryType::Preserve {
            return unfit("archive-mode");
        }
        if let Some(timeline) = &self.timeline {
            if !kind.reads_archive() {
                return unfit("target-timeline");
            }
            validate_timeline(timeline)?;
        }
        self.settings.iter().try_for_each(|(name, value)| validate_setting(name, value))
    }
}

fn refuse_value(value: &str, option: &str, why: &str) -> Result<()> {
    let message = format!("'{}' is not valid for option '{option}': {why}", value.escape_debug());
    Err(Error::refused(Kind::OptionInvalidValue, message))
}

fn validate_target(kind: RecoveryType, target: &str) -> Result<()> {
    let why = match kind {
        _ if target.is_empty() => "it is empty",
        _ if target.contains('\0') => "it holds a NUL",
        RecoveryType::Name if target.len() > NAME_LEN_MAX => "names of restore points have 63 bytes at most",
        RecoveryType::Lsn if target.parse::<Lsn>().is_err() => "a position has the form 1A/2B3C4D",
        RecoveryType::Xid if target.parse::<u64>().is_err() => "a transaction is a number",
        _ => return Ok(()),
    };
    refuse_value(target, "target", why)
}

/// The server reads numbers as C does: decimal, or hexadecimal after `0x`.
fn validate_timeline(timeline: &str) -> Result<()> {
    let number = match timeline.strip_prefix("0x").or_else(|| timeline.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        // A leading zero would make it octal there and decimal here.
        None if timeline.starts_with('0') => None,
        None => timeline.parse::<u32>().ok(),
    };
    match timeline {
        "current" | "latest" => Ok(()),
        _ if number.is_some_and(|n| n > 0) && !timeline.contains('+') => Ok(()),
        _ => refuse_value(timeline, "target-timeline", "a timeline is 'current', 'latest', or a number"),
    }
}

fn validate_setting(name: &str, value: &str) -> Result<()> {
    let setting = setting_name(name);
    if setting == "standby_mode" {
        let message = format!("'{name}' cannot be set by option 'recovery-option', restore with type 'standby'");
        return Err(Error::refused(Kind::OptionInvalid, message));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
    if !setting.bytes().all(plain) || !setting.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return refuse_value(name, "recovery-option", "it is not the name of a setting");
    }
    if value.contains('\0') { refuse_value(value, "recovery-option", "it holds a NUL") } else { Ok(()) }
}

/// A setting's name as the server spells it.
fn setting_name(option: &str) -> String {
    option.replace('-', "_").to_ascii_lowercase()
}

/// The file whose presence makes the server recover from an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Recover, then become a primary.
    Recovery,
    /// Recover for ever.
    Standby,
}

impl Signal {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Recovery, Self::Standby];

    /// Its name in the data directory. The file is empty.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Recovery => "recovery.signal",
            Self::Standby => "standby.signal",
        }
    }
}

/// What to do to the files that control recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// New content of `postgresql.auto.conf`; `None` leaves it as it is.
    pub auto_conf: Option<Vec<u8>>,
    /// The signal file to create.
    pub create: Option<Signal>,
    /// Signal files to remove if they are there.
    pub remove: Vec<Signal>,
    /// Nothing is touched, and it deserves a warning if there is no `postgresql.auto.conf`.
    pub preserve: bool,
}

/// Decides what a restored cluster's recovery files must be.
///
/// `existing` is the `postgresql.auto.conf` of the backup, empty if it has none; `command` comes from
/// [`restore_command`]; `now` is the time as it shall stand in comments.
///
/// # Errors
/// As [`RecoveryOptions::validate`].
pub fn plan(existing: &[u8], options: &RecoveryOptions, command: &str, now: &str) -> Result<RecoveryPlan> {
    options.validate()?;
    let create = match options.recovery_type {
        RecoveryType::Preserve => {
            return Ok(RecoveryPlan { auto_conf: None, create: None, remove: Vec::new(), preserve: true });
        }
        RecoveryType::None => None,
        RecoveryType::Standby => Some(Signal::Standby),
        _ => Some(Signal::Recovery),
    };
    let settings = settings(options, command);
    let auto_conf = if settings.is_empty() { None } else { Some(append(existing, &settings, now)) };
    let remove = Signal::ALL.into_iter().filter(|s| Some(*s) != create).collect();
    Ok(RecoveryPlan { auto_conf, create, remove, preserve: false })
}

/// Settings in the order they are written. What the options say wins over what the user lists, except for
/// the command, which the user may replace.
fn settings(options: &RecoveryOptions, command: &str) -> Vec<(String, String)> {
    let kind = options.recovery_type;
    let mut all: Vec<(String, String)> = Vec::new();
    let mut put = |name: &str, value: &str, replace: bool| match all.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) if replace => value.clone_into(old),
        Some(_) => {}
        None => all.push((name.to_owned(), value.to_owned())),
    };
    for (name, value) in &options.settings {
        put(&setting_name(name), value, true);
    }
    if kind.reads_archive() {
        put("restore_command", command, false);
    }
    if let (Some(setting), Some(target)) = (kind.target_setting(), &options.target) {
        put(setting, target, true);
    }
    if kind == RecoveryType::Immediate {
        put("recovery_target", "immediate", true);
    }
    if options.exclusive {
        put("recovery_target_inclusive", "false", true);
    }
    if let Some(action) = options.action.filter(|a| *a != TargetAction::Pause) {
        put("recovery_target_action", action.as_str(), true);
    }
    match &options.timeline {
        Some(timeline) => put("recovery_target_timeline", timeline, true),
        // The newest timeline may have branched off before the backup became consistent.
        None if kind == RecoveryType::Immediate => put("recovery_target_timeline", "current", false),
        None => {}
    }
    if options.archive_mode_off {
        put("archive_mode", "off", true);
    }
    all
}

fn append(existing: &[u8], settings: &[(String, String)], now: &str) -> Vec<u8> {
    let mut file = Vec::with_capacity(existing.len() + 512);
    for line in existing.split_inclusive(|b| *b == b'\n') {
        if is_recovery_target(line) {
            file.extend_from_slice(format!("# Removed by pgkeep restore on {now} # ").as_bytes());
        }
        file.extend_from_slice(line);
    }
    if !file.is_empty() {
        file.extend_from_slice(if file.ends_with(b"\n") { b"\n" } else { b"\n\n" });
    }
    file.extend_from_slice(format!("# Recovery settings generated by pgkeep restore on {now}\n").as_bytes());
    for (name, value) in settings {
        file.extend_from_slice(format!("{name} = {}\n", quote(value)).as_bytes());
    }
    file
}

/// True for a line that sets `recovery_target` or one of `recovery_target_...`. The server ignores case and
/// the `=` is optional.
fn is_recovery_target(line: &[u8]) -> bool {
    const NAME: &[u8] = b"recovery_target";
    let line = line.trim_ascii_start();
    let end = line.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(line.len());
    match line.get(..end).and_then(|name| name.split_at_checked(NAME.len())) {
        Some((start, rest)) => start.eq_ignore_ascii_case(NAME) && (rest.is_empty() || rest.starts_with(b"_")),
        None => false,
    }
}

/// A value as `postgresql.conf` wants it: in quotes, quotes doubled, backslashes and line ends escaped.
#[must_use]
pub fn quote(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('\'');
    for c in value.chars() {
        match c {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            c => text.push(c),
        }
    }
    text.push('\'');
    text
}
