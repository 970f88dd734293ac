//! `info`.

use super::Context;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Cipher, Opt};
use crate::render::{self, json};
use crate::{repos, zone};
use pgkeep_engine::info::{self, CipherName, Detail, InfoOptions, RepoSource};
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::records::BackupType;

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.text(Opt::Output) == Some("prometheus") {
        // Metrics of a part would say that the rest is not there.
        let part = [Opt::Set, Opt::Type, Opt::DetailLevel].into_iter().find(|opt| settings.is_given(*opt));
        if let Some(opt) = part {
            let text = format!("option '{}' is not valid with option 'output' set to 'prometheus'", opt.def().name);
            return Err(Error::refused(Kind::OptionInvalid, text).into());
        }
    }
    let source = |repo: crate::option::Repo<'_>| {
        let cipher = if matches!(repo.cipher(), Cipher::None) { CipherName::None } else { CipherName::Sealed };
        Ok(RepoSource { key: repo.key().into(), cipher, access: repos::access(settings, repo)? })
    };
    let sources = settings.target_repos().map(source).collect::<Result<Vec<_>, Failure>>()?;
    let options = InfoOptions {
        stanza: settings.stanza(),
        set: settings.text(Opt::Set),
        backup_type: match settings.text(Opt::Type) {
            Some("full") => Some(BackupType::Full),
            Some("diff") => Some(BackupType::Diff),
            Some("incr") => Some(BackupType::Incr),
            _ => None,
        },
        detail: if settings.text(Opt::DetailLevel) == Some("progress") { Detail::Progress } else { Detail::Full },
        lock_path: Some(settings.lock_path()),
        now: Some(zone::now().timestamp().as_second()),
    };
    let info = info::gather(&sources, &options)?;
    render::print(&match settings.text(Opt::Output) {
        Some("json") => json::to_text(info.to_json()),
        Some("prometheus") => render::metrics::text(&info),
        _ => render::info::text(&info, &zone::local()),
    })?;
    Ok(Status::OK)
}
