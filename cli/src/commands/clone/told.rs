//! What the user of a mounted clone is told: how to start its server, to connect, and to remove it.
//!
//! Commands are whole: absolute paths, quoted for a shell, under the user the server needs. They are for copying.

use super::show::State;
use super::{is_restore, recorded};
use crate::option::{Opt, Settings};
use crate::render::json;
use pgkeep_fuse::clone::CloneInfo;
use serde_json::json;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where packages put a major's programs; `#` stands for its number.
const HOMES: [&str; 3] = ["/usr/lib/postgresql/#/bin", "/usr/pgsql-#/bin", "/usr/lib/postgresql#/bin"];

/// Text, or JSON with the names of `clone list`. Nothing where the server is started next, which tells more.
pub(super) fn told(settings: &Settings, info: &CloneInfo, dir: &Path, mountpoint: &Path) -> String {
    let starts = settings.flag(Opt::Start) || settings.param(0) == Path::new("start");
    if starts && !settings.flag(Opt::Foreground) {
        return String::new();
    }
    let of = |name| recorded(info, name);
    let start = start(mountpoint);
    if settings.text(Opt::Output) == Some("json") {
        return json::to_text(json!({
            "dir": dir.display().to_string(),
            "stanza": of("stanza"),
            "label": of("label"),
            "repository": of("repository").parse::<u32>().ok(),
            "port": of("port").parse::<u16>().ok(),
            "socket": of("socket"),
            "mountpoint": mountpoint.display().to_string(),
            "start": start,
        }));
    }
    format!(
        "clone of backup {} is mounted on {}\nto start:   {start}\nto connect: psql -h {} -p {}\nto remove:  {} clone destroy --dir={}\n",
        of("label"),
        mountpoint.display(),
        quoted(of("socket")),
        of("port"),
        quoted(&settings.exe().display().to_string()),
        quoted(&dir.display().to_string())
    )
}

/// What `clone start` says of a server that has shut itself down at the target.
pub(super) fn shut_down(dir: &Path, mountpoint: &Path) -> String {
    format!(
        "no server runs on clone '{}': it recovered to the target and shut itself down there, as --target-action=shutdown asks\n         to go on as a primary: {}\n",
        dir.display(),
        start_with(mountpoint, "-o '-c recovery_target_action=promote' ")
    )
}

/// What `clone stop` says of what it has done.
pub(super) fn stopped(was: &State) -> String {
    let dir = was.dir.display();
    let server = was.server.as_ref().map_or_else(
        || "no server ran on it".to_owned(),
        |server| format!("its server {} was stopped in order", server.pid),
    );
    match was.mounted.first() {
        Some(mount) if is_restore(&was.info) => format!(
            "the restore of '{0}' is interrupted: {server}, and nothing is at '{0}' until the same 'restore --instant' as \
             before goes on\n",
            mount.on.display()
        ),
        Some(mount) => format!(
            "clone '{dir}' is stopped: {server}, and '{}' is not mounted any more; 'clone start' goes on\n",
            mount.on.display()
        ),
        None => format!("clone '{dir}' was not mounted; {server}\n"),
    }
}

/// The command that starts the server. Root lends it the owner of the data, as no server runs as root.
fn start(mountpoint: &Path) -> String {
    start_with(mountpoint, "")
}

fn start_with(mountpoint: &Path, more: &str) -> String {
    let program = pg_ctl_of(mountpoint).unwrap_or_else(|| PathBuf::from("pg_ctl"));
    let owner = std::fs::metadata(mountpoint).ok().filter(|m| m.uid() != 0 && rustix::process::geteuid().is_root());
    let lent = owner.map(|m| format!("setpriv --reuid={} --regid={} --init-groups ", m.uid(), m.gid()));
    format!(
        "{}{} -D {} {more}start",
        lent.unwrap_or_default(),
        quoted(&program.display().to_string()),
        quoted(&mountpoint.display().to_string())
    )
}

/// `pg_ctl` of the major of a data directory.
pub(in crate::commands) fn pg_ctl_of(data: &Path) -> Option<PathBuf> {
    let text = String::from_utf8(super::settings::read(&data.join("PG_VERSION")).ok()?).ok()?;
    let major = text.trim();
    // Whoever owns the directory writes this, and it becomes part of a path.
    let is_major = !major.is_empty() && major.len() <= 3 && major.bytes().all(|b| b.is_ascii_digit());
    pg_ctl(Some(major).filter(|_| is_major)?)
}

/// `pg_ctl` of a major: where packages put it, or else the first of the path that says it is of that major.
fn pg_ctl(major: &str) -> Option<PathBuf> {
    let packaged = HOMES.iter().map(|home| Path::new(&home.replace('#', major)).join("pg_ctl"));
    if let Some(found) = packaged.into_iter().find(|path| path.is_file()) {
        return Some(found);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join("pg_ctl")).find(|program| {
        let said = Command::new(program).arg("--version").output().map(|out| out.stdout).unwrap_or_default();
        is_of(&String::from_utf8_lossy(&said), major)
    })
}

/// Whether `pg_ctl (PostgreSQL) 15.4 (Debian ...)` is of major 15.
fn is_of(said: &str, major: &str) -> bool {
    let version = said.split_once("(PostgreSQL) ").map_or("", |(_, rest)| rest);
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    !digits.is_empty() && digits == major
}

/// A word as a shell takes it for itself.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_a_shell_as_they_are() {
        for word in ["/srv/clone", "/srv/a b", "/srv/o'r", "", "$(id)", "/srv/x;y", "~", "/ä"] {
            let out = Command::new("/bin/sh").args(["-c", &format!("printf %s {}", quoted(word))]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), word);
        }
        assert_eq!(quoted("/srv/clone-1.x"), "/srv/clone-1.x");
    }

    #[test]
    fn a_program_is_known_by_its_major() {
        assert!(
            is_of("pg_ctl (PostgreSQL) 15.4 (Debian 15.4-1)\n", "15") && is_of("pg_ctl (PostgreSQL) 18beta1\n", "18")
        );
        assert!(!is_of("pg_ctl (PostgreSQL) 15.4\n", "1") && !is_of("", "") && !is_of("pg_ctl 15\n", "15"));
    }
}
