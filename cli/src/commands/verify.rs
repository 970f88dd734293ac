//! `verify`: status 26 for damage, 82 if nothing but WAL is missing.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, Repo, Settings};
use crate::render::verify::Weight;
use crate::render::{self, json};
use crate::repos;
use pgkeep_engine::clock::{Clock, SystemClock};
use pgkeep_engine::verify::{self, VerifyOptions, VerifyReport};
use pgkeep_engine::{Error, Kind};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    check_keyless(settings)?;
    let mut worst: Option<(u16, bool)> = None;
    let is_json = settings.text(Opt::Output) == Some("json");
    let (mut objects, mut failure) = (Vec::new(), None);
    for repo in settings.target_repos() {
        let report = match one(context, repo) {
            Ok(report) => report,
            // What was found in the others may have taken hours.
            Err(e) => {
                failure = Some(e);
                break;
            }
        };
        match settings.text(Opt::Output) {
            Some("json") => objects.push(render::verify::json(repo.key().into(), &report)),
            Some("text") => render::print(&render::verify::text(&report, settings.flag(Opt::Verbose)))?,
            _ => {
                for line in render::verify::lines(&report, settings.flag(Opt::Verbose)) {
                    // The level says it as well.
                    let text = line.text.strip_prefix("warning: ").unwrap_or(&line.text);
                    match line.weight {
                        Weight::Info => tracing::info!("{text}"),
                        Weight::Warning => tracing::warn!("{text}"),
                        Weight::Error => tracing::error!("{text}"),
                    }
                }
            }
        }
        if !report.is_clean() {
            let damaged = report.is_damaged() || worst.is_some_and(|(_, damaged)| damaged);
            worst = Some((repo.key(), damaged));
        }
    }
    if is_json && !objects.is_empty() {
        render::print(&json::to_text(objects.into()))?;
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    match worst {
        None => Ok(Status::OK),
        Some((key, true)) => Err(Error::refused(Kind::Checksum, format!("repo{key} is damaged")).into()),
        Some((key, false)) => {
            Err(Error::refused(Kind::ArchiveTimeout, format!("WAL is missing from repo{key}")).into())
        }
    }
}

fn one(context: &Context<'_>, repo: Repo<'_>) -> Result<VerifyReport, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::Keyless) {
        let store = repos::store_of(settings, repo)?;
        return Ok(verify::scrub(&*store, settings.process_max(), context.observer, context.cancel)?);
    }
    let repository = repos::open(settings, repo)?;
    let now = SystemClock.now();
    let stanzas: Vec<String> = settings.stanza().map(str::to_owned).into_iter().collect();
    let options = VerifyOptions {
        stanzas: &stanzas,
        set: settings.text(Opt::Set),
        jobs: settings.process_max(),
        sample: settings.int(Opt::Sample).and_then(|percent| u8::try_from(percent).ok()),
        // Another part each time.
        seed: now.as_nanos() as u64,
        older_than: settings.is_given(Opt::DataOlderThan).then(|| settings.time(Opt::DataOlderThan)),
        now,
    };
    Ok(verify::run(&repository, &options, context.observer, context.cancel)?)
}

/// Without a key nothing is known of backups, nor of what was read before.
fn check_keyless(settings: &Settings) -> Result<(), Error> {
    let other = [Opt::Set, Opt::Sample, Opt::DataOlderThan].into_iter().find(|opt| settings.is_given(*opt));
    match other.filter(|_| settings.flag(Opt::Keyless)) {
        Some(opt) => {
            let text = format!("option '{}' is not valid with option 'keyless'", opt.def().name);
            Err(Error::refused(Kind::OptionInvalid, text))
        }
        None => Ok(()),
    }
}
