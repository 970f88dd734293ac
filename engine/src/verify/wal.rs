//! Archived files: each is opened, its content hashed, and a segment's first page compared with its name and cluster.

use super::gaps::{self, Gaps, Need, Present};
use super::report::{BackupProblem, BackupVerdict, Findings, Flaw, GapKind, WalGap, WindowHit};
use super::selection::Selection;
use super::workers;
use crate::observe::{Cancel, Counter, Observer};
use crate::repository::wal::WalRange;
use crate::repository::{Backup, Repository};
use crate::{Error, Kind, Result};
use pgkeep_formats::pg::timeline::{TimelineHistory, TimelineId};
use pgkeep_formats::pg::wal::{ArchiveName, SegmentName, WalHeader, WalSegment, WalSegmentSize};
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::StanzaHistory;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names read together: enough work for all threads, little memory.
const BATCH: usize = 256;

/// What was seen of an archive.
#[derive(Default)]
struct Seen {
    /// Whole segments that were read in this batch; merged in order afterwards.
    whole: Vec<SegmentName>,
    size: Option<WalSegmentSize>,
    histories: BTreeMap<u32, TimelineHistory>,
    /// Files that are there, but not whole.
    bad: HashSet<String>,
}

/// Verifies one archive of a stanza; `backups` are those that need it, with their verdicts, `former` those of the stanza that
/// have expired: retention has left holes beside their WAL.
#[expect(clippy::too_many_arguments, reason = "one call, and the pieces have nothing in common")]
pub(super) fn check(
    repository: &Repository,
    stanza: &str,
    archive_id: &str,
    history: Option<&StanzaHistory>,
    backups: &mut [(&Backup, &mut BackupVerdict)],
    former: &[Backup],
    range: WalRange<'_>,
    jobs: usize,
    selection: &Selection,
    findings: &Findings,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Vec<WalGap>> {
    let seen = Mutex::new(Seen::default());
    let mut segments = Vec::new();
    let mut batch = Vec::with_capacity(BATCH);
    let read = |batch: &mut Vec<String>, segments: &mut Vec<SegmentName>| -> Result<()> {
        let reader = Reader { repository, stanza, archive_id, history, selection, findings, observer, seen: &seen };
        workers::each(jobs, batch.drain(..), cancel, |name| reader.file(&name))?;
        segments.append(&mut lock(&seen).whole);
        Ok(())
    };
    repository.wal_list(stanza, archive_id, range, &mut |entry| {
        batch.push(entry.name);
        if batch.len() >= BATCH { read(&mut batch, &mut segments) } else { Ok(()) }
    })?;
    read(&mut batch, &mut segments)?;
    let recorded = backups.first().and_then(|(b, _)| WalSegmentSize::new(b.wal_segment_size));
    let Some(size) = lock(&seen).size.or(recorded) else { return Ok(Vec::new()) };
    let needs = needs(backups, size, findings, stanza);
    let former: Vec<Need> =
        former.iter().filter(|b| b.archive_id() == archive_id).filter_map(|b| need(b, 0, size)).collect();
    let mut found = find(&mut segments, &needs, &former, &lock(&seen).histories, size);
    // A running server archives in parallel: what was missing when its directory was listed may be there by now.
    for (first, last) in names_of(&found, size) {
        let range = WalRange { from: Some(&first), to: Some(&last) };
        repository.wal_list(stanza, archive_id, range, &mut |entry| {
            if !lock(&seen).bad.contains(&entry.name) {
                batch.push(entry.name);
            }
            Ok(())
        })?;
    }
    if !batch.is_empty() {
        read(&mut batch, &mut segments)?;
        found = find(&mut segments, &needs, &former, &lock(&seen).histories, size);
    }
    let present = present(&segments, size);
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    check_timelines(stanza, archive_id, &present, &seen.histories, findings);
    tell(&found, backups, size);
    Ok(describe(&found, stanza, archive_id, size))
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn present(segments: &[SegmentName], size: WalSegmentSize) -> Present {
    let mut present = Present::default();
    for segment in segments.iter().filter_map(|name| name.segment(size).ok()) {
        present.add(segment.timeline.0, segment.number);
    }
    present
}

fn find(
    segments: &mut Vec<SegmentName>,
    needs: &[Need],
    former: &[Need],
    histories: &BTreeMap<u32, TimelineHistory>,
    size: WalSegmentSize,
) -> Gaps {
    segments.sort_unstable();
    segments.dedup();
    gaps::find(&present(segments, size), needs, former, histories, size)
}

/// First and last name of each hole that does harm.
fn names_of(found: &Gaps, size: WalSegmentSize) -> Vec<(String, String)> {
    let harmful = |k: &GapKind| matches!(k, GapKind::Needed | GapKind::Lost);
    let names = |h: &gaps::Hole| (name(h.timeline, h.first, size), name(h.timeline, h.last, size));
    found.holes.iter().filter(|(_, kind)| harmful(kind)).map(|(hole, _)| names(hole)).collect()
}

struct Reader<'a> {
    repository: &'a Repository,
    stanza: &'a str,
    archive_id: &'a str,
    history: Option<&'a StanzaHistory>,
    selection: &'a Selection,
    findings: &'a Findings,
    observer: &'a dyn Observer,
    seen: &'a Mutex<Seen>,
}

impl Reader<'_> {
    fn file(&self, name: &str) -> Result<()> {
        let object = layout::wal(self.stanza, self.archive_id, name);
        let Ok(kind) = ArchiveName::parse(name) else {
            self.findings.warn(format!("'{object}' is not an archived file"));
            return Ok(());
        };
        // Histories are small, and say what the paths are.
        if !matches!(kind, ArchiveName::History(_)) && !self.selection.picks(&object) {
            self.findings.count(|c| c.unread_wal += 1);
            if let ArchiveName::Segment(segment) = kind {
                lock(self.seen).whole.push(segment);
            }
            return Ok(());
        }
        let content = match self.repository.wal_get(self.stanza, self.archive_id, name) {
            Ok(Some(content)) => content,
            // Expired since it was listed, or listed in a place where it does not belong.
            Ok(None) => return Ok(()),
            Err(e) => return self.bad(name, &object, e),
        };
        let len = content.len() as u64;
        self.findings.count(|c| {
            c.wal_files += 1;
            c.wal_bytes += len;
        });
        self.observer.add(Counter::Done, len);
        self.observer.add(Counter::Files, 1);
        let judged = match kind {
            ArchiveName::Segment(segment) => self.segment(&object, segment, &content),
            ArchiveName::History(timeline) => self.timeline(&object, timeline, &content),
            ArchiveName::Partial(_) | ArchiveName::Backup { .. } => Ok(()),
        };
        match judged {
            Ok(()) => {
                self.selection.is_whole(&object);
                Ok(())
            }
            Err(e) => self.bad(name, &object, e),
        }
    }

    fn bad(&self, name: &str, object: &str, error: Error) -> Result<()> {
        self.findings.failure(object, error)?;
        lock(self.seen).bad.insert(name.to_owned());
        Ok(())
    }

    fn timeline(&self, object: &str, timeline: TimelineId, content: &[u8]) -> Result<()> {
        let history = TimelineHistory::parse(timeline, content).map_err(Error::damaged(object))?;
        lock(self.seen).histories.insert(timeline.0, history);
        Ok(())
    }

    fn segment(&self, object: &str, name: SegmentName, content: &[u8]) -> Result<()> {
        let header = WalHeader::parse(content).map_err(Error::damaged(object))?;
        let wrong = |what: String| Err(Error::refused(Kind::ArchiveMismatch, format!("'{object}' {what}")));
        let foreign =
            |h: &&StanzaHistory| header.system_identifier != h.system_identifier || header.major() != h.version;
        if let Some(history) = self.history.filter(foreign) {
            return wrong(format!(
                "is of PostgreSQL {} with system identifier {}, not of {} with {}",
                header.major(),
                header.system_identifier,
                history.version,
                history.system_identifier
            ));
        }
        if content.len() as u64 != header.segment_size.bytes() {
            return wrong(format!("has {} bytes instead of {}", content.len(), header.segment_size.bytes()));
        }
        let found = header.segment();
        // The timeline of the first page may be an ancestor's.
        let own = name.segment(header.segment_size).map_err(Error::damaged(object))?;
        if found.number != own.number || found.timeline > own.timeline {
            return wrong(format!("holds the pages of segment {}", found.name(header.segment_size)));
        }
        let mut seen = lock(self.seen);
        seen.size.get_or_insert(header.segment_size);
        seen.whole.push(name);
        Ok(())
    }
}

/// Without its history file recovery cannot find a timeline from its ancestor.
fn check_timelines(
    stanza: &str,
    archive_id: &str,
    present: &Present,
    histories: &BTreeMap<u32, TimelineHistory>,
    findings: &Findings,
) {
    let first = present.timelines().next();
    for timeline in present.timelines().filter(|t| *t > 1 && !histories.contains_key(t)) {
        let object = layout::wal(stanza, archive_id, &TimelineId(timeline).history_file_name());
        if first.is_some_and(|first| first < timeline) {
            findings.damage(&object, Flaw::Missing, format!("timeline {timeline} has WAL but no history file"));
        } else {
            findings.warn(format!("timeline {timeline} of '{stanza}' has WAL but no history file '{object}'"));
        }
    }
}

fn needs(
    backups: &[(&Backup, &mut BackupVerdict)],
    size: WalSegmentSize,
    findings: &Findings,
    stanza: &str,
) -> Vec<Need> {
    let mut needs = Vec::new();
    for (number, (backup, _)) in backups.iter().enumerate() {
        let Some((start, stop)) = &backup.wal else { continue };
        match need(backup, number, size) {
            Some(need) => needs.push(need),
            None => findings.damage(
                &layout::backup(stanza, backup.session),
                Flaw::Inconsistent,
                format!("it needs WAL from {start} to {stop}, which is no range"),
            ),
        }
    }
    needs
}

/// The range a backup needs; none if it needs none, or says what is no range.
fn need(backup: &Backup, number: usize, size: WalSegmentSize) -> Option<Need> {
    let (start, stop) = backup.wal.as_ref()?;
    let (start, stop) = (WalSegment::parse(start, size).ok()?, WalSegment::parse(stop, size).ok()?);
    let (timeline, first, last) = (start.timeline.0, start.number, stop.number);
    let is_range = start.timeline == stop.timeline && first <= last;
    let is_kept = backup.keeps_wal;
    is_range.then_some(Need { backup: number, timeline, first, last, is_kept })
}

fn name(timeline: u32, number: u64, size: WalSegmentSize) -> String {
    WalSegment { timeline: TimelineId(timeline), number }.name(size)
}

/// Adds to the verdicts what the gaps cost.
fn tell(found: &Gaps, backups: &mut [(&Backup, &mut BackupVerdict)], size: WalSegmentSize) {
    for (number, costs) in &found.costs {
        let Some((_, verdict)) = backups.get_mut(*number) else { continue };
        for cost in costs {
            match *cost {
                gaps::Cost::Consistency(hole) => verdict.problems.push(BackupProblem::Wal {
                    first: name(hole.timeline, hole.first, size),
                    last: name(hole.timeline, hole.last, size),
                }),
                gaps::Cost::Window { timeline, reaches, resumes } => verdict.windows.push(WindowHit {
                    timeline,
                    reaches: name(reaches.0, reaches.1, size),
                    resumes: name(resumes.0, resumes.1, size),
                }),
            }
        }
    }
}

fn describe(found: &Gaps, stanza: &str, archive_id: &str, size: WalSegmentSize) -> Vec<WalGap> {
    let gap = |(hole, kind): (&gaps::Hole, &GapKind)| WalGap {
        stanza: stanza.to_owned(),
        archive_id: archive_id.to_owned(),
        first: name(hole.timeline, hole.first, size),
        last: name(hole.timeline, hole.last, size),
        segments: hole.last - hole.first + 1,
        kind: *kind,
    };
    found.holes.iter().map(gap).collect()
}
