//! `manifest`: the files of a backup, one a line or as one JSON document, as they come out of the repository.

use super::Context;
use super::repo_files::filter;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::Opt;
use crate::repos;
use pgkeep_engine::repository::ChunkSource;
use pgkeep_engine::repository::manifests::Manifest;
use pgkeep_engine::restore;
use pgkeep_formats::repo::manifest::{Entry, Node};
use pgkeep_formats::repo::records::Commit;
use serde_json::json;
use std::io::{BufWriter, StdoutLock, Write};
use std::sync::Arc;

/// How the root of the tree is called.
const ROOT: &str = ".";

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let filter = filter(settings)?;
    let set = settings.text(Opt::Set);
    let (repository, backup) = restore::find_backup(&repos::usable(settings)?, settings.stanza_name(), set)?;
    let index = repository.load_index_to_read()?;
    let source = Arc::new(ChunkSource::new(Arc::clone(&repository), index, settings.stanza_name()));
    let manifest = Arc::new(Manifest::open(&source, &backup)?);
    let mut out = Output {
        to: BufWriter::new(std::io::stdout().lock()),
        manifest: &manifest,
        is_json: settings.text(Opt::Output) == Some("json"),
        written: 0,
    };
    out.begin(&backup).map_err(Failure::Output)?;
    for entry in manifest.entries() {
        context.cancel.check()?;
        let entry = entry?;
        let path = if entry.path.is_empty() { ROOT } else { &entry.path };
        if filter.as_ref().is_none_or(|filter| filter.is_in(path)) {
            out.entry(path, &entry).map_err(Failure::Output)?;
        }
    }
    out.end().map_err(Failure::Output)?;
    Ok(Status::OK)
}

/// The listing on its way to standard output, entry by entry: a cluster may have millions of files.
struct Output<'a> {
    to: BufWriter<StdoutLock<'static>>,
    manifest: &'a Manifest,
    is_json: bool,
    written: u64,
}

impl Output<'_> {
    fn begin(&mut self, backup: &Commit) -> std::io::Result<()> {
        if self.is_json {
            let facts = json!({
                "label": backup.label,
                "type": backup.backup_type.as_str(),
                "timestamp": { "start": backup.start, "stop": backup.stop },
                "prior": backup.prior,
            });
            write!(self.to, "{{\"backup\":{facts},\"file\":[")?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, entry: &Entry) -> std::io::Result<()> {
        let (user, group) = (self.manifest.name(entry.user), self.manifest.name(entry.group));
        let (kind, letter, destination) = match &entry.node {
            Node::Directory => ("path", 'd', None),
            Node::LinkedDirectory(to) => ("path", 'd', Some(to)),
            Node::File => ("file", '-', None),
            Node::LinkedFile(to) => ("file", '-', Some(to)),
        };
        if self.is_json {
            let mut object = json!({
                "name": path,
                "type": kind,
                "mode": format!("{:04o}", entry.mode),
                "user": user,
                "group": group,
                "time": entry.modified,
            });
            if let Some(object) = object.as_object_mut() {
                if entry.is_file() {
                    object.insert("size".to_owned(), entry.size.into());
                }
                if let Some(to) = destination {
                    object.insert("destination".to_owned(), to.as_str().into());
                }
                if !entry.bad_pages.is_empty() {
                    object.insert("checksum-page-error".to_owned(), entry.bad_pages.as_slice().into());
                }
            }
            let before = if self.written == 0 { "" } else { "," };
            write!(self.to, "{before}{object}")?;
        } else {
            let time = jiff::Timestamp::from_second(entry.modified).unwrap_or_default();
            let time = time.to_zoned(crate::zone::local()).strftime("%Y-%m-%d %H:%M:%S");
            let arrow = destination.map(|to| format!(" -> {to}")).unwrap_or_default();
            let (mode, size) = (entry.mode, entry.size);
            writeln!(self.to, "{letter} {mode:04o} {user}:{group} {size:>12} {time} {path}{arrow}")?;
        }
        self.written += 1;
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<()> {
        if self.is_json {
            write!(self.to, "]}}")?;
        }
        self.to.flush()
    }
}
