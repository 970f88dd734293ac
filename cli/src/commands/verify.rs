//! `verify`: status 26 for damage, 82 if nothing but WAL is missing.

use super::Context;
use super::failures::Failures;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Opt, Repo, Settings};
use crate::render::verify::Weight;
use crate::render::{self, json};
use crate::repos;
use pgkeep_engine::clock::{Clock, SystemClock};
use pgkeep_engine::verify::{self, VerifyOptions, VerifyReport};
use pgkeep_engine::{Error, Kind};

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    check_keyless(settings)?;
    // Of what was read.
    let (mut damaged, mut lacking) = (Vec::new(), Vec::new());
    let is_json = settings.text(Opt::Output) == Some("json");
    let (mut objects, mut failures) = (Vec::new(), Failures::among(settings.target_repos().count()));
    let mut has_set = false;
    for repo in settings.target_repos() {
        // The others may be whole, or damaged.
        let Some(report) = failures.take(repo.key(), one(context, repo))? else { continue };
        has_set = true;
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
        let key = format!("repo{}", repo.key());
        match (report.is_damaged(), report.is_clean()) {
            (true, _) => damaged.push(key),
            (false, false) => lacking.push(key),
            (false, true) => {}
        }
    }
    if is_json && !objects.is_empty() {
        render::print(&json::to_text(objects.into()))?;
    }
    // A backup that one repository holds need not be in the others.
    if settings.is_given(Opt::Set) && has_set {
        failures.forgive_lack();
    }
    if let (false, Some(first)) = (failures.is_empty(), damaged.first().or(lacking.first())) {
        failures.tell(Command::Verify);
        let text = format!("not all repositories can be read, and {first} is not whole");
        return Err(Error::refused(Kind::Command, text).into());
    }
    failures.end(Command::Verify)?;
    match (damaged.as_slice(), lacking.as_slice()) {
        ([], []) => Ok(Status::OK),
        ([], _) => {
            let text = format!("WAL is missing from {}", lacking.join(" and "));
            Err(Error::refused(Kind::ArchiveTimeout, text).into())
        }
        ([one], _) => Err(Error::refused(Kind::Checksum, format!("{one} is damaged")).into()),
        _ => Err(Error::refused(Kind::Checksum, format!("{} are damaged", damaged.join(" and "))).into()),
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
