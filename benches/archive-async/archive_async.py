#!/usr/bin/env python3
"""How many WAL segments a second leave the server, and how long one takes as the archive grows.

    cargo build --release -p pgkeep-cli
    benches/archive-async/archive_async.py --pg-bin /usr/lib/postgresql/15/bin --pgbackrest PATH --out result.json
    benches/archive-async/archive_async.py --pg-bin /usr/lib/postgresql/15/bin --segments 40 --rounds 1 --growth 0 --out smoke.json

Bound: processor (compression) and the disk's syncs. Expected: two workers compress some 25 segments of 16 MiB a second each; a repository on a disk syncs
a file and a directory for each.

Runs as root, the tools as the user postgres. Everything is made under --dir and removed. What archives is this script in the server's place: it asks for
one file after the other in the server's order, and renames its mark from .ready to .done, as postmaster/pgarch.c does; all segments are ready from the
begin, as behind a load that is faster than archiving. Their content is WAL of pgbench, with the first page's address made right for each name.

    push     segments a second from the first call to the last answer; each tool with archive-async and without, at zstd 3, and pgBackRest with its default,
             gzip 6; in turn, round by round
    growth   the same with small segments of the least size, up to --growth of them in one archive: time of a call by thousands of segments. With --archived
             the archive is filled up to that many behind the first thousand, by links to what is there under the names of older segments
"""
import argparse
import json
import os
import platform
import pwd
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

USER = pwd.getpwnam("postgres")
MEBI = 1 << 20
JOBS = 2
# Offset of the address of the first page in its header: access/xlog_internal.h.
PAGE_ADDRESS = 8


def fail(text):
    sys.exit(f"archive_async: {text}")


def give(path):
    os.chown(path, USER.pw_uid, USER.pw_gid)
    return path


def run(*command, cwd=None):
    done = subprocess.run([str(c) for c in command], user=USER.pw_uid, group=USER.pw_gid, extra_groups=[], env={"PATH": "/usr/bin:/bin"}, cwd=cwd,
                          capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{' '.join(str(c) for c in command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def mkdir(path):
    path.mkdir(parents=True)
    return give(path)


class Cluster:
    """A stopped cluster, and segments of WAL that it wrote."""

    def __init__(self, root, pg_bin, segment_mb, samples):
        self.data, self.bytes = root / "data", segment_mb * MEBI
        run(pg_bin / "initdb", "-D", self.data, "-A", "trust", f"--wal-segsize={segment_mb}")
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(f"listen_addresses=''\nunix_socket_directories='{root}'\nport=5998\nfsync=off\nmax_wal_size='4GB'\nwal_keep_size='2GB'\n")
        # The server keeps the streams it is started with.
        subprocess.run([pg_bin / "pg_ctl", "-D", self.data, "-w", "-s", "-l", root / "server.log", "start"], user=USER.pw_uid, group=USER.pw_gid,
                       extra_groups=[], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        psql = shutil.which("psql", path=f"{pg_bin}:/usr/bin") or fail("psql is missing")
        pgbench = shutil.which("pgbench", path=f"{pg_bin}:/usr/bin") or fail("pgbench is missing")
        connection = ("-h", root, "-p", "5998")
        run(pgbench, *connection, "-i", "-s", "10", "-q", "postgres")
        while True:
            # Behind a checkpoint whole pages are logged, as in daily life.
            run(psql, *connection, "-c", "CHECKPOINT", "postgres")
            run(pgbench, *connection, "-c", "4", "-t", "1000", "-n", "postgres")
            self.samples = sorted(f for f in (self.data / "pg_wal").iterdir() if re.fullmatch("[0-9A-F]{24}", f.name))[2:-2]
            if len(self.samples) >= samples:
                break
        run(pg_bin / "pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")
        self.contents = [bytearray(f.read_bytes()) for f in self.samples[:samples]]
        self.wal = self.data / "pg_wal"
        self.next = 1 << 20

    def write(self, count):
        """Makes the next segments and marks them ready; their names."""
        names = []
        for _ in range(count):
            number, self.next = self.next, self.next + 1
            per_high = (1 << 32) // self.bytes
            name = f"00000001{number // per_high:08X}{number % per_high:08X}"
            content = self.contents[number % len(self.contents)]
            struct.pack_into("<Q", content, PAGE_ADDRESS, number * self.bytes)
            # Content differs between segments everywhere, as WAL does.
            struct.pack_into("<Q", content, 4096, number)
            (self.wal / name).write_bytes(content)
            give(self.wal / name)
            names.append(name)
        for name in names:
            (self.wal / "archive_status" / f"{name}.ready").touch()
            give(self.wal / "archive_status" / f"{name}.ready")
        os.sync()
        return names

    def archive(self, command, names):
        """Asks for each file as the server does; seconds each call took."""
        took = []
        status = self.wal / "archive_status"
        for name in names:
            begun = time.monotonic()
            run(*command, f"pg_wal/{name}", cwd=self.data)
            took.append(time.monotonic() - begun)
            (status / f"{name}.ready").rename(status / f"{name}.done")
        return took

    def clear(self, names):
        for name in names:
            (self.wal / name).unlink()
            (self.wal / "archive_status" / f"{name}.done").unlink()


class Tool:
    """One program, with archive-async or without."""

    def __init__(self, root, name, program, cluster, is_async, compression="zst"):
        self.name = f"{name}-{'async' if is_async else 'sync'}{'' if compression == 'zst' else '-' + compression}"
        home = mkdir(root / self.name)
        for part in ("repo", "lock", "log", "spool", "cache"):
            mkdir(home / part)
        self.repo, self.config = home / "repo", home / "conf"
        options = {"repo1-path": self.repo, "lock-path": home / "lock", "log-path": home / "log", "spool-path": home / "spool", "process-max": JOBS,
                   "compress-type": compression, "archive-async": "y" if is_async else "n", "log-level-console": "error"}
        if compression == "zst":
            options["compress-level"] = 3
        if name == "pgkeep":
            options["cache-path"] = home / "cache"
        lines = [f"{k}={v}" for k, v in options.items()]
        self.config.write_text("[global]\n" + "\n".join(lines) + f"\n[bench]\npg1-path={cluster.data}\n")
        give(self.config)
        self.config.chmod(0o600)
        self.command = [str(program), f"--config={self.config}", "--stanza=bench"]
        run(*self.command, "--no-online", "stanza-create")

    def push(self):
        return [*self.command, "archive-push"]


def spread(took):
    ordered = sorted(took)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000
    return {"median_ms": round(at(0.5), 2), "p99_ms": round(at(0.99), 2), "max_ms": round(ordered[-1] * 1000, 2)}


def measure_push(arguments, root, programs):
    cluster = Cluster(mkdir(root / "push"), arguments.pg_bin, arguments.segment_mb, 6)
    tools = [Tool(root / "push", name, program, cluster, is_async) for name, program in programs for is_async in (True, False)]
    # Its default.
    tools += [Tool(root / "push", name, program, cluster, True, "gz") for name, program in programs if name == "pgbackrest"]
    rounds = []
    for number in range(arguments.rounds):
        one = {}
        for tool in tools if number % 2 == 0 else reversed(tools):
            names = cluster.write(arguments.segments)
            begun = time.monotonic()
            took = cluster.archive(tool.push(), names)
            seconds = time.monotonic() - begun
            cluster.clear(names)
            one[tool.name] = {"segments_per_second": round(len(names) / seconds, 2), "seconds": round(seconds, 2), **spread(took)}
            print(f"round {number + 1}: {tool.name}: {one[tool.name]}", flush=True)
        rounds.append(one)
    medians = {t.name: round(statistics.median(r[t.name]["segments_per_second"] for r in rounds), 2) for t in tools}
    return {"segment_mb": arguments.segment_mb, "segments": arguments.segments, "rounds": rounds, "segments_per_second": medians}


def fill(repo, up_to):
    """Links archived segments under the names of older ones; how many there are then."""
    archived = [f for f in repo.rglob("0*") if re.match("[0-9A-F]{24}", f.name) and f.parent.name == f.name[:16]]
    for number in range(up_to - len(archived)):
        source = archived[number % len(archived)]
        name = f"00000001{number >> 12:08X}{number & 0xFFF:08X}"
        place = source.parent.parent / name[:16]
        if not place.exists():
            mkdir(place)
        os.link(source, place / (name + source.name[24:]))
    os.sync()
    return max(up_to, len(archived))


def measure_growth(arguments, root, programs):
    cluster = Cluster(mkdir(root / "growth"), arguments.pg_bin, 1, 24)
    result = {}
    for name, program in programs:
        tool = Tool(root / "growth", name, program, cluster, True)
        steps, left = [], arguments.growth
        while left > 0:
            names = cluster.write(min(left, 1000))
            left -= len(names)
            begun = time.monotonic()
            took = cluster.archive(tool.push(), names)
            steps.append({"segments": len(names), "segments_per_second": round(len(names) / (time.monotonic() - begun), 2), **spread(took)})
            cluster.clear(names)
            print(f"{tool.name}: {steps[-1]}", flush=True)
            if arguments.archived and len(steps) == 1:
                steps.append({"filled_to": fill(tool.repo, arguments.archived)})
        result[tool.name] = steps
        shutil.rmtree(tool.repo)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pg-bin", type=Path, required=True)
    parser.add_argument("--pgkeep", type=Path, default=Path(__file__).resolve().parents[2] / "target/release/pgkeep")
    parser.add_argument("--pgbackrest", type=Path, help="compare with it")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/pgkeep-archive-async"))
    parser.add_argument("--segment-mb", type=int, default=16)
    parser.add_argument("--segments", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", type=int, default=5000)
    parser.add_argument("--archived", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        fail("run it as root")
    root = arguments.dir
    if root.exists():
        fail(f"{root} exists already")
    mkdir(root)
    try:
        programs = []
        for name, program in (("pgkeep", arguments.pgkeep), ("pgbackrest", arguments.pgbackrest)):
            if program is not None:
                # Where the user postgres may run it.
                copy = root / name
                shutil.copy(program, copy)
                copy.chmod(0o755)
                programs.append((name, copy))
        commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
        versions = {name: run(program, "version").stdout.strip() for name, program in programs}
        result = {"commit": commit, "versions": versions, "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg()}}
        result["push"] = measure_push(arguments, root, programs)
        if arguments.growth:
            result["growth"] = measure_growth(arguments, root, programs)
        result["machine"]["load_after"] = os.getloadavg()
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
