//! What a drill tells: text for people, JSON with the names that `info` has.

use crate::render::json;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::repo::records::Drill;
use serde_json::json;

/// The outcome, how long it took until the data could be used, and a line for each check.
pub(super) fn text(drill: &Drill, repo: u32) -> String {
    let outcome = if drill.passed { "passed" } else { "failed" };
    let mut out = format!("drill of backup {} of repo{repo}: {outcome}\n", drill.label);
    let seconds = |millis: u64| format!("{}.{:01} s", millis / 1000, millis % 1000 / 100);
    let times = [
        ("consistent", drill.consistent_millis),
        ("recovered", drill.recovered_millis),
        ("first query", drill.query_millis),
    ];
    let known: Vec<_> = times.iter().filter(|(_, millis)| *millis > 0).collect();
    if !known.is_empty() {
        let known: Vec<_> = known.iter().map(|(what, millis)| format!("{what} after {}", seconds(*millis))).collect();
        out.push_str(&format!("    {}\n", known.join(", ")));
    }
    for check in &drill.checks {
        let detail = check.detail.replace('\n', "\n        ");
        let detail = if detail.is_empty() { detail } else { format!(": {detail}") };
        let (name, result) = (&check.name, check.result.as_str());
        out.push_str(&format!("    {name}: {result} ({}){detail}\n", seconds(check.millis)));
    }
    out
}

pub(super) fn json(drill: &Drill, repo: u32) -> String {
    let known = |n: u64| Some(n).filter(|n| *n > 0);
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let checks: Vec<_> = drill
        .checks
        .iter()
        .map(|c| {
            json!({
                "name": c.name,
                "result": c.result.as_str(),
                "milliseconds": c.millis,
                "detail": some(&c.detail),
            })
        })
        .collect();
    json::to_text(json!({
        "check": checks,
        "consistent-milliseconds": known(drill.consistent_millis),
        "first-query-milliseconds": known(drill.query_millis),
        "label": drill.label,
        "lsn": known(drill.lsn).map(|lsn| Lsn(lsn).to_string()),
        "passed": drill.passed,
        "recovered-milliseconds": known(drill.recovered_millis),
        "repo-key": repo,
        "target": some(&drill.target),
        "timestamp": { "start": drill.start, "stop": drill.stop },
        "type": some(&drill.recovery_type),
    }))
}
