"""The tools: how each is set up, backs up, restores and forgets.

All use two workers and zstd 3, and encrypt what they can: pgkeep and pgBackRest under a passphrase, restic always; pg_basebackup cannot.
"""
import json
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

from rig import clean, fail, tree_bytes

JOBS = 2
# What PostgreSQL says need not be copied, for tools that do not know a cluster when they see one.
SKIPPED = ("pg_wal/*", "pg_replslot/*", "pg_dynshmem/*", "pg_notify/*", "pg_serial/*", "pg_snapshots/*", "pg_stat_tmp/*", "pg_subtrans/*", "postmaster.pid",
           "postmaster.opts", "pgsql_tmp*", "pg_internal.init")


def segments(cluster):
    """The WAL that the server has archived."""
    return sorted(f for f in cluster.archive.iterdir() if re.fullmatch("[0-9A-F]{24}", f.name))


class Tool:
    can_push = False  # stores WAL

    def __init__(self, runner, name):
        self.runner, self.name = runner, name
        self.home = runner.root / "tools" / name

    def setup(self, cluster):
        """Makes its directories, configuration and repository."""
        self.cluster = cluster
        self.runner.mkdir(self.home)
        self.repo = self.runner.mkdir(self.home / "repo")

    def data_bytes(self):
        """Everything in the repository but WAL."""
        return tree_bytes(self.repo)

    def wal_bytes(self):
        return 0

    def backup(self, full):
        raise NotImplementedError

    def restore(self, which, target):
        """Restores the first or the last backup into an empty directory; returns what it took."""
        raise NotImplementedError

    def keep(self, last, period):
        """Forgets all backups but the last ones; None if the tool cannot."""
        return None

    def details(self):
        return None


class Pgkeep(Tool):
    can_push = True

    def __init__(self, runner, name, binary, options):
        super().__init__(runner, name)
        self.binary, self.options = binary, options
        self.pushed = set()

    def setup(self, cluster, stanza="b"):
        super().setup(cluster)
        for part in ("lock", "log", "cache"):
            self.runner.mkdir(self.home / part)
        self.config = self.home / "conf"
        self.configure(stanza, cluster, self.repo)
        self.runner.run(*self.command("stanza-create"))
        # What loading wrote is no tool's; only the last segment is waited for by the first backup.
        self.pushed = {s.name for s in segments(cluster)[:-2]}

    def configure(self, stanza, cluster, repo):
        self.stanza = stanza
        options = {"repo1-path": repo, "repo1-cipher-type": "aes-256-cbc", "repo1-cipher-pass": "bench", "lock-path": self.home / "lock", "log-path": self.home / "log",
                   "cache-path": self.home / "cache", "process-max": JOBS, "start-fast": "y", "compress-level": 3, **self.options}
        self.runner.write(self.config, "[global]\n" + "".join(f"{k}={v}\n" for k, v in options.items())
                          + f"[{stanza}]\npg1-path={cluster.data}\npg1-port={cluster.port}\npg1-socket-path={cluster.home}\n")

    def command(self, *args):
        return [self.binary, f"--config={self.config}", f"--stanza={self.stanza}", *args]

    def data_bytes(self):
        return tree_bytes(self.repo, skip=("wal",))

    def wal_bytes(self):
        return tree_bytes(self.repo / "wal")

    def backup(self, full, *more):
        kind = "full" if full else "incr"
        with self.archiving():
            return self.runner.measure(*self.command(f"--type={kind}", *more, "backup"), server=self.cluster)

    def push(self, segment):
        if segment.name not in self.pushed:
            self.runner.run(*self.command("archive-push", segment))
            self.pushed.add(segment.name)

    @contextmanager
    def archiving(self):
        """Pushes what the server has archived, and goes on while the backup waits for more: without an archive WAL summaries are not used."""
        ended = threading.Event()

        def follow():
            while not ended.wait(0.05):
                self.push_all()

        self.push_all()
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def push_all(self):
        for segment in segments(self.cluster):
            self.push(segment)

    def labels(self):
        told = json.loads(self.runner.run(*self.command("--output=json", "info")))
        return [b["label"] for b in told[0]["backup"]]

    def restore(self, which, target):
        label = self.labels()[0 if which == "first" else -1]
        return self.runner.measure(*self.command(f"--set={label}", f"--pg1-path={target}", "--type=none", "restore"))

    def available(self, command):
        listed = self.runner.run(self.binary, "help")
        return re.search(rf"^  {command}\b", listed, re.M) is not None

    def keep(self, last, period):
        if not self.available("expire"):
            return None
        # No backup needs another one here, so counting fulls keeps as few as pgBackRest does: the comparison is like with like.
        out = self.runner.measure(*self.command(f"--repo1-retention-full={fulls_to_keep(last, period)}", "expire"))
        if self.available("gc"):
            self.runner.run(*self.command("gc"))
        return {**out, "bytes": self.data_bytes(), "backups": len(self.labels())}

    def details(self):
        """What `repo-stats` says of the repository, if this version has it."""
        if not self.available("repo-stats"):
            return None
        return json.loads(self.runner.run(self.binary, f"--config={self.config}", "--output=json", "repo-stats"))[0]


class PgBackRest(Tool):
    can_push = True

    def __init__(self, runner, binary):
        super().__init__(runner, "pgbackrest")
        self.binary = binary

    def setup(self, cluster):
        super().setup(cluster)
        for part in ("lock", "log", "spool"):
            self.runner.mkdir(self.home / part)
        self.runner.write(self.home / "conf", (
            f"[global]\nrepo1-path={self.repo}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=bench\nlock-path={self.home}/lock\nlog-path={self.home}/log\n"
            f"spool-path={self.home}/spool\nprocess-max={JOBS}\nstart-fast=y\ncompress-type=zst\ncompress-level=3\nrepo1-bundle=y\nrepo1-block=y\nrepo1-retention-full=99\n"
            f"[b]\npg1-path={cluster.data}\npg1-port={cluster.port}\npg1-socket-path={cluster.home}\n"))
        self.runner.run(*self.command("stanza-create"))

    def command(self, *args):
        return [self.binary, f"--config={self.home}/conf", "--stanza=b", *args]

    def data_bytes(self):
        return tree_bytes(self.repo, skip=("archive",))

    def wal_bytes(self):
        return tree_bytes(self.repo / "archive")

    def backup(self, full):
        kind = "full" if full else "incr"
        return self.runner.measure(*self.command(f"--type={kind}", "--no-archive-check", "--no-expire-auto", "backup"), server=self.cluster)

    def push(self, segment):
        self.runner.run(*self.command("archive-push", segment))

    def labels(self):
        return [b["label"] for b in json.loads(self.runner.run(*self.command("--output=json", "info")))[0]["backup"]]

    def restore(self, which, target):
        label = self.labels()[0 if which == "first" else -1]
        return self.runner.measure(*self.command(f"--set={label}", f"--pg1-path={target}", "--type=none", "restore"))

    def keep(self, last, period):
        out = self.runner.measure(*self.command(f"--repo1-retention-full={fulls_to_keep(last, period)}", "expire"))
        return {**out, "bytes": self.data_bytes(), "backups": len(self.labels())}


class BaseBackup(Tool):
    """pg_basebackup as tar files compressed by the client, `--incremental` from PostgreSQL 17 on; restored with pg_combinebackup."""

    def __init__(self, runner):
        super().__init__(runner, "pg_basebackup")
        self.taken = []

    def backup(self, full):
        tool = self.runner.pg_bin / "pg_basebackup"
        target = self.repo / f"{len(self.taken) + 1:04}{'F' if full or not self.taken else 'I'}"
        since = [] if target.name.endswith("F") else [f"--incremental={self.taken[-1]}/backup_manifest"]
        out = self.runner.measure(tool, "-h", self.cluster.home, "-p", self.cluster.port, "-U", "postgres", "-D", target, "-Ft", "-X", "none", "--checkpoint=fast",
                                  "--compress=client-zstd:level=3", "--no-sync", *since, server=self.cluster)
        self.taken.append(target)
        return out

    def chain(self, upto):
        start = max(n for n in range(upto + 1) if self.taken[n].name.endswith("F"))
        return self.taken[start:upto + 1]

    def restore(self, which, target):
        chain = self.chain(0 if which == "first" else len(self.taken) - 1)
        work = self.runner.mkdir(self.home / "unpacked")
        single = len(chain) == 1
        places = [target] if single else [self.runner.mkdir(work / part.name) for part in chain]
        lines = [f"set -e; tar --zstd -xf {part}/base.tar.zst -C {place} && cp {part}/backup_manifest {place}/" for part, place in zip(chain, places)]
        if not single:
            lines.append(f"rmdir {target}; {self.runner.pg_bin}/pg_combinebackup --no-sync -o {target} {' '.join(map(str, places))}")
        out = self.runner.measure("sh", "-c", "\n".join(lines))
        clean(work)
        return out

    def keep(self, last, period):
        keep = self.chain(max(0, len(self.taken) - last)) + self.taken[-last:]
        for part in set(self.taken) - set(keep):
            clean(part)
        return {"bytes": self.data_bytes(), "backups": len(set(keep))}


class Restic(Tool):
    """restic or rustic: the files of the data directory, between pg_backup_start and pg_backup_stop."""

    def __init__(self, runner, name, binary):
        super().__init__(runner, name)
        self.binary, self.kept = binary, []

    def setup(self, cluster):
        super().setup(cluster)
        self.cache = self.runner.mkdir(self.home / "cache")
        upper = self.name.upper()
        self.env = {f"{upper}_PASSWORD": "bench", f"{upper}_REPOSITORY": str(self.repo), f"{upper}_CACHE_DIR": str(self.cache)}
        self.runner.run(self.binary, "init", env=self.env)

    def backup(self, full):
        psql = subprocess.Popen(self.runner.prefix() + [str(c) for c in self.cluster.psql("-f", "-")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True)
        psql.stdin.write("select 'at ' || pg_backup_start('bench', true);\n")
        psql.stdin.flush()
        if not psql.stdout.readline().startswith("at "):
            fail("pg_backup_start was refused")
        glob = "--glob=!" if self.name == "rustic" else "--exclude="
        skip = [f"{glob}{self.cluster.data}/{p}" if "/" in p or "." in p else f"{glob}{p}" for p in SKIPPED]
        # A full is a run without a parent: every file is read again.
        force = ["--force"] if full else []
        out = self.runner.measure(self.binary, "backup", *force, *skip, self.cluster.data, env=self.env, server=self.cluster)
        psql.stdin.write("select labelfile from pg_backup_stop();\n")
        label = psql.communicate()[0]
        self.kept.append(label)
        return out

    def snapshots(self):
        told = json.loads(self.runner.run(self.binary, "snapshots", "--json", env=self.env))
        if told and isinstance(told[0], dict) and "snapshots" in told[0]:
            told = [s for group in told for s in group["snapshots"]]
        elif told and isinstance(told[0], list):
            told = [s for group in told for s in group[1]]
        return [s["id"] for s in sorted(told, key=lambda s: s["time"])]

    def restore(self, which, target):
        at = 0 if which == "first" else -1
        snapshot, unpacked = self.snapshots()[at], self.runner.mkdir(self.home / "unpacked")
        if self.name == "rustic":
            out = self.runner.measure(self.binary, "restore", f"{snapshot}:{self.cluster.data}", target, env=self.env)
        else:
            out = self.runner.measure(self.binary, "restore", snapshot, "--target", unpacked, env=self.env)
            target.rmdir()
            shutil.move(f"{unpacked}{self.cluster.data}", target)
        clean(unpacked)
        self.runner.write(target / "backup_label", self.kept[at])
        return out

    def keep(self, last, period):
        out = self.runner.measure(self.binary, "forget", "--keep-last", last, "--prune", env=self.env)
        return {**out, "bytes": self.data_bytes(), "backups": len(self.snapshots())}


def fulls_to_keep(last, period):
    """Fulls that must stay so that the last backups can be restored by tools whose increments need their full."""
    return 1 + -(-(last - 1) // period)


def parse_variant(text):
    """`name[@/path/of/pgkeep]=options`: options as on a command line, put into the configuration so that every command has them."""
    name, _, options = text.partition("=")
    name, _, binary = name.partition("@")
    if not re.fullmatch(r"[a-z0-9-]+", name):
        fail(f"'{name}' is no name of a variant: small letters, digits and '-'")
    chosen = {}
    for option in options.split():
        option = option.removeprefix("--")
        if "=" not in option:
            option = f"{option.removeprefix('no-')}={'n' if option.startswith('no-') else 'y'}"
        key, _, value = option.partition("=")
        chosen[key] = value
    return name, Path(binary) if binary else None, chosen
