//! Making a clone: which backup, what its server is told, the directory, the mount.

use super::settings::{self, CloneSettings, Purpose};
use super::{check_apart, mount_options, open, recorded, required, stanza, told, traces};
use crate::commands::Context;
use crate::daemon::Served;
use crate::error::Failure;
use crate::option::{Command, Opt, Settings, archive_command_of_clone, restore_command_of_clone};
use crate::{VERSION, mounts, repos, zone};
use pgkeep_engine::repository::PinGuard;
use pgkeep_engine::restore::recovery::{self, OnError, RecoveryOptions, RecoveryType, TargetAction};
use pgkeep_engine::restore::{Choice, RestoreOptions, choose_backup};
use pgkeep_engine::view::Snapshot;
use pgkeep_engine::{Error, Kind};
use pgkeep_formats::pg::control::ControlFile;
use pgkeep_fuse::clone::{self, Added, CloneInfo, CreateOptions, Tracing};
use pgkeep_fuse::{Owner, Session};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// First port that a clone's server may get unless one is asked for: not the one of the server it is a clone of.
const PORT_DEFAULT: u16 = 5433;
/// Ports that are tried.
const PORTS_TRIED: u16 = 1000;
/// Most bytes of a configuration file.
const TEXT_BYTES_MAX: u64 = 16 << 20;
/// Mode of what is added.
pub(super) const MODE: u32 = 0o600;
/// Who a server runs as where the backup's own user does not exist.
const USER: &str = "postgres";

/// What a clone is made from and told: all that must be known to make it once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) struct Recipe {
    /// Label of the backup; chosen if there is none.
    set: Option<String>,
    recovery: RecoveryOptions,
    /// The first free one if there is none.
    port: Option<u16>,
    /// Directory of the socket.
    socket: String,
    purpose: Purpose,
    /// Stanza that its server archives for.
    archive_to: Option<String>,
}

/// A clone that has just been made and mounted.
pub(in crate::commands) struct Made {
    pub(in crate::commands) session: Session,
    info: CloneInfo,
    dir: PathBuf,
    /// Of one that goes with its command.
    _pin: Option<PinGuard>,
}

impl Made {
    fn served(self, settings: &Settings) -> Served {
        let text = told::told(settings, &self.info, &self.dir, self.session.mountpoint());
        Served { session: self.session, clone: Some(self.dir), text, becomes_plain: false }
    }
}

impl Recipe {
    fn of_settings(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            set: settings.text(Opt::Set).map(str::to_owned),
            recovery: recovery_options(settings)?,
            port: settings_port(settings),
            socket: settings.text(Opt::SocketPath).unwrap_or("/tmp").to_owned(),
            purpose: Purpose::Kept,
            archive_to: archive_to(settings)?,
        })
    }

    /// Of a clone that one command uses and removes: its server is reached by a socket in `sockets` alone.
    pub(in crate::commands) fn of_scratch(settings: &Settings, sockets: &Path, port: u16) -> Result<Self, Failure> {
        Ok(Self {
            set: settings.text(Opt::Set).map(str::to_owned),
            recovery: recovery_options(settings)?,
            port: Some(port),
            socket: sockets.display().to_string(),
            purpose: Purpose::Scratch,
            archive_to: None,
        })
    }

    /// As it was recorded when the clone was made.
    fn of_clone(info: &CloneInfo) -> Result<Self, Failure> {
        let of = |name| recorded(info, name);
        let some = |name| Some(of(name)).filter(|text| !text.is_empty()).map(str::to_owned);
        if !info.identity.iter().any(|(name, _)| name == "settings") {
            let text = "the clone was made by an earlier version, which did not record all it was made with";
            return Err(Error::refused(Kind::FeatureNotSupported, text).into());
        }
        let unknown =
            |what: &str| Error::refused(Kind::FileInvalid, format!("the clone's record names no known {what}"));
        let kind = RecoveryType::parse(of("type")).ok_or_else(|| unknown("type of recovery"))?;
        Ok(Self {
            set: some("label"),
            recovery: RecoveryOptions {
                target: some("target"),
                action: TargetAction::parse(of("action")),
                exclusive: of("exclusive") == "y",
                timeline: some("timeline"),
                settings: serde_json::from_str(of("settings")).map_err(|_| unknown("settings"))?,
                ..RecoveryOptions::of(kind)
            },
            port: of("port").parse().ok(),
            socket: of("socket").to_owned(),
            purpose: Purpose::Kept,
            archive_to: some("archive-to"),
        })
    }
}

fn settings_port(settings: &Settings) -> Option<u16> {
    settings.int(Opt::Port).and_then(|n| u16::try_from(n).ok())
}

/// The stanza that was asked for. Two clusters that archive into one end each other's recovery.
fn archive_to(settings: &Settings) -> Result<Option<String>, Failure> {
    let Some(own) = settings.text(Opt::ArchiveTo) else { return Ok(None) };
    if settings.stanza() == Some(own) {
        let text = format!("stanza '{own}' is the original's: a clone archives for a stanza of its own");
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    pgkeep_formats::repo::layout::check_stanza(own)
        .map_err(|e| Error::refused(Kind::OptionInvalidValue, format!("'{own}' is no name of a stanza: {e}")))?;
    Ok(Some(own.to_owned()))
}

/// Makes the clone and mounts it. What was made is removed if it cannot be mounted.
pub(super) fn create(context: &Context<'_>) -> Result<Served, Failure> {
    let settings = context.settings;
    let mountpoint = settings.path(Opt::Mountpoint).ok_or_else(|| required("mountpoint"))?.to_owned();
    let recipe = Recipe::of_settings(settings)?;
    let dir = super::dir(settings);
    let made = make(context, &recipe, &dir, &mountpoint, settings.flag(Opt::Force))?;
    Ok(made.served(settings))
}

/// Makes a clone anew from what it was made from: nothing of what was written to it is left. Nobody uses it.
pub(super) fn reset(context: &Context<'_>) -> Result<Served, Failure> {
    let dir = super::dir(context.settings);
    let (recipe, mountpoint) = again(context.settings, &dir)?;
    let before = clone::info(&dir);
    clone::destroy(&dir)?;
    let made = make(context, &recipe, &dir, &mountpoint, true)?;
    if let Ok(before) = before {
        super::unpin(context.settings, &before);
    }
    Ok(made.served(context.settings))
}

/// What a clone would be made anew of, and where it would be mounted. Changes nothing, so it comes before all that does.
///
/// # Errors
/// Why it cannot be made anew: its backup is not to be found, its record says too little, the place will not do.
pub(super) fn again(settings: &Settings, dir: &Path) -> Result<(Recipe, PathBuf), Failure> {
    let info = clone::info(dir)?;
    super::check_stanza(&info, stanza(settings)?, dir)?;
    let mut recipe = Recipe::of_clone(&info)?;
    if let Some(port) = settings_port(settings) {
        recipe.port = Some(port);
    }
    if let Some(socket) = settings.text(Opt::SocketPath).filter(|_| settings.is_given(Opt::SocketPath)) {
        recipe.socket = socket.to_owned();
    }
    let recorded_on = Some(recorded(&info, "mountpoint")).filter(|m| !m.is_empty()).map(Path::new);
    let mountpoint = settings.path(Opt::Mountpoint).or(recorded_on).ok_or_else(|| required("mountpoint"))?;
    mounts::refuse_inside(settings, &mounts::resolved(mountpoint))?;
    let repositories = repos::usable(settings)?;
    choose_backup(&repositories, &asked(settings, &recipe, mountpoint, true)?)?;
    Ok((recipe, mountpoint.to_owned()))
}

fn asked(settings: &Settings, recipe: &Recipe, mountpoint: &Path, force: bool) -> Result<RestoreOptions, Failure> {
    Ok(RestoreOptions {
        set: recipe.set.clone(),
        force,
        recovery: recipe.recovery.clone(),
        time_zone: zone::local(),
        ..RestoreOptions::new(stanza(settings)?, mountpoint)
    })
}

/// The backup that a clone of the recipe would be made of now.
///
/// # Errors
/// `BackupSetInvalid` if none fits; what the repositories said.
pub(in crate::commands) fn choose(settings: &Settings, recipe: &Recipe) -> Result<Choice, Failure> {
    let repositories = repos::usable(settings)?;
    Ok(choose_backup(&repositories, &asked(settings, recipe, Path::new("/"), false)?)?)
}

/// Makes a clone in `dir` and mounts it. With `force` a set named by hand may have ended after the target.
///
/// # Errors
/// What choosing the backup, making the clone or mounting it said: then nothing is left of it.
pub(in crate::commands) fn make(
    context: &Context<'_>,
    recipe: &Recipe,
    dir: &Path,
    mountpoint: &Path,
    force: bool,
) -> Result<Made, Failure> {
    for path in [dir, &mounts::resolved(mountpoint)] {
        mounts::refuse_inside(context.settings, path)?;
    }
    // As `prepare` makes it.
    let is_new = std::fs::symlink_metadata(mountpoint).is_err();
    let mountpoint = mounts::prepare(mountpoint)?;
    make_at(context, recipe, dir, &mountpoint, force).inspect_err(|_| {
        // Only an empty one goes. It may have been removed, or be used by now.
        if is_new && let Err(e) = std::fs::remove_dir(&mountpoint) {
            tracing::debug!("mountpoint '{}' stays: {e}", mountpoint.display());
        }
    })
}

fn make_at(
    context: &Context<'_>,
    recipe: &Recipe,
    dir: &Path,
    mountpoint: &Path,
    force: bool,
) -> Result<Made, Failure> {
    let settings = context.settings;
    let stanza = stanza(settings)?;
    check_apart(dir, mountpoint)?;

    let repositories = repos::usable(settings)?;
    let choice = choose_backup(&repositories, &asked(settings, recipe, mountpoint, force)?)?;
    tracing::info!("repo{}: clone of backup set {}", choice.repository.key(), choice.backup.label);
    let pin = super::pin(&choice, stanza, recipe.purpose == Purpose::Scratch)?;
    let snapshot = open(&choice.repository, stanza, &choice.backup)?;
    context.cancel.check()?;

    let clone = clone_settings(settings, recipe, &choice, &*snapshot, dir, mountpoint)?;
    let on_error = if choice.recovery.recovery_type == RecoveryType::Standby { OnError::Wait } else { OnError::Abort };
    let command = restore_command_of_clone(settings, Some(on_error), mountpoint)?;
    let options = CreateOptions {
        identity: super::pinned(
            identity(stanza, recipe, &choice, &clone, mountpoint, &user(&*snapshot)?),
            pin.as_ref(),
        ),
        owner: owner(&*snapshot)?,
        threads: settings.process_max().max(CreateOptions::default().threads),
        ..server_files(&*snapshot, &choice, &clone, &command, mountpoint)?
    };
    let info = clone::create(dir, &*snapshot, &options)?;
    let dir = super::canonical(dir)?;
    // What one command does with a clone is no sign of what others will want of theirs.
    let tracing = match recipe.purpose {
        Purpose::Kept => traces::of(settings, &choice.repository, stanza, choice.backup.session),
        Purpose::Scratch => Tracing::default(),
    };
    let session = serve(settings, &dir, snapshot, mountpoint, tracing)?;
    // That of a clone that stays goes with the clone.
    let pin = match recipe.purpose {
        Purpose::Kept => {
            drop(pin.map(PinGuard::keep));
            None
        }
        Purpose::Scratch => pin,
    };
    Ok(Made { session, info, dir, _pin: pin })
}

/// Mounts a clone that was just made, or removes it.
pub(super) fn serve(
    settings: &Settings,
    dir: &Path,
    snapshot: Arc<dyn Snapshot>,
    mountpoint: &Path,
    tracing: Tracing,
) -> Result<Session, Failure> {
    let serve = || {
        check_apart(dir, mountpoint)?;
        let _claim = mounts::claim(mountpoint)?;
        Ok::<_, Failure>(clone::serve_traced(dir, snapshot, mountpoint, &mount_options(settings, dir), tracing)?)
    };
    serve().inspect_err(|_| {
        if let Err(e) = clone::destroy(dir) {
            let e = repos::chain(&e);
            tracing::warn!("cannot remove clone '{}', which cannot be mounted: {e}", dir.display());
        }
    })
}

fn recovery_options(settings: &Settings) -> Result<RecoveryOptions, Failure> {
    if settings.command() == Command::Diff {
        // The backup itself is what is asked for.
        let (action, timeline) = (Some(TargetAction::Promote), Some("current".to_owned()));
        return Ok(RecoveryOptions { action, timeline, ..RecoveryOptions::of(RecoveryType::Immediate) });
    }
    let word = settings.text(Opt::Type).unwrap_or("default");
    let kind = RecoveryType::parse(word)
        .ok_or_else(|| Error::refused(Kind::OptionInvalidValue, format!("'{word}' is not a type of recovery")))?;
    // Someone who makes a clone wants to write to it.
    let action = settings.text(Opt::TargetAction).and_then(TargetAction::parse).unwrap_or(TargetAction::Promote);
    Ok(RecoveryOptions {
        target: settings.text(Opt::Target).map(str::to_owned),
        action: kind.has_end().then_some(action),
        exclusive: settings.flag(Opt::TargetExclusive),
        timeline: settings.text(Opt::TargetTimeline).map(str::to_owned),
        settings: settings.pairs(Opt::RecoveryOption).to_vec(),
        ..RecoveryOptions::of(kind)
    })
}

fn clone_settings(
    settings: &Settings,
    recipe: &Recipe,
    choice: &Choice,
    snapshot: &dyn Snapshot,
    dir: &Path,
    mountpoint: &Path,
) -> Result<CloneSettings, Failure> {
    let port = recipe.port.unwrap_or_else(|| free_port(Path::new(&recipe.socket), &ports_beside(dir)));
    let name = format!("pgkeep_{}_{}", settings.stanza_name(), choice.backup.label);
    // As the server spells them.
    let asked = recipe.recovery.settings.iter();
    let asked = asked.map(|(name, _)| name.replace('-', "_").to_ascii_lowercase()).collect();
    let (socket, purpose, major) = (recipe.socket.clone(), recipe.purpose, choice.backup.version);
    let archive_to = recipe.archive_to.as_deref();
    let archive_command = archive_to.map(|own| archive_command_of_clone(settings, own, mountpoint)).transpose()?;
    let bypass = super::open_mode(settings).may_bypass();
    // The server's default where nothing is known.
    let images = control(snapshot)?.is_none_or(|control| control.full_page_writes);
    Ok(CloneSettings { port, socket, name, major, bypass, images, asked, purpose, archive_command })
}

/// Ports of the clones in the same directory, whose servers need not run now. Where that cannot be known it is none.
fn ports_beside(dir: &Path) -> Vec<u16> {
    let clones = dir.parent().and_then(|parent| clone::list(parent).ok()).unwrap_or_default();
    clones.iter().filter_map(|(_, info)| recorded(info.as_ref().ok()?, "port").parse().ok()).collect()
}

/// The first port that nobody uses now, neither in the directory of sockets nor on this host, and none of `others`.
fn free_port(sockets: &Path, others: &[u16]) -> u16 {
    let is_free = |port: &u16| {
        if others.contains(port) {
            return false;
        }
        // Links too, and sockets of servers that died: whoever comes to that is not surprised by another's.
        let socket = sockets.join(format!(".s.PGSQL.{port}"));
        std::fs::symlink_metadata(socket).is_err() && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
    };
    (PORT_DEFAULT..PORT_DEFAULT + PORTS_TRIED).find(is_free).unwrap_or(PORT_DEFAULT)
}

fn identity(
    stanza: &str,
    recipe: &Recipe,
    choice: &Choice,
    clone: &CloneSettings,
    mountpoint: &Path,
    user: &str,
) -> Vec<(String, String)> {
    let asked = &recipe.recovery;
    let pairs = [
        ("stanza", stanza.to_owned()),
        ("label", choice.backup.label.clone()),
        ("session", choice.backup.session.to_string()),
        ("repository", choice.repository.key().to_string()),
        ("type", choice.recovery.recovery_type.as_str().to_owned()),
        ("action", choice.recovery.action.map_or_else(String::new, |a| a.as_str().to_owned())),
        ("target", choice.recovery.target.clone().unwrap_or_default()),
        ("exclusive", if asked.exclusive { "y" } else { "n" }.to_owned()),
        ("timeline", asked.timeline.clone().unwrap_or_default()),
        ("settings", serde_json::json!(asked.settings).to_string()),
        ("mountpoint", mountpoint.display().to_string()),
        ("port", clone.port.to_string()),
        ("socket", clone.socket.clone()),
        ("archive-to", recipe.archive_to.clone().unwrap_or_default()),
        ("program", VERSION.to_owned()),
        ("user", user.to_owned()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Who owned the data directory on the server; mostly the name of its first superuser too.
fn user(snapshot: &dyn Snapshot) -> Result<String, Failure> {
    Ok(snapshot.lookup("")?.map(|root| root.user).unwrap_or_default())
}

/// Without the backup's user on this host root would own everything, and no server runs as root.
pub(super) fn owner(snapshot: &dyn Snapshot) -> Result<Option<Owner>, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let user = user(snapshot)?;
    let known = user.parse::<u32>().is_ok() || Owner::of_user(&user).is_some();
    Ok(if known { None } else { Owner::of_user(USER) })
}

/// Files of the server's configuration that differ from the backup's.
fn server_files(
    snapshot: &dyn Snapshot,
    choice: &Choice,
    clone: &CloneSettings,
    command: &str,
    mountpoint: &Path,
) -> Result<CreateOptions, Failure> {
    let now = zone::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let mut write = Vec::new();
    let mut add = |path: &str, bytes: Vec<u8>| write.push(Added { path: path.to_owned(), bytes, mode: MODE });
    let existing = text(snapshot, settings::AUTO_CONF)?.unwrap_or_default();
    let plan = recovery::plan(&existing, &choice.recovery, command, &now)?;
    let recovered = plan.auto_conf.unwrap_or(existing);
    let auto_conf = settings::append(recovered, clone, &now);
    add(settings::AUTO_CONF, settings::with_places(&auto_conf, settings::AUTO_CONF, mountpoint));
    if let Some(signal) = plan.create {
        add(signal.file_name(), Vec::new());
    }
    // A cluster whose configuration lies elsewhere, as Debian's, has none in its backup.
    let conf = match text(snapshot, settings::CONF)? {
        Some(conf) => conf,
        None => settings::minimal(control(snapshot)?.map(|control| control.standby_settings)),
    };
    add(settings::CONF, settings::with_places(&conf, settings::CONF, mountpoint));
    let is_scratch = clone.purpose == Purpose::Scratch;
    let hba = if is_scratch { settings::HBA_SCRATCH } else { settings::HBA_MINIMAL };
    for (path, content) in [(settings::HBA, hba), (settings::IDENT, "")] {
        if is_scratch || snapshot.lookup(path)?.is_none() {
            add(path, content.as_bytes().to_vec());
        }
    }
    let signals = plan.remove.iter().map(|s| s.file_name());
    let remove = signals.chain(["postmaster.pid", "postmaster.opts"]).map(str::to_owned).collect();
    Ok(CreateOptions { write, remove, ..CreateOptions::default() })
}

/// The backup's control file, if it is there and of a kind that is known.
fn control(snapshot: &dyn Snapshot) -> Result<Option<ControlFile>, Failure> {
    Ok(text(snapshot, "global/pg_control")?.and_then(|bytes| ControlFile::parse(&bytes).ok()))
}

/// A small file of the backup, if it is there.
pub(super) fn text(snapshot: &dyn Snapshot, path: &str) -> Result<Option<Vec<u8>>, Failure> {
    let Some(entry) = snapshot.lookup(path)?.filter(|e| !e.is_directory()) else { return Ok(None) };
    if entry.size > TEXT_BYTES_MAX {
        let message = format!("'{path}' in the backup has {} bytes", entry.size);
        return Err(Error::refused(Kind::FileInvalid, message).into());
    }
    let mut bytes = vec![0; entry.size as usize];
    let read = snapshot.open(path)?.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}
