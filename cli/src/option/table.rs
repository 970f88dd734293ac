//! The one table of options: names, types, defaults, places, commands, help.
//!
//! Parsing, files, environment, validation and help all read it. Adding an option is adding a row.
//! Names and meanings are pgBackRest's where it has the option; `effect` says where ours differs.

use super::command::Command as C;
use super::def::{Commands, Def, Group, Override, Type};
use super::more;
use Group::{Pg, Repo};
use pgkeep_fuse::clone::OpenMode;

macro_rules! options {
    ($($id:ident $name:literal $help:literal = $def:expr;)*) => {
        /// The name of an option: the key of the typed accessors of `Settings`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Opt {
            $(#[doc = concat!("`", $name, "`: ", $help, ".")] $id,)*
        }

        /// All rows, in the order of [`Opt`].
        pub static TABLE: &[Def] = &[$($def.named(Opt::$id, $name, $help),)*];
    };
}

impl Opt {
    /// Its row.
    #[must_use]
    pub fn def(self) -> &'static Def {
        // One macro makes the enum and the table, so the place is right by construction.
        TABLE.get(self as usize).unwrap_or(&TABLE[0])
    }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;
const PIB: u64 = 1024 * TIB;
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;

const BACKUP: Commands = C::Backup.bit();
const RESTORE: Commands = C::Restore.bit();
const CLONE: Commands = C::Clone.bit();
const MOUNT: Commands = C::Mount.bit();
const DIFF: Commands = C::Diff.bit();
const EXTRACT: Commands = C::Extract.bit();
const DRILL: Commands = C::Drill.bit();
/// Those that make a clone for themselves.
const SCRATCH: Commands = RECOVERED | DIFF;
/// Those of them whose clone recovers to a target.
const RECOVERED: Commands = EXTRACT | DRILL;
const PUSH: Commands = C::ArchivePush.bit();
const GET: Commands = C::ArchiveGet.bit();
const CHECK: Commands = C::Check.bit();
const EXPIRE: Commands = C::Expire.bit();
const GC: Commands = C::Gc.bit();
const INFO: Commands = C::Info.bit();
const VERIFY: Commands = C::Verify.bit();
const MANIFEST: Commands = C::Manifest.bit();
const ANNOTATE: Commands = C::Annotate.bit();
const DELETE: Commands = C::StanzaDelete.bit();
const REPAIR: Commands = C::Repair.bit();
const STATS: Commands = C::RepoStats.bit();
const SYNC: Commands = C::RepoSync.bit();
const VERSION: Commands = C::Version.bit();
const HELP: Commands = C::Help.bit();
const STOP: Commands = C::Stop.bit();
const REPO_FILES: Commands = C::RepoLs.bit() | C::RepoGet.bit();
const STANZA: Commands = C::StanzaCreate.bit() | DELETE | C::StanzaUpgrade.bit();
const CONTROL: Commands = C::Start.bit() | STOP;
/// Those that touch a repository.
const STORE: Commands = ANNOTATE
    | GET
    | PUSH
    | BACKUP
    | CHECK
    | EXPIRE
    | GC
    | INFO
    | MANIFEST
    | REPO_FILES
    | RESTORE
    | STANZA
    | VERIFY
    | CLONE
    | MOUNT
    | SCRATCH
    | REPAIR
    | STATS
    | SYNC;
/// Those that do anything.
const ALL: Commands = STORE | CONTROL;
/// Those that read a cluster's files or ask its server.
const CLUSTER: Commands = GET | PUSH | BACKUP | CHECK | RESTORE | STANZA;
/// Those that ask its server.
const SERVER: Commands = BACKUP | CHECK | STANZA;

const LEVELS: Type = Type::Enum(&["off", "error", "warn", "info", "detail", "debug", "trace"]);
const TARGETED: &[&str] = &["name", "time", "xid", "lsn"];
const RESTORE_TYPES: Type =
    Type::Enum(&["default", "immediate", "lsn", "name", "none", "preserve", "standby", "time", "xid"]);

/// Those after which the server goes on as a primary.
const ENDING_TYPES: Type = Type::Enum(&["default", "immediate", "lsn", "name", "time", "xid"]);

const ONE_BINARY: &str = "this program works on one host without remote processes";
const PACKS: &str = "the repository always packs many small pieces into one object";
const PAGES: &str = "increments always store changed pages only";
const NO_NETWORK: &str = "connections to object stores are kept alive and watched by io-timeout";
const CUTS: &str = "the repository chooses its own piece sizes";

const fn flag(default: &'static str) -> Def {
    Def::new(Type::Bool, Some(default))
}
const fn word(values: &'static [&'static str], default: &'static str) -> Def {
    Def::new(Type::Enum(values), Some(default))
}
const fn text() -> Def {
    Def::new(Type::Text, None)
}
const fn path() -> Def {
    Def::new(Type::Path, None)
}
const fn int(least: i64, most: i64) -> Def {
    Def::new(Type::Int(least, most), None)
}
const fn size(least: u64, most: u64, default: &'static str) -> Def {
    Def::new(Type::Size(least, most), Some(default))
}
const fn time(least: u64, most: u64, default: &'static str) -> Def {
    Def::new(Type::Time(least, most), Some(default))
}
/// A property of a repository.
const fn repo(def: Def) -> Def {
    def.group(Repo).on(STORE)
}
/// A number of periods of which the newest backup stays.
const fn keep() -> Def {
    repo(int(1, 9_999_999)).on(BACKUP | EXPIRE).tells(&more::KEEP)
}
/// A property of a repository kept in an object store.
const fn object(def: Def) -> Def {
    def.group(Repo).on(STORE)
}
const fn s3(def: Def) -> Def {
    object(def).when(Opt::RepoType, &["s3"])
}
const fn azure(def: Def) -> Def {
    object(def).when(Opt::RepoType, &["azure"])
}
const fn gcs(def: Def) -> Def {
    object(def).when(Opt::RepoType, &["gcs"])
}
const fn sftp(def: Def) -> Def {
    object(def).when(Opt::RepoType, &["sftp"]).later()
}
/// A property of a host that pgBackRest would reach through ssh or TLS.
const fn pg_host(def: Def) -> Def {
    def.group(Pg).on(SERVER).when(Opt::PgHost, &[]).later()
}
const fn repo_host(def: Def) -> Def {
    def.group(Repo).on(STORE & !BACKUP & !EXPIRE).when(Opt::RepoHost, &[]).later()
}

options! {
    // General.
    AllowRoot "allow-root" "run although the user is root"
        = flag("n").on(ALL).over(&[Override { commands: RESTORE | MOUNT | CLONE | SCRATCH, ty: Type::Bool, default: Some("y") }]);
    Beta "beta" "allow features that are not final" = flag("n").on(ALL).typed().hidden().ignored("there are none");
    BufferSize "buffer-size" "buffer size for reading and writing"
        = size(16 * KIB, 16 * MIB, "1MiB").on(STORE).ignored("buffers are sized by the work at hand");
    CachePath "cache-path" "directory for what can be rebuilt: index segments, derived keys"
        = Def::new(Type::Path, Some("/var/cache/@")).on(STORE);
    CloneOpenMode "clone-open-mode" "whether a clone's files bypass the serving process or are cached"
        = word(&OpenMode::NAMES, "auto").on(CLONE | RESTORE | SCRATCH);
    CloneTrace "clone-trace" "record what a clone reads first; fetch what earlier clones recorded"
        = flag("y").on(CLONE | RESTORE).tells(&more::CLONE_TRACE);
    Cmd "cmd" "command that the server is told to call" = text().on(STORE);
    CmdSsh "cmd-ssh" "ssh client" = Def::new(Type::Text, Some("ssh")).on(STORE).ignored(ONE_BINARY);
    CompareWith "compare-with" "label of the backup that comes first (default: the one before)" = text().on(DIFF).typed();
    Compress "compress" "compress (use compress-type=none instead)" = flag("y").on(BACKUP | PUSH).hidden();
    CompressLevel "compress-level" "compression level of zst" = int(-9, 22).on(BACKUP | PUSH | SYNC);
    CompressLevelNetwork "compress-level-network" "compression level between hosts"
        = int(-5, 12).on(STORE & !EXPIRE).ignored(ONE_BINARY);
    CompressType "compress-type" "compression: none or zst; other names mean zst"
        = word(&["none", "bz2", "gz", "lz4", "zst"], "zst").on(BACKUP | PUSH | SYNC);
    Config "config" "configuration file" = Def::new(Type::Path, Some("/etc/@/@.conf")).on(ALL | HELP).typed().negate();
    ConfigIncludePath "config-include-path" "directory of further configuration files (*.conf)"
        = Def::new(Type::Path, Some("/etc/@/conf.d")).on(ALL | HELP).typed();
    ConfigPath "config-path" "directory of the configuration file and of conf.d"
        = Def::new(Type::Path, Some("/etc/@")).on(ALL | HELP).typed();
    DataOlderThan "data-older-than" "leave out what this host has read and found whole within this time"
        = Def::new(Type::Time(SECOND, 3650 * DAY), None).on(VERIFY).typed();
    DataOnly "data-only" "dump rows and no definitions" = flag("n").on(EXTRACT).typed();
    DbTimeout "db-timeout" "longest wait for the server to answer"
        = time(100, 7 * DAY, "30m").on(SERVER | GET | PUSH | REPO_FILES);
    Delta "delta" "compare contents instead of trusting what is there" = flag("n").on(BACKUP | RESTORE).means(&[
        (BACKUP, "read and compare all files, whatever their times or WAL summaries say"),
        (RESTORE, "restore over what is there: keep what is right, replace and remove the rest"),
    ]);
    Dir "dir" "directory for what a clone writes; of list: one that holds clones"
        = Def::new(Type::AnyPath, None).on(CLONE | SCRATCH).typed()
            .means(&[(SCRATCH, "directory in which the clone is made, and removed at the end")])
            .over(&[Override { commands: SCRATCH, ty: Type::AnyPath, default: Some("/var/tmp") }]);
    Database "database" "database to extract from (default: the only one beside postgres)" = text().on(EXTRACT).typed();
    DrillDir "drill-dir" "directory of own checks: NAME.sql, and NAME.out with what it must print"
        = path().on(DRILL);
    DryRun "dry-run" "say what would be done" = flag("n").on(EXPIRE | GC | SYNC).typed();
    Explain "explain" "say why each backup and archive stays or goes, and change nothing" = flag("n").on(EXPIRE).typed();
    ExecId "exec-id" "identifies a run" = text().on(ALL).typed().hidden().ignored(ONE_BINARY);
    File "file" "file, or directory, to write to instead of standard output" = Def::new(Type::AnyPath, None).on(EXTRACT).typed();
    Filter "filter" "regular expression (POSIX, extended) that is to be found in a path" = text().on(C::RepoLs.bit() | MANIFEST).typed();
    Force "force" "go on where the command would refuse" = flag("n").on(BACKUP | RESTORE | DELETE | STOP | CLONE | EXPIRE).typed().means(&[
        (BACKUP, "with --no-online: back up although a server seems to run"),
        (RESTORE, "replace files that are there; take a set although it ended after the target"),
        (DELETE, "delete although a server seems to run"),
        (STOP, "also end what is running: TERM to whoever holds a lock"),
        (CLONE, "end a server that runs on the clone; take a set that ended after the target"),
        (EXPIRE, "with --set or --oldest: although it is pinned, or the last full"),
    ]);
    Foreground "foreground" "serve in front instead of in the background" = flag("n").on(CLONE | MOUNT | RESTORE).typed();
    ForClone "for-clone" "the file is for the server of a clone" = flag("n").on(GET).typed().hidden();
    Format "format" "form of the dump; directory needs file"
        = word(&["plain", "custom", "directory"], "plain").on(EXTRACT).typed();
    IgnoreMissing "ignore-missing" "exit with 1 in silence if the file is missing" = flag("n").on(C::RepoGet.bit()).typed();
    Into "into" "connection string of a server that takes the dump, in one transaction" = text().on(EXTRACT).typed();
    IoTimeout "io-timeout" "longest wait for one read or write" = time(100, HOUR, "1m").on(STORE);
    JobRetry "job-retry" "how often a failed piece of work is tried again"
        = Def::new(Type::Int(0, 999), Some("2")).on(STORE)
            .over(&[Override { commands: GET | PUSH, ty: Type::Int(0, 999), default: Some("1") }]);
    JobRetryInterval "job-retry-interval" "wait before the second retry" = time(0, HOUR, "15s").on(STORE);
    LockPath "lock-path" "directory of lock and stop files" = Def::new(Type::Path, Some("/tmp/@")).on(ALL);
    Mountpoint "mountpoint" "directory on which the clone appears" = Def::new(Type::AnyPath, None).on(CLONE).typed();
    NeutralUmask "neutral-umask" "ignore the umask when creating files"
        = flag("y").on(ALL).ignored("files get no more rights than the umask leaves");
    OnError "on-error" "what archive-get does when it cannot tell: report, abort the recovery, or wait"
        = word(&["report", "abort", "wait"], "report").on(GET).typed();
    Keyless "keyless" "only compare packs with their names, which takes no key" = flag("n").on(VERIFY).typed();
    Names "names" "ask a clone of the later backup what its relations are called" = flag("y").on(DIFF).typed();
    Output "output" "form of the output"
        = word(&["none", "text"], "none").on(INFO | VERIFY | VERSION | HELP | C::RepoLs.bit() | MANIFEST | CLONE | DRILL | STATS | DIFF | EXPIRE | GC | SYNC)
        .typed().over(&[
            Override {
                commands: C::RepoLs.bit() | MANIFEST | CLONE | DRILL | STATS | DIFF,
                ty: Type::Enum(&["text", "json"]),
                default: Some("text"),
            },
            Override { commands: INFO, ty: Type::Enum(&["text", "json", "prometheus"]), default: Some("text") },
            Override { commands: SYNC, ty: Type::Enum(&["none", "json"]), default: Some("none") },
            Override { commands: VERSION, ty: Type::Enum(&["text", "num"]), default: Some("text") },
            Override { commands: HELP, ty: Type::Enum(&["text", "man", "markdown"]), default: Some("text") },
            Override { commands: VERIFY | EXPIRE | GC, ty: Type::Enum(&["none", "text", "json"]), default: Some("none") },
        ]);
    DetailLevel "detail-level" "how much is shown" = word(&["full", "progress"], "full").on(INFO).typed();
    PgBin "pg-bin" "directory of PostgreSQL's programs" = Def::new(Type::Path, None).on(CLONE | SCRATCH).typed();
    Oldest "oldest" "expire the oldest full backup and what depends on it" = flag("n").on(EXPIRE).typed();
    Owner "owner" "dump who owns what" = flag("y").on(EXTRACT).typed();
    PinUntil "pin-until" "leave the backup alone until a date or time, or forever; none unpins"
        = text().on(ANNOTATE).typed();
    Port "port" "port of the clone's server" = int(1, 65535).on(CLONE).typed();
    Priority "priority" "nice value of the process" = int(-20, 19).on(STORE);
    Privileges "privileges" "dump who may do what" = flag("y").on(EXTRACT).typed();
    ProcessMax "process-max" "greatest number of worker threads"
        = Def::new(Type::Int(1, 999), Some("#")).on(GET | PUSH | BACKUP | RESTORE | VERIFY | CLONE | MOUNT | SCRATCH | EXPIRE | SYNC);
    ProtocolTimeout "protocol-timeout" "longest wait for another process"
        = time(100, 7 * DAY, "31m").on(STORE & !EXPIRE).ignored(ONE_BINARY);
    Raw "raw" "print the object as it is stored: compressed and sealed" = flag("n").on(C::RepoGet.bit()).typed();
    ReadyPipe "ready-pipe" "tell standard input when the mount is ready" = flag("n").on(CLONE | MOUNT | RESTORE | SCRATCH).typed().hidden();
    Recurse "recurse" "list subdirectories" = flag("n").on(C::RepoLs.bit()).typed();
    RepoKey "repo" "work on this repository only"
        = int(1, 256)
            .on(ANNOTATE | GET | BACKUP | EXPIRE | INFO | MANIFEST | REPO_FILES | RESTORE | DELETE | VERIFY | CLONE | MOUNT | SCRATCH | REPAIR | STATS)
            .typed();
    RepoTargetTime "repo-target-time" "read the repository as it was then"
        = text().on(INFO | RESTORE | GET | VERIFY | REPO_FILES).typed().when(Opt::RepoKey, &[]);
    Sample "sample" "read so many of a hundred packs and WAL files, drawn at random" = int(1, 100).on(VERIFY).typed();
    Schema "schema" "schema to extract, as pg_dump takes it; may be repeated" = Def::new(Type::List, None).on(EXTRACT).typed();
    SchemaOnly "schema-only" "dump definitions and no rows" = flag("n").on(EXTRACT).typed();
    SckBlock "sck-block" "use blocking sockets" = flag("n").on(STORE).hidden().ignored("sockets always block");
    SckKeepAlive "sck-keep-alive" "keep connections alive" = flag("y").on(STORE).ignored(NO_NETWORK);
    Scratch "scratch" "directory of a clone that goes with the command" = path().on(SCRATCH).typed().hidden();
    Set "set" "label of the backup"
        = text().on(ANNOTATE | EXPIRE | INFO | MANIFEST | RESTORE | VERIFY | CLONE | SCRATCH | STATS | SYNC).typed().need(ANNOTATE)
            .over(&[Override { commands: RESTORE | CLONE | SCRATCH | MANIFEST, ty: Type::Text, default: Some("latest") }]);
    SocketPath "socket-path" "directory of the clone's socket" = Def::new(Type::Path, Some("/tmp")).on(CLONE).typed();
    Sort "sort" "order of the listing; none means asc" = word(&["none", "asc", "desc"], "asc").on(C::RepoLs.bit()).typed();
    SpoolPath "spool-path" "directory for WAL on its way"
        = Def::new(Type::Path, Some("/var/spool/@")).on(GET | PUSH | RESTORE).when(Opt::ArchiveAsync, &["y"]).tells(&more::SPOOL_PATH);
    Start "start" "start the clone's server when it is mounted" = flag("n").on(CLONE).typed();
    Stanza "stanza" "name of the cluster" = text().on(ALL | HELP).typed();
    Table "table" "table to extract, as pg_dump takes it: public.orders; may be repeated"
        = Def::new(Type::List, None).on(EXTRACT).typed();
    TcpKeepAliveCount "tcp-keep-alive-count" "keep-alive probes before giving up"
        = int(1, 32).on(STORE).ignored(NO_NETWORK);
    TcpKeepAliveIdle "tcp-keep-alive-idle" "idle time before the first keep-alive probe"
        = Def::new(Type::Time(SECOND, HOUR), None).on(STORE).ignored(NO_NETWORK);
    TcpKeepAliveInterval "tcp-keep-alive-interval" "time between keep-alive probes"
        = Def::new(Type::Time(SECOND, 900 * SECOND), None).on(STORE).ignored(NO_NETWORK);
    TlsCipher12 "tls-cipher-12" "ciphers of TLS 1.2" = text().on(STORE).ignored("the TLS library's safe set is used");
    TlsCipher13 "tls-cipher-13" "ciphers of TLS 1.3" = text().on(STORE).ignored("the TLS library's safe set is used");
    Type "type" "type of backup or of restore"
        = word(&["full", "diff", "incr"], "incr").on(BACKUP | INFO | RESTORE | CLONE | RECOVERED).typed().over(&[
            Override { commands: RECOVERED, ty: ENDING_TYPES, default: Some("default") },
            Override { commands: INFO, ty: Type::Enum(&["full", "diff", "incr"]), default: None },
            Override { commands: RESTORE | CLONE, ty: RESTORE_TYPES, default: Some("default") },
        ]);
    Verbose "verbose" "show details" = flag("n").on(VERIFY).typed();

    // Log.
    LogLevelConsole "log-level-console" "level of messages on standard output" = Def::new(LEVELS, Some("warn")).on(ALL);
    LogLevelFile "log-level-file" "level of messages in the log file" = Def::new(LEVELS, Some("info")).on(ALL);
    LogLevelStderr "log-level-stderr" "level of messages on standard error" = Def::new(LEVELS, Some("off")).on(ALL);
    LogPath "log-path" "directory of log files" = Def::new(Type::Path, Some("/var/log/@")).on(ALL);
    LogSubprocess "log-subprocess" "log in subprocesses" = flag("n").on(STORE & !EXPIRE).ignored(ONE_BINARY);
    LogTimestamp "log-timestamp" "begin log lines with the time" = flag("y").on(ALL);

    // Archive.
    ArchiveAsync "archive-async" "push and fetch WAL ahead in the background"
        = flag("n").on(GET | PUSH).tells(&more::ARCHIVE_ASYNC);
    ArchiveCheck "archive-check" "wait until the WAL a backup needs is archived"
        = flag("y").on(PUSH | BACKUP | CHECK).when(Opt::Online, &["y"]);
    ArchiveCopy "archive-copy" "keep the WAL a backup needs inside it"
        = flag("n").on(BACKUP).when(Opt::ArchiveCheck, &["y"]);
    ArchiveExpireBefore "archive-expire-before" "remove only WAL before this segment that no backup needs"
        = text().on(EXPIRE).typed();
    ArchiveGetQueueMax "archive-get-queue-max" "size of the queue of fetched WAL"
        = size(0, 4 * PIB, "128MiB").on(GET).when(Opt::ArchiveAsync, &["y"]);
    ArchiveHeaderCheck "archive-header-check" "compare the WAL header with the stanza" = flag("y").on(PUSH);
    ArchiveMissingRetry "archive-missing-retry" "ask again for WAL that was missing when it was looked for ahead"
        = flag("y").on(GET).ignored("it is always asked for again");
    ArchiveModeCheck "archive-mode-check" "check the server's archive_mode" = flag("y").on(PUSH | BACKUP | CHECK);
    ArchivePushBatchSize "archive-push-batch-size" "bytes pushed by one background run"
        = size(MIB, PIB, "16GiB").on(PUSH).when(Opt::ArchiveAsync, &["y"]);
    ArchivePushQueueMax "archive-push-queue-max" "WAL that may wait before it is dropped"
        = Def::new(Type::Size(0, 4 * PIB), None).on(PUSH).was(&["archive-queue-max"]);
    ArchiveTimeout "archive-timeout" "longest wait for a WAL file in the archive"
        = time(100, DAY, "1m").on(GET | PUSH | BACKUP | CHECK);
    ArchiveTo "archive-to" "stanza for which the clone's server archives (default: it does not)" = text().on(CLONE).typed();

    // Backup.
    Annotation "annotation" "note to keep with the backup, key=value" = Def::new(Type::Hash, None).on(ANNOTATE | BACKUP).typed();
    BackupStandby "backup-standby" "copy most files from a standby"
        = word(&["n", "prefer", "y"], "n").on(BACKUP | CHECK);
    ChecksumPage "checksum-page" "check page checksums (default: if the cluster has them)" = Def::new(Type::Bool, None).on(BACKUP);
    CpuLimit "cpu-limit" "CPU time to use at most: a share of all CPUs, 50%, or a number of them, 1.5"
        = Def::new(Type::Cpus, None).on(BACKUP);
    Exclude "exclude" "path under the data directory to leave out" = Def::new(Type::List, None).on(BACKUP);
    ExpireAuto "expire-auto" "apply retention after a backup" = flag("y").on(BACKUP);
    ExpireDependents "expire-dependents" "what was compared with a backup goes with it"
        = flag("y").on(BACKUP | EXPIRE);
    GcAuto "gc-auto" "give back the space of what expired" = flag("n").on(BACKUP | EXPIRE).tells(&more::GC_AUTO);
    IoLimit "io-limit" "bytes to read a second at most"
        = Def::new(Type::Size(64 * KIB, TIB), None).on(BACKUP | CLONE);
    ManifestSaveThreshold "manifest-save-threshold" "progress after which an interrupted backup can resume"
        = size(1, TIB, "1GiB").on(BACKUP).ignored("an interrupted backup resumes from its last finished object");
    Online "online" "the server runs during the backup" = flag("y").on(BACKUP | STANZA & !DELETE).typed();
    PageHeaderCheck "page-header-check" "check page headers" = flag("y").on(BACKUP);
    Resume "resume" "take up an interrupted backup" = flag("y").on(BACKUP)
        .ignored("what an interrupted backup has stored is always used");
    StartFast "start-fast" "make the server checkpoint at once" = flag("n").on(BACKUP);
    StopAuto "stop-auto" "end a failed exclusive backup" = flag("n").on(BACKUP).hidden().ignored("exclusive backups are not used");

    // Restore.
    ArchiveMode "archive-mode" "archiving in the restored cluster" = word(&["preserve", "off"], "preserve").on(RESTORE);
    DbExclude "db-exclude" "database to leave out" = Def::new(Type::List, None).on(RESTORE);
    DbInclude "db-include" "database to restore, others are left out" = Def::new(Type::List, None).on(RESTORE);
    Instant "instant" "let the server be started at once, and restore behind it" = flag("n").on(RESTORE).typed();
    LinkAll "link-all" "restore all symbolic links as such" = flag("n").on(RESTORE);
    LinkMap "link-map" "destination of a link, name=path" = Def::new(Type::Hash, None).on(RESTORE);
    RecoveryOption "recovery-option" "setting for recovery, name=value" = Def::new(Type::Hash, None).on(RESTORE | CLONE | RECOVERED);
    TablespaceMap "tablespace-map" "destination of a tablespace, name=path or oid=path" = Def::new(Type::Hash, None).on(RESTORE);
    TablespaceMapAll "tablespace-map-all" "directory for all tablespaces not mapped" = text().on(RESTORE);
    Target "target" "where recovery stops" = text().on(RESTORE | CLONE | RECOVERED).typed().when(Opt::Type, TARGETED).need(RESTORE | CLONE | RECOVERED);
    TargetAction "target-action" "what the server does at the target"
        = word(&["pause", "promote", "shutdown"], "pause").on(RESTORE | CLONE).typed()
            .over(&[Override { commands: CLONE, ty: Type::Enum(&["pause", "promote", "shutdown"]), default: Some("promote") }])
            .when(Opt::Type, &["immediate", "name", "time", "xid", "lsn"]);
    TargetExclusive "target-exclusive" "stop just before the target"
        = flag("n").on(RESTORE | CLONE | RECOVERED).typed().when(Opt::Type, &["time", "xid", "lsn"]);
    TargetTimeline "target-timeline" "timeline to follow: current, latest or a number"
        = text().on(RESTORE | CLONE | RECOVERED).typed().when(Opt::Type, &["default", "immediate", "standby", "name", "time", "xid", "lsn"]);

    // Stanza.
    PgDatabase "pg-database" "database to connect to"
        = Def::new(Type::Text, Some("postgres")).group(Pg).on(SERVER);
    PgHost "pg-host" "host of the cluster" = text().group(Pg).on(SERVER).was(&["db-host", "db?-host"]).later();
    PgHostCaFile "pg-host-ca-file" "certificate authority of the host" = pg_host(path());
    PgHostCaPath "pg-host-ca-path" "certificate authorities of the host" = pg_host(path());
    PgHostCertFile "pg-host-cert-file" "certificate shown to the host" = pg_host(path());
    PgHostCmd "pg-host-cmd" "program on the host" = pg_host(text()).was(&["db-cmd", "db?-cmd"]);
    PgHostConfig "pg-host-config" "configuration file on the host" = pg_host(path()).was(&["db-config", "db?-config"]);
    PgHostConfigIncludePath "pg-host-config-include-path" "conf.d on the host" = pg_host(path());
    PgHostConfigPath "pg-host-config-path" "configuration directory on the host" = pg_host(path());
    PgHostKeyFile "pg-host-key-file" "key of the certificate shown to the host" = pg_host(path());
    PgHostPort "pg-host-port" "port of the host" = pg_host(int(0, 65535)).was(&["db-ssh-port", "db?-ssh-port"]);
    PgHostType "pg-host-type" "protocol to the host" = pg_host(word(&["ssh", "tls"], "ssh"));
    PgHostUser "pg-host-user" "user on the host" = pg_host(Def::new(Type::Text, Some("postgres"))).was(&["db-user", "db?-user"]);
    PgPath "pg-path" "data directory"
        = path().group(Pg).on(CLUSTER).need(CLUSTER & !PUSH).was(&["db-path", "db?-path"]);
    PgPort "pg-port" "port of the server"
        = Def::new(Type::Int(0, 65535), Some("5432")).group(Pg).on(SERVER).was(&["db-port", "db?-port"]);
    PgSocketPath "pg-socket-path" "directory of the server's socket"
        = path().group(Pg).on(SERVER).was(&["db-socket-path", "db?-socket-path"]);
    PgUser "pg-user" "user to connect as" = text().group(Pg).on(SERVER | SCRATCH)
        .means(&[(SCRATCH, "superuser to connect as (default: the backup's owner, or postgres)")]);
    PgVersionForce "pg-version-force" "version to believe the cluster has" = text().on(CLUSTER).ignored("forks of PostgreSQL are not supported");

    // Repository.
    RepoType "repo-type" "kind of storage"
        = repo(word(&["azure", "cifs", "gcs", "posix", "s3", "sftp"], "posix")).was(&["repo-type"]);
    RepoPath "repo-path" "directory of the repository" = repo(Def::new(Type::Path, Some("/var/lib/@"))).was(&["repo-path"]);
    RepoCipherType "repo-cipher-type" "none, or any other word: sealed"
        = repo(word(&["none", "aes-256-cbc", "chacha20-poly1305"], "none")).was(&["repo-cipher-type"]);
    RepoCipherPass "repo-cipher-pass" "passphrase" = repo(text()).secret().was(&["repo-cipher-pass"]);
    RepoCipherPassFile "repo-cipher-pass-file" "file whose first line is the passphrase" = repo(path());
    RepoKeyFile "repo-key-file" "file that holds the key itself" = repo(path());
    RepoDelta "repo-delta" "old pages to encode against: if it pays, all, of this host, or none"
        = repo(word(&["auto", "fetch", "cache", "off"], "auto")).on(BACKUP);
    RepoDeltaCacheSize "repo-delta-cache-size" "size of what is kept of old pages in cache-path"
        = repo(Def::new(Type::Size(0, PIB), None)).on(BACKUP);
    RepoCloneCacheSize "repo-clone-cache-size" "size of what clones keep of packs in cache-path (default: nothing)"
        = repo(Def::new(Type::Size(0, PIB), None)).on(CLONE | SCRATCH | MOUNT | RESTORE).tells(&more::REPO_CLONE_CACHE_SIZE);
    RepoBundle "repo-bundle" "put small files together" = repo(flag("n")).on(BACKUP).ignored(PACKS);
    RepoBundleLimit "repo-bundle-limit" "greatest size of a small file" = repo(size(8 * KIB, PIB, "2MiB")).on(BACKUP).ignored(PACKS);
    RepoBundleSize "repo-bundle-size" "size of what is put together" = repo(size(MIB, PIB, "20MiB")).on(BACKUP).ignored(PACKS);
    RepoBlock "repo-block" "store changed blocks only" = repo(flag("n")).on(BACKUP).when(Opt::RepoBundle, &["y"]).ignored(PAGES);
    RepoBlockAgeMap "repo-block-age-map" "block sizes by age" = repo(Def::new(Type::Hash, None)).on(BACKUP).hidden().ignored(CUTS);
    RepoBlockChecksumSizeMap "repo-block-checksum-size-map" "checksum sizes by block size"
        = repo(Def::new(Type::Hash, None)).on(BACKUP).hidden().ignored(CUTS);
    RepoBlockSizeMap "repo-block-size-map" "block sizes by file size" = repo(Def::new(Type::Hash, None)).on(BACKUP).hidden().ignored(CUTS);
    RepoBlockSizeSuper "repo-block-size-super" "super block size" = repo(size(1, GIB, "256KiB")).on(BACKUP).hidden().ignored(CUTS);
    RepoBlockSizeSuperFull "repo-block-size-super-full" "super block size of full backups"
        = repo(size(1, GIB, "1MiB")).on(BACKUP).hidden().ignored(CUTS);
    RepoHardlink "repo-hardlink" "link unchanged files" = repo(flag("n")).on(BACKUP).was(&["hardlink", "repo-hardlink"]).ignored(PACKS);
    RepoSymlink "repo-symlink" "create links for latest and tablespaces" = repo(flag("y")).on(BACKUP).ignored("the repository has no links");
    RepoRetentionFull "repo-retention-full" "full backups to keep, or days"
        = repo(int(1, 9_999_999)).on(BACKUP | EXPIRE).was(&["retention-full"]);
    RepoRetentionFullType "repo-retention-full-type" "unit of retention-full" = repo(word(&["count", "time"], "count")).on(BACKUP | EXPIRE);
    RepoRetentionDiff "repo-retention-diff" "differential backups to keep"
        = repo(int(1, 9_999_999)).on(BACKUP | EXPIRE).was(&["retention-diff"]);
    RepoRetentionArchive "repo-retention-archive" "backups whose WAL is kept"
        = repo(int(1, 9_999_999)).on(BACKUP | EXPIRE).was(&["retention-archive"]);
    RepoRetentionArchiveType "repo-retention-archive-type" "type of backup that retention-archive counts"
        = repo(word(&["full", "diff", "incr"], "full")).on(BACKUP | EXPIRE).was(&["retention-archive-type"]);
    RepoRetentionHistory "repo-retention-history" "days to keep the history of backups" = repo(int(0, 9_999_999)).on(BACKUP | EXPIRE)
        .ignored("nothing is kept of backups that have expired");
    RepoRetentionMinimum "repo-retention-minimum" "backups that stay whatever retention says"
        = repo(int(1, 9_999_999)).on(BACKUP | EXPIRE);
    RepoRetentionPolicy "repo-retention-policy" "RECOVERY WINDOW OF n DAYS, WEEKS or MONTHS, or REDUNDANCY n"
        = repo(text()).on(BACKUP | EXPIRE).tells(&more::RETENTION_POLICY);
    RepoKeepLast "repo-keep-last" "newest backups to keep" = keep();
    RepoKeepHourly "repo-keep-hourly" "hours to keep the newest backup of" = keep();
    RepoKeepDaily "repo-keep-daily" "days to keep the newest backup of" = keep();
    RepoKeepWeekly "repo-keep-weekly" "weeks to keep the newest backup of" = keep();
    RepoKeepMonthly "repo-keep-monthly" "months to keep the newest backup of" = keep();
    RepoKeepYearly "repo-keep-yearly" "years to keep the newest backup of" = keep();
    RepoHost "repo-host" "host of the repository"
        = text().group(Repo).on(STORE & !BACKUP & !EXPIRE).was(&["backup-host"]).later();
    RepoHostCaFile "repo-host-ca-file" "certificate authority of the host" = repo_host(path());
    RepoHostCaPath "repo-host-ca-path" "certificate authorities of the host" = repo_host(path());
    RepoHostCertFile "repo-host-cert-file" "certificate shown to the host" = repo_host(path());
    RepoHostCmd "repo-host-cmd" "program on the host" = repo_host(text()).was(&["backup-cmd"]);
    RepoHostConfig "repo-host-config" "configuration file on the host" = repo_host(path()).was(&["backup-config"]);
    RepoHostConfigIncludePath "repo-host-config-include-path" "conf.d on the host" = repo_host(path());
    RepoHostConfigPath "repo-host-config-path" "configuration directory on the host" = repo_host(path());
    RepoHostKeyFile "repo-host-key-file" "key of the certificate shown to the host" = repo_host(path());
    RepoHostPort "repo-host-port" "port of the host" = repo_host(int(0, 65535)).was(&["backup-ssh-port"]);
    RepoHostType "repo-host-type" "protocol to the host" = repo_host(word(&["ssh", "tls"], "ssh"));
    RepoHostUser "repo-host-user" "user on the host" = repo_host(Def::new(Type::Text, Some("@"))).was(&["backup-user"]);

    // Repository storage.
    RepoStorageCaFile "repo-storage-ca-file" "certificate authority of the store"
        = object(path()).was(&["repo-s3-ca-file", "repo?-s3-ca-file", "repo?-azure-ca-file"]);
    RepoStorageCaPath "repo-storage-ca-path" "certificate authorities of the store"
        = object(path()).was(&["repo-s3-ca-path", "repo?-s3-ca-path", "repo?-azure-ca-path"]);
    RepoStorageHost "repo-storage-host" "host to connect to instead of the endpoint"
        = object(text()).was(&["repo-s3-host", "repo?-s3-host", "repo?-azure-host"]);
    RepoStoragePort "repo-storage-port" "port of the store"
        = object(Def::new(Type::Int(1, 65535), Some("443"))).was(&["repo?-s3-port", "repo?-azure-port"]);
    RepoStorageTag "repo-storage-tag" "tag of every object, key=value" = object(Def::new(Type::Hash, None));
    RepoStorageUploadChunkSize "repo-storage-upload-chunk-size" "size of one part of an upload"
        = object(Def::new(Type::Size(64 * KIB, TIB), None)).ignored("objects are sent whole, as only then they are created on condition");
    RepoStorageVerifyTls "repo-storage-verify-tls" "check the store's certificate" = object(flag("y"))
        .was(&["repo-s3-verify-ssl", "repo?-s3-verify-ssl", "repo?-s3-verify-tls", "repo?-azure-verify-tls"]);
    RepoStoragePrefetch "repo-storage-prefetch" "parts fetched ahead"
        = object(Def::new(Type::Int(0, 128), Some("3"))).ignored("what is read ahead depends on process-max");
    RepoStorageReadOver "repo-storage-read-over" "gap that is read rather than skipped" = object(size(0, GIB, "1MiB"));
    RepoS3Bucket "repo-s3-bucket" "bucket" = s3(text()).need(STORE).was(&["repo-s3-bucket"]);
    RepoS3Endpoint "repo-s3-endpoint" "endpoint" = s3(text()).need(STORE).was(&["repo-s3-endpoint"]);
    RepoS3Region "repo-s3-region" "region" = s3(text()).need(STORE).was(&["repo-s3-region"]);
    RepoS3KeyType "repo-s3-key-type" "where credentials come from"
        = s3(word(&["shared", "auto", "web-id", "pod-id", "process"], "shared"));
    RepoS3Key "repo-s3-key" "access key" = s3(text()).secret().was(&["repo-s3-key"]);
    RepoS3KeySecret "repo-s3-key-secret" "secret access key" = s3(text()).secret().was(&["repo-s3-key-secret"]);
    RepoS3Token "repo-s3-token" "session token" = s3(text()).secret();
    RepoS3Role "repo-s3-role" "role to take on, with key-type web-id; with auto it is the machine's" = s3(text());
    RepoS3ProcessCmd "repo-s3-process-cmd" "program that prints credentials" = s3(text()).later();
    RepoS3KmsKeyId "repo-s3-kms-key-id" "key of the key service" = s3(text());
    RepoS3SseCustomerKey "repo-s3-sse-customer-key" "key for encryption by the store" = s3(text()).secret();
    RepoS3RequesterPays "repo-s3-requester-pays" "the requester pays" = s3(flag("n"));
    RepoS3Service "repo-s3-service" "service name in signatures" = s3(Def::new(Type::Text, Some("s3"))).later();
    RepoS3StsHost "repo-s3-sts-host" "host of the token service" = s3(text());
    RepoS3UriStyle "repo-s3-uri-style" "place of the bucket in addresses" = s3(word(&["host", "path"], "host"));
    RepoAzureAccount "repo-azure-account" "account" = azure(text()).secret().need(STORE);
    RepoAzureContainer "repo-azure-container" "container" = azure(text()).need(STORE);
    RepoAzureKey "repo-azure-key" "key" = azure(text()).secret();
    RepoAzureKeyType "repo-azure-key-type" "kind of key" = azure(word(&["shared", "sas", "auto"], "shared"));
    RepoAzureEndpoint "repo-azure-endpoint" "endpoint" = azure(Def::new(Type::Text, Some("blob.core.windows.net")));
    RepoAzureUriStyle "repo-azure-uri-style" "place of the account in addresses" = azure(word(&["host", "path"], "host"));
    RepoGcsBucket "repo-gcs-bucket" "bucket" = gcs(text()).need(STORE);
    RepoGcsKey "repo-gcs-key" "key" = gcs(text()).secret();
    RepoGcsKeyType "repo-gcs-key-type" "kind of key" = gcs(word(&["service", "token", "auto"], "service"));
    RepoGcsEndpoint "repo-gcs-endpoint" "endpoint" = gcs(Def::new(Type::Text, Some("storage.googleapis.com")));
    RepoGcsUserProject "repo-gcs-user-project" "project that pays" = gcs(text());
    RepoSftpHost "repo-sftp-host" "host" = sftp(text()).need(STORE);
    RepoSftpHostUser "repo-sftp-host-user" "user on the host" = sftp(text()).need(STORE);
    RepoSftpHostPort "repo-sftp-host-port" "port of the host" = sftp(Def::new(Type::Int(1, 65535), Some("22")));
    RepoSftpHostKeyHashType "repo-sftp-host-key-hash-type" "hash of the host's key"
        = sftp(Def::new(Type::Enum(&["md5", "sha1", "sha256"]), None)).need(STORE);
    RepoSftpHostKeyCheckType "repo-sftp-host-key-check-type" "how the host's key is checked"
        = sftp(word(&["strict", "accept-new", "fingerprint", "none"], "strict"));
    RepoSftpHostFingerprint "repo-sftp-host-fingerprint" "fingerprint of the host" = sftp(text());
    RepoSftpKnownHost "repo-sftp-known-host" "known hosts file" = sftp(Def::new(Type::List, None));
    RepoSftpPrivateKeyFile "repo-sftp-private-key-file" "private key file" = sftp(text()).need(STORE);
    RepoSftpPrivateKeyPassphrase "repo-sftp-private-key-passphrase" "passphrase of the private key" = sftp(text()).secret();
    RepoSftpPublicKeyFile "repo-sftp-public-key-file" "public key file" = sftp(text());

    // Server: known so that files load, used by no command here.
    TlsServerAddress "tls-server-address" "address of the server" = Def::new(Type::Text, Some("localhost")).hidden();
    TlsServerAuth "tls-server-auth" "who may do what, name=stanza" = Def::new(Type::Hash, None).hidden();
    TlsServerCaFile "tls-server-ca-file" "certificate authority of clients" = path().hidden();
    TlsServerCertFile "tls-server-cert-file" "certificate of the server" = path().hidden();
    TlsServerKeyFile "tls-server-key-file" "key of the server's certificate" = path().hidden();
    TlsServerPort "tls-server-port" "port of the server" = Def::new(Type::Int(1, 65535), Some("8432")).hidden();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_rows_consistent() {
        let mut seen = HashSet::new();
        for (at, def) in TABLE.iter().enumerate() {
            assert_eq!(def.opt as usize, at, "{}", def.name);
            assert_eq!(def.opt.def().name, def.name);
            assert!(seen.insert(def.name), "{} twice", def.name);
            for help in std::iter::once(&def.help).chain(def.meanings.iter().map(|(_, help)| help)) {
                assert!(!help.ends_with('.') && help.len() < 80, "{}", def.name);
            }
            assert!(def.more.iter().all(|text| text.ends_with('.')), "{}", def.name);
            for (commands, _) in def.meanings {
                assert_eq!(commands & !def.commands, 0, "{} means something where it is not valid", def.name);
            }
            match def.group {
                Repo => assert!(def.name.starts_with("repo-"), "{}", def.name),
                Pg => assert!(def.name.starts_with("pg-"), "{}", def.name),
                Group::None => {}
            }
            assert!(!def.secret || def.default.is_none(), "{} is secret and has a default", def.name);
            assert_eq!(def.required & !def.commands, 0, "{} is required where it is not valid", def.name);
            for over in def.overrides {
                assert_eq!(over.commands & !def.commands, 0, "{} differs where it is not valid", def.name);
            }
        }
    }

    #[test]
    fn aliases_are_no_other_options_name() {
        let mut seen = HashSet::new();
        for def in TABLE {
            for alias in def.aliases {
                assert!(seen.insert(*alias), "{alias} twice");
                let other = TABLE.iter().find(|d| d.name == *alias && d.opt != def.opt);
                assert!(other.is_none(), "{alias} is an option of its own");
            }
        }
    }
}
