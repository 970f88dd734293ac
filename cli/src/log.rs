//! Log lines: pgBackRest's shape, so that what reads its logs reads ours.
//!
//! Three places: standard output, standard error, a file, each with its level. A line goes to standard error
//! if that takes its level, else to standard output if that does; the file is on its own. What a program reads from
//! standard output has no lines in between: with `--output=json`, and of `extract` and `repo-get`, they go to standard error, and so does [`ASIDE`] always.
//! Events of other crates count as DEBUG (their warnings and errors) or TRACE (the rest): they speak to developers.
//! Failing to write a log line is not an error of the command. Any thread may log; a line is one write.

mod file;
mod line;

use crate::option::{Command, Opt, Role, Settings};
use crate::render::progress;
use crate::zone;
use file::LogFile;
use line::Line;
use pgkeep_engine::observe::DETAIL;
use std::fmt::Write as _;
use std::io::Write as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Target of events that never go to standard output.
pub const ASIDE: &str = "pgkeep_cli::aside";

/// How much a line matters; greater is chattier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing at all: a setting, not a line's level.
    Off,
    /// The command failed.
    Error,
    /// A human should look.
    Warn,
    /// What was done.
    Info,
    /// A line per file.
    Detail,
    /// For developers.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    fn named(name: Option<&str>) -> Self {
        match name {
            Some("error") => Self::Error,
            Some("warn") => Self::Warn,
            Some("info") => Self::Info,
            Some("detail") => Self::Detail,
            Some("debug") => Self::Debug,
            Some("trace") => Self::Trace,
            _ => Self::Off,
        }
    }

    /// As it stands in a line.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Detail => "DETAIL",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        }
    }

    fn of(metadata: &Metadata<'_>) -> Self {
        let level = *metadata.level();
        if metadata.target() == DETAIL {
            return Self::Detail;
        }
        if !metadata.target().starts_with("pgkeep") {
            return if level <= tracing::Level::WARN { Self::Debug } else { Self::Trace };
        }
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

/// Writes events as lines.
struct Lines {
    console: LogLevel,
    stderr: LogLevel,
    file: LogLevel,
    timestamp: bool,
    /// Standard output is for the command's JSON, or dump, alone.
    is_json: bool,
    sink: Option<LogFile>,
}

impl Lines {
    fn most(&self) -> LogLevel {
        let file = if self.sink.is_some() { self.file } else { LogLevel::Off };
        self.console.max(self.stderr).max(file)
    }

    /// Whether a line goes to standard error (true), to standard output, or to neither.
    fn console(&self, level: LogLevel, is_aside: bool) -> Option<bool> {
        let is_kept_off = self.is_json || is_aside;
        (level <= self.stderr.max(self.console)).then_some(level <= self.stderr || is_kept_off)
    }

    fn write(&self, level: LogLevel, is_aside: bool, message: &str) {
        let line = Line { level, worker: worker(), message };
        let at = zone::now();
        let at = self.timestamp.then_some(&at);
        // A progress bar must not be drawn into the middle of a line. Nobody is left to tell of a failed write.
        match self.console(level, is_aside) {
            Some(true) => progress::suspended(|| drop(std::io::stderr().write_all(line.bare().as_bytes()))),
            Some(false) => progress::suspended(|| drop(std::io::stdout().write_all(line.full(at).as_bytes()))),
            None => {}
        }
        if level <= self.file
            && let Some(sink) = &self.sink
        {
            sink.append(&line.full(at));
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        LogLevel::of(metadata) <= self.most()
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        use tracing::level_filters::LevelFilter;
        Some(match self.most() {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Detail | LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        self.write(LogLevel::of(event.metadata()), event.metadata().target() == ASIDE, &text.0);
    }
}

/// The message of an event, then its other fields.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => {
                let fields = std::mem::take(&mut self.0);
                write!(self.0, "{value:?}{fields}")
            }
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.0, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// The number of a worker thread, from its name `pgkeep-NN`; 0 for all others.
fn worker() -> u16 {
    std::thread::current().name().and_then(|n| n.strip_prefix("pgkeep-")).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Sets logging up for the rest of the process. Calling it again changes nothing.
///
/// A log file that cannot be opened is warned of, once, and done without.
pub fn init(settings: &Settings) {
    let level = |opt| LogLevel::named(settings.text(opt));
    let file = level(Opt::LogLevelFile);
    let (mut sink, mut trouble) = (None, None);
    let has_file = settings.command().def().log_file || settings.role() == Role::Async;
    if let (true, true, Some(dir)) = (has_file, file > LogLevel::Off, settings.path(Opt::LogPath)) {
        let command = settings.shown_command().replace(':', "-");
        let name = format!("{}-{command}.log", settings.stanza().unwrap_or("all"));
        match LogFile::open(dir, &name) {
            Ok(open) => sink = Some(open),
            Err(error) => trouble = Some(error),
        }
    }
    let lines = Lines {
        console: level(Opt::LogLevelConsole),
        stderr: level(Opt::LogLevelStderr),
        file,
        timestamp: settings.flag(Opt::LogTimestamp),
        // Of a process that a command starts for itself nobody reads the standard output.
        is_json: matches!(settings.text(Opt::Output), Some("json" | "prometheus"))
            || matches!(settings.command(), Command::Extract | Command::RepoGet)
            || settings.path(Opt::Scratch).is_some(),
        sink,
    };
    // Only the first call in a process can succeed, which is what is wanted.
    drop(tracing_subscriber::registry().with(lines).try_init());
    if let Some(error) = trouble {
        tracing::warn!("{error}: {}\ngoing on without a log file", error.source);
    }
}

/// Says on standard error that the command failed, when logging is not set up yet.
pub fn early_error(report: &str) {
    let line = Line { level: LogLevel::Error, worker: 0, message: report };
    drop(std::io::stderr().write_all(line.bare().as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_engine::observe::DETAIL;

    fn logged(level: LogLevel, log: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let sink = LogFile::open(dir.path(), "t.log").unwrap();
        let lines = Lines {
            console: LogLevel::Off,
            stderr: LogLevel::Off,
            file: level,
            timestamp: false,
            is_json: false,
            sink: Some(sink),
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        std::fs::read_to_string(dir.path().join("t.log")).unwrap_or_default()
    }

    #[test]
    fn events_become_lines_of_their_level() {
        let text = logged(LogLevel::Detail, || {
            tracing::error!(target: "pgkeep_engine::backup", "[055]: gone\nhint: look");
            tracing::warn!(target: "pgkeep_engine", pages = 3, "damaged");
            tracing::info!(target: "pgkeep_cli", "label {}", 7);
            tracing::debug!(target: DETAIL, "file");
            tracing::debug!(target: "pgkeep_cli", "not shown");
            tracing::error!(target: "sled", "not shown either");
        });
        let expected = "-------------------PROCESS START-------------------\n\
            P00  ERROR: [055]: gone\n            hint: look\n\
            P00   WARN: damaged pages=3\n\
            P00   INFO: label 7\n\
            P00 DETAIL: file\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn lines_that_must_not_be_on_standard_output_are_not() {
        use LogLevel::{Error, Info, Off, Warn};
        let lines =
            |console, stderr, is_json| Lines { console, stderr, file: Off, timestamp: false, is_json, sink: None };
        let usual = lines(Warn, Off, false);
        assert_eq!((usual.console(Warn, false), usual.console(Warn, true)), (Some(false), Some(true)));
        assert_eq!((usual.console(Info, false), usual.console(Info, true)), (None, None));
        let json = lines(Info, Off, true);
        assert_eq!((json.console(Error, false), json.console(Info, false)), (Some(true), Some(true)));
        let both = lines(Warn, Error, false);
        assert_eq!((both.console(Error, false), both.console(Warn, false)), (Some(true), Some(false)));
        assert_eq!(lines(Off, Off, true).console(Error, true), None);
    }

    #[test]
    fn workers_are_numbered_by_their_threads() {
        let text = logged(LogLevel::Trace, || {
            let dispatch = tracing::dispatcher::get_default(Clone::clone);
            let name = "pgkeep-12".to_owned();
            let body = move || tracing::dispatcher::with_default(&dispatch, || tracing::debug!(target: "pgkeep", "x"));
            std::thread::Builder::new().name(name).spawn(body).unwrap().join().unwrap();
            tracing::warn!(target: "rustls", "foreign");
        });
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(lines, ["P12  DEBUG:     x", "P00  DEBUG:     foreign"]);
    }

    #[test]
    fn levels_are_ordered_and_off_is_silent() {
        assert!(LogLevel::Error < LogLevel::Warn && LogLevel::Info < LogLevel::Detail);
        assert_eq!(logged(LogLevel::Off, || tracing::error!(target: "pgkeep", "x")), "");
        assert_eq!(LogLevel::named(Some("off")), LogLevel::Off);
    }
}
