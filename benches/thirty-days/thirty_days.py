#!/usr/bin/env python3
"""Thirty daily backups of one changing cluster, by every tool at hand: what each adds to its repository, how long it takes, what it reads.

    benches/thirty-days/thirty_days.py run --pg-bin /usr/lib/postgresql/17/bin --pgbackrest /usr/bin/pgbackrest --restic /usr/bin/restic --out result.json
    benches/thirty-days/thirty_days.py run --scale 0.02 --days 3 --out smoke.json          # does it work at all
    benches/thirty-days/thirty_days.py render result.json > result.md
    benches/thirty-days/thirty_days.py pairs --scale 1 --rounds 3 --out pairs.json         # one change at a time, round by round

Runs as root, on an otherwise idle machine if times are to mean anything; bytes are exact anyway. Everything is made under --dir and removed. README.md
beside this file says what is measured and how to read it.
"""
import argparse
import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pairs
import report
from data import Data, fingerprint
from rig import Cluster, Runner, clean, evict, fail
from tools import BaseBackup, Pgkeep, PgBackRest, Restic, parse_variant, segments

WEEK = 7
KEEP = 7
# Restores in turn, of the last backup and of a fresh full.
RESTORES = 3


def machine(a, cluster):
    version = lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[0]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    out = {"cpu": re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1), "cores": os.cpu_count(), "kernel": os.uname().release,
           "postgresql": version(Path(a.pg_bin) / "postgres", "--version"), "commit": commit, "pgdata_bytes": cluster.bytes(),
           "page_cache": "emptied of cluster and repository before each run" if a.cold else "as it was", "own_device": a.own_device}
    for name in ("pgkeep", "pgbackrest", "restic", "rustic"):
        if getattr(a, name):
            out[name] = version(getattr(a, name), "version" if name != "rustic" else "--version")
    return out


def tools_of(a, runner, cluster):
    """The tools that were asked for, ready to be used."""
    out = []
    for text in a.variant or ["pgkeep="]:
        name, binary, options = parse_variant(text)
        out.append(Pgkeep(runner, name, copy_of(runner, binary or Path(a.pgkeep), name), options))
    if a.pgbackrest:
        out.append(PgBackRest(runner, copy_of(runner, Path(a.pgbackrest), "pgbackrest")))
    for name in ("restic", "rustic"):
        if getattr(a, name):
            out.append(Restic(runner, name, copy_of(runner, Path(getattr(a, name)), name)))
    if a.basebackup and cluster.major >= 17:
        out.append(BaseBackup(runner))
    if len({t.name for t in out}) != len(out):
        fail("two tools have the same name")
    for tool in out:
        tool.setup(cluster)
    return out


def copy_of(runner, binary, name):
    """A copy that the server's account can run and that no build replaces meanwhile."""
    found = shutil.which(binary)
    if not found:
        fail(f"there is no program {binary}")
    place = runner.mkdir(runner.root / "bin", 0o755) / name
    shutil.copy(found, place)
    place.chmod(0o755)
    return place


def make_cluster(a):
    clean(a.dir)
    Path(a.dir).mkdir(parents=True)
    os.chmod(a.dir, 0o755)
    runner = Runner(a.dir, a.pg_bin)
    os.chown(a.dir, runner.user.pw_uid, runner.user.pw_gid)
    cluster = Cluster(runner, "cluster", a.port)
    try:
        if a.own_device:
            # Room for what grows, and for WAL between checkpoints.
            cluster.own_device(int((a.scale * 4 + 12) * 2**30))
        cluster.init()
        data = Data(cluster, a.scale, a.seed)
        began = time.monotonic()
        data.create()
    except BaseException:
        cluster.discard()
        raise
    print(f"cluster of {cluster.bytes() / 2**20:,.0f} MiB made in {time.monotonic() - began:.0f} s", flush=True)
    return runner, cluster, data


def push_wal(tools, cluster, pushed):
    """Gives every tool that stores WAL the segments of the day, and forgets those of the days before; returns bytes of WAL."""
    new = [s for s in segments(cluster) if s.name not in pushed]
    for segment in new:
        for tool in tools:
            if tool.can_push:
                tool.push(segment)
    for name in pushed:
        (cluster.archive / name).unlink()
    pushed.clear()
    pushed.update(s.name for s in new)
    return sum(f.stat().st_size for f in new)


def one_day(a, day, cluster, data, tools, rng, lsn):
    share = rng.uniform(*a.share)
    distribution = a.distribution if a.distribution != "mixed" else ("uniform", "zipf")[day % 2 == 0]
    out = {"day": day, "distribution": distribution, "share": share, "tools": {}}
    if day > 1:
        before = cluster.lsn()
        data.change(day, share, distribution)
        out["wal_written"] = cluster.lsn() - before
    out["pages"], out["pages_changed"] = cluster.changed_pages(lsn)
    full = (day - 1) % WEEK == 0
    # Who goes first changes daily.
    for at in range(len(tools)):
        tool = tools[(at + day) % len(tools)]
        before = tool.data_bytes()
        if a.cold:
            evict(cluster.data, tool.home)
        found = tool.backup(full)
        out["tools"][tool.name] = {"type": "full" if full else "incr", **found, "bytes": tool.data_bytes() - before}
        r = out["tools"][tool.name]
        print(f"day {day:2} {tool.name:16} {r['type']:4} {r['bytes'] / 2**20:9.2f} MiB {r['wall']:7.1f} s wall {r['cpu'] + r.get('server_cpu', 0):7.1f} s cpu "
              f"{(r['read'] + r.get('server_read', 0)) / 2**20:9.1f} MiB read", flush=True)
    return out


def check_restore(a, runner, cluster, tool, which, expected):
    """Restores, and starts the last one to compare its tables."""
    target = runner.mkdir(runner.root / "restored")
    if a.cold:
        evict(tool.home)
    out = tool.restore(which, target)
    out["bytes"] = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    if expected:
        restored = Cluster(runner, "restored-server", a.port + 1)
        restored.data = target
        with open(target / "postgresql.auto.conf", "a") as f:
            f.write(f"\nrestore_command = 'cp {cluster.archive}/%f %p'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\narchive_mode = off\n"
                    f"port = {restored.port}\nunix_socket_directories = '{restored.home}'\n")
        runner.write(target / "recovery.signal", "")
        for name in ("pg_wal", "pg_wal/archive_status", "pg_replslot", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_dynshmem"):
            runner.mkdir(target / name)
        try:
            restored.start()
            found = fingerprint(restored)
        finally:
            restored.stop("immediate")
        out["same"] = found == expected
        if not out["same"]:
            print(f"{tool.name}: the restored tables differ:\n{found}\n{expected}", flush=True)
    clean(target)
    return out


def beside_fresh(a, runner, cluster, tool):
    """Restores of the last backup and of a full in a repository of its own, of the same state, in turn: what history costs a restore."""
    fresh = Pgkeep(runner, f"{tool.name}.fresh", tool.binary, tool.options)
    if fresh.home.exists():
        fail(f"{fresh.home} is there already")
    fresh.setup(cluster)
    fresh.backup(True)
    out = {"last": [], "fresh": []}
    for turn in range(RESTORES):
        for name in ("last", "fresh")[::1 if turn % 2 else -1]:
            out[name].append(check_restore(a, runner, cluster, tool if name == "last" else fresh, "last", None))
    clean(fresh.home)
    return out


def run(a):
    runner, cluster, data = make_cluster(a)
    result = {"settings": {k: v for k, v in vars(a).items() if k in ("scale", "days", "seed", "share", "distribution", "variant", "wal")}, "days": []}
    save = lambda: a.out and Path(a.out).write_text(json.dumps(result, indent=1) + "\n")
    try:
        result["machine"] = machine(a, cluster)
        tools, rng, lsn = tools_of(a, runner, cluster), random.Random(a.seed + 3), 0
        # What loading the tables wrote is no day's WAL.
        cluster.switch_wal()
        pushed = {s.name for s in segments(cluster)}
        result["tools"] = [t.name for t in tools]
        for day in range(1, a.days + 1):
            before = {t.name: t.wal_bytes() for t in tools}
            found = one_day(a, day, cluster, data, tools, rng, lsn)
            lsn = cluster.lsn()
            cluster.switch_wal()
            found["wal_bytes"] = push_wal(tools if a.wal else [], cluster, pushed)
            for tool in tools:
                found["tools"][tool.name]["wal_bytes"] = tool.wal_bytes() - before[tool.name]
            result["days"].append(found)
            save()
        expected = fingerprint(cluster)
        result["totals"] = {t.name: {"bytes": t.data_bytes(), "wal_bytes": t.wal_bytes(), "details": t.details()} for t in tools}
        result["pgdata_bytes_at_end"] = cluster.bytes()
        result["restore"] = {}
        for tool in tools:
            result["restore"][tool.name] = {"first": check_restore(a, runner, cluster, tool, "first", None),
                                            "last": check_restore(a, runner, cluster, tool, "last", expected)}
            print(f"{tool.name:16} restored, tables {'the same' if result['restore'][tool.name]['last']['same'] else 'DIFFER'}", flush=True)
            save()
        result["beside_fresh"] = {t.name: beside_fresh(a, runner, cluster, t) for t in tools if isinstance(t, Pgkeep)}
        save()
        result["keep"] = {"last": KEEP, "tools": {t.name: t.keep(KEEP, WEEK) for t in tools}} if a.days > KEEP else None
        save()
    finally:
        cluster.discard()
        if not a.keep:
            clean(a.dir)
    print(report.thirty_days(result))
    if not all(r["last"]["same"] for r in result["restore"].values()):
        fail("a restored cluster differs from the source")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="what", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--scale", type=float, default=1.0, help="1 is about 1.3 GB")
    common.add_argument("--seed", type=int, default=20260101)
    common.add_argument("--dir", default="/var/tmp/pgkeep-thirty-days")
    common.add_argument("--port", type=int, default=6553)
    common.add_argument("--pg-bin", default="/usr/lib/postgresql/17/bin", help="directory of the server's programs")
    common.add_argument("--pgkeep", default=str(Path(__file__).resolve().parents[2] / "target/release/pgkeep"))
    common.add_argument("--variant", action="append", metavar="NAME[@BINARY]=OPTIONS", help="a pgkeep with these options; may be repeated")
    common.add_argument("--pgbackrest")
    common.add_argument("--restic")
    common.add_argument("--rustic")
    common.add_argument("--no-basebackup", dest="basebackup", action="store_false", help="without pg_basebackup --incremental")
    common.add_argument("--no-cold", dest="cold", action="store_false", help="leave the page cache alone")
    common.add_argument("--own-device", action="store_true", help="PGDATA on a loop device, whose reads are counted")
    common.add_argument("--keep", action="store_true", help="leave everything under --dir, the server stopped")
    common.add_argument("--out", help="file for the result as JSON")
    days = sub.add_parser("run", parents=[common], help="the thirty days")
    days.add_argument("--days", type=int, default=30)
    days.add_argument("--share", type=float, nargs=2, default=(0.04, 0.08), metavar=("LEAST", "MOST"), help="share of pages updated a day; what is appended comes to some two per cent more, and the sum is measured")
    days.add_argument("--distribution", choices=("uniform", "zipf", "mixed"), default="mixed")
    days.add_argument("--no-wal", dest="wal", action="store_false", help="do not store WAL in the repositories")
    paired = sub.add_parser("pairs", parents=[common], help="one change at a time, round by round")
    paired.add_argument("--rounds", type=int, default=3)
    paired.add_argument("--only", default="increment,weekly,replica")
    paired.set_defaults(days=None)
    rendered = sub.add_parser("render", help="a result as markdown")
    rendered.add_argument("file")
    a = p.parse_args()
    if a.what == "render":
        print(report.render(json.loads(Path(a.file).read_text())))
        return
    if os.geteuid() != 0:
        fail("must run as root, to become the server's account")
    if a.what == "run":
        run(a)
    else:
        pairs.run(a, make_cluster, tools_of, machine)


if __name__ == "__main__":
    main()
