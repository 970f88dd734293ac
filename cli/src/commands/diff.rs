//! `diff`: which relations grew, shrank or changed between two backups, in pages and bytes.
//!
//! That is told from the two manifests and page hashes; the names come from the catalogs of a clone of the later backup,
//! which goes with the command. A relation that the later backup does not have any more, dropped or rewritten, has its
//! number only.

use super::Context;
use super::scratch::{self, Scratch, keeper};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, OptionError};
use crate::render::diff::{self as render_diff, Backups, Named, Names};
use crate::render::{self, json};
use crate::repos;
use pgkeep_engine::diff::{self, Diff};
use pgkeep_engine::repository::manifests::Manifest;
use pgkeep_engine::repository::{ChunkSource, Repository};
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::repo::records::Commit;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where every database can be asked about all of them.
const ANY_DATABASE: &str = "template1";
/// The tablespace whose files lie in `base`.
const DEFAULT_TABLESPACE: u32 = 1663;
/// Name of the newest backup.
const LATEST: &str = "latest";

/// Databases, one a line: oid, tablespace, whether it lets connections in, name.
const DATABASES: &str =
    "SELECT json_build_array(oid, dattablespace, datallowconn, datname) FROM pg_catalog.pg_database ORDER BY oid";
/// What has files, one a line: shared, tablespace or 0, number in the file name, schema, name, kind, and the table that an
/// index or a TOAST table belongs to.
const RELATIONS: &str = "SELECT json_build_array(c.relisshared, c.reltablespace, pg_catalog.pg_relation_filenode(c.oid), \
    n.nspname, c.relname, c.relkind, o.nspname, coalesce(t.relname, w.relname)) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid \
    LEFT JOIN pg_catalog.pg_class t ON t.oid = i.indrelid \
    LEFT JOIN pg_catalog.pg_class w ON w.reltoastrelid = c.oid AND c.relkind = 't' \
    LEFT JOIN pg_catalog.pg_namespace o ON o.oid = coalesce(t.relnamespace, w.relnamespace) \
    WHERE pg_catalog.pg_relation_filenode(c.oid) IS NOT NULL";

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::ReadyPipe) {
        return keeper::keep(context);
    }
    let (repository, before, after) = choose(context)?;
    tracing::info!("repo{}: backup {} compared with {}", repository.key(), after.label, before.label);
    let index = repository.load_index_to_read()?;
    let source = Arc::new(ChunkSource::new(Arc::clone(&repository), index, settings.stanza_name()));
    let open = |commit| Manifest::open(&source, commit).map(Arc::new);
    let found = diff::run(&open(&before)?, &open(&after)?, context.observer, context.cancel)?;
    let names = if settings.flag(Opt::Names) && !found.relations.is_empty() {
        names(context, &found, &after, repository.key())?
    } else {
        Names::default()
    };
    let backups = Backups { repository: repository.key(), before: &before, after: &after };
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(render_diff::json(&backups, &found, &names)))?;
    } else {
        render::print(&render_diff::text(&backups, &found, &names))?;
    }
    Ok(Status::OK)
}

/// The two backups, from the first repository that has both.
fn choose(context: &Context<'_>) -> Result<(Arc<Repository>, Commit, Commit), Failure> {
    let settings = context.settings;
    let (stanza, set) = (settings.stanza_name(), settings.text(Opt::Set).unwrap_or(LATEST));
    let mut refused = None;
    for repository in repos::usable(settings)? {
        let (backups, unreadable) = repository.backups_readable(stanza)?;
        let key = repository.key();
        for e in &unreadable {
            tracing::warn!("repo{key}: a backup is passed over, as its record cannot be read: {}", repos::chain(e));
        }
        let place = |label: &str| backups.iter().position(|b| b.label == label);
        let missing = |label: &str| {
            let text = format!("there is no backup {label} of stanza '{stanza}' in repo{key}");
            Error::refused(Kind::BackupSetInvalid, text)
        };
        let after = if set == LATEST { backups.len().checked_sub(1) } else { place(set) };
        let Some(after) = after else {
            refused.get_or_insert(missing(set));
            continue;
        };
        let before = match settings.text(Opt::CompareWith) {
            Some(label) => place(label).ok_or_else(|| missing(label)),
            None => after.checked_sub(1).ok_or_else(|| {
                let text = format!("there is no backup of stanza '{stanza}' before the first in repo{key}");
                Error::refused(Kind::BackupSetInvalid, text)
            }),
        };
        match before.map(|before| (backups.get(before), backups.get(after))) {
            Ok((Some(before), Some(after))) if before.label == after.label => {
                let message = format!("backup {} would be compared with itself", after.label);
                return Err(OptionError::new(Status::OPTION_INVALID_VALUE, message).into());
            }
            Ok((Some(before), Some(after))) => return Ok((repository, before.clone(), after.clone())),
            Ok(_) => {}
            Err(e) => _ = refused.get_or_insert(e),
        }
    }
    let none = || Error::refused(Kind::BackupSetInvalid, format!("stanza '{stanza}' has no backups to compare"));
    Err(refused.unwrap_or_else(none).into())
}

/// Asks a clone of the later backup for the names of what differs.
fn names(context: &Context<'_>, found: &Diff, after: &Commit, repository: u32) -> Result<Names, Failure> {
    let mut scratch = Scratch::open(context, &scratch::pinned(context.settings, &after.label, repository))?;
    let asked = ask(context, &mut scratch, found, after);
    let removed = scratch.finish();
    let names = asked?;
    removed?;
    Ok(names)
}

fn ask(context: &Context<'_>, scratch: &mut Scratch, found: &Diff, after: &Commit) -> Result<Names, Failure> {
    let label = scratch.recorded("label")?;
    if label != after.label {
        let text = format!("backup {label} was made meanwhile; name one by option 'set' or run the command again");
        return Err(Error::refused(Kind::BackupSetInvalid, text).into());
    }
    scratch.start(context)?;
    let mut names = Names::default();
    let wanted: BTreeSet<u32> = found.relations.keys().map(|key| key.database_oid).collect();
    let mut shared = wanted.contains(&0);
    for line in scratch.ask(context, ANY_DATABASE, DATABASES)?.lines() {
        let of = |row: &[Value]| {
            let [oid, tablespace, open, name] = row else { return None };
            Some((number(oid)?, number(tablespace)?, open.as_bool()?, name.as_str()?.to_owned()))
        };
        let (oid, tablespace, open, name) = parsed(line, of)?;
        // What is shared any of them tells.
        let asks = open && (wanted.contains(&oid) || std::mem::replace(&mut shared, false));
        if asks {
            for line in scratch.ask(context, &name, RELATIONS)?.lines() {
                names.add(oid, tablespace, parsed(line, line_of)?);
            }
        }
        names.databases.insert(oid, name);
    }
    Ok(names)
}

/// What a line of [`RELATIONS`] says.
struct Line {
    shared: bool,
    tablespace: u32,
    filenode: u32,
    named: Named,
}

fn line_of(row: &[Value]) -> Option<Line> {
    let [shared, tablespace, filenode, schema, name, kind, table_schema, table] = row else { return None };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named = Named {
        schema: text(schema)?,
        name: text(name)?,
        kind: text(kind)?,
        table: text(table_schema).zip(text(table)),
    };
    Some(Line { shared: shared.as_bool()?, tablespace: number(tablespace)?, filenode: number(filenode)?, named })
}

/// An oid; `json_build_array` makes text of some.
fn number(value: &Value) -> Option<u32> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => u32::try_from(other.as_u64()?).ok(),
    }
}

fn parsed<T>(line: &str, of: impl FnOnce(&[Value]) -> Option<T>) -> Result<T, Failure> {
    let row = serde_json::from_str::<Vec<Value>>(line).ok();
    row.as_deref().and_then(of).ok_or_else(|| {
        let text = format!("the clone's server answers with something unexpected: {line}");
        Error::refused(Kind::DbQuery, text).into()
    })
}

impl Names {
    fn add(&mut self, database: u32, default_tablespace: u32, line: Line) {
        let tablespace = if line.tablespace == 0 { default_tablespace } else { line.tablespace };
        let tablespace_oid = (!line.shared && tablespace != DEFAULT_TABLESPACE).then_some(tablespace);
        let database_oid = if line.shared { 0 } else { database };
        let key = diff::RelationKey { database_oid, tablespace_oid, filenode: line.filenode };
        self.relations.insert(key, line.named);
    }
}
