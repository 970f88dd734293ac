//! The files of the tree that no object holds: what readers look for in pgBackRest's, in its form of lines and JSON.
//!
//! Without the checksum at the end that pgBackRest's own files have: no program shall take this for a repository it may
//! work on. A manifest has no files in it: `mount` shows them.

use crate::repository::Backup;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::repo::records::StanzaHistory;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Version of pgBackRest's repository format whose readers understand this.
const FORMAT: u32 = 5;

type Pairs = Vec<(String, Value)>;

/// One text after the other, in sections.
#[derive(Default)]
struct Ini(String);

impl Ini {
    fn new() -> Self {
        Self::default().section(
            "backrest",
            vec![
                ("backrest-format".into(), json!(FORMAT)),
                ("backrest-version".into(), json!(env!("CARGO_PKG_VERSION"))),
            ],
        )
    }

    fn section(mut self, name: &str, mut pairs: Pairs) -> Self {
        if pairs.is_empty() {
            return self;
        }
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        let gap = if self.0.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.0, "{gap}[{name}]");
        for (key, value) in pairs {
            let _ = writeln!(self.0, "{key}={value}");
        }
        self
    }
}

fn pairs<const N: usize>(pairs: [(&str, Value); N]) -> Pairs {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn object(mut pairs: Pairs) -> Value {
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(Map::from_iter(pairs))
}

pub(super) fn archive_info(history: &[StanzaHistory]) -> String {
    let entry = |h: &StanzaHistory| {
        (
            h.id.to_string(),
            object(pairs([("db-id", json!(h.system_identifier)), ("db-version", json!(h.version.to_string()))])),
        )
    };
    let current = |h: &StanzaHistory| {
        pairs([
            ("db-id", json!(h.id)),
            ("db-system-id", json!(h.system_identifier)),
            ("db-version", json!(h.version.to_string())),
        ])
    };
    Ini::new()
        .section("db", history.last().map(current).unwrap_or_default())
        .section("db:history", history.iter().map(entry).collect())
        .0
}

fn cluster(h: &StanzaHistory) -> Pairs {
    pairs([
        ("db-catalog-version", json!(h.catalog_version)),
        ("db-control-version", json!(h.control_version)),
        ("db-system-id", json!(h.system_identifier)),
        ("db-version", json!(h.version.to_string())),
    ])
}

fn current_cluster(h: &StanzaHistory) -> Pairs {
    cluster(h).into_iter().chain(pairs([("db-id", json!(h.id))])).collect()
}

pub(super) fn backup_info(history: &[StanzaHistory], backups: &[Backup]) -> String {
    let entry = |h: &StanzaHistory| (h.id.to_string(), object(cluster(h)));
    Ini::new()
        .section("backup:current", backups.iter().map(|b| (b.label.clone(), object(summary(b)))).collect())
        .section("db", history.last().map(current_cluster).unwrap_or_default())
        .section("db:history", history.iter().map(entry).collect())
        .0
}

/// What is said of a backup in both files.
fn facts(b: &Backup) -> Pairs {
    let wal = |side: fn(&(String, String)) -> &String| json!(b.wal.as_ref().map(side));
    let mut out = pairs([
        ("backup-archive-start", wal(|w| &w.0)),
        ("backup-archive-stop", wal(|w| &w.1)),
        ("backup-timestamp-start", json!(b.start)),
        ("backup-timestamp-stop", json!(b.stop)),
        ("backup-type", json!(b.backup_type.as_str())),
    ]);
    if let Some((start, stop)) = b.lsn {
        let text = |lsn| json!(Lsn(lsn).to_string());
        out.extend(pairs([("backup-lsn-start", text(start)), ("backup-lsn-stop", text(stop))]));
    }
    if let Some(prior) = &b.prior {
        out.extend(pairs([("backup-prior", json!(prior))]));
    }
    out
}

fn options(b: &Backup) -> Pairs {
    pairs([("option-checksum-page", json!(b.page_checksums)), ("option-online", json!(b.online))])
}

fn summary(b: &Backup) -> Pairs {
    let mut out = facts(b);
    out.extend(options(b));
    out.extend(pairs([
        ("backrest-format", json!(FORMAT)),
        ("backrest-version", json!(b.program)),
        ("backup-error", json!(b.has_errors())),
        ("backup-info-repo-size", json!(b.repository_size)),
        ("backup-info-repo-size-delta", json!(b.repository_delta)),
        ("backup-info-size", json!(b.size)),
        ("backup-info-size-delta", json!(b.delta)),
        ("db-id", json!(b.history_id)),
    ]));
    if !b.reference.is_empty() {
        out.extend(pairs([("backup-reference", json!(b.reference))]));
    }
    if !b.annotations.is_empty() {
        out.extend(pairs([("backup-annotation", json!(b.annotations))]));
    }
    out
}

pub(super) fn manifest(history: &[StanzaHistory], b: &Backup) -> String {
    let mut backup = facts(b);
    let references = b.reference.iter().chain([&b.label]).map(String::as_str).collect::<Vec<_>>().join(",");
    backup.extend(pairs([("backup-label", json!(b.label)), ("backup-reference", json!(references))]));
    let of = history.iter().find(|h| h.id == b.history_id);
    let tablespaces = b.tablespaces.iter().map(|t| {
        let facts = pairs([
            ("path", json!(t.destination)),
            ("tablespace-id", json!(t.oid.to_string())),
            ("tablespace-name", json!(t.name)),
            ("type", json!("link")),
        ]);
        (format!("pg_tblspc/{}", t.oid), object(facts))
    });
    let links = b.links.iter().map(|l| {
        (format!("pg_data/{}", l.name), object(pairs([("path", json!(l.destination)), ("type", json!("link"))])))
    });
    let databases = b.databases.iter().map(|d| (d.name.clone(), object(pairs([("db-id", json!(d.oid))]))));
    let notes = if b.annotations.is_empty() { Vec::new() } else { pairs([("annotation", json!(b.annotations))]) };
    Ini::new()
        .section("backup", backup)
        .section("backup:db", of.map(current_cluster).unwrap_or_default())
        .section("backup:option", options(b))
        .section("backup:target", tablespaces.chain(links).collect())
        .section("db", databases.collect())
        .section("metadata", notes)
        .0
}
