//! The life of a clone once it is made: its server started and stopped, all of it fetched, and the end as an ordinary data
//! directory.

use super::server::{self, Ends, Recovered};
use super::show::{Serving, State, state};
use super::{canonical, dir, instant, known, make, mount, recorded, refuse_running, required, settings, told, unmount};
use crate::commands::Context;
use crate::daemon;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, OptionError};
use crate::render::{self, json};
use crate::size::human_size;
use crate::{mounts, servers};
use pgkeep_engine::observe::Counter;
use pgkeep_engine::{Error, Kind};
use pgkeep_fuse::clone::{self, HydrationState};
use serde_json::json;
use std::num::NonZero;
use std::path::Path;
use std::time::Duration;

/// Between two looks how far hydration is.
const GLANCE: Duration = Duration::from_millis(100);

/// `clone start`: mounts the clone if it is not, and starts its server.
pub(super) fn start(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::Foreground) {
        let message = "option foreground is not for 'clone start': 'clone mount --foreground' serves, 'clone start' beside it starts";
        return Err(OptionError::new(Status::OPTION_INVALID, message).into());
    }
    let dir = dir(settings);
    let now = state(dir.clone(), known(&dir)?)?;
    refuse_restore(&now)?;
    if settings.flag(Opt::ReadyPipe) || now.serving != Serving::Mounted {
        let status = daemon::run(context, mount)?;
        if settings.flag(Opt::ReadyPipe) || status != Status::OK {
            return Ok(status);
        }
    }
    started(context, &dir)
}

/// Starts the server of a mounted clone, unless it runs, waits until it is what was asked for, and tells how to reach it.
pub(super) fn started(context: &Context<'_>, dir: &Path) -> Result<Status, Failure> {
    let settings = context.settings;
    let now = state(dir.to_owned(), clone::info(dir)?)?;
    let Some(mounted) = now.mounted.first() else {
        let text = format!("clone '{}' is not mounted", dir.display());
        return Err(Error::refused(Kind::PathMissing, text).into());
    };
    let on = mounted.on.clone();
    let ends = Ends::of(&now.info.identity);
    let recovered = if now.server.is_some() {
        server::wait_recovered(context, &on, ends)?
    } else {
        refuse_running(settings, dir)?;
        servers::forget_dead(&on)?;
        server::start(context, &on, ends)?
    };
    let ended = recovered == Recovered::ShutDown;
    let now = state(dir.to_owned(), now.info)?;
    let (port, socket) = now.place_of_server();
    let port_text = port.map_or_else(String::new, |port| port.to_string());
    let connect = format!("host={socket} port={port_text} dbname=postgres");
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(json!({
            "dir": dir.display().to_string(),
            "mountpoint": on.display().to_string(),
            "postmaster": now.server.as_ref().map(|server| server.pid),
            "socket": socket,
            "port": port,
            "connect": (!ended).then_some(connect),
            "server": if ended { "shut down at the target" } else { "running" },
        })))?;
    } else if ended {
        render::print(&told::shut_down(dir, &on))?;
    } else {
        let pid = now.server.as_ref().map_or_else(String::new, |server| format!(" {}", server.pid));
        render::print(&format!("server{pid} runs on clone '{}'\nto connect: psql '{connect}'\n", dir.display()))?;
    }
    Ok(Status::OK)
}

/// The server of a restore is started as always: only its owner knows how.
fn refuse_restore(now: &State) -> Result<(), Failure> {
    if super::is_restore(&now.info) {
        let text = format!(
            "'{}' is a restore that is not complete: 'restore --instant' serves it, its server is started as always",
            now.dir.display()
        );
        return Err(Error::refused(Kind::OptionInvalidValue, text).into());
    }
    Ok(())
}

/// `clone stop`: ends the server in order and takes the mount away. `clone start` goes on from there.
pub(super) fn stop(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let dir = dir(settings);
    let now = state(dir.clone(), known(&dir)?)?;
    daemon::stop_server(&dir)?;
    unmount(&dir, &now.mounted)?;
    tracing::info!("clone '{}' is stopped", dir.display());
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(json!({
            "dir": dir.display().to_string(),
            "stopped": now.server.as_ref().map(|server| server.pid),
            "unmounted": now.mounted.first().map(|mount| mount.on.display().to_string()),
        })))?;
    } else {
        render::print(&told::stopped(&now))?;
    }
    Ok(Status::OK)
}

/// `clone reset`: the clone as it was made. Its server is started with `--start`.
pub(super) fn reset(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    if settings.flag(Opt::ReadyPipe) {
        return daemon::run(context, make::reset);
    }
    let dir = dir(settings);
    let now = state(dir.clone(), known(&dir)?)?;
    refuse_restore(&now)?;
    make::again(settings, &dir)?;
    // What the server wrote is going to be removed: that must have been meant.
    refuse_running(settings, &dir)?;
    unmount(&dir, &now.mounted)?;
    let status = daemon::run(context, make::reset)?;
    if status == Status::OK && settings.flag(Opt::Start) && !settings.flag(Opt::Foreground) {
        return started(context, &dir);
    }
    Ok(status)
}

/// `clone hydrate`: has whoever serves the clone fetch all it lacks, and waits for it.
pub(super) fn hydrate(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let dir = dir(settings);
    known(&dir)?;
    let total = hydrated(context, &dir)?;
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(json!({ "dir": dir.display().to_string(), "state": "done", "total": total })))?;
    } else {
        tracing::info!("clone '{}' is hydrated: {}", dir.display(), human_size(total));
    }
    Ok(Status::OK)
}

/// Asks for everything and waits until it is there. Returns how many bytes of the backup that are.
fn hydrated(context: &Context<'_>, dir: &Path) -> Result<u64, Failure> {
    let found = clone::hydration(dir)?;
    if let Some(done) = found.filter(|h| h.state == HydrationState::Done) {
        return Ok(done.total);
    }
    clone::hydrate(dir, context.settings.size(Opt::IoLimit).and_then(NonZero::new))?;
    let observer = context.observer;
    let (mut begun, mut shown) = (false, 0);
    let result = loop {
        if mounts::of_source(&mounts::source_of(dir))?.is_empty() || !clone::is_held(dir)? {
            let text = format!("clone '{}' is not served: it goes on once it is mounted", dir.display());
            break Err(Error::refused(Kind::PathMissing, text).into());
        }
        if let Some(h) = clone::hydration(dir)? {
            if !std::mem::replace(&mut begun, true) {
                observer.begin("hydrate", h.total);
            }
            observer.add(Counter::Done, h.done.saturating_sub(shown));
            shown = shown.max(h.done);
            match h.state {
                HydrationState::Done => break Ok(h.total),
                HydrationState::Failed => {
                    let text = format!("{}; it is tried again", h.error.unwrap_or_default());
                    break Err(Error::refused(Kind::FileRead, text).into());
                }
                HydrationState::Running => {}
            }
        }
        if context.cancel.is_cancelled() {
            tracing::info!("hydration of clone '{}' goes on in the background", dir.display());
            break Err(Error::Interrupted.into());
        }
        std::thread::sleep(GLANCE);
    };
    if begun {
        observer.end();
    }
    result
}

/// `clone promote`: the clone becomes an ordinary data directory at its mountpoint.
pub(super) fn promote(context: &Context<'_>) -> Result<Status, Failure> {
    let settings = context.settings;
    let dir = dir(settings);
    let info = known(&dir)?;
    let now = state(dir.clone(), info.clone())?;
    let place = match now.mounted.first() {
        Some(mounted) => mounted.on.clone(),
        None => {
            let of = Some(recorded(&info, "mountpoint")).filter(|m| !m.is_empty()).map(Path::new);
            let place = settings.path(Opt::Mountpoint).or(of).ok_or_else(|| required("mountpoint"))?;
            mounts::resolved(place)
        }
    };
    // Told before anything is stopped.
    clone::try_promote(&dir, &place)?;
    if now.serving == Serving::Mounted {
        hydrated(context, &dir)?;
    }
    let ran = now.server.is_some();
    let is_whole = clone::hydration(&dir)?.is_some_and(|h| h.state == HydrationState::Done);
    if ran && !is_whole && now.serving != Serving::Mounted {
        let text = format!("clone '{}' is not served, and lacks pages of its backup", dir.display());
        return Err(Error::refused(Kind::PathMissing, text).into());
    }
    // A restore's server goes on logging where it did.
    let log = now.server.as_ref().filter(|_| super::is_restore(&info)).and_then(|running| server::log_of(running.pid));
    let promote = || {
        daemon::stop_server(&dir)?;
        refuse_running(settings, &dir)?;
        unmount(&dir, &now.mounted)?;
        let dir = canonical(&dir)?;
        // A promotion that was cut off may have moved it already.
        let data = dir.join("data");
        if data.is_dir() {
            warn_of(&data);
            if super::is_restore(&info) {
                instant::forget_serving(&data)?;
            } else {
                settings::place_for(&data, &place)?;
            }
        }
        Ok::<_, Failure>(clone::promote(&dir, &place)?)
    };
    promote().inspect_err(|_| {
        if ran {
            let again = if super::is_restore(&info) {
                "'restore --instant', as before, serves it; start its server then"
            } else {
                "'clone start' starts it"
            };
            tracing::warn!("the server on clone '{}' was stopped; {again}", dir.display());
        }
    })?;
    tracing::info!("clone '{}' is now the ordinary data directory '{}'", dir.display(), place.display());
    super::unpin(settings, &info);
    if ran {
        let how = if super::is_restore(&info) { "restart" } else { "start" };
        server::run_pg_ctl(context, &place, how, log.as_deref()).map_err(|failure| match failure {
            Failure::Engine(e) if e.kind() == Kind::DbConnect => {
                Error::refused(e.kind(), format!("clone '{}' is promoted, but {e}", dir.display())).into()
            }
            other => other,
        })?;
    }
    let of = |name| recorded(&info, name);
    if settings.text(Opt::Output) == Some("json") {
        let runs = servers::on(&place)?;
        let port = runs.as_ref().and_then(|server| server.port).or_else(|| of("port").parse().ok());
        render::print(&json::to_text(json!({
            "pgdata": place.display().to_string(),
            "running": ran,
            "socket": runs.and_then(|server| server.socket).unwrap_or_else(|| of("socket").to_owned()),
            "port": port,
        })))?;
    } else {
        let running = if ran { "its server runs again" } else { "it has no server" };
        let settings = if super::is_restore(&info) {
            String::new()
        } else {
            let archives = match of("archive-to") {
                "" => "archiving off".to_owned(),
                own => format!("archiving for stanza {own}"),
            };
            format!("settings of the clone stay in its postgresql.auto.conf: port {}, {archives}\n", of("port"))
        };
        render::print(&format!("'{}' is an ordinary data directory now; {running}\n{settings}", place.display()))?;
    }
    Ok(Status::OK)
}

/// What an ordinary data directory would not have.
pub(super) fn warn_of(data: &Path) {
    let recovers = ["backup_label", "recovery.signal", "standby.signal"].iter().any(|name| data.join(name).exists());
    if recovers {
        tracing::warn!("recovery has not ended: the server still needs WAL from the repository");
    }
    if std::fs::read_dir(data.join(".tablespaces")).is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!("its tablespaces stay in '.tablespaces' inside the data directory, which backups refuse");
    }
}
