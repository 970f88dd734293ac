//! What `info` shows to people. Its layout is pgBackRest's, but programs should read the JSON.

use crate::size::human_size;
use jiff::tz::TimeZone;
use pgkeep_engine::info::{BackupInfo, Code, DrillInfo, Info, StanzaInfo};
use pgkeep_engine::repository::wal::WalHole;
use pgkeep_formats::repo::records::{CheckResult, PINNED_FOR_EVER};

/// Holes in the WAL of a cluster that are listed.
const HOLES_MAX: usize = 10;

/// The text; times in `zone`.
#[must_use]
pub fn text(info: &Info, zone: &TimeZone) -> String {
    if info.stanzas.is_empty() {
        return "No stanzas exist in the repository.\n".to_owned();
    }
    info.stanzas.iter().map(|s| stanza(s, zone)).collect::<Vec<_>>().join("\n")
}

fn stanza(s: &StanzaInfo, zone: &TimeZone) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("stanza: {}", s.name));
    match s.status.code {
        Code::Ok => line(format!("    status: ok{}", running(s))),
        Code::Mixed => line(format!("    status: mixed{}", running(s))),
        _ => line(format!("    status: error ({}){}", s.status.message, running(s))),
    }
    if s.status.code == Code::Mixed || s.repos.len() > 1 || s.status.code == Code::Other {
        for r in &s.repos {
            let status =
                if r.status.code == Code::Ok { "ok".to_owned() } else { format!("error ({})", r.status.message) };
            line(format!("        repo{}: {}", r.key, status.replace('\n', "\n            ")));
        }
    }
    if s.databases.is_empty() {
        return out;
    }
    line(format!("    cipher: {}", s.cipher.as_backrest()));
    // The newest says how the stanza stands, the newest one that passed since when.
    if let Some(newest) = s.drills.last() {
        line(drill(newest, zone));
        if !newest.drill.passed
            && let Some(good) = s.drills.iter().rfind(|d| d.drill.passed)
        {
            line(drill(good, zone));
        }
    }
    let mut seen = Vec::new();
    for db in &s.databases {
        let cluster = (db.version, db.system_id);
        if seen.contains(&cluster) {
            continue;
        }
        seen.push(cluster);
        let current = if s.current == Some(cluster) { "current" } else { "prior" };
        line(format!("\n    db ({current})"));
        let of_cluster = |repo_key: u32, id: u32| {
            s.databases.iter().any(|d| d.repo_key == repo_key && d.id == id && (d.version, d.system_id) == cluster)
        };
        let bounds: Vec<_> = s
            .archives
            .iter()
            .filter(|a| of_cluster(a.repo_key, a.history_id))
            .filter_map(|a| a.bounds.as_ref())
            .collect();
        let range = match (bounds.iter().map(|b| &b.0).min(), bounds.iter().map(|b| &b.1).max()) {
            (Some(min), Some(max)) => format!("{min}/{max}"),
            _ => "none present".to_owned(),
        };
        line(format!("        wal archive min/max ({}): {range}", db.version));
        let archives = s.archives.iter().filter(|a| of_cluster(a.repo_key, a.history_id));
        let holes: Vec<_> = archives.flat_map(|a| a.holes.iter().map(|hole| (a.repo_key, hole))).collect();
        holes.iter().take(HOLES_MAX).for_each(|(repo_key, hole)| line(missing(*repo_key, hole)));
        if let Some(more @ 1..) = holes.len().checked_sub(HOLES_MAX) {
            line(format!("        wal missing: in {more} more places"));
        }
        for b in s.backups.iter().filter(|b| of_cluster(b.repo_key, b.commit.history_id)) {
            line(backup(b, zone));
        }
    }
    out
}

/// `        wal missing (repo1): 0000000100000000000000A1/0000000100000000000000A4: recovery from backup 20261118-190000F ends …`
fn missing(repo_key: u32, hole: &WalHole) -> String {
    let (first, last, label) = (&hole.first, &hole.last, &hole.backup);
    let range = if first == last { first.clone() } else { format!("{first}/{last}") };
    let cost = if hole.is_needed {
        format!("backup {label} cannot be recovered, take a new one")
    } else {
        format!("recovery from backup {label} ends before it, take a new backup")
    };
    format!("        wal missing (repo{repo_key}): {range}: {cost}")
}

/// `    drill: failed 3 days ago (2026-11-18 20:00:00+00), backup 20261118-190000F of repo1: sql orders`
fn drill(d: &DrillInfo, zone: &TimeZone) -> String {
    let r = &d.drill;
    let time = match jiff::Timestamp::from_second(r.stop) {
        Ok(t) => t.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%:::z").to_string(),
        Err(_) => r.stop.to_string(),
    };
    let outcome = if r.passed { "passed" } else { "failed" };
    let age = d.age.map_or_else(String::new, |age| format!(" {} ago", ago(age)));
    let failed: Vec<_> = r.checks.iter().filter(|c| c.result == CheckResult::Failed).map(|c| &*c.name).collect();
    let failed = if failed.is_empty() { String::new() } else { format!(": {}", failed.join(", ")) };
    format!("    drill: {outcome}{age} ({time}), backup {} of repo{}{failed}", r.label, d.repo_key)
}

/// An age of this many seconds, in its largest unit.
fn ago(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let (size, unit) = UNITS.into_iter().find(|(size, _)| seconds >= *size).unwrap_or((1, "second"));
    let n = seconds / size;
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

fn running(s: &StanzaInfo) -> String {
    let done = |held: &pgkeep_engine::info::LockInfo| match held.progress {
        Some(p) if p.total > 0 => format!(" - {:.2}% complete", p.done as f64 * 100.0 / p.total as f64),
        _ => String::new(),
    };
    if s.locks.backup.held {
        format!(" (backup/expire running{})", done(&s.locks.backup))
    } else if s.locks.restore.held {
        format!(" (restore running{})", done(&s.locks.restore))
    } else {
        String::new()
    }
}

fn backup(b: &BackupInfo, zone: &TimeZone) -> String {
    let c = &b.commit;
    let time = |seconds: i64| match jiff::Timestamp::from_second(seconds) {
        Ok(t) => t.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%:::z").to_string(),
        Err(_) => seconds.to_string(),
    };
    let mut out = format!("\n        {} backup: {}\n", c.backup_type.as_str(), c.label);
    let mut line = |text: String| {
        out.push_str("            ");
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("timestamp start/stop: {} / {}", time(c.start), time(c.stop)));
    match &c.wal {
        Some((start, stop)) => line(format!("wal start/stop: {start} / {stop}")),
        None => line("wal start/stop: n/a".to_owned()),
    }
    if b.detailed
        && let Some((start, stop)) = c.lsn
    {
        line(format!("lsn start/stop: {:X}/{:X} / {:X}/{:X}", start >> 32, start as u32, stop >> 32, stop as u32));
    }
    line(format!("database size: {}, database backup size: {}", human_size(c.size), human_size(c.delta)));
    line(format!(
        "repo{}: backup set size: {}, backup size: {}",
        b.repo_key,
        human_size(c.repository_size),
        human_size(c.repository_delta)
    ));
    if !c.reference.is_empty() {
        line(format!("backup reference list: {}", c.reference.join(", ")));
    }
    if b.detailed {
        let list = b.databases().map(|(name, oid)| format!("{name} ({oid})")).collect::<Vec<_>>();
        line(format!("database list: {}", if list.is_empty() { "none".to_owned() } else { list.join(", ") }));
        if !c.links.is_empty() {
            line("symlinks:".to_owned());
            c.links.iter().for_each(|l| line(format!("    {} => {}", l.name, l.destination)));
        }
        if !c.tablespaces.is_empty() {
            line("tablespaces:".to_owned());
            c.tablespaces.iter().for_each(|t| line(format!("    {} ({}) => {}", t.name, t.oid, t.destination)));
        }
    }
    if !c.annotations.is_empty() && b.detailed {
        line("annotation(s)".to_owned());
        c.annotations.iter().for_each(|(k, v)| line(format!("    {k}: {v}")));
    }
    if let Some(until) = b.pinned_until {
        line(if until == PINNED_FOR_EVER {
            "pinned for ever".to_owned()
        } else {
            format!("pinned until {}", super::expire::time(until, zone))
        });
    }
    if b.error() == Some(true) {
        if b.detailed {
            line("error list: ".to_owned() + &c.error_list.join(", "));
        } else {
            line("error(s) detected during backup".to_owned());
        }
    }
    out.trim_end().to_owned()
}
