//! One backup for several repositories: taken into one of them, and copied from there into the others, so that the data
//! directory is read and the server asked once.
//!
//! The one it is taken into has the newest backup of all, so that what another missed reaches it by the same copy; of those
//! that are alike a near one, from which is read what the others get. A repository that fails keeps the others from nothing:
//! one that does not answer is waited for [`PATIENCE`] before the backup begins, and, for a while, when all is done elsewhere.

use super::super::failures::Failures;
use super::super::{Context, expire, repo_sync};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Repo, Settings};
use crate::repos;
use pgkeep_engine::repository::Repository;
use pgkeep_engine::sync::Which;
use pgkeep_engine::{Error, Kind};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long all repositories are waited for before the backup begins, if one is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long those are waited for at the end that have not answered yet. Stores give up earlier, but for some file systems.
const LAST_WAIT: Duration = Duration::from_secs(600);
/// How often it is looked whether somebody wants an end.
const GLANCE: Duration = Duration::from_millis(100);

/// A repository that can be used.
struct Usable {
    repository: Arc<Repository>,
    /// When its newest backup ended, seconds since the Unix epoch.
    newest: Option<i64>,
}

type Answer = (u16, Result<Usable, Failure>);

pub(super) fn run(context: &Context<'_>, repos: &[Repo<'_>]) -> Result<Status, Failure> {
    let (sender, answers) = channel();
    for key in repos.iter().map(|repo| repo.key()) {
        let (sender, settings) = (sender.clone(), context.settings.clone());
        let ask = move || {
            // Nobody listens any more if the command has ended.
            let _ = sender.send((key, ask(&settings, settings.repo(key))));
        };
        // On its own: a request that never ends must not keep the command from ending.
        let named = thread::Builder::new().name(format!("repo{key}"));
        let spawned = named.spawn(ask);
        spawned.map_err(|e| Error::refused(Kind::Kernel, format!("cannot start a thread: {e}")))?;
    }
    drop(sender);
    let mut all = All { context, repos, answers, usable: BTreeMap::new(), failures: Failures::among(repos.len()) };
    let begun = Instant::now();
    all.wait(|all| !all.usable.is_empty() && begun.elapsed() >= PATIENCE)?;
    all.run()
}

/// Opens a repository and looks how far it is.
fn ask(settings: &Settings, repo: Repo<'_>) -> Result<Usable, Failure> {
    let repository = repos::open(settings, repo)?;
    // Records that cannot be read are told of by whoever works with them.
    let newest = repository.backups_readable(settings.stanza_name())?.0.iter().map(|b| b.stop).max();
    Ok(Usable { repository, newest })
}

struct All<'a> {
    context: &'a Context<'a>,
    repos: &'a [Repo<'a>],
    answers: Receiver<Answer>,
    usable: BTreeMap<u16, Usable>,
    failures: Failures,
}

impl All<'_> {
    fn run(mut self) -> Result<Status, Failure> {
        let Some((lead, label)) = self.back_up()? else {
            self.failures.end(Command::Backup)?;
            return Err(Error::refused(Kind::RepoInvalid, "no repository can be used").into());
        };
        let (mut done, mut kept) = (vec![lead], 0);
        let others = self.repos.iter().map(|repo| repo.key()).filter(|key| *key != lead && !self.failures.has(*key));
        let (here, late): (Vec<u16>, Vec<u16>) = others.partition(|key| self.usable.contains_key(key));
        for keys in [here, late] {
            for key in keys {
                let copied = self.copy(lead, key, &label).inspect_err(|e| tell_what_is_there(e, &label, &done));
                done.extend(self.failures.take(key, copied)?.filter(|is_there| *is_there).map(|_| key));
            }
            // Behind the copies, so that these are made whatever retention finds.
            for &key in done.get(kept..).unwrap_or_default() {
                let Some(found) = self.usable.get(&key) else { continue };
                let expired = expire::after_backup(self.context, self.context.settings.repo(key), &found.repository);
                self.failures.take(key, expired)?;
            }
            kept = done.len();
        }
        self.end(&label, &done)
    }

    /// Takes answers until there are enough, or all.
    fn wait(&mut self, is_enough: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        while !is_enough(self) {
            self.context.cancel.check()?;
            match self.answers.recv_timeout(GLANCE) {
                Ok(answer) => self.take(answer)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, (key, answer): Answer) -> Result<(), Failure> {
        if let Err(e) = &answer {
            tracing::warn!("repo{key} cannot be used: {}", repos::chain(e));
        }
        if let Some(usable) = self.failures.take(key, answer)? {
            self.usable.insert(key, usable);
        }
        Ok(())
    }

    /// Takes the backup into the first repository that works, and says which and how it is called.
    fn back_up(&mut self) -> Result<Option<(u16, String)>, Failure> {
        let mut order: Vec<_> = self.usable.iter().map(|(key, u)| (Reverse(u.newest), !is_near(u), *key)).collect();
        order.sort_unstable();
        for (_, _, key) in order {
            let Some(found) = self.usable.get(&key) else { continue };
            tracing::debug!("the backup is taken into repo{key} and copied from there");
            match super::take(self.context, self.context.settings.repo(key), &found.repository) {
                Ok(commit) => return Ok(Some((key, commit.label))),
                Err(Failure::Engine(e)) if may_work_elsewhere(&e) => {
                    tracing::warn!("no backup into repo{key}: {}", e.chain());
                    self.usable.remove(&key);
                    self.failures.take(key, Err::<(), _>(e.into()))?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Copies what a repository lacks, and says whether it could be used.
    fn copy(&mut self, lead: u16, key: u16, label: &str) -> Result<bool, Failure> {
        let begun = Instant::now();
        self.wait(|all| all.usable.contains_key(&key) || all.failures.has(key) || begun.elapsed() >= LAST_WAIT)?;
        if self.failures.has(key) {
            return Ok(false);
        }
        let (Some(from), Some(to)) = (self.usable.get(&lead), self.usable.get(&key)) else {
            let text = format!("repo{key} has not answered for {} minutes", LAST_WAIT.as_secs() / 60);
            return Err(Error::refused(Kind::Service, text).into());
        };
        let settings = self.context.settings;
        let ask = repo_sync::Ask { to: settings.repo(key), which: Which::New(label), dry_run: false };
        let mut report = repo_sync::copy(self.context, &from.repository, &to.repository, &ask)?;
        repo_sync::tell(&report, settings.repo(lead), ask.to, false);
        if let Some(e) = repo_sync::told_failures(&mut report, ask.to) {
            // The others are there: it is this repository's failure all the same.
            self.failures.take(key, Err::<(), _>(e.into()))?;
        }
        let is_there = report.backups.iter().any(|b| b.label == label);
        if !is_there && !self.failures.has(key) {
            let text = format!(
                "backup {label} was not copied to repo{key}: its stanza never had that cluster, or it has backups that ended later"
            );
            return Err(Error::refused(Kind::BackupMismatch, text).into());
        }
        Ok(is_there)
    }

    fn end(self, label: &str, done: &[u16]) -> Result<Status, Failure> {
        if self.failures.is_empty() {
            return Ok(Status::OK);
        }
        self.failures.tell(Command::Backup);
        let text = format!("backup {label} is in {}; what has failed is told above", names(done));
        Err(Error::refused(Kind::Command, text).into())
    }
}

/// Whether another repository may do where this one failed: not if the server or a signal ended it, or a lock that another
/// backup holds, which feeds all repositories itself.
fn may_work_elsewhere(e: &Error) -> bool {
    matches!(e.root(), Error::Store(_) | Error::Crypto(_) | Error::Index(_) | Error::Damaged { .. })
        || matches!(
            e.kind(),
            Kind::ArchiveTimeout
                | Kind::ArchiveDuplicate
                | Kind::BackupMismatch
                | Kind::FileMissing
                | Kind::RepoInvalid
                | Kind::FeatureNotSupported
                | Kind::Format
                | Kind::Checksum
                | Kind::Crypto
        )
}

fn is_near(usable: &Usable) -> bool {
    usable.repository.store().is_near()
}

fn tell_what_is_there(e: &Failure, label: &str, done: &[u16]) {
    if matches!(e, Failure::Engine(e) if e.kind() == Kind::Interrupted) {
        tracing::info!("backup {label} is complete in {}", names(done));
    }
}

fn names(keys: &[u16]) -> String {
    keys.iter().map(|key| format!("repo{key}")).collect::<Vec<_>>().join(", ")
}
