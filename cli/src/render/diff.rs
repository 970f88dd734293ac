//! What `diff` found, for people and for programs.

use super::stats::columns;
use crate::size::human_size;
use pgkeep_engine::diff::{Change, Diff, RelationKey};
use pgkeep_formats::repo::records::Commit;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What was compared.
#[derive(Debug, Clone, Copy)]
pub struct Backups<'a> {
    /// Number of the repository.
    pub repository: u32,
    /// The first backup.
    pub before: &'a Commit,
    /// The second.
    pub after: &'a Commit,
}

/// A relation as the catalogs call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `relkind` of `pg_class`.
    pub kind: String,
    /// Schema and name of the table that an index or a TOAST table belongs to.
    pub table: Option<(String, String)>,
}

/// What is known of names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Names of databases by oid.
    pub databases: BTreeMap<u32, String>,
    /// Names of relations.
    pub relations: BTreeMap<RelationKey, Named>,
}

impl Names {
    fn database(&self, oid: u32) -> Option<&str> {
        self.databases.get(&oid).map(String::as_str)
    }

    /// As people call it: `database: schema.name (index of schema.table)`, or its place.
    fn shown(&self, key: &RelationKey) -> String {
        let database = match (key.database_oid, self.database(key.database_oid)) {
            (0, _) => "shared".to_owned(),
            (_, Some(name)) => name.to_owned(),
            (oid, None) => format!("database {oid}"),
        };
        let Some(named) = self.relations.get(key) else {
            let space = key.tablespace_oid.map_or_else(String::new, |oid| format!(" in tablespace {oid}"));
            return format!("{database}: file {}{space}", key.filenode);
        };
        let of = match &named.table {
            Some((schema, table)) => format!(" of {schema}.{table}"),
            None => String::new(),
        };
        let what = kind(&named.kind);
        let what = if what == "table" && of.is_empty() { String::new() } else { format!(" ({what}{of})") };
        format!("{database}: {}.{}{what}", named.schema, named.name)
    }
}

/// `relkind` in a word.
fn kind(relkind: &str) -> &str {
    match relkind {
        "r" => "table",
        "i" => "index",
        "t" => "TOAST table",
        "S" => "sequence",
        "m" => "materialized view",
        other => other,
    }
}

/// Those that changed most come first.
fn sorted(diff: &Diff) -> Vec<(&RelationKey, &Change)> {
    let mut all: Vec<_> = diff.relations.iter().collect();
    all.sort_by_key(|(key, change)| (Reverse(change.pages()), **key));
    all
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), human_size)
}

/// The text: sums, then what differs, most first.
#[must_use]
pub fn text(backups: &Backups<'_>, diff: &Diff, names: &Names) -> String {
    let totals = &diff.totals;
    let page = u64::from(diff.page_size);
    let mut out = format!(
        "repo{}: {} compared with {}\n\n    relations: {} of {} differ, {} of {} in pages; other files: {} of {} differ\n",
        backups.repository,
        backups.after.label,
        backups.before.label,
        totals.relations_changed,
        totals.relations,
        human_size(totals.change.pages() * page),
        human_size(totals.change.after.unwrap_or(0)),
        totals.files_changed,
        totals.files
    );
    if !diff.relations.is_empty() {
        let head = ["relation", "before", "after", "changed", "added", "removed"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(sorted(diff).into_iter().map(|(key, change)| {
            let pages = [change.pages_changed, change.pages_added, change.pages_removed];
            let mut row = vec![names.shown(key), size(change.before), size(change.after)];
            row.extend(pages.map(|n| if n == 0 { "-".to_owned() } else { human_size(n * page) }));
            row
        }));
        out.push('\n');
        columns(&rows).iter().for_each(|line| out.push_str(&format!("    {line}\n")));
    }
    if !diff.files.is_empty() {
        let mut rows = vec![["file", "before", "after"].map(str::to_owned).to_vec()];
        rows.extend(diff.files.iter().map(|(path, c)| vec![path.clone(), size(c.before), size(c.after)]));
        out.push('\n');
        columns(&rows).iter().for_each(|line| out.push_str(&format!("    {line}\n")));
    }
    out
}

/// The JSON: bytes and pages as they are, null for what is not there or not known.
#[must_use]
pub fn json(backups: &Backups<'_>, diff: &Diff, names: &Names) -> Value {
    let page = u64::from(diff.page_size);
    let relations = sorted(diff).into_iter().map(|(key, change)| {
        let named = names.relations.get(key);
        let table = named.and_then(|n| n.table.as_ref());
        json!({
            "database": names.database(key.database_oid),
            "database-oid": key.database_oid,
            "tablespace-oid": key.tablespace_oid,
            "filenode": key.filenode,
            "schema": named.map(|n| &n.schema),
            "name": named.map(|n| &n.name),
            "kind": named.map(|n| kind(&n.kind)),
            "table": table.map(|(schema, name)| json!({"schema": schema, "name": name})),
            "before-bytes": change.before,
            "after-bytes": change.after,
            "changed-pages": change.pages_changed,
            "added-pages": change.pages_added,
            "removed-pages": change.pages_removed,
            "changed-bytes": change.pages() * page,
        })
    });
    let file = |(path, change): (&String, &Change)| json!({"name": path, "before-bytes": change.before, "after-bytes": change.after});
    let totals = &diff.totals;
    json!({
        "repo": backups.repository,
        "before": backups.before.label,
        "after": backups.after.label,
        "page-bytes": diff.page_size,
        "relations": totals.relations,
        "relations-changed": totals.relations_changed,
        "before-bytes": totals.change.before,
        "after-bytes": totals.change.after,
        "changed-pages": totals.change.pages_changed,
        "added-pages": totals.change.pages_added,
        "removed-pages": totals.change.pages_removed,
        "changed-bytes": totals.change.pages() * page,
        "files": totals.files,
        "files-changed": totals.files_changed,
        "relation": relations.collect::<Vec<_>>(),
        "file": diff.files.iter().map(file).collect::<Vec<_>>(),
    })
}
