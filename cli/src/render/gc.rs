//! What `gc` did, for people and for programs.

use crate::size::human_size;
use pgkeep_engine::gc::{GcReport, OpenSession, Tally};
use serde_json::{Value, json};

/// The text.
#[must_use]
pub fn text(reports: &[(u16, GcReport)]) -> String {
    let mut out = String::new();
    for (key, report) in reports {
        let packs = |tally: &Tally| format!("{}, {} packs", human_size(tally.bytes), tally.packs);
        out.push_str(&format!("repo{key}\n"));
        let mut line = |name: &str, value: String| out.push_str(&format!("    {name:17} {value}\n"));
        line("stored", packs(&report.packs));
        line("removed", packs(&report.deleted));
        line("waiting", packs(&report.waiting));
        line("rewritten", format!("{}, to {}", packs(&report.rewritten), human_size(report.rewritten_to)));
        line("backups", format!("{}, and {} in the hands of readers", report.backups, report.pinned));
        line("generation", report.generation.to_string());
        for session in &report.open {
            line("not ended", format!("{} of {} in stanza {}", session.purpose, session.host, session.stanza));
        }
        for session in &report.fenced {
            line("given up", format!("{} of {} in stanza {}", session.purpose, session.host, session.stanza));
        }
        out.push('\n');
    }
    out
}

/// An array with an object for each repository.
#[must_use]
pub fn json(reports: &[(u16, GcReport)]) -> Value {
    let one = |(key, report): &(u16, GcReport)| {
        json!({
            "repo": key,
            "generation": report.generation,
            "published": report.published,
            "backup": report.backups,
            "pinned": report.pinned,
            "pack": {
                "total": tally(&report.packs),
                "condemned": tally(&report.condemned),
                "removed": tally(&report.deleted),
                "waiting": tally(&report.waiting),
                "rewritten": tally(&report.rewritten),
                "rewritten-to": report.rewritten_to,
            },
            "segment": report.segments,
            "session": {
                "removed": report.sessions,
                "open": report.open.iter().map(session).collect::<Vec<_>>(),
                "fenced": report.fenced.iter().map(session).collect::<Vec<_>>(),
            },
        })
    };
    Value::Array(reports.iter().map(one).collect())
}

fn tally(tally: &Tally) -> Value {
    json!({"count": tally.packs, "size": tally.bytes})
}

fn session(session: &OpenSession) -> Value {
    json!({
        "id": session.session.to_string(),
        "stanza": session.stanza,
        "purpose": session.purpose,
        "host": session.host,
        "generation": session.generation,
        "start": session.started,
        "seen": session.last_seen,
    })
}
