//! What `verify` found, for people and for programs.

use crate::size::human_size;
use pgkeep_engine::verify::{BackupProblem, Flaw, GapKind, VerifyReport};
use serde_json::{Value, json};

/// The text: damage, then backups hit, then a summary.
#[must_use]
pub fn text(report: &VerifyReport, verbose: bool) -> String {
    let mut lines = Vec::new();
    for d in &report.damage {
        lines.push(format!("{}: {} ({})", flaw(d.flaw), d.object, d.detail));
    }
    if report.damage_total > report.damage.len() as u64 {
        lines.push(format!("... and {} more", report.damage_total - report.damage.len() as u64));
    }
    for g in &report.gaps {
        if verbose || matches!(g.kind, GapKind::Needed | GapKind::Lost) {
            lines.push(format!(
                "WAL gap in {} {}: {} to {} ({}, {})",
                g.stanza,
                g.archive_id,
                g.first,
                g.last,
                g.segments,
                gap(g.kind)
            ));
        }
    }
    for b in &report.backups {
        for p in &b.problems {
            let what = if p.hinders_restore() {
                "cannot be restored whole"
            } else {
                "can be restored, but garbage collection could take what it needs"
            };
            lines.push(format!("backup {} of {} {what}: {}", b.label, b.stanza, problem(p)));
        }
        for w in &b.windows {
            let timeline = w.timeline;
            lines.push(format!(
                "backup {} of {}: recovery on timeline {timeline} ends with {}; WAL goes on with {}",
                b.label, b.stanza, w.reaches, w.resumes
            ));
        }
        if verbose && b.problems.is_empty() && b.windows.is_empty() {
            lines.push(format!("backup {} of {}: ok", b.label, b.stanza));
        }
    }
    lines.extend(report.warnings.iter().map(|w| format!("warning: {w}")));
    let c = &report.counts;
    lines.push(format!(
        "verified {} packs ({}), {} chunks ({}), {} backups, {} archived files ({})",
        c.packs,
        human_size(c.pack_bytes),
        c.chunks,
        human_size(c.plain_bytes),
        c.backups,
        c.wal_files,
        human_size(c.wal_bytes)
    ));
    if report.marked > 0 {
        lines.push(format!(
            "{} packs are marked as damaged: later backups store again what they held, as far as the cluster still has it, \
             so take a full backup now",
            report.marked
        ));
    }
    if let Some(g) = report.garbage.filter(|g| g.packs > 0) {
        lines.push(format!("{} packs ({}) are used by no backup", g.packs, human_size(g.bytes)));
    }
    lines.push(format!("status: {}", if report.is_clean() { "ok" } else { "error" }));
    lines.join("\n") + "\n"
}

/// The JSON of one repository: an object, keys as in the text.
#[must_use]
pub fn json(repo: u32, report: &VerifyReport) -> Value {
    let c = &report.counts;
    json!({
        "repo": repo,
        "status": if report.is_clean() { "ok" } else { "error" },
        "damage-total": report.damage_total,
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
        "marked": report.marked,
        "garbage": report.garbage.map(|g| json!({"packs": g.packs, "bytes": g.bytes})),
        "count": {
            "packs": c.packs, "pack-bytes": c.pack_bytes, "chunks": c.chunks, "plain-bytes": c.plain_bytes, "backups": c.backups,
            "index-segments": c.index_segments, "wal-files": c.wal_files, "wal-bytes": c.wal_bytes, "records": c.records,
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
