//! `restore --instant`: a data directory on which the server can be started at once, and which becomes an ordinary one
//! behind it.
//!
//! It is a clone in the place of the original: its directory lies hidden beside the data directory, which it is mounted on,
//! with the settings of a classic restore instead of a clone's. All of it is fetched in the background. When everything is
//! there, durably, and no server has run on it for [`QUIET`], the process that serves it takes the mount away and makes the
//! directory ordinary; `clone promote` does so at once, and starts the server again.
//!
//! Whatever ended it, a reboot or a kill, the same command goes on: it mounts again, or ends the promotion.

use super::show::{Serving, state};
use super::{is_restore, make, mount_at, open, recorded, settings, stanza, traces};
use crate::commands::{Context, restore};
use crate::daemon::{self, Served};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, OptionError, Settings};
use crate::{VERSION, mounts, render, repos, servers, zone};
use pgkeep_engine::lock::{Lock, LockName, LockType};
use pgkeep_engine::repository::PinGuard;
use pgkeep_engine::restore::{RestoreOptions, choose_backup, recovery};
use pgkeep_engine::{Error, FileError, Kind};
use pgkeep_fuse::clone::{self, Added, CreateOptions, HydrationState};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long no server must have run: one that is being restarted comes back sooner.
const QUIET: Duration = Duration::from_secs(5);
/// Stands for the newest backup.
const LATEST: &str = "latest";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Options of a classic restore that a mount does not fulfil. That it needs an empty directory it says by itself.
const REFUSED: [Opt; 5] = [Opt::TablespaceMap, Opt::TablespaceMapAll, Opt::LinkMap, Opt::DbInclude, Opt::DbExclude];

/// Under which name it is recorded what a clone is for, unless it is a clone for its own sake.
pub(super) const FOR: &str = "for";
/// A data directory that is being restored.
pub(super) const FOR_RESTORE: &str = "restore";
/// How a server makes files durable before recovery: the other method does not reach a file system in user space. The first
/// major that can be told.
const INIT_SYNC: &str = "recovery_init_sync_method = 'fsync'";
const INIT_SYNC_COMMENT: &str = "# For as long as pgkeep serves the restore";
const INIT_SYNC_SINCE: u32 = 14;

/// The data directory and the clone's.
struct Places {
    target: PathBuf,
    dir: PathBuf,
}

impl Places {
    fn of(settings: &Settings) -> Result<Self, Failure> {
        let target = mounts::resolved(&repos::pgdata(settings)?);
        let (Some(above), Some(name)) = (target.parent(), target.file_name()) else {
            let text = format!("'{}' cannot be a data directory", target.display());
            return Err(Error::refused(Kind::OptionInvalidValue, text).into());
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".pgkeep");
        let dir = above.join(hidden);
        Ok(Self { target, dir })
    }
}

/// Runs `restore --instant`.
pub(crate) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let link_all = settings.flag(Opt::LinkAll).then_some(&Opt::LinkAll);
    if let Some(opt) = link_all.or_else(|| REFUSED.iter().find(|opt| settings.is_given(**opt))) {
        let message = format!("option '{}' is not valid with option 'instant'", opt.def().name);
        return Err(OptionError::new(Status::OPTION_INVALID, message)
            .hint("an instant restore puts all of the backup into one empty directory")
            .into());
    }
    let places = Places::of(settings)?;
    refuse_strangers(&places)?;
    if settings.flag(Opt::ReadyPipe) {
        return daemon::run(context, |context| serve(context, &places));
    }
    let Places { target, dir } = &places;
    if begun(settings, &places)? {
        let now = state(dir.clone(), clone::info(dir)?)?;
        if let Some(elsewhere) = now.mounted.iter().find(|m| m.on != *target) {
            let text = format!(
                "what '{}' becomes is mounted on '{}': unmount that first",
                target.display(),
                elsewhere.on.display()
            );
            return Err(Error::refused(Kind::PathNotEmpty, text).into());
        }
        if now.serving == Serving::Mounted {
            render::print(&format!("'{}' is served already\n{}", target.display(), told(settings, &places)))?;
            return Ok(Status::OK);
        }
        let done = now.hydration.is_some_and(|h| h.state == HydrationState::Done);
        if done && now.mounted.is_empty() && now.server.is_none() {
            match promote(dir, target) {
                Ok(()) => {
                    render::print(&format!("'{}' is an ordinary data directory now\n", target.display()))?;
                    return Ok(Status::OK);
                }
                // Served it can be used all the same.
                Err(e) => tracing::warn!("'{}' is not made ordinary yet: {}", target.display(), e.report(None)),
            }
        }
    } else {
        // Tried before anything is made: in the end the one takes the other's place.
        mounts::prepare(target)?;
        try_places(&places)?;
    }
    daemon::run(context, |context| serve(context, &places))
}

/// In the end the clone's directory takes the target's place, which must be possible before anything is made.
fn try_places(places: &Places) -> Result<(), Failure> {
    let Places { target, dir } = places;
    let failed = |e| Failure::file(FileError::at("create", dir)(e));
    let made = match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
        other => other.map(|()| true).map_err(failed)?,
    };
    let result = clone::try_promote(dir, target);
    if made {
        std::fs::remove_dir(dir).map_err(|e| Failure::file(FileError::at("remove", dir)(e)))?;
    }
    Ok(result?)
}

/// Whoever may rename what is beside the data directory could lead root anywhere.
fn refuse_strangers(places: &Places) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for above in places.dir.ancestors().skip(1) {
        let facts = match std::fs::metadata(above) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            other => other.map_err(|e| Failure::file(FileError::at("stat", above)(e)))?,
        };
        let sticky = facts.mode() & 0o1000 != 0;
        if facts.uid() != 0 || facts.mode() & 0o022 != 0 && !sticky {
            let text = format!(
                "'{}' can be changed by others than root, who does not serve a data directory there: run the command \
                 as the user who owns the cluster",
                above.display()
            );
            return Err(Error::refused(Kind::OptionInvalidValue, text).into());
        }
    }
    Ok(())
}

/// What was asked for, by the names under which it is recorded.
fn asked(settings: &Settings) -> Vec<(&'static str, String)> {
    let recovery = restore::recovery(settings);
    vec![
        ("stanza", settings.stanza_name().to_owned()),
        ("type", recovery.recovery_type.as_str().to_owned()),
        ("target", recovery.target.unwrap_or_default()),
        ("exclusive", if recovery.exclusive { "y" } else { "n" }.to_owned()),
        ("timeline", recovery.timeline.unwrap_or_default()),
        ("action", recovery.action.map_or_else(String::new, |a| a.as_str().to_owned())),
        ("settings", serde_json::json!(recovery.settings).to_string()),
    ]
}

/// True if an earlier call made the clone. One of something else in its place is refused, and one of another target or
/// backup: that it is there must not look as if this one were.
fn begun(settings: &Settings, places: &Places) -> Result<bool, Failure> {
    let Places { target, dir } = places;
    let info = match clone::info(dir) {
        Err(e) if e.kind() == Kind::PathMissing => return Ok(false),
        other => other?,
    };
    if !is_restore(&info) || Path::new(recorded(&info, "mountpoint")) != target {
        let text = format!("'{}' is a clone, but not the restore of '{}'", dir.display(), target.display());
        return Err(Error::refused(Kind::PathNotEmpty, text).into());
    }
    let label = recorded(&info, "label");
    let set =
        settings.text(Opt::Set).filter(|set| *set != LATEST && *set != label).map(|set| ("label", set.to_owned()));
    if let Some((name, now)) = asked(settings).into_iter().chain(set).find(|(name, now)| recorded(&info, name) != now) {
        let text = format!(
            "the restore of '{}' was begun from backup {label} with {name} '{}', not '{now}': 'clone destroy --force --dir={}' \
             removes it with all that was written to it",
            target.display(),
            recorded(&info, name),
            dir.display()
        );
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    Ok(true)
}

/// Makes it, or takes up what is there, and mounts it.
fn serve(context: &Context<'_>, places: &Places) -> Result<Served, Failure> {
    let settings = context.settings;
    let Places { target, dir } = places;
    let name =
        |repo_key| LockName { stanza: settings.stanza_name().to_owned(), lock_type: LockType::Restore, repo_key };
    let acquire = |key| Lock::acquire(settings.lock_path(), &name(key), &repos::exec_id());
    let _locks = settings.repos().map(|r| acquire(r.key().into())).collect::<Result<Vec<_>, _>>()?;
    let served = if begun(settings, places)? {
        // The earlier call may have died just before it asked.
        if clone::hydration(dir)?.is_none() {
            clone::hydrate(dir, None)?;
        }
        mount_at(context, dir, Some(target))?
    } else {
        restore::empty_spool(settings);
        create(context, dir, target)?
    };
    Ok(Served { becomes_plain: true, text: told(settings, places), ..served })
}

/// Makes the clone that a restore is until it is complete, asks for all of it, and mounts it on its target.
fn create(context: &Context<'_>, dir: &Path, target: &Path) -> Result<Served, Failure> {
    let settings = context.settings;
    let stanza = stanza(settings)?;
    let target = mounts::prepare(target)?;
    let asked = restore::recovery(settings);
    let command = restore::command(settings, asked.recovery_type)?;
    let options = RestoreOptions {
        set: settings.text(Opt::Set).map(str::to_owned),
        force: settings.flag(Opt::Force),
        recovery: asked,
        time_zone: zone::local(),
        ..RestoreOptions::new(stanza, &target)
    };
    let choice = choose_backup(&repos::usable(settings)?, &options)?;
    let label = &choice.backup.label;
    if !choice.backup.tablespaces.is_empty() {
        let text = format!("backup set {label} has tablespaces, which an instant restore cannot put where they belong");
        return Err(Error::refused(Kind::FeatureNotSupported, text).into());
    }
    tracing::info!("repo{}: restore backup set {label}", choice.repository.key());
    let pin = super::pin(&choice, stanza, false)?;
    let snapshot = open(&choice.repository, stanza, &choice.backup)?;
    context.cancel.check()?;

    let now = zone::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let existing = make::text(&*snapshot, settings::AUTO_CONF)?.unwrap_or_default();
    let plan = recovery::plan(&existing, &choice.recovery, &command, &now)?;
    let mut auto_conf = plan.auto_conf.unwrap_or(existing);
    if choice.backup.version >= INIT_SYNC_SINCE {
        settings::end_line(&mut auto_conf);
        auto_conf.extend_from_slice(format!("{INIT_SYNC_COMMENT}\n{INIT_SYNC}\n").as_bytes());
    }
    let file = |path: &str, bytes| Added { path: path.to_owned(), bytes, mode: make::MODE };
    let signal = plan.create.map(|signal| file(signal.file_name(), Vec::new()));
    let removed = plan.remove.iter().map(|s| s.file_name()).chain(["postmaster.pid", "postmaster.opts"]);
    let recorded = [
        ("label", label.clone()),
        ("session", choice.backup.session.to_string()),
        ("repository", choice.repository.key().to_string()),
        ("mountpoint", target.display().to_string()),
        (FOR, FOR_RESTORE.to_owned()),
        ("program", VERSION.to_owned()),
    ];
    let options = CreateOptions {
        identity: super::pinned(
            recorded.into_iter().chain(self::asked(settings)).map(|(name, value)| (name.to_owned(), value)).collect(),
            pin.as_ref(),
        ),
        owner: make::owner(&*snapshot)?,
        threads: settings.process_max().max(CreateOptions::default().threads),
        write: std::iter::once(file(settings::AUTO_CONF, auto_conf)).chain(signal).collect(),
        remove: removed.map(str::to_owned).collect(),
    };
    clone::create(dir, &*snapshot, &options)?;
    clone::hydrate(dir, None)?;
    let tracing = traces::of(settings, &choice.repository, stanza, choice.backup.session);
    let session = make::serve(settings, dir, snapshot, &target, tracing)?;
    drop(pin.map(PinGuard::keep));
    Ok(Served { session, clone: Some(dir.to_owned()), text: String::new(), becomes_plain: true })
}

fn told(settings: &Settings, places: &Places) -> String {
    let (exe, dir) = (settings.exe().display().to_string(), places.dir.display().to_string());
    let quoted = super::told::quoted;
    format!(
        "'{}' can be used: start its server as always\n\
         what is not there yet is fetched when it is needed, and in the background: the repository is needed until then\n\
         how far:      {exe} clone info --dir={dir}\n\
         go on:        the same command again, after a reboot or whatever ended it, before the server is started\n\
         become plain: by itself when all is there and the server is stopped; with the server restarted by\n              \
         {exe} clone promote --dir={dir}\n",
        places.target.display(),
        exe = quoted(&exe),
        dir = quoted(&dir)
    )
}

/// Tells when a restore can become an ordinary directory.
pub(crate) struct Ripeness {
    looked: Instant,
    quiet_since: Option<Instant>,
}

impl Ripeness {
    pub(crate) fn new() -> Self {
        Self { looked: Instant::now(), quiet_since: None }
    }

    /// True if everything is there and no server has run on it for a while. Asked often, it looks now and then.
    pub(crate) fn reached(&mut self, dir: &Path) -> bool {
        if self.looked.elapsed() < LOOK {
            return false;
        }
        self.looked = Instant::now();
        if !is_whole(dir) || !matches!(servers::of_clone(dir), Ok(None)) {
            self.quiet_since = None;
            return false;
        }
        self.quiet_since.get_or_insert_with(Instant::now).elapsed() >= QUIET
    }

    /// It is used all the same: the time begins anew.
    pub(crate) fn begin_anew(&mut self) {
        self.quiet_since = None;
    }
}

/// Takes out what the server was told because it was served.
pub(super) fn forget_serving(data: &Path) -> Result<(), Failure> {
    let path = data.join(settings::AUTO_CONF);
    let before = settings::read(&path).map_err(|e| Failure::file(FileError::at("read", &path)(e)))?;
    let after = without_serving(&before);
    if after != before {
        settings::replace(&path, &after).map_err(|e| Failure::file(FileError::at("write", &path)(e)))?;
    }
    Ok(())
}

/// Without the last line that says so, and the comment before it, which the server drops when it writes the file.
fn without_serving(conf: &[u8]) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = conf.split_inclusive(|b| *b == b'\n').collect();
    let is = |line: &&[u8], text: &str| line.trim_ascii() == text.as_bytes();
    if let Some(at) = lines.iter().rposition(|line| is(line, INIT_SYNC)) {
        lines.remove(at);
        if at > 0 && lines.get(at - 1).is_some_and(|line| is(line, INIT_SYNC_COMMENT)) {
            lines.remove(at - 1);
        }
    }
    lines.concat()
}

/// Makes a restore that is complete, and served by nobody, an ordinary directory.
pub(crate) fn promote(dir: &Path, target: &Path) -> Result<(), Failure> {
    let data = dir.join("data");
    if data.is_dir() {
        super::life::warn_of(&data);
        forget_serving(&data)?;
    }
    clone::promote(dir, target)?;
    tracing::info!("'{}' is an ordinary data directory now", target.display());
    Ok(())
}

/// True if the clone lacks nothing, durably.
pub(crate) fn is_whole(dir: &Path) -> bool {
    // A record that cannot be read says nothing; the next one will.
    clone::hydration(dir).is_ok_and(|found| found.is_some_and(|h| h.state == HydrationState::Done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_for_serving_alone_is_taken_out_and_nothing_else() {
        let own = "# mine\nport = '1'\n";
        let served = format!("{own}{INIT_SYNC_COMMENT}\n{INIT_SYNC}\n");
        assert_eq!(without_serving(served.as_bytes()), own.as_bytes());
        // As the server writes it.
        let rewritten = format!("port = '1'\n{INIT_SYNC}\nwork_mem = '4MB'\n");
        assert_eq!(without_serving(rewritten.as_bytes()), b"port = '1'\nwork_mem = '4MB'\n");
        assert_eq!(without_serving(own.as_bytes()), own.as_bytes());
    }
}
