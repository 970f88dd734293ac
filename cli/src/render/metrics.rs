//! What `info` tells a Prometheus: its text exposition format, every metric a gauge. Labels and numbers are those of the JSON.

use pgkeep_engine::info::{BackupInfo, Code, Info, StanzaInfo};
use pgkeep_formats::repo::records::BackupType;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A metric's name and meaning.
type Metric = (&'static str, &'static str);

const STANZA_STATUS: Metric = ("stanza_status", "Status code of the stanza over all repositories; 0 is ok.");
const REPOSITORY_STATUS: Metric = ("repository_status", "Status code of the stanza in one repository; 0 is ok.");
const BACKUP_RUNNING: Metric = ("backup_running", "1 while a backup or expire of the stanza runs on this host.");
const BACKUPS: Metric = ("backups", "Backups of this type.");
const BACKUP_LAST_START_TIMESTAMP_SECONDS: Metric =
    ("backup_last_start_timestamp_seconds", "When the newest backup of this type began.");
const BACKUP_LAST_STOP_TIMESTAMP_SECONDS: Metric =
    ("backup_last_stop_timestamp_seconds", "When the newest backup of this type ended.");
const BACKUP_LAST_DATABASE_BYTES: Metric =
    ("backup_last_database_bytes", "Size of the cluster in the newest backup of this type.");
const BACKUP_LAST_DATABASE_DELTA_BYTES: Metric =
    ("backup_last_database_delta_bytes", "What the newest backup of this type copied of it.");
const BACKUP_LAST_REPOSITORY_BYTES: Metric =
    ("backup_last_repository_bytes", "What the newest backup of this type uses of the repository, shared or not.");
const BACKUP_LAST_REPOSITORY_DELTA_BYTES: Metric =
    ("backup_last_repository_delta_bytes", "What the newest backup of this type added to the repository.");
const BACKUP_LAST_ERROR_FILES: Metric =
    ("backup_last_error_files", "Files with invalid page checksums in the newest backup of this type.");
const WAL_MISSING_SEGMENTS: Metric =
    ("wal_missing_segments", "WAL segments that recovery from the newest backup lacks.");
const WAL_MISSING_NEEDED: Metric = ("wal_missing_needed", "1 if a backup never becomes consistent for want of them.");
const DRILL_LAST_STOP_TIMESTAMP_SECONDS: Metric = ("drill_last_stop_timestamp_seconds", "When the newest drill ended.");
const DRILL_LAST_PASSED: Metric = ("drill_last_passed", "1 if no check of the newest drill failed.");

/// Samples of each metric: labels, and the value.
#[derive(Default)]
struct Samples(BTreeMap<Metric, Vec<(String, i128)>>);

impl Samples {
    fn add(&mut self, metric: Metric, labels: &[(&str, &str)], value: impl Into<i128>) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        self.0.entry(metric).or_default().push((labels.join(","), value.into()));
    }
}

/// The metrics of all stanzas.
#[must_use]
pub fn text(info: &Info) -> String {
    let mut samples = Samples::default();
    info.stanzas.iter().for_each(|s| stanza(s, &mut samples));
    let mut out = String::new();
    for ((name, help), all) in &samples.0 {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP pgkeep_{name} {help}\n# TYPE pgkeep_{name} gauge");
        for (labels, value) in all {
            let _ = writeln!(out, "pgkeep_{name}{{{labels}}} {value}");
        }
    }
    out
}

fn stanza(s: &StanzaInfo, out: &mut Samples) {
    let name = ("stanza", s.name.as_str());
    out.add(STANZA_STATUS, &[name], s.status.code as u8);
    out.add(BACKUP_RUNNING, &[name], s.locks.backup.held);
    for repo in &s.repos {
        let key = repo.key.to_string();
        let labels = [name, ("repo", key.as_str())];
        out.add(REPOSITORY_STATUS, &labels, repo.status.code as u8);
        // Of one that cannot be read, or not all of it, nothing else is known for certain.
        if repo.status.code == Code::Other {
            continue;
        }
        for backup_type in [BackupType::Full, BackupType::Diff, BackupType::Incr] {
            let of_type = |b: &&BackupInfo| b.repo_key == repo.key && b.commit.backup_type == backup_type;
            let all: Vec<&BackupInfo> = s.backups.iter().filter(of_type).collect();
            let labels = [name, ("repo", key.as_str()), ("type", backup_type.as_str())];
            out.add(BACKUPS, &labels, all.len() as u64);
            if let Some(newest) = all.last() {
                backup(newest, &labels, out);
            }
        }
        if let Some(newest) = s.drills.iter().rfind(|d| d.repo_key == repo.key) {
            out.add(DRILL_LAST_STOP_TIMESTAMP_SECONDS, &labels, newest.drill.stop);
            out.add(DRILL_LAST_PASSED, &labels, newest.drill.passed);
        }
    }
    let is_known = |key: u32| s.repos.iter().any(|r| r.key == key && r.status.code != Code::Other);
    for archive in s.archives.iter().filter(|a| is_known(a.repo_key)) {
        let (key, missing) = (archive.repo_key.to_string(), archive.holes.iter().map(|h| h.segments).sum::<u64>());
        let labels = [name, ("repo", key.as_str()), ("archive", archive.id.as_str())];
        out.add(WAL_MISSING_SEGMENTS, &labels, missing);
        out.add(WAL_MISSING_NEEDED, &labels, archive.holes.iter().any(|h| h.is_needed));
    }
}

fn backup(b: &BackupInfo, labels: &[(&str, &str)], out: &mut Samples) {
    let c = &b.commit;
    out.add(BACKUP_LAST_START_TIMESTAMP_SECONDS, labels, c.start);
    out.add(BACKUP_LAST_STOP_TIMESTAMP_SECONDS, labels, c.stop);
    out.add(BACKUP_LAST_DATABASE_BYTES, labels, c.size);
    out.add(BACKUP_LAST_DATABASE_DELTA_BYTES, labels, c.delta);
    out.add(BACKUP_LAST_REPOSITORY_BYTES, labels, c.repository_size);
    out.add(BACKUP_LAST_REPOSITORY_DELTA_BYTES, labels, c.repository_delta);
    out.add(BACKUP_LAST_ERROR_FILES, labels, c.error_list.len() as u64);
}

/// A label's value as the format has it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_engine::info::{ArchiveInfo, CipherName, Detail, Locks, RepoInfo, StanzaCipher, Status};
    use pgkeep_engine::repository::wal::WalHole;

    fn info() -> Info {
        let status = |code: Code| Status { code, message: code.message().to_owned() };
        let hole = WalHole {
            first: "000000010000000000000005".into(),
            last: "000000010000000000000007".into(),
            segments: 3,
            backup: "20260101-000000F".into(),
            is_needed: true,
        };
        let repo = |key, code| RepoInfo { key, cipher: CipherName::None, status: status(code) };
        Info {
            detail: Detail::Full,
            stanzas: vec![StanzaInfo {
                name: "a\"b".into(),
                status: status(Code::Mixed),
                locks: Locks::default(),
                cipher: StanzaCipher::Same(CipherName::None),
                repos: vec![repo(1, Code::NoBackup), repo(2, Code::Other)],
                databases: Vec::new(),
                archives: vec![ArchiveInfo {
                    id: "17-1".into(),
                    history_id: 1,
                    repo_key: 1,
                    bounds: None,
                    holes: vec![hole],
                }],
                backups: Vec::new(),
                drills: Vec::new(),
                current: None,
            }],
        }
    }

    #[test]
    fn samples_are_under_their_names_with_escaped_labels() {
        let text = text(&info());
        for line in [
            "# TYPE pgkeep_wal_missing_segments gauge",
            "pgkeep_stanza_status{stanza=\"a\\\"b\"} 4",
            "pgkeep_repository_status{stanza=\"a\\\"b\",repo=\"2\"} 99",
            "pgkeep_backups{stanza=\"a\\\"b\",repo=\"1\",type=\"full\"} 0",
            "pgkeep_wal_missing_segments{stanza=\"a\\\"b\",repo=\"1\",archive=\"17-1\"} 3",
            "pgkeep_wal_missing_needed{stanza=\"a\\\"b\",repo=\"1\",archive=\"17-1\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("pgkeep_backups{stanza=\"a\\\"b\",repo=\"2\""), "nothing is known of repo2\n{text}");
    }
}
