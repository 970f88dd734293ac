//! What `expire` decided, for people and for programs.

use crate::commands::why_all;
use crate::size::human_size;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgkeep_engine::expire::{ArchiveFate, BackupFate, ExpireReport, Fate, WalKeep};
use pgkeep_formats::repo::records::PINNED_FOR_EVER;
use serde_json::{Map, Value, json};

/// The text: every backup with why it stays or goes, then every archive.
#[must_use]
pub fn text(reports: &[(u16, ExpireReport)], zone: &TimeZone) -> String {
    let mut out = String::new();
    for (key, report) in reports {
        out.push_str(&format!("repo{key}\n\n    backups\n"));
        let rows: Vec<[String; 4]> = report
            .backups
            .iter()
            .map(|b| [word(&b.fate).to_owned(), b.backup.label.clone(), time(b.backup.stop, zone), why(&b.fate)])
            .collect();
        out.push_str(&columns(&rows));
        if rows.is_empty() {
            out.push_str("        none\n");
        }
        out.push_str("\n    archived WAL\n");
        for archive in &report.archives {
            out.push_str(&archive_text(archive));
        }
        if report.archives.is_empty() {
            out.push_str("        none\n");
        }
        out.push('\n');
    }
    out
}

fn word(fate: &Fate) -> &'static str {
    if fate.stays() { "stays" } else { "goes" }
}

fn why(fate: &Fate) -> String {
    match fate {
        Fate::Stays(reasons) => reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        Fate::Goes(reason) => reason.to_string(),
    }
}

fn archive_text(archive: &ArchiveFate) -> String {
    let id = &archive.archive_id;
    let mut out = match &archive.keep {
        WalKeep::All(reason) => format!("        {id}: all stays: {}\n", why_all(reason)),
        WalKeep::Nothing => format!("        {id}: all goes: it is of a former cluster that has no backup left\n"),
        WalKeep::Since { from, .. } => format!("        {id}: stays from {from} on\n"),
    };
    if let WalKeep::Since { ranges, .. } = &archive.keep {
        for range in ranges {
            out.push_str(&format!("            stays {} to {}: needed by {}\n", range.first, range.last, range.label));
        }
    }
    for (first, last) in &archive.removed.runs {
        out.push_str(&format!("            goes  {first} to {last}\n"));
    }
    let removed = &archive.removed;
    if removed.files > 0 {
        out.push_str(&format!("            {} files go, {}\n", removed.files, human_size(removed.bytes)));
    }
    out
}

/// Rows with their columns aligned, the last one ragged.
fn columns(rows: &[[String; 4]]) -> String {
    let width = |at: usize| rows.iter().filter_map(|r| r.get(at)).map(String::len).max().unwrap_or(0);
    let (first, second, third) = (width(0), width(1), width(2));
    let line = |[a, b, c, d]: &[String; 4]| format!("        {a:first$}  {b:second$}  {c:third$}  {d}\n");
    rows.iter().map(line).collect()
}

/// A time in a zone, to the second.
#[must_use]
pub fn time(seconds: i64, zone: &TimeZone) -> String {
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_zoned(zone.clone()).strftime("%F %T%:z").to_string(),
        Err(_) => seconds.to_string(),
    }
}

/// An array with an object for each repository.
#[must_use]
pub fn json(reports: &[(u16, ExpireReport)]) -> Value {
    let one = |(key, report): &(u16, ExpireReport)| {
        json!({
            "repo": key,
            "backup": report.backups.iter().map(backup_json).collect::<Vec<_>>(),
            "archive": report.archives.iter().map(archive_json).collect::<Vec<_>>(),
        })
    };
    Value::Array(reports.iter().map(one).collect())
}

fn backup_json(backup: &BackupFate) -> Value {
    let mut out = Map::new();
    out.insert("label".into(), backup.backup.label.clone().into());
    out.insert("type".into(), backup.backup.backup_type.as_str().into());
    out.insert("stop".into(), backup.backup.stop.into());
    out.insert("expire".into(), (!backup.fate.stays()).into());
    let reasons: Vec<String> = match &backup.fate {
        Fate::Stays(reasons) => reasons.iter().map(ToString::to_string).collect(),
        Fate::Goes(reason) => vec![reason.to_string()],
    };
    out.insert("reason".into(), reasons.into());
    if let Some(until) = backup.pinned_until {
        out.insert("pinned-until".into(), pinned(until));
    }
    Value::Object(out)
}

/// The end of a pin: seconds since the Unix epoch, or null if it has none.
#[must_use]
pub fn pinned(until: i64) -> Value {
    if until == PINNED_FOR_EVER { Value::Null } else { until.into() }
}

fn archive_json(archive: &ArchiveFate) -> Value {
    let run = |first: &String, last: &String| json!({"min": first, "max": last});
    let (keep, ranges) = match &archive.keep {
        WalKeep::All(reason) => (json!({"all": true, "reason": why_all(reason)}), Vec::new()),
        WalKeep::Nothing => (json!({"all": false, "from": Value::Null}), Vec::new()),
        WalKeep::Since { from, ranges, .. } => (
            json!({"all": false, "from": from}),
            ranges.iter().map(|r| json!({"min": r.first, "max": r.last, "backup": r.label})).collect(),
        ),
    };
    json!({
        "id": archive.archive_id,
        "keep": keep,
        "range": ranges,
        "expire": {
            "file": archive.removed.files,
            "size": archive.removed.bytes,
            "range": archive.removed.runs.iter().map(|(a, b)| run(a, b)).collect::<Vec<_>>(),
        },
    })
}
