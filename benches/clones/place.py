"""What is measured: a cluster with one large table, its backup, servers on clones of it, and a server on a classic restore of it; and what all runs have
in common, from their arguments to their results.

The table is pgbench's. Its filler is not: pgbench writes blanks, which shrink twentyfold and make every fetch look cheap. Here it is text as in
../thirty-days/data.py, which shrinks some two and a half times; a hundred thousand texts are drawn and given to the rows in turn.
"""
import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "thirty-days"))
from data import Text  # noqa: E402
from rig import Cluster, Runner, clean, evict, fail, tree_bytes  # noqa: E402

TEXTS = 100_000
FIRST_QUERY = "select abalance from pgbench_accounts where aid = 4711"
ROWS = 100_000  # of pgbench_accounts, for each unit of scale: some 12.8 MB, and 2.1 MB of index


class Source(Cluster):
    """The cluster that is backed up. What it is told its copies are told too: the settings are in its backup."""

    def settings(self):
        return (f"port={self.port}\nunix_socket_directories='{self.home}'\nlisten_addresses=''\nshared_buffers=128MB\nmax_wal_size=4GB\n"
                "checkpoint_timeout=1h\nautovacuum=off\nwal_level=replica\narchive_mode=on\narchive_command='true'\nmaintenance_work_mem=256MB\n")

    def fill(self, scale, seed):
        text = Text(seed)
        self.sql("create extension pg_prewarm")

        def texts():
            yield "create unlogged table texts (n int, t text);\ncopy texts from stdin;\n"
            for n in range(TEXTS):
                yield f"{n}\t{text.short()}\n"
            yield "\\.\n"

        self.feed(texts())
        self.runner.run(self.runner.pg_bin / "pgbench", *self.where(), "-i", "-I", "dt", "-q", "postgres")
        self.sql(f"insert into pgbench_branches select g, 0, '' from generate_series(1, {scale}) g")
        self.sql(f"insert into pgbench_tellers select g, (g - 1) / 10 + 1, 0, '' from generate_series(1, {scale * 10}) g")
        # All texts once for each unit of scale: in one statement the planner may give one text to a hundred neighbours.
        self.sql(f"do $$ begin for b in 0..{scale - 1} loop insert into pgbench_accounts select b * {ROWS} + n + 1, b + 1, 0, t from texts order by n; end loop; end $$")
        # What `extract` takes out: some 50 MB.
        self.sql("create table small as select n, t || t as t from texts, generate_series(1, 3) order by n")
        self.sql("drop table texts")
        self.runner.run(self.runner.pg_bin / "pgbench", *self.where(), "-i", "-I", "p", "-q", "postgres")
        for command in ("vacuum (freeze, analyze)", "checkpoint"):
            self.sql(command)

    def where(self):
        return ["-h", self.home, "-p", self.port, "-U", "postgres"]

    def table_path(self, table="pgbench_accounts"):
        return self.sql(f"select pg_relation_filepath('{table}')")


class Server:
    """A server on a clone or on a restore."""

    def __init__(self, runner, sockets, port, data):
        self.runner, self.sockets, self.port, self.data = runner, sockets, port, Path(data)

    def where(self):
        return ["-h", self.sockets, "-p", self.port, "-U", "postgres"]

    def psql(self, *more):
        return [self.runner.pg_bin / "psql", *self.where(), "-d", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", *more]

    def sql(self, text):
        return self.runner.run(*self.psql("-c", text)).strip()

    def timed(self, text):
        """Milliseconds of a statement in a session that has just begun, without connecting."""
        out = self.runner.run(*self.psql("-c", "select 1", "-c", "\\timing on", *(word for part in text.split("; ") for word in ("-c", part))))
        return float(out.rsplit("Time: ", 1)[1].split()[0])

    def pgbench(self, *options):
        out = self.runner.run(self.runner.pg_bin / "pgbench", *self.where(), "-n", *options, "postgres")
        return float(out.rsplit("tps = ", 1)[1].split()[0])


class Rig:
    """The repository, and how clones and restores of it are made."""

    def __init__(self, runner, pgkeep, port, root_daemon):
        self.runner, self.root, self.pgkeep, self.port = runner, runner.root, pgkeep, port
        # As root the program may use what the kernel keeps for root: passthrough, wider readahead.
        self.as_root = root_daemon
        self.config = self.root / "conf"
        self.repo = self.root / "repo"
        self.sockets = runner.mkdir(self.root / "sockets")
        self.made = []

    def prefix(self):
        return ["env", "-i", f"PATH={self.runner.pg_bin}:/usr/bin:/bin", "HOME=/tmp", "LC_ALL=C.UTF-8"] if self.as_root else self.runner.prefix()

    def run(self, *args, check=True):
        command = [str(c) for c in [*self.prefix(), self.pgkeep, f"--config={self.config}", "--stanza=b", *args]]
        # The daemon keeps the streams until it serves; a pipe would be waited for.
        with open(self.root / "command.log", "w+") as log:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode
            log.seek(0)
            out = log.read()
        if check and code != 0:
            fail(f"status {code} of {' '.join(command)}\n{out[-3000:]}")
        return out

    def backup(self, source):
        for part in ("repo", "lock", "log", "cache"):
            self.runner.mkdir(self.root / part)
        self.runner.write(self.config, f"[global]\nrepo1-path={self.repo}\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=bench\nlock-path={self.root}/lock\n"
                          f"log-path={self.root}/log\ncache-path={self.root}/cache\nprocess-max=2\nclone-trace=n\nstart-fast=y\ncompress-level=3\n"
                          f"[b]\npg1-path={source.data}\npg1-port={source.port}\npg1-socket-path={source.home}\n")
        own = [str(c) for c in [self.pgkeep, f"--config={self.config}", "--stanza=b"]]
        self.runner.run(*own, "stanza-create")
        source.sql(f"alter system set archive_command = '{' '.join(own)} archive-push %p'")
        source.sql("select pg_reload_conf()")
        self.runner.run(*own, "--type=full", "backup")

    def extract(self, table):
        """A table taken out of the backup: seconds, bytes of SQL, and MiB of the repository that were brought into the page cache for it."""
        self.cold()
        into, before = self.root / "extracted.sql", cached(self.repo)
        into.unlink(missing_ok=True)
        began = time.monotonic()
        self.run("--type=immediate", "extract", f"--table={table}", f"--file={into}", f"--dir={self.root}", f"--pg-bin={self.runner.pg_bin}")
        wall, size = time.monotonic() - began, into.stat().st_size
        into.unlink()
        return {"wall": wall, "sql_bytes": size, "fetched_mib": cached(self.repo) - before}

    def cold(self, *more):
        """Takes the repository, and what else is named, out of the page cache."""
        evict(self.repo, self.root / "cache", *more)

    def restore(self, name, recovery=True):
        """A classic restore: its place, and what it took."""
        target = self.runner.mkdir(self.root / name)
        self.cold()
        how = ["--type=immediate", "--target-action=promote"] if recovery else ["--type=none"]
        began = time.monotonic()
        self.run(f"--pg1-path={target}", *how, "restore")
        wall = time.monotonic() - began
        subprocess.run(["sync", "-f", target], check=True)
        return target, {"wall": wall, "with_sync": time.monotonic() - began, "bytes": tree_bytes(target)}

    def native(self, name, port):
        """A server on a classic restore."""
        target, took = self.restore(name)
        with open(target / "postgresql.auto.conf", "a") as f:
            f.write(f"\nport = {port}\nunix_socket_directories = '{self.sockets}'\narchive_mode = off\nlisten_addresses = ''\n")
        server = Server(self.runner, self.sockets, port, target)
        subprocess.run([str(c) for c in [*self.runner.prefix(), self.runner.pg_bin / "pg_ctl", "-D", target, "-l", self.root / f"{name}.log", "-w", "-t", "600", "start"]],
                       check=True, stdout=subprocess.DEVNULL)
        while server.sql("select pg_is_in_recovery()") != "f":
            time.sleep(0.05)
        return server, took

    def stop_native(self, server):
        self.runner.run(self.runner.pg_bin / "pg_ctl", "-D", server.data, "-m", "fast", "-w", "-t", "600", "stop", check=False)

    def clone(self, name, port=None, options=()):
        """Makes a clone, with a server if there is a port."""
        clone = Clone(self, name, port, options)
        self.made.append(clone)
        more = ["--start", f"--port={port}", f"--pg-bin={self.runner.pg_bin}", f"--socket-path={self.sockets}"] if port else []
        self.run("--type=immediate", "--target-action=promote", "clone", "create", f"--dir={clone.dir}", f"--mountpoint={clone.mountpoint}", *more, *options)
        return clone

    def clean(self):
        for clone in list(self.made):
            clone.destroy(check=False)


class Clone(Server):
    def __init__(self, rig, name, port, options):
        super().__init__(rig.runner, rig.sockets, port, rig.root / f"{name}.mnt")
        self.rig, self.options = rig, options
        self.dir, self.mountpoint = rig.root / f"{name}.clone", self.data
        for path in (self.dir, self.mountpoint):
            rig.runner.mkdir(path)

    def stop(self):
        self.rig.run("clone", "stop", f"--dir={self.dir}")

    def start(self):
        self.rig.run("clone", "start", f"--dir={self.dir}", f"--pg-bin={self.rig.runner.pg_bin}", *self.options)

    def mount(self):
        self.rig.run("clone", "mount", f"--dir={self.dir}", *self.options)

    def hydrate(self):
        self.rig.run("clone", "hydrate", f"--dir={self.dir}")

    def destroy(self, check=True):
        self.rig.made.remove(self)
        self.rig.run("clone", "destroy", "--force", f"--dir={self.dir}", check=check)

    def daemon(self):
        """The process that serves it."""
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue  # ended meanwhile
            if b"--ready-pipe" in words and f"--dir={self.dir}".encode() in words:
                return int(entry.name)
        fail(f"nobody serves {self.dir}")

    def rss(self):
        """MiB of its daemon's own memory, and with what is mapped from files."""
        text = Path(f"/proc/{self.daemon()}/status").read_text()
        of = lambda name: int(text.split(f"{name}:")[1].split()[0]) / 1024
        return {"anonymous": of("RssAnon"), "with_mapped": of("VmRSS"), "peak": of("VmHWM")}

    def counters(self):
        """Bytes its daemon has asked for by read calls, of the repository above all, and CPU seconds."""
        pid = self.daemon()
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        read = int(Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0])
        return {"read": read, "cpu": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")}

    def disk(self, part=""):
        """MiB that its directory, or a part of it, takes."""
        return sum(os.lstat(os.path.join(at, f)).st_blocks * 512 for at, _, files in os.walk(self.dir / part) for f in files) / 2**20


def cached(tree):
    """MiB of a tree's files in the page cache: what was read of it since it was evicted, and what the kernel read ahead."""
    files = [str(path) for path in Path(tree).rglob("*") if path.is_file()]
    total = 0
    for at in range(0, len(files), 500):
        out = subprocess.run(["fincore", "--bytes", "--noheadings", "--raw", "--output", "RES", *files[at:at + 500]], check=True, capture_output=True, text=True).stdout
        total += sum(int(line) for line in out.split())
    return total / 2**20


def commit(place):
    """The commit of the program, if it was built where this bench lies."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=place).stdout.strip()


def machine(rig, source):
    version = lambda *command: subprocess.run([str(c) for c in command], capture_output=True, text=True).stdout.strip().splitlines()[0]
    cpu = next((line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": os.uname().release, "postgresql": version(rig.runner.pg_bin / "postgres", "--version"),
            "pgkeep": version(rig.pgkeep, "version"),
            "pgdata_bytes": source.bytes(), "daemon": "root" if rig.as_root else "postgres"}


def random_reads(path, count, seed):
    """Reads of 8 KiB a second at random places of a file, and microseconds that half and 99 of 100 of them take at most."""
    rng, size, times = random.Random(seed), os.stat(path).st_size, []
    fd, buffer = os.open(path, os.O_RDONLY), bytearray(8192)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        places = [rng.randrange(size // 8192) * 8192 for _ in range(count)]
        began = before = time.perf_counter()
        for place in places:
            if os.preadv(fd, [buffer], place) != 8192:
                fail(f"a short read of {path}")
            now = time.perf_counter()
            times.append(now - before)
            before = now
        wall = before - began
    finally:
        os.close(fd)
    times.sort()
    return {"per_second": count / wall, "p50_us": times[count // 2] * 1e6, "p99_us": times[count * 99 // 100] * 1e6}


def scan(path):
    """MB a second of reading a file from begin to end."""
    fd, buffer, total = os.open(path, os.O_RDONLY), bytearray(256 << 10), 0
    began = time.perf_counter()
    try:
        while read := os.readv(fd, [buffer]):
            total += read
    finally:
        os.close(fd)
    return total / (time.perf_counter() - began) / 1e6


def median(values):
    return statistics.median(list(values))


# What says where a run is made and not what it is.
PLACES = ("only", "port", "dir", "pg_bin", "pgkeep", "faulty_store", "keep", "out")
PROGRAMS = Path(__file__).resolve().parents[2] / "target/release"


def arguments(description, measures, scale, port, place, pg_bin):
    """The options of every bench of clones, with these defaults; it adds its own."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scale", type=int, default=scale, help=f"as pgbench's: {scale} is a table of {scale * 0.0128:.2f} GB and an index of {scale * 0.0021:.2f} GB")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default=",".join(measures))
    p.add_argument("--daemon", choices=("root", "postgres"), default="root", help="who serves clones")
    p.add_argument("--seed", type=int, default=20260101)
    p.add_argument("--port", type=int, default=port, help="this one and some behind it")
    p.add_argument("--dir", default=place)
    p.add_argument("--pg-bin", default=pg_bin, help="directory of the server's programs, contrib with them")
    p.add_argument("--pgkeep", default=str(PROGRAMS / "pgkeep"))
    p.add_argument("--out", help="file for the result as JSON")
    return p


def parsed(p, measures):
    """The arguments, if the bench can be run with them."""
    a = p.parse_args()
    if os.geteuid() != 0:
        fail("must run as root, to become the server's account")
    if unknown := set(a.only.split(",")) - set(measures):
        fail(f"there is no measure {', '.join(unknown)}")
    return a


class Bench:
    """One run: where it is made, the programs it is made with, and what was found."""

    def __init__(self, a):
        Path(a.dir).mkdir(parents=True, exist_ok=True)
        os.chmod(a.dir, 0o755)
        self.a, self.runner = a, Runner(a.dir, a.pg_bin)
        os.chown(a.dir, self.runner.user.pw_uid, self.runner.user.pw_gid)
        self.rig = Rig(self.runner, self.program(a.pgkeep, "pgkeep"), a.port, a.daemon == "root")
        self.result = {"settings": {k: v for k, v in vars(a).items() if k not in PLACES}}

    def program(self, path, name):
        """A copy that no build replaces meanwhile."""
        copy = self.runner.mkdir(self.runner.root / "bin", 0o755) / name
        copy.unlink(missing_ok=True)
        shutil.copy(path, copy)
        copy.chmod(0o755)
        return copy

    def back_up(self, behind):
        """Makes the cluster and its backup, and removes the cluster, which takes as much room as all else. What `behind` returns of the cluster once it was
        backed up is returned with what the machine is."""
        source = Source(self.runner, "cluster", self.a.port)
        try:
            source.init()
            source.fill(self.a.scale, self.a.seed)
            self.rig.backup(source)
            facts = behind(source) | {"machine": machine(self.rig, source)}
        finally:
            source.stop("immediate")
        clean(source.home)
        return facts

    def measure(self, facts, measures, *more):
        """Takes the measures that were asked for, in their order, and keeps what was found after each."""
        size = sum(f.stat().st_size for f in self.rig.repo.rglob("*") if f.is_file())
        self.result["machine"] = facts["machine"] | {"commit": commit(Path(__file__).parent), "repository_bytes": size}
        print(json.dumps(self.result["machine"]), flush=True)
        for name in self.a.only.split(","):
            self.result[name] = measures[name](self.a, self.rig, *more)
            if self.a.out:
                Path(self.a.out).write_text(json.dumps(self.result, indent=1) + "\n")


__all__ = ["FIRST_QUERY", "PROGRAMS", "ROWS", "Bench", "Clone", "Server", "arguments", "clean", "evict", "fail", "median", "parsed", "random_reads", "scan"]
