//! What a clone is and how it is at this moment: `clone list` and `clone info`.

use super::{dir, is_restore, known, recorded, taken_for_a_clone};
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Command, Opt, Settings};
use crate::render::{self, json};
use crate::servers::{self, Server};
use crate::size::human_size;
use crate::{mounts, zone};
use pgkeep_engine::{FileError, Kind};
use pgkeep_fuse::Mounted;
use pgkeep_fuse::clone::{self, CloneInfo, Hydration, HydrationState};
use serde_json::json;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The unit of `st_blocks`, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: u64 = 512;

/// Whether a clone can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Serving {
    /// It is mounted and a process serves it.
    Mounted,
    /// The process that served it is dead, and its mount is still there: whoever uses that fails.
    Broken,
    /// It is not mounted.
    Unmounted,
}

impl Serving {
    /// As in JSON.
    fn as_str(self) -> &'static str {
        match self {
            Self::Mounted => "mounted",
            Self::Broken => "broken",
            Self::Unmounted => "unmounted",
        }
    }
}

/// A clone as it is now.
pub(super) struct State {
    pub(super) dir: PathBuf,
    pub(super) info: CloneInfo,
    pub(super) serving: Serving,
    pub(super) mounted: Vec<Mounted>,
    /// The server, if one runs on it.
    pub(super) server: Option<Server>,
    pub(super) hydration: Option<Hydration>,
}

impl State {
    /// Port and socket directory: what a server that runs says itself, else what the clone was made with. The server of a
    /// restore has its own, which nobody knows before it runs.
    pub(super) fn place_of_server(&self) -> (Option<u16>, &str) {
        let of = |name| recorded(&self.info, name);
        let running = self.server.as_ref();
        let port = running.and_then(|server| server.port).or_else(|| of("port").parse().ok());
        (port, running.and_then(|server| server.socket.as_deref()).unwrap_or(of("socket")))
    }
}

pub(super) fn state(dir: PathBuf, info: CloneInfo) -> Result<State, Failure> {
    let (serving, mounted) = serving(&dir)?;
    let server = servers::on_clone(&dir)?;
    let hydration = clone::hydration(&dir)?;
    Ok(State { dir, info, serving, mounted, server, hydration })
}

/// Whoever serves a clone holds it before it is mounted and until after the unmount. So a mount that is there before and
/// after nobody held the clone is dead. The mount itself is not asked: a process that hangs would not answer.
fn serving(dir: &Path) -> Result<(Serving, Vec<Mounted>), Failure> {
    let source = mounts::source_of(dir);
    let before = mounts::of_source(&source)?;
    if before.is_empty() {
        return Ok((Serving::Unmounted, before));
    }
    if clone::is_held(dir)? {
        return Ok((Serving::Mounted, before));
    }
    let mut still = mounts::of_source(&source)?;
    still.retain(|mount| before.contains(mount));
    Ok((if still.is_empty() { Serving::Unmounted } else { Serving::Broken }, still))
}

pub(super) fn list(settings: &Settings) -> Result<Status, Failure> {
    let (clones, none) = if settings.path(Opt::Dir).is_some() {
        let dir = dir(settings);
        let clones = match clone::info(&dir) {
            Err(e) if e.kind() == Kind::PathMissing && dir.is_dir() => {
                let clones = clone::list(&dir)?;
                // What is something else holds none.
                match taken_for_a_clone(&dir).filter(|_| clones.is_empty()) {
                    Some(failure) => return Err(failure),
                    None => clones,
                }
            }
            Err(_) => vec![(dir.clone(), Ok(known(&dir)?))],
            info => vec![(dir, info)],
        };
        (clones, "No clones exist in the directory.\n")
    } else {
        (mounted_here()?, "No clones are mounted on this host; --dir=DIRECTORY shows those in a directory.\n")
    };
    let mut status = Status::OK;
    let mut states = Vec::new();
    for (dir, info) in clones {
        match info.map_err(Failure::from).and_then(|info| state(dir.clone(), info)) {
            Ok(state) => states.push(state),
            // The others are good all the same.
            Err(e) => {
                tracing::error!("{}", e.report(Some(Command::Clone)));
                status = e.status();
            }
        }
    }
    if settings.text(Opt::Output) == Some("json") {
        render::print(&json::to_text(states.iter().map(of_state).collect()))?;
        return Ok(status);
    }
    let text: String = states.iter().map(text_of).collect();
    let is_none = text.is_empty() && status == Status::OK;
    render::print(if is_none { none } else { &text })?;
    Ok(status)
}

/// The clones that are mounted on this host, as far as this user may look into them, by directory.
fn mounted_here() -> Result<Vec<(PathBuf, pgkeep_engine::Result<CloneInfo>)>, Failure> {
    let mut clones = Vec::new();
    for dir in mounts::clones()? {
        match clone::info(&dir) {
            // Another user's, or one that was unmounted and removed just now.
            Err(e) if matches!(e.kind(), Kind::PathOpen | Kind::PathMissing | Kind::LockAcquire) => {
                tracing::info!("a clone that is mounted is not listed: {e}");
            }
            info => clones.push((dir, info)),
        }
    }
    Ok(clones)
}

pub(super) fn info(settings: &Settings) -> Result<Status, Failure> {
    let dir = dir(settings);
    let state = state(dir.clone(), known(&dir)?)?;
    // What this user may not list is not counted, and then the sum says nothing.
    let held = match held_bytes(&dir) {
        Ok(held) => Some(held),
        Err(e) => {
            tracing::debug!("how much clone '{}' takes is not known: {e}", dir.display());
            None
        }
    };
    if settings.text(Opt::Output) == Some("json") {
        let mut value = of_state(&state);
        value["held"] = held.into();
        render::print(&json::to_text(value))?;
    } else {
        let held = held.map_or_else(|| "not known".to_owned(), human_size);
        render::print(&format!("{}    on disk: {held}\n", text_of(&state)))?;
    }
    Ok(Status::OK)
}

/// Bytes that the clone takes on its file system. What vanishes meanwhile takes none.
fn held_bytes(dir: &Path) -> Result<u64, Failure> {
    let failed = |what, path: &Path, e| Failure::file(FileError::at(what, path)(e));
    let mut held = 0;
    let mut directories = vec![dir.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| failed("list", &directory, e))?,
        };
        for entry in entries {
            let entry = entry.map_err(|e| failed("list", &directory, e))?;
            match entry.metadata() {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("stat", &entry.path(), e)),
                Ok(facts) => {
                    held += facts.blocks() * STAT_BLOCK_BYTES;
                    if facts.is_dir() {
                        directories.push(entry.path());
                    }
                }
            }
        }
    }
    Ok(held)
}

fn of_state(s: &State) -> serde_json::Value {
    let of = |name| recorded(&s.info, name);
    let hydration = s
        .hydration
        .as_ref()
        .map(|h| json!({ "state": h.state.as_str(), "done": h.done, "total": h.total, "error": h.error }));
    let (port, socket) = s.place_of_server();
    json!({
        "dir": s.dir.display().to_string(),
        "stanza": of("stanza"),
        "label": of("label"),
        "repository": of("repository").parse::<u32>().ok(),
        "type": of("type"),
        "target": Some(of("target")).filter(|t| !t.is_empty()),
        "port": port,
        "socket": socket,
        "status": s.serving.as_str(),
        "mountpoint": s.mounted.first().map(|m| m.on.display().to_string()),
        "postmaster": s.server.as_ref().map(|server| server.pid),
        "created": s.info.created,
        "files": s.info.files,
        "bytes": s.info.bytes,
        "hydration": hydration,
    })
}

fn text_of(s: &State) -> String {
    let of = |name| recorded(&s.info, name);
    let created = jiff::Timestamp::from_second(s.info.created).unwrap_or_default().to_zoned(zone::local());
    let hydration = match &s.hydration {
        Some(h) if h.state == HydrationState::Done => {
            "    hydration: done, all pages of the backup are here\n".to_owned()
        }
        Some(h) => format!(
            "    hydration: {}, {} of {}{}\n",
            h.state.as_str(),
            human_size(h.done),
            human_size(h.total),
            h.error.as_ref().map_or_else(String::new, |e| format!(": {e}"))
        ),
        None => String::new(),
    };
    let target = match (of("type"), of("target")) {
        (kind, "") => kind.to_owned(),
        (kind, target) => format!("{kind} {target}"),
    };
    format!(
        "clone: {}\n    backup: {} of stanza {}, repo{}, recovered to: {target}\n    size: {}, created {}\n    status: {}\n{hydration}",
        s.dir.display(),
        of("label"),
        of("stanza"),
        of("repository"),
        human_size(s.info.bytes),
        created.strftime("%Y-%m-%d %H:%M:%S%:::z"),
        status_of(s)
    )
}

fn status_of(s: &State) -> String {
    let on = s.mounted.first().map_or_else(String::new, |mount| mount.on.display().to_string());
    let port = s.place_of_server().0.map_or_else(String::new, |port| format!("port {port}"));
    let again = if is_restore(&s.info) { "the same 'restore --instant' as before" } else { "'clone start'" };
    match (s.serving, &s.server) {
        (Serving::Mounted, Some(server)) if port.is_empty() => format!("mounted on {on}, server {}", server.pid),
        (Serving::Mounted, Some(server)) => format!("mounted on {on}, server {} on {port}", server.pid),
        (Serving::Mounted, None) => format!("mounted on {on}, no server"),
        (Serving::Broken, Some(server)) => format!(
            "broken: the process that served it on {on} is dead, and server {} there fails; {again} with --force ends \
             that and serves it again",
            server.pid
        ),
        (Serving::Broken, None) => {
            format!("broken: the process that served it on {on} is dead; {again} serves it again")
        }
        (Serving::Unmounted, Some(server)) => format!("not mounted, but server {} still runs on it", server.pid),
        (Serving::Unmounted, None) if port.is_empty() => "not mounted".to_owned(),
        (Serving::Unmounted, None) => format!("not mounted, {port}"),
    }
}
