"""A PostgreSQL cluster of the bench, and how a command is run and measured.

What is measured of a run:
    wall     seconds
    cpu      user and system seconds of the command and all processes it waited for (GNU time)
    rss      MiB, the largest single process
    read     bytes that these processes asked for by read calls (/proc/PID/io, rchar): files of the cluster *and* of the repository, whether
             or not they came from the page cache. Memory-mapped reads are not in it.
    server_cpu, server_read   the same of the server's processes that ended during the run: sessions and walsenders. The kernel adds a child's
             counters to its parent when it is waited for, so the postmaster's own file tells. This is where pg_basebackup's work is done.
    device   bytes read from the block device that holds PGDATA; only with --own-device, which puts it on a file system of its own. As the
             cluster is taken out of the page cache before each run, this is what is read of it and nothing else, with the kernel's readahead.
"""
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def fail(text):
    sys.exit(f"thirty-days: {text}")


def tree_bytes(path, skip=()):
    """Bytes of the files below a directory, without those below the named parts of it."""
    total = 0
    for folder, names, files in os.walk(path):
        names[:] = [n for n in names if os.path.relpath(os.path.join(folder, n), path) not in skip]
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                pass  # a temporary file of a tool that is still tidying up
    return total


class Runner:
    """Runs commands as the server's account."""

    def __init__(self, root, pg_bin):
        self.root, self.pg_bin = Path(root), Path(pg_bin)
        self.user = pwd.getpwnam("postgres")

    def mkdir(self, path, mode=0o700):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        os.chown(path, self.user.pw_uid, self.user.pw_gid)
        return path

    def write(self, path, text):
        path.write_text(text)
        os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def prefix(self, env=None):
        # The server refuses root, and so do most of the tools. A plain environment keeps the caller's settings out.
        out = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "-i"]
        out += [f"PATH={self.pg_bin}:/usr/bin:/bin", "HOME=/tmp", "LC_ALL=C.UTF-8"]
        return out + [f"{k}={v}" for k, v in (env or {}).items()]

    def run(self, *command, check=True, env=None, stdin=None):
        done = subprocess.run(self.prefix(env) + [str(c) for c in command], capture_output=True, text=True, stdin=stdin)
        if check and done.returncode != 0:
            fail(f"status {done.returncode} of {' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def measure(self, *command, env=None, server=None):
        """Runs a command to its end and tells what it took."""
        io, usage, log = self.root / "io", self.root / "usage", self.root / "command.log"
        for path in (io, usage, log):
            self.write(path, "")
        # The shell reads its own counters, which by then contain those of the command it waited for. GNU time and not our own wait4: until it
        # executes something else, a child of this process has the size of this process.
        script = f'/usr/bin/time -o {usage} -f "%U %S %M" "$@"; status=$?; cat /proc/$$/io > {io}; exit $status'
        before, sessions = (server.counters(), server.processes()) if server else (None, None)
        began = time.monotonic()
        with open(log, "w") as out:
            code = subprocess.run(self.prefix(env) + ["sh", "-c", script, "sh"] + [str(c) for c in command], stdout=out, stderr=out).returncode
        wall = time.monotonic() - began
        if code != 0:
            fail(f"status {code} of {' '.join(map(str, command))}\n{log.read_text()[-4000:]}")
        user, system, rss = usage.read_text().split()[-3:]
        out = {"wall": wall, "cpu": float(user) + float(system), "rss": int(rss) / 1024}
        out["read"] = int(re.search(r"rchar: (\d+)", io.read_text()).group(1))
        if server:
            server.wait_for_end(sessions)
            out.update({k: v - before[k] for k, v in server.counters().items()})
        return out


class Cluster:
    """One server, its data directory, and a directory into which it archives."""

    def __init__(self, runner, name, port):
        self.runner, self.root, self.port = runner, runner.root, port
        self.home = runner.mkdir(runner.root / name)
        self.data, self.archive = self.home / "data", self.home / "archive"
        self.loop = None

    @property
    def major(self):
        return int(re.search(r"(\d+)", self.runner.run(self.runner.pg_bin / "postgres", "--version").split()[2]).group(1))

    def own_device(self, size):
        """Puts the data directory on a file system of its own."""
        image = self.home / "device"
        with open(image, "wb") as f:
            f.truncate(size)
        self.loop = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", self.loop], check=True)
        mount = self.runner.mkdir(self.home / "disk")
        subprocess.run(["mount", self.loop, mount], check=True)
        self.data = self.runner.mkdir(mount / "data")

    def settings(self):
        summaries = "summarize_wal=on\n" if self.major >= 17 else ""
        return (f"port={self.port}\nunix_socket_directories='{self.home}'\nlisten_addresses=''\nshared_buffers=256MB\nmax_wal_size=8GB\n"
                f"checkpoint_timeout=1h\nautovacuum=off\nfsync=off\nwal_level=replica\nmax_wal_senders=8\narchive_mode=on\n{summaries}"
                f"archive_command='cp %p {self.archive}/%f.new && mv {self.archive}/%f.new {self.archive}/%f'\nmaintenance_work_mem=256MB\n")

    def init(self):
        self.runner.mkdir(self.archive)
        self.runner.run(self.runner.pg_bin / "initdb", "-k", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        with open(self.data / "postgresql.conf", "a") as f:
            f.write(self.settings())
        self.start()

    def start(self, *options):
        extra = ["-o", " ".join(options)] if options else []
        log = self.home / "server.log"
        done = subprocess.run(self.runner.prefix() + [str(self.runner.pg_bin / "pg_ctl"), "-D", str(self.data), "-l", str(log), "-w", "-t", "600", *extra, "start"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode != 0:
            fail(f"the server does not start:\n{log.read_text()[-3000:]}")

    def stop(self, mode="fast"):
        subprocess.run(self.runner.prefix() + [str(self.runner.pg_bin / "pg_ctl"), "-D", str(self.data), "-m", mode, "-w", "-t", "600", "stop"],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def discard(self):
        self.stop("immediate")
        if self.loop:
            subprocess.run(["umount", self.home / "disk"])
            subprocess.run(["losetup", "-d", self.loop])

    def psql(self, *more):
        return [self.runner.pg_bin / "psql", "-h", self.home, "-p", self.port, "-U", "postgres", "-d", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", *more]

    def sql(self, text):
        return self.runner.run(*self.psql("-c", text)).strip()

    def feed(self, pieces):
        """Sends an SQL script in pieces, COPY data within it."""
        log = self.root / "psql.log"
        with open(log, "w") as out:
            process = subprocess.Popen(self.runner.prefix() + [str(c) for c in self.psql("-f", "-")], stdin=subprocess.PIPE, stdout=out, stderr=out, text=True)
            try:
                for piece in pieces:
                    process.stdin.write(piece)
                process.stdin.close()
            except BrokenPipeError:
                pass  # psql has said why in its log
            if process.wait() != 0:
                fail(log.read_text()[-3000:])

    def pid(self):
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def processes(self):
        return set(Path(f"/proc/{self.pid()}/task/{self.pid()}/children").read_text().split())

    def wait_for_end(self, before):
        """Waits until the postmaster has reaped what it started since: until then that is not in its counters."""
        for _ in range(100):
            if self.processes() <= before:
                return
            time.sleep(0.05)
        fail("a session of the run does not end")

    def counters(self):
        """What the server's ended processes have taken so far."""
        pid = self.pid()
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        out = {"server_cpu": (int(fields[13]) + int(fields[14])) / TICKS}
        out["server_read"] = int(re.search(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text()).group(1))
        if self.loop:
            out["device"] = int(Path(f"/sys/block/{Path(self.loop).name}/stat").read_text().split()[2]) * 512
        return out

    def bytes(self):
        return tree_bytes(self.data, skip=("pg_wal",))

    def relation_files(self):
        for top in ("base", "global"):
            for path in (self.data / top).rglob("*"):
                if re.match(r"\d+(_[a-z]+)?(\.\d+)?$", path.name) and path.is_file():
                    yield path

    def changed_pages(self, lsn):
        """How many pages of relations there are, and how many of them carry an LSN after this one. Call after a checkpoint."""
        pages = changed = 0
        for path in self.relation_files():
            with open(path, "rb") as f:
                while block := f.read(1 << 20):
                    for at in range(0, len(block) - 7, 8192):
                        pages += 1
                        high, low = int.from_bytes(block[at:at + 4], "little"), int.from_bytes(block[at + 4:at + 8], "little")
                        changed += (high << 32 | low) > lsn
        return pages, changed

    def lsn(self):
        high, low = self.sql("select pg_current_wal_insert_lsn()").split("/")
        return int(high, 16) << 32 | int(low, 16)

    def switch_wal(self):
        """Ends the current segment and waits until all before it are in the archive."""
        self.sql("create table if not exists tick (n int); truncate tick")
        last = self.sql("select pg_walfile_name(pg_switch_wal())")
        for _ in range(6000):
            if (self.archive / last).exists() and self.sql("select last_archived_wal from pg_stat_archiver") >= last:
                return
            time.sleep(0.05)
        fail(f"WAL segment {last} does not come into the archive")


def evict(*trees):
    """Takes the files below these directories out of the page cache, and nothing of what others on the machine use."""
    for tree in trees:
        subprocess.run(["sync", "-f", tree], check=True)
        for folder, _, files in os.walk(tree):
            for name in files:
                try:
                    fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW)
                except OSError:
                    continue  # gone, or no file
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


def clean(path):
    shutil.rmtree(path, ignore_errors=True)
