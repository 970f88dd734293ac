//! What a clone's server is told: enough to run beside the server it is a clone of, and never in its name.
//!
//! Settings are appended to `postgresql.auto.conf`, because the last line of a name counts; what the user asked for by
//! `--recovery-option` is left alone. Those that name places are written at the end of `postgresql.conf`, behind all it
//! includes, and again at each mount: a `data_directory` of the original would make `pg_ctl -D <clone>` start a server on
//! the original. Those of them that `postgresql.auto.conf` may hold, which is read later, are there too.

use crate::error::Failure;
use pgkeep_engine::FileError;
use pgkeep_engine::restore::recovery::quote;
use pgkeep_formats::pg::control::StandbySettings;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

pub(super) const AUTO_CONF: &str = "postgresql.auto.conf";
pub(super) const CONF: &str = "postgresql.conf";
pub(super) const HBA: &str = "pg_hba.conf";
pub(super) const IDENT: &str = "pg_ident.conf";

/// Who may connect where the backup does not say.
pub(super) const HBA_MINIMAL: &str = "# The backup has no such file.\n\
    local all all peer\n\
    host all all 127.0.0.1/32 scram-sha-256\n\
    host all all ::1/128 scram-sha-256\n";

/// Who may connect to a scratch clone: whoever reaches its socket, which lies in a directory of its user alone. What the
/// backup says would ask for passwords that a user of the repository need not know.
pub(super) const HBA_SCRATCH: &str = "local all all trust\n";

/// What a scratch clone's server is told besides: to start wherever the backup's major is installed, whatever certificates,
/// libraries, groups and memory the original had, to do nothing by itself, and to say all in one log. Nothing of it is to
/// survive a crash.
const SCRATCH: [(&str, &str); 20] = [
    ("ssl", "off"),
    ("shared_preload_libraries", ""),
    ("session_preload_libraries", ""),
    ("local_preload_libraries", ""),
    ("unix_socket_group", ""),
    ("unix_socket_permissions", "0700"),
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
    ("autovacuum", "off"),
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    // A primary that was given more connections since the backup would make a hot standby pause for ever.
    ("hot_standby", "off"),
    ("recovery_min_apply_delay", "0"),
    ("log_min_messages", "warning"),
    ("log_line_prefix", "%m "),
    ("log_timezone", "GMT"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
    ("lc_messages", "C"),
    ("default_transaction_read_only", "off"),
];

/// Settings of places, and what each names in the data directory. An empty `external_pid_file` would be complained of.
const PLACES: [(&str, &str); 4] =
    [("data_directory", ""), ("hba_file", HBA), ("ident_file", IDENT), ("external_pid_file", "external.pid")];
/// The one that the server does not take from `postgresql.auto.conf`.
const NOT_AUTO: &str = "data_directory";
/// Around the settings of places.
const PLACES_BEGIN: &str = "# Places of the clone, written by pgkeep at each mount; they must come last.";
const PLACES_END: &str = "# End of the places of the clone.";
/// Most bytes of a configuration file.
const READ_BYTES_MAX: u64 = 16 << 20;
/// Longest name of a cluster, in bytes.
const NAME_LEN_MAX: usize = 63;
/// The first major that can be told how to make files durable before recovery.
const INIT_SYNC_SINCE: u32 = 14;
/// The first major that archives by a library, instead of the command.
const ARCHIVE_LIBRARY_SINCE: u32 = 15;
/// The last major that keeps statistics in files of a directory that can be set.
const STATS_DIRECTORY_UNTIL: u32 = 14;
/// The last major that a file can tell to promote.
const TRIGGER_FILE_UNTIL: u32 = 15;
/// The first major whose standbys can copy the slots of the primary.
const SYNC_SLOTS_SINCE: u32 = 17;

/// The first major that reads ahead in WAL for pages that replay will need.
const RECOVERY_PREFETCH_SINCE: u32 = 15;
/// What a server that reads ahead in WAL is told where changes of pages come without images of them: how many pages it may
/// wait for at once, and how far it looks. A page that is not here may cost a request to the repository, 30 ms or more.
const READ_AHEAD: [(&str, &str); 2] = [("maintenance_io_concurrency", "256"), ("wal_decode_buffer_size", "8MB")];

/// What a clone is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// For its user, who removes it.
    Kept,
    /// For one command, which removes it.
    Scratch,
}

/// What differs from clone to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CloneSettings {
    pub(super) port: u16,
    /// Directory of the socket.
    pub(super) socket: String,
    /// `cluster_name`, of whatever characters.
    pub(super) name: String,
    /// PostgreSQL's major.
    pub(super) major: u32,
    /// Files that are made on the clone bypass the process that serves it.
    pub(super) bypass: bool,
    /// The first change of a page behind a checkpoint has an image of the page (`full_page_writes`).
    pub(super) images: bool,
    /// Settings that the user has given a value.
    pub(super) asked: Vec<String>,
    pub(super) purpose: Purpose,
    /// Its `archive_command`, if it archives.
    pub(super) archive_command: Option<String>,
}

/// Appends the clone's settings to the content of `postgresql.auto.conf`.
pub(super) fn append(mut content: Vec<u8>, clone: &CloneSettings, now: &str) -> Vec<u8> {
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let name: String = clone.name.chars().map(plain).take(NAME_LEN_MAX).collect();
    let mut all = vec![
        ("port", clone.port.to_string()),
        ("listen_addresses", if clone.purpose == Purpose::Kept { "localhost" } else { "" }.to_owned()),
        ("unix_socket_directories", socket_list(&clone.socket)),
        ("cluster_name", name),
        // It must not archive in the original's name, nor follow it, nor wait for its standbys.
        ("archive_mode", if clone.archive_command.is_some() { "on" } else { "off" }.to_owned()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("synchronous_standby_names", String::new()),
        // Nor take what a subscriber's slot has for it.
        ("max_logical_replication_workers", "0".to_owned()),
        // Nor run what tidies up behind the original, nor write over its logs.
        ("archive_cleanup_command", String::new()),
        ("recovery_end_command", String::new()),
        ("log_directory", "log".to_owned()),
    ];
    if clone.major <= STATS_DIRECTORY_UNTIL {
        all.push(("stats_temp_directory", "pg_stat_tmp".to_owned()));
    }
    if clone.major <= TRIGGER_FILE_UNTIL {
        all.push(("promote_trigger_file", String::new()));
    }
    if clone.major >= SYNC_SLOTS_SINCE {
        all.push(("sync_replication_slots", "off".to_owned()));
    }
    if clone.major >= INIT_SYNC_SINCE {
        // The other method does not reach a file system in user space.
        all.push(("recovery_init_sync_method", "fsync".to_owned()));
    }
    if clone.major >= RECOVERY_PREFETCH_SINCE {
        if clone.images {
            // Replay needs next to nothing of the backup then. The server cannot know: it looks at later changes of a page
            // whose image was not replayed yet, and has the page fetched for nothing.
            all.push(("recovery_prefetch", "off".to_owned()));
        } else {
            all.extend(READ_AHEAD.map(|(name, value)| (name, value.to_owned())));
        }
    }
    if clone.bypass {
        // So do writes of WAL then, but not syncs: with this method a commit needs none.
        all.push(("wal_sync_method", "open_datasync".to_owned()));
    }
    if let Some(command) = &clone.archive_command {
        all.push(("archive_command", command.clone()));
        if clone.major >= ARCHIVE_LIBRARY_SINCE {
            all.push(("archive_library", String::new()));
        }
    }
    if clone.purpose == Purpose::Scratch {
        all.extend(SCRATCH.map(|(name, value)| (name, value.to_owned())));
    }
    all.retain(|(name, _)| !clone.asked.iter().any(|asked| asked == name));
    end_line(&mut content);
    if !content.is_empty() {
        content.push(b'\n');
    }
    content.extend_from_slice(format!("# Settings of the clone generated by pgkeep on {now}\n").as_bytes());
    for (name, value) in all {
        content.extend_from_slice(format!("{name} = {}\n", quote(&value)).as_bytes());
    }
    content
}

/// A path as an element of the server's list of directories.
fn socket_list(path: &str) -> String {
    format!("\"{}\"", path.replace('"', "\"\""))
}

pub(super) fn end_line(content: &mut Vec<u8>) {
    if !content.is_empty() && !content.ends_with(b"\n") {
        content.push(b'\n');
    }
}

/// A file of settings with those of places at its end, in place of what an earlier mount wrote. In
/// `postgresql.auto.conf` that is by name: the server drops comments when it writes the file.
pub(super) fn with_places(conf: &[u8], file: &str, mountpoint: &Path) -> Vec<u8> {
    let auto = file == AUTO_CONF;
    let places = || PLACES.iter().filter(|(name, _)| !(auto && *name == NOT_AUTO));
    let mut out = Vec::with_capacity(conf.len() + 512);
    let mut inside = false;
    for line in conf.split_inclusive(|b| *b == b'\n') {
        let text = line.trim_ascii();
        let begins = text == PLACES_BEGIN.as_bytes();
        let ours = (inside || auto) && places().any(|(name, _)| names(line, name));
        // Whatever somebody wrote between the two lines stays.
        if !(begins || ours || (inside && text == PLACES_END.as_bytes())) {
            out.extend_from_slice(line);
        }
        inside = (begins || inside) && text != PLACES_END.as_bytes();
    }
    end_line(&mut out);
    let mut block = format!("{PLACES_BEGIN}\n");
    for (name, file) in places() {
        let path = if file.is_empty() { mountpoint.to_path_buf() } else { mountpoint.join(file) };
        block.push_str(&format!("{name} = {}\n", quote(&path.display().to_string())));
    }
    out.extend_from_slice(block.as_bytes());
    out.extend_from_slice(format!("{PLACES_END}\n").as_bytes());
    out
}

/// The server ignores case and the `=` is optional.
fn names(line: &[u8], setting: &str) -> bool {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(line.len());
    line.get(..end).unwrap_or_default().eq_ignore_ascii_case(setting.as_bytes())
}

/// Writes the places into a clone that has just been mounted there.
///
/// # Errors
/// What the file system said.
pub(super) fn place(mountpoint: &Path) -> Result<(), Failure> {
    place_for(mountpoint, mountpoint)
}

/// Writes into a data directory the places it will have at another path.
///
/// # Errors
/// What the file system said.
pub(super) fn place_for(here: &Path, data: &Path) -> Result<(), Failure> {
    for file in [CONF, AUTO_CONF] {
        let path = here.join(file);
        let before = read(&path).map_err(|e| Failure::file(FileError::at("read", &path)(e)))?;
        let after = with_places(&before, file, data);
        if after != before {
            replace(&path, &after).map_err(|e| Failure::file(FileError::at("write", &path)(e)))?;
        }
    }
    Ok(())
}

/// A file that the server's user may have replaced by anything.
pub(super) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Replaces a file durably by one of the same owner and mode.
pub(super) fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    // The server's user owns the directory and may have put a link there, and this process may be root.
    let facts = std::fs::symlink_metadata(path)?;
    let temporary = path.with_extension("pgkeep.tmp");
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(&temporary)?;
    file.set_permissions(facts.permissions())?;
    std::os::unix::fs::fchown(&file, Some(facts.uid()), Some(facts.gid()))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// A `postgresql.conf` for a backup without one. A standby needs room for as much as the primary had.
pub(super) fn minimal(limits: Option<StandbySettings>) -> Vec<u8> {
    let mut text = String::from("# The backup has no such file.\n");
    if let Some(limits) = limits {
        for (name, value) in [
            ("max_connections", limits.max_connections),
            ("max_worker_processes", limits.max_worker_processes),
            ("max_wal_senders", limits.max_wal_senders),
            ("max_prepared_transactions", limits.max_prepared_transactions),
            ("max_locks_per_transaction", limits.max_locks_per_transaction),
        ] {
            text.push_str(&format!("{name} = {value}\n"));
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clone(major: u32) -> CloneSettings {
        CloneSettings {
            port: 5433,
            socket: "/tmp/a, 'b'".into(),
            name: format!("pgkeep_é x_{}", "y".repeat(90)),
            major,
            bypass: false,
            images: true,
            asked: Vec::new(),
            purpose: Purpose::Kept,
            archive_command: None,
        }
    }

    #[test]
    fn where_files_bypass_the_serving_process_commits_do_unless_the_user_says_otherwise() {
        let text = |bypass, asked: &str| {
            let settings = CloneSettings { bypass, asked: vec![asked.to_owned()], ..clone(15) };
            String::from_utf8(append(Vec::new(), &settings, "now")).unwrap()
        };
        assert!(text(true, "").ends_with("wal_sync_method = 'open_datasync'\n"));
        assert!(!text(true, "wal_sync_method").contains("wal_sync_method"));
        assert!(!text(false, "").contains("wal_sync_method"));
    }

    #[test]
    fn settings_come_last_and_are_quoted() {
        let text = String::from_utf8(append(b"port = 1".to_vec(), &clone(15), "now")).unwrap();
        assert!(text.starts_with("port = 1\n\n# Settings of the clone generated by pgkeep on now\nport = '5433'\n"));
        assert!(text.contains("\nunix_socket_directories = '\"/tmp/a, ''b''\"'\n"), "{text}");
        assert!(text.contains("\narchive_mode = 'off'\nprimary_conninfo = ''\n"));
        let name = text.lines().find_map(|l| l.strip_prefix("cluster_name = '")).unwrap();
        assert!(name.starts_with("pgkeep___x_yyy") && name.len() == NAME_LEN_MAX + 1, "{name}");
        assert!(text.ends_with("recovery_init_sync_method = 'fsync'\nrecovery_prefetch = 'off'\n"));
        assert!(!String::from_utf8(append(Vec::new(), &clone(13), "now")).unwrap().contains("recovery_init"));
    }

    #[test]
    fn a_server_reads_ahead_in_wal_only_where_changes_come_without_images() {
        let text = |major, images, asked: &str| {
            let settings = CloneSettings { images, asked: vec![asked.to_owned()], ..clone(major) };
            String::from_utf8(append(Vec::new(), &settings, "now")).unwrap()
        };
        let ahead = "maintenance_io_concurrency = '256'\nwal_decode_buffer_size = '8MB'\n";
        assert!(text(15, true, "").contains("recovery_prefetch = 'off'\n") && !text(15, true, "").contains(ahead));
        assert!(text(15, false, "").contains(ahead) && !text(15, false, "").contains("recovery_prefetch"));
        assert!(!text(15, true, "recovery_prefetch").contains("recovery_prefetch"));
        for images in [true, false] {
            assert!(!text(14, images, "").contains("recovery_prefetch") && !text(14, images, "").contains(ahead));
        }
    }

    #[test]
    fn a_clone_keeps_to_itself_unless_the_user_says_otherwise() {
        let text = |major, asked: &[&str]| {
            let asked = asked.iter().map(|s| (*s).to_owned()).collect();
            String::from_utf8(append(Vec::new(), &CloneSettings { asked, ..clone(major) }, "now")).unwrap()
        };
        let all = [
            "max_logical_replication_workers = '0'",
            "archive_cleanup_command = ''",
            "recovery_end_command = ''",
            "synchronous_standby_names = ''",
            "primary_slot_name = ''",
            "log_directory = 'log'",
        ];
        for major in 13..=18 {
            let text = text(major, &[]);
            for line in all {
                assert!(text.lines().any(|l| l == line), "{line} in {major}");
            }
            assert_eq!(text.contains("sync_replication_slots = 'off'"), major >= 17);
            assert_eq!(text.contains("stats_temp_directory = 'pg_stat_tmp'"), major <= 14);
            assert_eq!(text.contains("promote_trigger_file = ''"), major <= 15);
        }
        let text = text(17, &["primary_conninfo", "recovery_end_command"]);
        assert!(!text.contains("primary_conninfo") && !text.contains("recovery_end_command"));
        assert!(text.contains("primary_slot_name = ''"));
    }

    #[test]
    fn a_scratch_clone_is_reached_by_its_socket_alone_and_runs_nothing_of_its_own() {
        let text = |asked: &[&str]| {
            let asked = asked.iter().map(|s| (*s).to_owned()).collect();
            let clone = CloneSettings { asked, purpose: Purpose::Scratch, ..clone(15) };
            String::from_utf8(append(Vec::new(), &clone, "now")).unwrap()
        };
        for line in ["listen_addresses = ''", "shared_preload_libraries = ''", "ssl = 'off'", "autovacuum = 'off'"] {
            assert!(text(&[]).lines().any(|l| l == line), "{line}");
        }
        assert!(!text(&["shared_preload_libraries"]).contains("shared_preload_libraries"));
    }

    #[test]
    fn places_come_last_and_once() {
        let conf = b"data_directory = '/x'\ninclude_dir 'conf.d'\nport=1";
        let first = String::from_utf8(with_places(conf, CONF, Path::new("/m/o'r"))).unwrap();
        let block = |on: &str| {
            format!(
                "{PLACES_BEGIN}\ndata_directory = '{on}'\nhba_file = '{on}/pg_hba.conf'\nident_file = '{on}/pg_ident.conf'\n\
                 external_pid_file = '{on}/external.pid'\n{PLACES_END}\n"
            )
        };
        let before = "data_directory = '/x'\ninclude_dir 'conf.d'\nport=1\n";
        assert_eq!(first, format!("{before}{}", block("/m/o''r")));
        assert_eq!(with_places(first.as_bytes(), CONF, Path::new("/m/o'r")), first.as_bytes());
        let edited = first.replace(PLACES_END, &format!("work_mem = 1\n{PLACES_END}")) + "HBA_file '/y'\n";
        let again = String::from_utf8(with_places(edited.as_bytes(), CONF, Path::new("/n"))).unwrap();
        assert_eq!(again, format!("{before}work_mem = 1\nHBA_file '/y'\n{}", block("/n")));
        // The server's own file loses its comments.
        let auto = b"hba_file = '/old/pg_hba.conf'\nport = 2\nExternal_pid_file = '/x'\n";
        let auto = String::from_utf8(with_places(auto, AUTO_CONF, Path::new("/n"))).unwrap();
        assert_eq!(auto, format!("port = 2\n{}", block("/n").replace("data_directory = '/n'\n", "")));
        // A block without its end takes nothing else away.
        let cut = format!("{PLACES_BEGIN}\nhba_file = '/old'\nport = 2\n");
        let again = String::from_utf8(with_places(cut.as_bytes(), CONF, Path::new("/n"))).unwrap();
        assert_eq!(again, format!("port = 2\n{}", block("/n")));
    }
}
