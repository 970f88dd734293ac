//! Which backups retention keeps: pure, and the whole of the decision.
//!
//! Two families of rules. pgBackRest's count fulls and differentials, and what depends on a backup that goes, goes with
//! it. Rules that keep (`keep-*`, a policy, pins, a minimum) look at each backup alone, as each restores alone. A backup
//! goes only if no rule of either family keeps it; a family nobody configured keeps nothing, unless no rule is configured
//! at all, and then everything stays. The newest backup always stays.
//!
//! "Newest" is by label among pgBackRest's rules, as there, and by the end of the backup among the others: that is the
//! state it restores to.

use super::policy::{Period, Policy};
use crate::backup::full_of;
use crate::repository::Backup;
use jiff::tz::TimeZone;
use pgkeep_formats::id::SessionId;
use pgkeep_formats::repo::records::{BackupType, Note, PINNED_FOR_EVER};
use std::collections::BTreeMap;
use std::fmt;

const DAY: i64 = 24 * 3600;

/// What `repo-retention-full` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullRetention {
    /// So many of the newest full backups stay.
    Count(u32),
    /// Full backups that ended within so many days stay, and the newest of those that are older.
    Days(u32),
}

/// What is configured for a repository. The default keeps everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// `retention-full`.
    pub full: Option<FullRetention>,
    /// `retention-diff`: full and differential backups that count.
    pub diff: Option<u32>,
    /// `retention-archive`: backups since whose start WAL is kept without gaps.
    pub archive: Option<u32>,
    /// `retention-archive-type`: those that `archive` counts; full if none is given.
    pub archive_type: Option<BackupType>,
    /// `expire-dependents=n`: what was compared with an expired backup stays.
    pub spare_dependents: bool,
    /// `keep-*`: the newest backup of each of so many periods.
    pub keep: BTreeMap<Period, u32>,
    /// `retention-policy`.
    pub policy: Option<Policy>,
    /// `retention-minimum`: so many backups stay, whatever else holds.
    pub minimum: u32,
}

impl Retention {
    /// Whether pgBackRest's rules take part.
    fn counts(&self) -> bool {
        self.full.is_some() || self.diff.is_some()
    }

    /// Whether rules that keep take part.
    pub(super) fn keeps(&self) -> bool {
        self.policy.is_some() || !self.keep.is_empty()
    }
}

/// What may be asked for instead of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ask<'a> {
    /// Nothing: the rules.
    #[default]
    Rules,
    /// `--oldest`: one full backup less than there are.
    Oldest,
    /// `--set`: this backup and what depends on it.
    Set(&'a str),
    /// `--archive-expire-before`: no backup, only WAL before this segment.
    WalBefore(&'a str),
}

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing is configured.
    NoRule,
    /// pgBackRest's rules do not take it.
    Retention,
    /// It is the newest of a period.
    Period(Period, String),
    /// The policy needs it.
    Policy(Policy),
    /// It is pinned until then.
    Pinned(i64),
    /// So many must stay.
    Minimum(u32),
    /// It is the newest.
    Newest,
    /// Nobody asked for it.
    NotAsked,
    /// Another expire is about to mark it.
    Elsewhere,
}

impl fmt::Display for Keeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no retention is configured"),
            Self::Retention => f.write_str("no pgBackRest rule takes it"),
            Self::Period(period, name) => write!(f, "keep-{period}: {name}"),
            Self::Policy(policy) => write!(f, "retention-policy: {policy}"),
            Self::Pinned(PINNED_FOR_EVER) => f.write_str("pinned for ever"),
            Self::Pinned(until) => write!(f, "pinned until {}", utc(*until)),
            Self::Minimum(n) => write!(f, "retention-minimum={n}"),
            Self::Newest => f.write_str("the newest backup"),
            Self::NotAsked => f.write_str("not asked for"),
            Self::Elsewhere => f.write_str("another expire is at it"),
        }
    }
}

/// Why a backup goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goes {
    /// There are enough newer full backups.
    FullCount(u32),
    /// A newer full backup is older than these days.
    FullDays(u32),
    /// There are enough newer full and differential backups.
    Diff(u32),
    /// It was compared with this one, which pgBackRest's rules do not keep.
    DependsOn(String),
    /// No rule keeps it.
    NotKept,
    /// It was asked for.
    Asked,
}

impl fmt::Display for Goes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FullCount(n) => write!(f, "retention-full={n}"),
            Self::FullDays(n) => write!(f, "retention-full={n} days"),
            Self::Diff(n) => write!(f, "retention-diff={n}"),
            Self::DependsOn(label) => write!(f, "was compared with {label}, which is not kept"),
            Self::NotKept => f.write_str("no rule keeps it"),
            Self::Asked => f.write_str("asked for"),
        }
    }
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays, for all these reasons.
    Stays(Vec<Keeps>),
    /// It goes.
    Goes(Goes),
}

impl Fate {
    /// Whether it stays.
    #[must_use]
    pub fn stays(&self) -> bool {
        matches!(self, Self::Stays(_))
    }
}

/// What the decision is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    /// The visible backups, by label.
    pub backups: &'a [Backup],
    /// What was noted of them.
    pub notes: &'a BTreeMap<SessionId, Note>,
    /// Seconds since the Unix epoch.
    pub now: i64,
    /// Zone in which days begin.
    pub zone: &'a TimeZone,
}

impl Situation<'_> {
    /// Until when a backup is pinned, if it is.
    #[must_use]
    pub(super) fn pinned(&self, backup: &Backup) -> Option<i64> {
        self.notes.get(&backup.session).and_then(|n| n.pinned_until).filter(|until| *until > self.now)
    }
}

/// What becomes of each backup, in their order.
#[must_use]
pub(super) fn decide(situation: &Situation<'_>, retention: &Retention, ask: Ask<'_>) -> Vec<Fate> {
    let backups = situation.backups;
    let not_asked = || vec![Fate::Stays(vec![Keeps::NotAsked]); backups.len()];
    let unless = |goes: Vec<Option<Goes>>, stays: Keeps| {
        let fate = |goes: Option<Goes>| goes.map_or_else(|| Fate::Stays(vec![stays.clone()]), Fate::Goes);
        goes.into_iter().map(fate).collect()
    };
    let mut fates: Vec<Fate> = match ask {
        Ask::Rules => by_rules(situation, retention),
        Ask::Oldest => {
            let fulls = backups.iter().filter(|b| b.backup_type == BackupType::Full).count();
            let full = Some(FullRetention::Count(u32::try_from(fulls).unwrap_or(u32::MAX).saturating_sub(1).max(1)));
            let oldest = Retention { full, diff: None, ..retention.clone() };
            unless(counted(situation, &oldest), Keeps::NotAsked)
        }
        Ask::Set(label) => match backups.iter().position(|b| b.label == label) {
            Some(at) => {
                let mut goes = vec![None; backups.len()];
                take(backups, at, Goes::Asked, retention.spare_dependents, &mut goes);
                unless(goes, Keeps::NotAsked)
            }
            None => not_asked(),
        },
        Ask::WalBefore(_) => not_asked(),
    };
    // What stays whatever the rules say. What is asked for is refused instead, by the caller.
    let by_end = newest_first(backups);
    let minimum = retention.minimum as usize;
    for (rank, at) in by_end.into_iter().enumerate() {
        let (Some(backup), Some(fate)) = (backups.get(at), fates.get_mut(at)) else { continue };
        let pinned = situation.pinned(backup).map(Keeps::Pinned);
        let minimum = (rank < minimum).then_some(Keeps::Minimum(retention.minimum));
        let newest = (rank == 0).then_some(Keeps::Newest);
        let kept: Vec<Keeps> = pinned.into_iter().chain(minimum).chain(newest).collect();
        match fate {
            Fate::Stays(reasons) => reasons.extend(kept),
            Fate::Goes(_) if matches!(ask, Ask::Set(_) | Ask::Oldest) || kept.is_empty() => {}
            Fate::Goes(_) => *fate = Fate::Stays(kept),
        }
    }
    fates
}

fn by_rules(situation: &Situation<'_>, retention: &Retention) -> Vec<Fate> {
    let backups = situation.backups;
    if !retention.counts() && !retention.keeps() {
        return vec![Fate::Stays(vec![Keeps::NoRule]); backups.len()];
    }
    // A family that is not configured keeps nothing.
    let counted =
        if retention.counts() { counted(situation, retention) } else { vec![Some(Goes::NotKept); backups.len()] };
    let fate = |(goes, mut reasons): (Option<Goes>, Vec<Keeps>)| match goes {
        Some(goes) if reasons.is_empty() => Fate::Goes(goes),
        Some(_) => Fate::Stays(reasons),
        None => {
            reasons.insert(0, Keeps::Retention);
            Fate::Stays(reasons)
        }
    };
    counted.into_iter().zip(kept(situation, retention)).map(fate).collect()
}

/// pgBackRest's rules.
fn counted(situation: &Situation<'_>, retention: &Retention) -> Vec<Option<Goes>> {
    let backups = situation.backups;
    let mut goes = vec![None; backups.len()];
    let of = |wanted: &[BackupType]| -> Vec<usize> {
        (0..backups.len()).filter(|at| backups.get(*at).is_some_and(|b| wanted.contains(&b.backup_type))).collect()
    };
    let spare = retention.spare_dependents;
    let fulls = of(&[BackupType::Full]);
    match retention.full {
        Some(FullRetention::Count(n)) => {
            for at in fulls.iter().rev().skip(n as usize) {
                take(backups, *at, Goes::FullCount(n), spare, &mut goes);
            }
        }
        Some(FullRetention::Days(days)) => {
            let oldest = situation.now - i64::from(days) * DAY;
            let pivot = fulls.iter().rposition(|at| backups.get(*at).is_some_and(|b| b.stop < oldest));
            for at in fulls.iter().take(pivot.unwrap_or(0)) {
                take(backups, *at, Goes::FullDays(days), spare, &mut goes);
            }
        }
        None => {}
    }
    if !spare {
        take_orphans(backups, &fulls, situation.now, retention, &mut goes);
    }
    if let Some(n) = retention.diff {
        let counting: Vec<usize> = of(&[BackupType::Full, BackupType::Diff])
            .into_iter()
            .filter(|at| goes.get(*at).is_some_and(Option::is_none))
            .collect();
        for at in counting.iter().rev().skip(n as usize) {
            if backups.get(*at).is_some_and(|b| b.backup_type == BackupType::Diff) {
                take(backups, *at, Goes::Diff(n), spare, &mut goes);
            }
        }
    }
    goes
}

/// Takes backups that were copied here without their full, when it would have gone.
fn take_orphans(backups: &[Backup], fulls: &[usize], now: i64, retention: &Retention, goes: &mut [Option<Goes>]) {
    let fulls: Vec<&Backup> = fulls.iter().filter_map(|at| backups.get(*at)).collect();
    for (backup, slot) in backups.iter().zip(goes) {
        let full = full_of(&backup.label);
        if fulls.iter().any(|f| f.label == full) {
            continue;
        }
        let mut newer = fulls.iter().filter(|f| f.label.as_str() > full);
        let why = match retention.full {
            Some(FullRetention::Count(n)) if newer.clone().count() >= n as usize => Goes::FullCount(n),
            Some(FullRetention::Days(days)) if newer.any(|f| f.stop < now - i64::from(days) * DAY) => {
                Goes::FullDays(days)
            }
            _ => continue,
        };
        slot.get_or_insert(why);
    }
}

/// Takes a backup, and what depends on it.
fn take(backups: &[Backup], at: usize, why: Goes, spare_dependents: bool, goes: &mut [Option<Goes>]) {
    let Some(taken) = backups.get(at) else { return };
    let (label, set) = (&taken.label, format!("{}_", taken.label));
    let depends = |backup: &Backup| match taken.backup_type {
        // All that depend on a full have its label in theirs.
        BackupType::Full => backup.label.starts_with(&set),
        _ => backup.reference.contains(label),
    };
    if let Some(slot) = goes.get_mut(at) {
        slot.get_or_insert(why);
    }
    if spare_dependents {
        return;
    }
    for (backup, slot) in backups.iter().zip(goes) {
        if depends(backup) {
            slot.get_or_insert_with(|| Goes::DependsOn(label.clone()));
        }
    }
}

/// Why rules that keep do so, backup by backup.
fn kept(situation: &Situation<'_>, retention: &Retention) -> Vec<Vec<Keeps>> {
    let backups = situation.backups;
    let mut out = vec![Vec::new(); backups.len()];
    let by_end = newest_first(backups);
    let end = |at: usize| backups.get(at).map_or(0, |b| b.stop);
    for (period, most) in &retention.keep {
        let (mut last, mut left) = (None, *most);
        for at in &by_end {
            let name = period.of(end(*at), situation.zone, *at);
            if left > 0 && last.as_ref() != Some(&name) {
                left -= 1;
                if let Some(reasons) = out.get_mut(*at) {
                    let shown = name.split_once(" #").map_or(name.as_str(), |(time, _)| time);
                    reasons.push(Keeps::Period(*period, shown.to_owned()));
                }
                last = Some(name);
            }
        }
    }
    if let Some(policy) = retention.policy {
        let ends: Vec<i64> = by_end.iter().map(|at| end(*at)).collect();
        for at in by_end.iter().take(policy.needs(&ends, situation.now)) {
            if let Some(reasons) = out.get_mut(*at) {
                reasons.push(Keeps::Policy(policy));
            }
        }
    }
    out
}

/// Places of backups, the one that ended last first.
fn newest_first(backups: &[Backup]) -> Vec<usize> {
    let mut out: Vec<usize> = (0..backups.len()).collect();
    let key = |at: &usize| backups.get(*at).map(|b| (b.stop, b.label.as_str()));
    out.sort_by(|a, b| key(b).cmp(&key(a)));
    out
}

/// A time as people write it.
pub(super) fn utc(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.strftime("%F %TZ").to_string())
}
