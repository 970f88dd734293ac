//! `drill`: proves a backup. A clone of it is made, recovered to a target, started and checked; what came of it is
//! stored in the repository, where `info` shows it.
//!
//! What is wrong with the backup is a failed check, recorded and told with status 81. What keeps a drill from being
//! made at all or to its end (no FUSE, no PostgreSQL, no room) is an error of its own, and nothing is recorded.

mod checks;
mod end;
mod own;
mod report;

use super::Context;
use super::clone::make::{self, Recipe};
use super::scratch::{self, Scratch, Times, keeper};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Settings};
use crate::render;
use crate::{VERSION, repos};
use end::ArchiveEnd;
use own::Own;
use pgkeep_engine::restore::Choice;
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::records::{CheckResult, DETAIL_BYTES_MAX, Drill, DrillCheck};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Statuses of a clone that cannot be made because of what is stored: bytes that differ, cannot be parsed or are
/// missing.
const STORED_BADLY: [Status; 5] = [Status(26), Status(28), Status::FORMAT, Status::FILE_READ, Status::FILE_MISSING];

/// Checks as they are made.
pub(super) struct Checks(Vec<DrillCheck>);

impl Checks {
    /// Makes a check. What it finds wrong is its result; what it cannot go on after is an error.
    fn make(
        &mut self,
        name: &str,
        check: impl FnOnce() -> Result<(CheckResult, String), Failure>,
    ) -> Result<CheckResult, Failure> {
        tracing::info!("checking: {name}");
        let begun = Instant::now();
        let (result, detail) = check()?;
        let told = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        // The report and the error at the end say it to everybody.
        tracing::info!("{name} {}{told}", result.as_str());
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.push(DrillCheck { name: name.to_owned(), result, millis, detail: short(detail) });
        Ok(result)
    }

    fn failed(&self) -> Vec<&str> {
        self.0.iter().filter(|c| c.result == CheckResult::Failed).map(|c| c.name.as_str()).collect()
    }
}

/// As much of a text as a record holds.
fn short(mut text: String) -> String {
    const MORE: &str = " ...";
    if text.len() > DETAIL_BYTES_MAX {
        text.truncate(text.floor_char_boundary(DETAIL_BYTES_MAX - MORE.len()));
        text.push_str(MORE);
    }
    text
}

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::ReadyPipe) {
        return keeper::keep(context);
    }
    // What is wrong with the user's own checks is told before anything is done.
    let own = settings.path(Opt::DrillDir).map(own::load).transpose()?.unwrap_or_default();
    let choice = make::choose(settings, &Recipe::of_scratch(settings, Path::new("/"), 0)?)?;
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut drill = record(settings, &choice, began);
    // What is archived while the drill goes on is not missed.
    let end = ArchiveEnd::of(settings.stanza_name(), &choice)?;
    let mut checks = Checks(Vec::new());
    let pinned = scratch::pinned(settings, &choice.backup.label, choice.repository.key());
    match Scratch::open_for(context, &pinned, choice.backup.size) {
        Ok(mut scratch) => {
            let checked = check_same(&scratch, &choice)
                .and_then(|()| check(context, &mut scratch, &own, end.as_ref(), &mut checks, &mut drill));
            let sound = match &checked {
                Err(failure) if failure.status() == Status::TERM => Ok(()),
                Err(failure) => scratch.check_sound(std::iter::once(failure.to_string().as_str())),
                Ok(()) if checks.failed().is_empty() => Ok(()),
                Ok(()) => scratch.check_sound(checks.0.iter().map(|check| check.detail.as_str())),
            };
            let removed = scratch.finish();
            sound.and(checked)?;
            removed?;
        }
        // Told already, by the process that makes the clone.
        Err(Failure::Told(status)) if STORED_BADLY.contains(&status) => {
            let detail = format!("it cannot be made: {} {}", status, status.meaning());
            checks.make("clone", || Ok((CheckResult::Failed, detail)))?;
        }
        Err(failure) => return Err(failure),
    }
    drill.stop = seconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    drill.passed = checks.failed().is_empty();
    let failed = checks.failed().join(", ");
    drill.checks = std::mem::take(&mut checks.0);
    let repo = choice.repository.key();
    let stored = choice.repository.put_drill(settings.stanza_name(), began, &drill);
    let json = settings.text(Opt::Output) == Some("json");
    let printed = render::print(&if json { report::json(&drill, repo) } else { report::text(&drill, repo) });
    if drill.passed {
        stored?;
        return printed.map(|()| Status::OK);
    }
    // Whoever reads the output may have gone; the status is for somebody else.
    if let Err(e) = stored {
        tracing::warn!("repo{repo}: what came of the drill cannot be recorded: {}", repos::chain(&e));
    }
    if let Err(e) = printed {
        tracing::warn!("what came of the drill cannot be told: {}", repos::chain(&e));
    }
    let text = format!("the drill of backup {} of repo{repo} has failed: {failed}", drill.label);
    Err(Error::refused(Kind::DbInvalid, text).into())
}

/// Whether the clone is of the backup that is going to be judged.
fn check_same(scratch: &Scratch, choice: &Choice) -> Result<(), Failure> {
    let (made_of, chosen) = (scratch.recorded("session")?, choice.backup.session.to_string());
    if made_of == chosen {
        return Ok(());
    }
    let text = format!(
        "the clone was made of backup {} and not of {}: a backup was made or removed meanwhile; run the drill again",
        scratch.recorded("label")?,
        choice.backup.label
    );
    Err(Error::refused(Kind::Runtime, text).into())
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

fn record(settings: &Settings, choice: &Choice, began: Duration) -> Drill {
    Drill {
        session: choice.backup.session,
        label: choice.backup.label.clone(),
        start: seconds(began),
        stop: seconds(began),
        passed: false,
        checks: Vec::new(),
        recovery_type: settings.text(Opt::Type).unwrap_or("default").to_owned(),
        target: settings.text(Opt::Target).unwrap_or_default().to_owned(),
        version: choice.backup.version,
        consistent_millis: 0,
        query_millis: 0,
        recovered_millis: 0,
        lsn: 0,
        host: repos::host(),
        program: VERSION.to_owned(),
    }
}

/// All checks, one after the other. Only what cannot be checked without the one before is left out.
fn check(
    context: &Context<'_>,
    scratch: &mut Scratch,
    own: &[Own],
    end: Option<&ArchiveEnd>,
    checks: &mut Checks,
    drill: &mut Drill,
) -> Result<(), Failure> {
    let mut times = None;
    let recovered = checks.make("recovery", || match scratch.start(context) {
        Ok(found) => {
            times = Some(found);
            checks::reached(context, scratch, end, drill)
        }
        Err(failure) if failure.status() == Status::of(Kind::DbConnect) => {
            Ok((CheckResult::Failed, failure.to_string()))
        }
        Err(failure) => Err(failure),
    })?;
    if let Some(Times { consistent, recovered, query }) = times {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        drill.consistent_millis = consistent.map_or(0, millis);
        (drill.recovered_millis, drill.query_millis) = (millis(recovered), millis(query));
    }
    if recovered != CheckResult::Passed {
        return Ok(());
    }
    for one in own {
        checks.make(&format!("sql {}", one.name()), || one.check(context, scratch))?;
    }
    checks.make("pg_amcheck", || checks::amcheck(context, scratch))?;
    checks.make("page checksums", || checks::page_checksums(context, scratch))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cut_between_characters() {
        assert_eq!(short("ä".to_owned()), "ä");
        let cut = short("ä".repeat(DETAIL_BYTES_MAX));
        assert!(cut.len() <= DETAIL_BYTES_MAX && cut.ends_with("ä ..."));
    }
}
