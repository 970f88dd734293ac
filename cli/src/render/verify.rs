//! What `verify` found, for people and for programs.

use crate::size::human_size;
use pgkeep_engine::verify::{BackupProblem, Flaw, GapKind, VerifyReport};
use serde_json::{Value, json};

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// What was looked at, and that all is well.
    Info,
    /// Somebody should look: recovery ends early, or something is odd.
    Warning,
    /// What was stored is gone, or not what it was.
    Error,
}

/// A line of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How much it matters.
    pub weight: Weight,
    /// What it says.
    pub text: String,
}

/// The text: damage, then backups hit, then a summary.
#[must_use]
pub fn text(report: &VerifyReport, verbose: bool) -> String {
    lines(report, verbose).into_iter().map(|line| line.text + "\n").collect()
}

/// The lines of the text.
#[must_use]
pub fn lines(report: &VerifyReport, verbose: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut line = |weight, text| lines.push(Line { weight, text });
    for d in &report.damage {
        line(Weight::Error, format!("{}: {} ({})", flaw(d.flaw), d.object, d.detail));
    }
    if let Some(more) = more(report.damage_total, report.damage.len()) {
        line(Weight::Error, format!("... and {more} more"));
    }
    for g in &report.gaps {
        let weight = match g.kind {
            GapKind::Needed => Weight::Error,
            GapKind::Lost | GapKind::Kept => Weight::Warning,
            GapKind::Expired | GapKind::Unused if verbose => Weight::Info,
            GapKind::Expired | GapKind::Unused => continue,
        };
        let (stanza, archive, first, last, kind) = (&g.stanza, &g.archive_id, &g.first, &g.last, gap(g.kind));
        line(weight, format!("WAL gap in {stanza} {archive}: {first} to {last} ({}, {kind})", g.segments));
    }
    for b in &report.backups {
        for p in &b.problems {
            let (weight, what) = if p.hinders_restore() {
                (Weight::Error, "cannot be restored whole")
            } else {
                (Weight::Warning, "can be restored, but garbage collection could take what it needs")
            };
            line(weight, format!("backup {} of {} {what}: {}", b.label, b.stanza, problem(p)));
        }
        for w in &b.windows {
            let (timeline, reaches, resumes) = (w.timeline, &w.reaches, &w.resumes);
            let ends = format!("recovery on timeline {timeline} ends with {reaches}; WAL goes on with {resumes}");
            line(Weight::Warning, format!("backup {} of {}: {ends}", b.label, b.stanza));
        }
        if verbose && b.problems.is_empty() && b.windows.is_empty() {
            line(Weight::Info, format!("backup {} of {}: ok", b.label, b.stanza));
        }
    }
    for warning in &report.warnings {
        line(Weight::Warning, format!("warning: {warning}"));
    }
    if let Some(more) = more(report.warnings_total, report.warnings.len()) {
        line(Weight::Warning, format!("warning: ... and {more} more"));
    }
    let c = &report.counts;
    let seen = format!(
        "verified {} packs ({}), {} chunks ({}), {} backups, {} archived files ({})",
        c.packs,
        human_size(c.pack_bytes),
        c.chunks,
        human_size(c.plain_bytes),
        c.backups,
        c.wal_files,
        human_size(c.wal_bytes)
    );
    line(Weight::Info, seen);
    if c.unread_packs + c.unread_wal > 0 {
        let (packs, bytes, wal) = (c.unread_packs, human_size(c.unread_bytes), c.unread_wal);
        line(Weight::Info, format!("{packs} packs ({bytes}) and {wal} archived files are there and were not read"));
    }
    if report.marked > 0 {
        let marked = format!(
            "{} packs are marked as damaged: later backups store again what they held, as far as the cluster still has it, \
             so take a full backup now",
            report.marked
        );
        line(Weight::Warning, marked);
    }
    if let Some(g) = report.garbage.filter(|g| g.packs > 0) {
        line(Weight::Info, format!("{} packs ({}) are used by no backup", g.packs, human_size(g.bytes)));
    }
    let (weight, status) = match (report.is_clean(), report.is_damaged()) {
        (true, _) => (Weight::Info, "ok"),
        (false, true) => (Weight::Error, "error"),
        (false, false) => (Weight::Warning, "error"),
    };
    line(weight, format!("status: {status}"));
    lines
}

/// How many are not named, if any.
fn more(total: u64, named: usize) -> Option<u64> {
    total.checked_sub(named as u64).filter(|more| *more > 0)
}

/// The JSON of one repository: an object, keys as in the text.
#[must_use]
pub fn json(repo: u32, report: &VerifyReport) -> Value {
    let c = &report.counts;
    json!({
        "repo": repo,
        "status": if report.is_clean() { "ok" } else { "error" },
        "damage-total": report.damage_total,
        "damage-more": more(report.damage_total, report.damage.len()).unwrap_or(0),
        "damage": report.damage.iter().map(|d| json!({"object": d.object, "flaw": flaw(d.flaw), "detail": d.detail})).collect::<Vec<_>>(),
        "gap": report.gaps.iter().map(|g| json!({
            "stanza": g.stanza, "archive": g.archive_id, "first": g.first, "last": g.last, "segments": g.segments, "kind": gap(g.kind),
        })).collect::<Vec<_>>(),
        "backup": report.backups.iter().map(|b| json!({
            "stanza": b.stanza, "label": b.label, "ok": b.problems.is_empty() && b.windows.is_empty(),
            "problem": b.problems.iter().map(problem).collect::<Vec<_>>(),
            "window": b.windows.iter().map(|w| json!({"timeline": w.timeline, "reaches": w.reaches, "resumes": w.resumes})).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "warning": report.warnings,
        "warning-more": more(report.warnings_total, report.warnings.len()).unwrap_or(0),
        "marked": report.marked,
        "garbage": report.garbage.map(|g| json!({"packs": g.packs, "bytes": g.bytes})),
        "count": {
            "packs": c.packs, "pack-bytes": c.pack_bytes, "chunks": c.chunks, "plain-bytes": c.plain_bytes, "backups": c.backups,
            "index-segments": c.index_segments, "wal-files": c.wal_files, "wal-bytes": c.wal_bytes, "records": c.records,
            "unread-packs": c.unread_packs, "unread-pack-bytes": c.unread_bytes, "unread-wal-files": c.unread_wal,
        },
    })
}

fn flaw(flaw: Flaw) -> &'static str {
    match flaw {
        Flaw::Missing => "missing",
        Flaw::Damaged => "damaged",
        Flaw::Unreadable => "unreadable",
        Flaw::Inconsistent => "inconsistent",
    }
}

fn gap(kind: GapKind) -> &'static str {
    match kind {
        GapKind::Needed => "needed by a backup",
        GapKind::Lost => "ends recovery early",
        GapKind::Kept => "kept by the backup that needs it",
        GapKind::Expired => "left by retention",
        GapKind::Unused => "before all backups",
    }
}

fn problem(problem: &BackupProblem) -> String {
    match problem {
        BackupProblem::Manifest { detail } => format!("its manifest cannot be read: {detail}"),
        BackupProblem::Files { count, named } => format!("{count} files are damaged: {}", named.join(", ")),
        BackupProblem::Wal { first, last } => format!("WAL {first} to {last} is missing or damaged"),
        BackupProblem::References { detail } => format!("its references: {detail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_engine::verify::{BackupVerdict, Damage, WalGap, WindowHit};

    fn damaged() -> VerifyReport {
        let damage = Damage { object: "packs/7".into(), flaw: Flaw::Missing, detail: "gone".into() };
        let gap = |kind| WalGap {
            stanza: "main".into(),
            archive_id: "17-1".into(),
            first: "3".into(),
            last: "4".into(),
            segments: 2,
            kind,
        };
        let window = WindowHit { timeline: 1, reaches: "2".into(), resumes: "5".into() };
        let references = BackupProblem::References { detail: "none".into() };
        let manifest = BackupProblem::Manifest { detail: "gone".into() };
        VerifyReport {
            damage: vec![damage],
            damage_total: 5,
            warnings: vec!["'x' is not part of a repository".into()],
            warnings_total: 3,
            backups: vec![BackupVerdict {
                stanza: "main".into(),
                label: "20240101-000000F".into(),
                problems: vec![manifest, references],
                windows: vec![window],
            }],
            gaps: [GapKind::Needed, GapKind::Lost, GapKind::Expired].map(gap).into(),
            marked: 1,
            ..VerifyReport::default()
        }
    }

    #[test]
    fn lines_weigh_what_they_tell() {
        use Weight::{Error, Info, Warning};
        let found: Vec<_> = lines(&damaged(), false).into_iter().map(|l| (l.weight, l.text)).collect();
        let expected = [
            (Error, "missing: packs/7 (gone)"),
            (Error, "... and 4 more"),
            (Error, "WAL gap in main 17-1: 3 to 4 (2, needed by a backup)"),
            (Warning, "WAL gap in main 17-1: 3 to 4 (2, ends recovery early)"),
            (Error, "backup 20240101-000000F of main cannot be restored whole: its manifest"),
            (Warning, "backup 20240101-000000F of main can be restored, but"),
            (Warning, "backup 20240101-000000F of main: recovery on timeline 1 ends with 2; WAL goes on with 5"),
            (Warning, "warning: 'x' is not part of a repository"),
            (Warning, "warning: ... and 2 more"),
            (Info, "verified 0 packs"),
            (Warning, "1 packs are marked as damaged"),
            (Error, "status: error"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for ((weight, text), (expected_weight, begin)) in found.iter().zip(expected) {
            assert!(*weight == expected_weight && text.starts_with(begin), "{weight:?} {text}, not {begin}");
        }
        let clean = lines(&VerifyReport::default(), true);
        assert!(clean.iter().all(|l| l.weight == Info) && clean.last().unwrap().text == "status: ok");
    }

    #[test]
    fn programs_are_told_how_many_are_not_named() {
        let found = json(1, &damaged());
        assert_eq!(
            (&found["damage-total"], &found["damage-more"], &found["warning-more"]),
            (&5.into(), &4.into(), &2.into())
        );
    }
}
