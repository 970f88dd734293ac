//! Access traces of clones: kept in the repository of the backup, for the stanza, and read from there for the next clone.
//!
//! Nothing depends on them: what goes wrong with one is told, and the clone is served without.

use crate::option::{Opt, Settings};
use crate::{VERSION, repos};
use pgkeep_engine::repository::Repository;
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::Trace;
use pgkeep_fuse::clone::{Access, Keep, Load, Tracing};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a clone of a backup does with traces.
pub(super) fn of(settings: &Settings, repository: &Arc<Repository>, stanza: &str, session: SessionId) -> Tracing {
    if !settings.flag(Opt::CloneTrace) {
        return Tracing::default();
    }
    let (load, keep) = (load(Arc::clone(repository), stanza), keep(Arc::clone(repository), stanza, session));
    Tracing { load: Some(load), keep: Some(keep), near: repository.store().is_near() }
}

fn load(repository: Arc<Repository>, stanza: &str) -> Load {
    let stanza = stanza.to_owned();
    Box::new(move || {
        let key = repository.key();
        let (traces, problems) = match repository.traces(&stanza) {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!("repo{key}: what earlier clones needed first is not known: {}", repos::chain(&e));
                return Vec::new();
            }
        };
        if let Some(first) = problems.first() {
            let told = passed_over(key, problems.len(), &repos::chain(first));
            // With another at hand this clone is no worse for it.
            if traces.is_empty() { tracing::warn!("{told}") } else { tracing::info!("{told}") }
        }
        traces.into_iter().map(|t| Access { unit: t.unit, paths: t.paths, runs: t.runs }).collect()
    })
}

/// That records cannot be read: what they are, that nothing is lost, and what becomes of them.
fn passed_over(key: u32, count: usize, why: &str) -> String {
    let what = if count == 1 { "a record".to_owned() } else { format!("{count} records") };
    format!(
        "repo{key}: {what} of what earlier clones read first (an access trace) is ignored: nothing is lost, this clone fetches \
         pages when they are asked for; damaged ones go when a clone stores its own, and may be removed: {why}"
    )
}

fn keep(repository: Arc<Repository>, stanza: &str, session: SessionId) -> Keep {
    let stanza = stanza.to_owned();
    let mut earlier: Option<String> = None;
    Box::new(move |access: &Access| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let trace = Trace {
            session,
            unit: access.unit,
            paths: access.paths.clone(),
            runs: access.runs.clone(),
            created: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            host: repos::host(),
            program: VERSION.to_owned(),
        };
        let key = repository.key();
        match repository.put_trace(&stanza, now, &trace, earlier.as_deref()) {
            Ok(name) => {
                let regions: u64 = trace.runs.iter().map(|run| run.count).sum();
                tracing::info!("repo{key}: recorded what this clone needed first: {regions} regions in '{name}'");
                earlier = Some(name);
                true
            }
            // Who may only read the repository can clone all the same.
            Err(e) => {
                tracing::info!("repo{key}: what this clone needed first is not recorded: {}", repos::chain(&e));
                false
            }
        }
    })
}
