//! `repo-stats`: status 26 if a pack does not tell what it holds, after what could be counted was printed.

use super::Context;
use super::failures::Failures;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Opt};
use crate::render::{self, json};
use crate::repos;
use pgkeep_engine::stats::{self, StatsOptions};
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::layout;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let options = StatsOptions { stanza: settings.stanza(), set: settings.text(Opt::Set) };
    let (mut found, mut failures) = (Vec::new(), Failures::among(settings.target_repos().count()));
    for repo in settings.target_repos() {
        let counted = repos::open(settings, repo)
            .and_then(|repository| Ok(stats::run(&repository, &options, context.observer, context.cancel)?));
        if let Some(stats) = failures.take(repo.key(), counted)? {
            found.push((repo.key(), stats));
        }
    }
    if found.is_empty() {
        failures.end(Command::RepoStats)?;
        return Ok(Status::OK);
    }
    if settings.text(Opt::Output) == Some("json") {
        let all = found.iter().map(|(key, stats)| render::stats::json((*key).into(), stats)).collect();
        render::print(&json::to_text(all))?;
    } else {
        let all: Vec<_> = found.iter().map(|(key, stats)| render::stats::text((*key).into(), stats)).collect();
        render::print(&all.join("\n"))?;
    }
    let mut unreadable = 0;
    for (key, stats) in &found {
        for (pack, error) in &stats.packs.unreadable {
            tracing::warn!("repo{key}: '{}' is not counted: {}", layout::pack(*pack), repos::chain(error));
            unreadable += 1;
        }
    }
    failures.forgive_lack();
    failures.end(Command::RepoStats)?;
    if unreadable > 0 {
        let text = format!("{unreadable} packs do not tell what they hold");
        return Err(Error::refused(Kind::Checksum, text).into());
    }
    Ok(Status::OK)
}
