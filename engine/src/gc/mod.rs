//! Garbage collection: the space of what no backup needs comes back, and nothing that one needs goes, whatever happens.
//!
//! Steps G1 to G7 of FORMAT.md's protocol, without locks: any number of collectors and writers at once, of which each
//! may stall or die anywhere. Nothing here decides by a clock but when a silent session is *tried* to be fenced, and who is
//! fenced cannot commit.
//!
//! Why it is safe, in the order of doing (`model.rs` tries all orders of steps, and that it fails without each of these):
//!
//! 1. *Condemn.* Lists are taken in this order: the newest generation n, packs, sessions, their ends, markers of expiry, pins.
//!    So whoever stored a listed pack had a session before sessions were listed, and a session without an end counts as
//!    open. Packs that no visible or pinned backup uses, of sessions that are not open, are condemned with number n + 1.
//! 2. *Publish.* Creating generation n + 1 makes it so; who finds it there has lost, and begins again. A session that began
//!    from n or before may use condemned packs; one that begins from n + 1 on does not, and none begins from n after that
//!    (W2). *A condemned pack stays condemned while it is there*, even if a backup comes to use it: it is then kept, but a
//!    writer never comes back to a pack which a slower collector may be about to delete.
//! 3. *Delete.* Sessions are listed, *then* all is marked afresh: what is condemned since c, still unused, and out of reach of
//!    every open session (none has a generation below c) will not be used by anybody any more. Commits that a fenced
//!    session makes all the same are not visible: its generation is below the boundary, and the catalogue lacks it.
//! 4. Entries of the index go before their packs, so that no index that is loaded from now on names what goes.
//! 5. What is in use of packs that are mostly dead is stored once more (`rewrite`), and the session's end says where. When a
//!    decision's catalogue has that session, a chunk is in use where it was moved to, if that is there and not
//!    condemned by this decision, and no more where it was: so one collector never takes the old place while another, going by
//!    another decision, takes the new one. Readers that miss a pack load the index anew.
//! 6. Records of sessions go once the boundary excludes their backups for ever, the marker of expiry last of all.
//!
//! A crash leaves a published decision that the next run carries out, index segments that supersede others, and packs that are
//! condemned and there.
//!
//! Memory: some 60 bytes a pack and for each backup, a bit for each chunk of one backup at a time, one index segment and
//! a replacement of at most 2^18 chunks (14 MiB). One million chunks are well below 256 MiB.

mod compact;
mod leftovers;
#[cfg(test)]
mod model;
mod refound;
mod report;
mod rewrite;
mod survey;
#[cfg(test)]
mod tests;

pub use refound::{Refounded, refound};
pub use report::{Fenced, GcReport, OpenSession, Tally};

use crate::clock::Clock;
use crate::crypto::{Scope, SessionSealer};
use crate::observe::{Cancel, Counter, Observer};
use crate::repository::Repository;
use crate::store::{Put, Range};
use crate::{Error, Kind, Result};
use pgkeep_formats::id::{PackId, SessionId};
use pgkeep_formats::repo::envelope::ObjectKind;
use pgkeep_formats::repo::layout;
use pgkeep_formats::repo::records::{Condemned, Generation};
use pgkeep_formats::repo::refs::Refs;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use survey::{Marks, Survey};

/// How often the plan is made anew because another collector published first.
const ATTEMPTS: usize = 8;

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions<'a> {
    /// Decide, and change nothing.
    pub dry_run: bool,
    /// A session without a sign of life for so long, by the store's clock, is fenced.
    pub silent_after: Duration,
    /// Which packs are looked for that are partly dead.
    pub rewrite: Rewrite,
    /// This host and process, for messages.
    pub host: &'a str,
}

/// When packs that are partly dead are rewritten. Finding them means reading the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// Never.
    Never,
    /// If a backup has expired of which there are records yet.
    AfterExpiry,
    /// Always.
    Always,
}

impl Default for GcOptions<'_> {
    fn default() -> Self {
        Self { dry_run: false, silent_after: crate::repository::SILENT_AFTER, rewrite: Rewrite::AfterExpiry, host: "" }
    }
}

/// Collects what no backup needs. Safe at any time, beside anything, and again after an interruption.
///
/// # Errors
/// `FeatureNotSupported` for a repository of another version; `Crypto` if the key at hand cannot read what backups use;
/// `LockAcquire` if other collectors are always faster; `Interrupted`; whatever keeps it from knowing what a
/// visible backup needs, before anything is deleted.
pub fn run(
    repository: &Arc<Repository>,
    options: &GcOptions<'_>,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<GcReport> {
    repository.config().check_gc().map_err(|e| {
        let place = repository.store().describe();
        let text = format!("nothing can be collected in {place}: feature '{}' is unknown here", e.feature);
        Error::refused(Kind::FeatureNotSupported, text)
    })?;
    let mut report = GcReport::default();
    survey::fence_silent(repository, options, clock, &mut report)?;
    let collected = collect(repository, options, &mut report, observer, cancel, clock)?;
    let expired = !collected.survey.expired.is_empty();
    if options.rewrite == Rewrite::Always || options.rewrite == Rewrite::AfterExpiry && expired {
        let Collected { decision, survey, in_use } = &collected;
        if rewrite::run(repository, options, decision, survey, in_use, &mut report, observer, cancel, clock)? {
            // A generation tells of it, and by the next one what was rewritten goes.
            collect(repository, options, &mut report, observer, cancel, clock)?;
            collect(repository, options, &mut report, observer, cancel, clock)?;
        }
    }
    Ok(report)
}

/// What a collection went by.
struct Collected {
    decision: Generation,
    survey: Survey,
    in_use: Refs,
}

/// G1 to G5, G7 and the rest.
fn collect(
    repository: &Repository,
    options: &GcOptions<'_>,
    report: &mut GcReport,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<Collected> {
    for _ in 0..ATTEMPTS {
        cancel.check()?;
        // G1 to G3.
        let mut marks = Marks::default();
        let survey = Survey::take(repository, &mut marks, cancel, clock)?;
        marks.live = marks.in_use(&survey.generation, &survey.packs).packs().collect();
        let plan = plan(repository, &survey, &marks)?;
        // G4.
        let decision = match plan.next {
            Some(next) if !options.dry_run => match publish(repository, &next)? {
                true => {
                    report.published = true;
                    next
                }
                false => continue,
            },
            Some(next) => next,
            None => survey.generation.clone(),
        };
        report.generation = decision.number;
        report.backups = survey.backups();
        report.pinned = survey.pinned.len() as u64;
        report.packs = survey.packs.values().copied().collect();
        plan.new.iter().filter_map(|p| survey.packs.get(p)).for_each(|bytes| report.condemned.add(*bytes));
        let in_use = sweep(repository, options, &decision, &survey, &mut marks, report, observer, cancel, clock)?;
        return Ok(Collected { decision, survey, in_use });
    }
    let text = "garbage collection elsewhere publishes faster than this one can decide".to_owned();
    Err(Error::refused(Kind::LockAcquire, text))
}

/// What is to be published.
struct Plan {
    /// The next generation, if there is anything to say.
    next: Option<Generation>,
    /// Packs that it condemns and the one before did not.
    new: Vec<PackId>,
}

fn plan(repository: &Repository, survey: &Survey, marks: &Marks) -> Result<Plan> {
    let old = &survey.generation;
    let number = old.number + 1;
    let boundary = old.boundary.max(survey.earliest().unwrap_or(old.number).min(old.number));
    let known: HashSet<PackId> = old.condemned.iter().map(|c| c.pack).collect();
    // One that is in use again stays, see the module's text.
    let mut condemned: Vec<Condemned> =
        old.condemned.iter().filter(|c| survey.packs.contains_key(&c.pack)).copied().collect();
    let mut new = Vec::new();
    for pack in survey.packs.keys().filter(|p| !known.contains(p) && !marks.live.contains(p)) {
        if survey.has_ended(repository, *pack)? {
            condemned.push(Condemned { pack: *pack, since: number });
            new.push(*pack);
        }
    }
    condemned.sort_by_key(|c| c.pack);
    // What is gone need not be said at once; what is to go must be, and so must a boundary that lets records go.
    let before: HashSet<SessionId> = old.catalogue.iter().copied().collect();
    let obsolete = marks.obsolete(&survey.packs, boundary);
    let is_rewriter = |session: &&SessionId| survey.ends.get(*session).is_some_and(String::is_empty);
    // Of what was moved a generation must tell, before the packs it came from can go.
    let told = survey.catalogue.iter().filter(is_rewriter).all(|s| before.contains(s) != obsolete.contains(s));
    let worth = !new.is_empty() || !told || survey.waits_for(old.boundary, boundary);
    let catalogue = survey.catalogue.iter().filter(|session| !obsolete.contains(*session)).copied().collect();
    Ok(Plan { next: worth.then_some(Generation { number, boundary, catalogue, condemned }), new })
}

/// True if this is now the decision; false if another collector has published that number.
fn publish(repository: &Repository, next: &Generation) -> Result<bool> {
    let name = layout::generation(next.number);
    let sealer = SessionSealer::new(Arc::clone(repository.keyring()))?;
    let bytes = sealer.seal_object(ObjectKind::Generation, &Scope::Repo, &name, &[], &next.encode())?;
    match repository.store().put_if_absent(&name, &bytes)? {
        Put::Created => Ok(true),
        // A reply that was lost: ours is there, and that is success.
        Put::Exists => Ok(repository.store().get(&name, Range::Whole)? == bytes),
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, and the pieces have nothing in common")]
fn sweep(
    repository: &Repository,
    options: &GcOptions<'_>,
    decision: &Generation,
    survey: &Survey,
    marks: &mut Marks,
    report: &mut GcReport,
    observer: &dyn Observer,
    cancel: &Cancel,
    clock: &dyn Clock,
) -> Result<Refs> {
    let keys = leftovers::keys(repository)?;
    // Sessions first, then marks.
    let now = survey.again(repository, decision, marks, cancel, clock)?;
    let in_use = marks.in_use(decision, &survey.packs);
    marks.live.extend(in_use.packs());
    report.open = now.open.clone();
    let earliest = now.earliest();
    // Later decisions condemn what this one does, as long as it is there. But for one that was made without knowing of this,
    // when all were lost: writers build on what it does not condemn.
    let newest = if options.dry_run { None } else { Some(repository.newest_generation()?) };
    let condemned_now = newest.filter(|newest| newest.number != decision.number);
    let condemned_now: Option<HashSet<PackId>> = condemned_now.map(|g| g.condemned.iter().map(|c| c.pack).collect());
    let may_go = |c: &&Condemned| {
        !marks.live.contains(&c.pack)
            && condemned_now.as_ref().is_none_or(|now| now.contains(&c.pack))
            && survey.packs.contains_key(&c.pack)
            && earliest.is_none_or(|earliest| earliest >= c.since)
    };
    let doomed: HashSet<PackId> = decision.condemned.iter().filter(may_go).map(|c| c.pack).collect();
    report.waiting = (decision.condemned.iter())
        .filter(|c| !doomed.contains(&c.pack) && !marks.live.contains(&c.pack))
        .filter_map(|c| survey.packs.get(&c.pack))
        .copied()
        .collect();
    if options.dry_run {
        report.deleted = doomed.iter().filter_map(|p| survey.packs.get(p)).copied().collect();
        return Ok(in_use);
    }
    let owners = compact::run(repository, &doomed, &marks.fenced(), report, observer, cancel)?;
    observer.begin("delete packs", doomed.iter().filter_map(|p| survey.packs.get(p)).sum());
    for pack in &doomed {
        cancel.check()?;
        repository.store().delete(&layout::pack(*pack))?;
        repository.store().delete(&layout::bad_pack(*pack))?;
        let bytes = survey.packs.get(pack).copied().unwrap_or(0);
        report.deleted.add(bytes);
        observer.add(Counter::Done, bytes);
    }
    observer.end();
    leftovers::remove(repository, decision, &now, &doomed, (keys, owners), report, cancel)?;
    Ok(in_use)
}
