//! One run of the program, whatever the command.

use crate::VERSION;
use crate::buckets;
use crate::commands::{self, Context};
use crate::error::Failure;
use crate::exit::Status;
use crate::log;
use crate::made::Made;
use crate::option::{self, Command, Def, Invocation, Level, Notice, Opt, Settings, Source, Value};
use crate::render::progress;
use crate::signal;
use pgkeep_engine::observe::Cancel;
use pgkeep_engine::{Error, Kind};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// Does what the invocation asks for and answers with the exit status. Prints and logs as it goes.
pub fn run(invocation: &Invocation) -> Status {
    // Here and nowhere deeper, so that no failure slips past: not one of the configuration, nor one of the program.
    let status = std::panic::catch_unwind(AssertUnwindSafe(|| perform(invocation))).unwrap_or(Status::ASSERT);
    match status {
        Status::OK | Status::ABSENT => status,
        _ if commands::aborts_recovery(&invocation.args) => Status::ABORT_RECOVERY,
        other => other,
    }
}

fn perform(invocation: &Invocation) -> Status {
    let begun = Instant::now();
    let loaded = match option::load(invocation) {
        Ok(loaded) => loaded,
        Err(error) => {
            let failure = Failure::from(error);
            log::early_error(&failure.report(None));
            return failure.status();
        }
    };
    let settings = &loaded.settings;
    let made = Made::before(settings);
    log::init(settings);
    // Who started this process in the background has told them.
    if !settings.flag(Opt::ReadyPipe) {
        loaded.notices.iter().for_each(tell);
    }
    announce(settings, &begin_line(settings));
    let outcome = operate(settings, invocation);
    made.hand_over();
    let (status, end) = match outcome {
        Ok(status) => (status, completed(settings, begun.elapsed())),
        Err(failure) => {
            let status = failure.status();
            if status != Status::OK && !matches!(failure, Failure::Told(_)) {
                let report = failure.report(Some(settings.command()));
                // It has no options of logging, and its errors are what its user asked for.
                if settings.command() == Command::Help {
                    log::early_error(&report);
                } else {
                    tracing::error!("{report}");
                }
            }
            (status, format!("aborted with exception {status}"))
        }
    };
    buckets::requests().iter().for_each(|line| announce(settings, line));
    announce(settings, &format!("{} command end: {end}", settings.shown_command()));
    status
}

fn operate(settings: &Settings, invocation: &Invocation) -> Result<Status, Failure> {
    let cancel = Cancel::default();
    // A server that recovers takes anything else for the end of the archive.
    let at_once = if commands::aborts_recovery(&invocation.args) { Status::ABORT_RECOVERY } else { Status::TERM };
    signal::install(&cancel, at_once)?;
    if let Some(nice) = settings.int(Opt::Priority).and_then(|n| i32::try_from(n).ok()) {
        let refused = |e| Error::refused(Kind::Kernel, format!("cannot set the priority to {nice}: {e}"));
        rustix::process::setpriority_process(None, nice).map_err(refused)?;
    }
    let repositoryless = matches!(
        settings.command(),
        Command::Completion | Command::Help | Command::Version | Command::Start | Command::Stop
    );
    if !repositoryless {
        option::check_supported(settings)?;
    }
    let observer = progress::observer();
    let operation = commands::of(settings.command());
    guarded(|| operation(&Context { settings, invocation, cancel: &cancel, observer: &*observer }))
}

/// Turns a panic into a failure: its own status (101) means something else to those who read ours.
fn guarded(operation: impl FnOnce() -> Result<Status, Failure>) -> Result<Status, Failure> {
    std::panic::catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        Err(Error::refused(Kind::Assert, "the program failed in itself; standard error says where").into())
    })
}

fn tell(notice: &Notice) {
    match notice.level {
        Level::Warn => tracing::warn!("{}", notice.text),
        Level::Aside => tracing::warn!(target: log::ASIDE, "{}", notice.text),
        Level::Info => tracing::info!("{}", notice.text),
        Level::Debug => tracing::debug!("{}", notice.text),
    }
}

/// Logs at INFO, or at DEBUG for commands whose output is read by programs.
fn announce(settings: &Settings, text: &str) {
    // A process that a command starts for itself is no command of its own.
    if settings.command().def().announces && settings.path(Opt::Scratch).is_none() {
        tracing::info!("{text}");
    } else {
        tracing::debug!("{text}");
    }
}

fn completed(settings: &Settings, took: Duration) -> String {
    // Without timestamps people compare logs, so no time is wanted here either.
    if settings.flag(Opt::LogTimestamp) {
        format!("completed successfully ({}ms)", took.as_millis())
    } else {
        "completed successfully".to_owned()
    }
}

/// `backup command begin 0.1.0: --delta --stanza=demo`: every option that somebody set, by name.
#[must_use]
fn begin_line(settings: &Settings) -> String {
    let mut options: Vec<_> = settings
        .iter()
        .filter(|(_, _, setting)| setting.source != Source::Default)
        .flat_map(|(opt, index, setting)| shown(opt.def(), index, setting.value.as_ref()))
        .collect();
    options.sort();
    let name = settings.shown_command();
    let params = settings.params().iter().map(|p| p.to_string_lossy().into_owned()).collect::<Vec<_>>();
    let params = if params.is_empty() { String::new() } else { format!(" [{}]", params.join(", ")) };
    let options = options.iter().map(|o| format!(" {o}")).collect::<String>();
    format!("{name} command begin {VERSION}:{params}{options}")
}

/// An option as it would be typed, secrets redacted; one text per element of a list.
fn shown(def: &Def, index: u16, value: Option<&Value>) -> Vec<String> {
    let name = def.display(index);
    let one = |text: &str| {
        if text.contains(' ') { format!("--{name}=\"{text}\"") } else { format!("--{name}={text}") }
    };
    match value {
        None => vec![format!("--no-{name}")],
        Some(Value::Bool(true)) => vec![format!("--{name}")],
        Some(Value::Bool(false)) => vec![format!("--no-{name}")],
        Some(Value::Secret(_)) => vec![format!("--{name}=<redacted>")],
        Some(Value::Int(n)) => vec![one(&n.to_string())],
        Some(Value::Size(n)) => vec![one(&crate::size::exact_size(*n))],
        Some(Value::Time(t)) => vec![one(&crate::size::exact_time(*t))],
        Some(Value::Cpus(share)) => vec![one(&crate::size::exact_cpus(*share))],
        Some(Value::Text(text)) => vec![one(text)],
        Some(Value::List(list)) => list.iter().map(|text| one(text)).collect(),
        Some(Value::Hash(pairs)) => pairs.iter().map(|(k, v)| one(&format!("{k}={v}"))).collect(),
    }
}

/// A value as it would be written in a file; used by help.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Bool(yes) => if *yes { "y" } else { "n" }.to_owned(),
        Value::Int(n) => n.to_string(),
        Value::Size(n) => crate::size::exact_size(*n),
        Value::Time(t) => crate::size::exact_time(*t),
        Value::Cpus(share) => crate::size::exact_cpus(*share),
        Value::Text(text) => text.clone(),
        Value::Secret(_) => "<redacted>".to_owned(),
        Value::List(list) => list.join(", "),
        Value::Hash(pairs) => pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::option::Secret;

    #[test]
    fn options_are_shown_as_typed_without_secrets() {
        let shown = |opt: Opt, index, value: Option<Value>| shown(opt.def(), index, value.as_ref()).join(" ");
        assert_eq!(shown(Opt::Delta, 0, Some(Value::Bool(true))), "--delta");
        assert_eq!(shown(Opt::Delta, 0, Some(Value::Bool(false))), "--no-delta");
        assert_eq!(shown(Opt::Config, 0, None), "--no-config");
        assert_eq!(
            shown(Opt::RepoCipherPass, 2, Some(Value::Secret(Secret::new("x".into())))),
            "--repo2-cipher-pass=<redacted>"
        );
        assert_eq!(shown(Opt::Target, 0, Some(Value::Text("a b".into()))), "--target=\"a b\"");
        assert_eq!(shown(Opt::Exclude, 0, Some(Value::List(vec!["a".into(), "b".into()]))), "--exclude=a --exclude=b");
        assert_eq!(shown(Opt::ArchiveTimeout, 0, Some(Value::Time(Duration::from_secs(60)))), "--archive-timeout=1m");
    }

    #[test]
    fn a_panic_has_the_status_of_our_own_mistakes() {
        let failure = guarded(|| panic!("as arranged by a test")).unwrap_err();
        assert_eq!(failure.status(), Status::ASSERT);
    }
}
