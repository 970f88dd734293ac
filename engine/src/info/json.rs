//! The JSON that pgBackRest's readers know: its keys, in its (sorted) order; `drill` where there was one, and `missing` where WAL is.

use super::model::{
    ArchiveInfo, BackupInfo, CipherName, DatabaseInfo, Detail, DrillInfo, Info, LockInfo, Locks, RepoInfo,
    StanzaCipher, StanzaInfo, Status,
};
use crate::repository::wal::WalHole;
use pgkeep_formats::pg::lsn::Lsn;
use pgkeep_formats::repo::records::PINNED_FOR_EVER;
use serde_json::{Map, Value, json};

/// Version of pgBackRest's repository format whose readers understand this.
const BACKREST_FORMAT: u32 = 5;

impl CipherName {
    /// The word readers know. There is one for "sealed", and it names the cipher pgBackRest uses.
    #[must_use]
    pub fn as_backrest(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sealed => "aes-256-cbc",
        }
    }
}

impl StanzaCipher {
    /// The word readers know.
    #[must_use]
    pub fn as_backrest(self) -> &'static str {
        match self {
            Self::Same(cipher) => cipher.as_backrest(),
            Self::Mixed => "mixed",
        }
    }
}

/// An object with its keys sorted, which is how readers and people compare outputs.
fn object(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by_key(|(key, _)| *key);
    Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// Null for an empty list.
fn list_or_null(items: Vec<Value>) -> Value {
    if items.is_empty() { Value::Null } else { Value::Array(items) }
}

impl Info {
    /// The whole, as pgBackRest prints it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Array(self.stanzas.iter().map(|s| stanza(s, self.detail)).collect())
    }
}

fn stanza(s: &StanzaInfo, detail: Detail) -> Value {
    let mut pairs = vec![("name", json!(s.name)), ("status", stanza_status(&s.status, &s.locks))];
    if detail == Detail::Full {
        pairs.extend([
            ("archive", s.archives.iter().map(archive).collect()),
            ("backup", s.backups.iter().map(backup).collect()),
            ("cipher", json!(s.cipher.as_backrest())),
            ("db", s.databases.iter().map(database).collect()),
            ("repo", s.repos.iter().map(repo).collect()),
        ]);
        if !s.drills.is_empty() {
            pairs.push(("drill", s.drills.iter().map(drill).collect()));
        }
    }
    object(pairs)
}

fn status(s: &Status) -> [(&'static str, Value); 2] {
    [("code", json!(s.code as u8)), ("message", json!(s.message))]
}

fn stanza_status(s: &Status, locks: &Locks) -> Value {
    let mut backup = lock(&locks.backup);
    if !locks.backup_repos.is_empty() {
        let repos = locks.backup_repos.iter().map(|r| {
            let progress = [("size", json!(r.progress.total)), ("size-cplt", json!(r.progress.done))];
            object([("key", json!(r.key))].into_iter().chain(progress))
        });
        backup.push(("repo", repos.collect()));
    }
    let locks = object([("backup", object(backup)), ("restore", object(lock(&locks.restore)))]);
    object(status(s).into_iter().chain([("lock", locks)]))
}

fn lock(l: &LockInfo) -> Vec<(&'static str, Value)> {
    let mut pairs = vec![("held", json!(l.held))];
    // Readers divide by the size.
    if let Some(progress) = l.progress.filter(|p| p.total > 0) {
        pairs.extend([("size", json!(progress.total)), ("size-cplt", json!(progress.done))]);
    }
    pairs
}

fn repo(r: &RepoInfo) -> Value {
    let cipher = json!(r.cipher.as_backrest());
    object([("key", json!(r.key)), ("cipher", cipher), ("status", object(status(&r.status)))])
}

fn database(d: &DatabaseInfo) -> Value {
    object([
        ("id", json!(d.id)),
        ("repo-key", json!(d.repo_key)),
        ("system-id", json!(d.system_id)),
        ("version", json!(d.version.to_string())),
    ])
}

fn database_key(id: u32, repo_key: u32) -> Value {
    object([("id", json!(id)), ("repo-key", json!(repo_key))])
}

fn archive(a: &ArchiveInfo) -> Value {
    let bound = |side: fn(&(String, String)) -> &String| json!(a.bounds.as_ref().map(side));
    let mut pairs = vec![
        ("id", json!(a.id)),
        ("database", database_key(a.history_id, a.repo_key)),
        ("min", bound(|b| &b.0)),
        ("max", bound(|b| &b.1)),
    ];
    if !a.holes.is_empty() {
        pairs.push(("missing", a.holes.iter().map(hole).collect()));
    }
    object(pairs)
}

/// Ours: WAL that recovery from a backup lacks.
fn hole(h: &WalHole) -> Value {
    object([
        ("backup", json!(h.backup)),
        ("first", json!(h.first)),
        ("last", json!(h.last)),
        ("needed", json!(h.is_needed)),
        ("segments", json!(h.segments)),
    ])
}

fn backup(b: &BackupInfo) -> Value {
    let c = &b.commit;
    let wal = |side: fn(&(String, String)) -> &String| json!(c.wal.as_ref().map(side));
    let stored = object([("size", json!(c.repository_size)), ("delta", json!(c.repository_delta))]);
    let mut pairs = vec![
        ("archive", object([("start", wal(|w| &w.0)), ("stop", wal(|w| &w.1))])),
        ("backrest", object([("format", json!(BACKREST_FORMAT)), ("version", json!(c.program))])),
        ("database", database_key(c.history_id, b.repo_key)),
        ("info", object([("size", json!(c.size)), ("delta", json!(c.delta)), ("repository", stored)])),
        ("label", json!(c.label)),
        ("prior", json!(c.prior)),
        ("reference", list_or_null(c.reference.iter().map(|r| json!(r)).collect())),
        ("timestamp", object([("start", json!(c.start)), ("stop", json!(c.stop))])),
        ("type", json!(c.backup_type.as_str())),
    ];
    if let Some((start, stop)) = c.lsn {
        let text = |lsn| json!(Lsn(lsn).to_string());
        pairs.push(("lsn", object([("start", text(start)), ("stop", text(stop))])));
    }
    pairs.extend(b.error().map(|e| ("error", json!(e))));
    if !c.annotations.is_empty() {
        let notes: Map<String, Value> = c.annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        pairs.push(("annotation", Value::Object(notes)));
    }
    if let Some(until) = b.pinned_until {
        // A pin without end has a null.
        pairs.push(("pinned-until", json!(Some(until).filter(|until| *until != PINNED_FOR_EVER))));
    }
    if b.detailed {
        pairs.extend(details(b));
    }
    object(pairs)
}

/// Times of a drill are seconds, what it took milliseconds. What is not known is null.
fn drill(d: &DrillInfo) -> Value {
    let r = &d.drill;
    let known = |n: u64| json!(Some(n).filter(|n| *n > 0));
    let text = |t: &str| json!(Some(t).filter(|t| !t.is_empty()));
    let checks = r.checks.iter().map(|c| {
        object([
            ("name", json!(c.name)),
            ("result", json!(c.result.as_str())),
            ("milliseconds", json!(c.millis)),
            ("detail", text(&c.detail)),
        ])
    });
    object([
        ("age", json!(d.age)),
        ("check", checks.collect()),
        ("consistent-milliseconds", known(r.consistent_millis)),
        ("first-query-milliseconds", known(r.query_millis)),
        ("label", json!(r.label)),
        ("lsn", json!(Some(r.lsn).filter(|lsn| *lsn > 0).map(|lsn| Lsn(lsn).to_string()))),
        ("passed", json!(r.passed)),
        ("recovered-milliseconds", known(r.recovered_millis)),
        ("repo-key", json!(d.repo_key)),
        ("target", text(&r.target)),
        ("timestamp", object([("start", json!(r.start)), ("stop", json!(r.stop))])),
        ("type", text(&r.recovery_type)),
    ])
}

fn details(b: &BackupInfo) -> Vec<(&'static str, Value)> {
    let c = &b.commit;
    let databases = b.databases().map(|(name, oid)| object([("name", json!(name)), ("oid", json!(oid))]));
    let links = c.links.iter().map(|l| object([("name", json!(l.name)), ("destination", json!(l.destination))]));
    let tablespaces = c
        .tablespaces
        .iter()
        .map(|t| object([("name", json!(t.name)), ("oid", json!(t.oid)), ("destination", json!(t.destination))]));
    let mut pairs = vec![
        ("database-ref", databases.collect()),
        ("link", list_or_null(links.collect())),
        ("tablespace", list_or_null(tablespaces.collect())),
    ];
    if c.has_errors() {
        pairs.push(("error-list", json!(c.error_list)));
    }
    pairs
}
