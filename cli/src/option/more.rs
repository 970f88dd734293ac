//! What help tells of options that one line does not explain: what they do exactly, when to change them, what they cost.

pub(super) const CLONE_TRACE: [&str; 3] = [
    "What it does: the process that serves a new clone notes which regions of the backup its server reads in its first ten \
     minutes, by names and numbers, no content, and stores that in the repository, for the stanza; the newest three are kept. \
     The next clone of the stanza has what they name fetched as soon as it is mounted, before its server asks for it.",
    "When to change it: set it to n where disks under clones are small, or clones of a stanza are used for quite different \
     things. It is worth most where the repository answers late, as each page that is fetched by itself makes a query wait.",
    "What it costs: each clone takes up to 128 MiB of disk for what earlier ones read (4 GiB if it is to be hydrated), and \
     reads that much of the repository, which also keeps some KiB. Nothing depends on it: a record that cannot be read or \
     written is told and left out.",
];

pub(super) const REPO_CLONE_CACHE_SIZE: [&str; 3] = [
    "What it does: what clones, mounts, extract and diff read of the repository's packs is kept below cache-path, in \
     cache/<repository>/packs, sealed as it is stored, up to this size; what was used longest ago goes first. All processes \
     of one user on this host share it: a second clone asks the repository for nothing that the first has read.",
    "When to change it: the default is nothing, as repositories are directories, whose disks are as fast. Choose a size if \
     the directory is on a network: about as much as clones read of one backup, which 'clone info' tells as 'on disk'.",
    "What it costs: that much disk below cache-path, of whose file system a twentieth is left free, at least 1 GiB, and one \
     more write of what is read. drill does without, as it proves what the repository has.",
];

pub(super) const KEEP: [&str; 3] = [
    "What it does: of each of so many periods that have a backup, the newest backup stays, by the time it ended, in this host's \
     time zone. Every backup restores by itself, so a differential or incremental one stays without its full. Rules are \
     added up: a backup goes only if none of keep-*, retention-policy, retention-full and retention-diff keeps it. Those \
     that are not set keep nothing, unless none is.",
    "When to change it: to keep years cheaply, such as keep-daily=14, keep-weekly=8, keep-monthly=24, keep-yearly=7. Try it \
     with 'expire --explain', which says of each backup why it stays or goes, and changes nothing.",
    "What it costs: what the kept backups do not have in common. WAL is kept from the oldest backup that a rule keeps, which \
     may be much: set retention-archive and retention-archive-type=incr to the number of newest backups from which any \
     later time must be recoverable. Older ones then keep just the WAL that makes them consistent.",
];

pub(super) const GC_AUTO: [&str; 3] = [
    "What it does: when retention has taken backups away, what no other backup of the repository needs is collected, as by \
     command gc. What a backup that is running may still use stays until a later collection.",
    "When to change it: set it to y if this host may collect for all that write to the repository, has a key that reads what \
     backups use, and its backups may take that much longer; else run command gc at a time of its own, on one host.",
    "What it costs: a list of the packs, the records of backups that came since, a small read for each backup, and where \
     something goes, a read of the index and a request for each object that goes.",
];

pub(super) const RETENTION_POLICY: [&str; 2] = [
    "What it does: as Barman's option of that name. With RECOVERY WINDOW OF 7 DAYS, all backups that ended within seven days \
     stay, and the newest before them, from which the beginning of the window is recovered; WAL is kept from that one on. \
     A month has 31 days. With REDUNDANCY 3, the three newest backups stay, of whatever type. It adds to keep-*, \
     retention-full and retention-diff, as these add to each other.",
    "When to change it: to promise a period instead of a number. Set retention-minimum too, so that backups stay when no new \
     ones come.",
];

pub(super) const ARCHIVE_ASYNC: [&str; 3] = [
    "What it does: archive-push starts a process in the background that stores all WAL the server has ready, process-max \
     files side by side, in every repository, and waits for the one file it was asked for; later calls mostly find theirs \
     stored. archive-get has WAL fetched ahead of the server. What the background process says is in \
     <stanza>-archive-push-async.log and <stanza>-archive-get-async.log.",
    "When to change it: set it to y where the server writes WAL faster than it is archived, or replays it faster than it is \
     fetched. What archive-push acknowledges is durable in every repository, as without it.",
    "What it costs: a directory for a few small files, see spool-path, and for fetched WAL, see archive-get-queue-max.",
];

pub(super) const SPOOL_PATH: [&str; 2] = [
    "What it does: holds what the processes of archive-async tell each other, below archive/<stanza>/out, and WAL that was \
     fetched ahead, below archive/<stanza>/in. restore empties it for its stanza. Nothing in it is believed that is not about \
     the very file, cluster and repositories at hand, so it may be lost or come back at any time.",
    "When to change it: a directory of this host, best on the file system of the cluster, since fetched WAL is then moved \
     and not copied. If it cannot be used, WAL is pushed and fetched one file at a time, with a warning.",
];
