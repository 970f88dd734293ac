#!/usr/bin/env python3
"""Paired runs of pgkeep and pgBackRest on the same cluster, as root, on an otherwise idle machine.

For every measure the two tools run in turn, round by round, page cache dropped before each run, and the median of the
per-round ratios is what counts: machines are noisy, absolute times mean little. Bytes are exact.

    benches/compare/compare.py --scale 130 --rounds 3 --out benches/results/NAME.json

Needs: a release build of pgkeep, Debian's pgbackrest and postgresql-15, GNU time. Everything is made under --dir and removed.
Settings: zstd 3, encryption on (pgBackRest: aes-256-cbc, bundle and block incremental on), two workers, page checksums on.
"""
import argparse
import json
import os
import pwd
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

PG = Path("/usr/lib/postgresql/15/bin")
WORDS = "account order invoice customer payment delivery product status created updated region market price amount currency " \
        "shipment returned pending complete cancelled priority warehouse supplier contract renewal discount balance history".split()


class Rig:
    def __init__(self, root, pgkeep, pgbackrest, scale):
        self.root, self.pgkeep, self.pgbackrest, self.scale = Path(root), pgkeep, pgbackrest, scale
        self.warm = False
        self.data, self.port = self.root / "data", 6543
        self.user = pwd.getpwnam("postgres")
        self.block = tuple(map(int, re.findall(r"\d+", subprocess.run([pgbackrest, "version"], capture_output=True, text=True).stdout)[:2])) >= (2, 46)

    @staticmethod
    def as_user():
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "-i", f"PATH={PG}:/usr/bin:/bin", "HOME=/tmp", "LC_ALL=C.UTF-8"]

    def run(self, *command, check=True, timed=False, env=None):
        """Runs as postgres; with timed=True returns wall, cpu seconds and peak RSS in MiB of the whole tree's largest process."""
        log = self.root / "time"
        prefix = self.as_user() + [f"{k}={v}" for k, v in (env or {}).items()]
        if timed:
            prefix = ["/usr/bin/time", "-o", str(log), "-f", "%e %U %S %M"] + prefix
        done = subprocess.run(prefix + [str(c) for c in command], capture_output=True, text=True)
        if check and done.returncode != 0:
            sys.exit(f"failed ({done.returncode}): {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        if timed:
            wall, user, system, rss = log.read_text().split()[-4:]
            return {"wall": float(wall), "cpu": float(user) + float(system), "rss": int(rss) / 1024}
        return done.stdout

    def sql(self, text, db="postgres"):
        return self.run(PG / "psql", "-h", self.root, "-p", self.port, "-U", "postgres", "-d", db, "-XAtqc", text).strip()

    def start(self):
        self.run(PG / "pg_ctl", "-D", self.data, "-l", self.root / "pg.log", "-w", "-t", "300", "start")

    def stop(self):
        self.run(PG / "pg_ctl", "-D", self.data, "-m", "fast", "-w", "-t", "300", "stop", check=False)

    def prepare(self):
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        os.chmod(self.root, 0o755)
        for name in ("pgk", "pgk-lock", "pgk-log", "pgk-cache", "pbr", "pbr-lock", "pbr-log", "spool"):
            (self.root / name).mkdir()
        for path in [self.root, *self.root.iterdir()]:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
        self.run(PG / "initdb", "-k", "-D", self.data, "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8")
        with open(self.data / "postgresql.conf", "a") as f:
            f.write(f"port={self.port}\nunix_socket_directories='{self.root}'\nlisten_addresses=''\nshared_buffers=256MB\n"
                    "max_wal_size=8GB\ncheckpoint_timeout=1h\nautovacuum=off\nfsync=off\narchive_mode=on\narchive_command='true'\nwal_level=replica\n")
        common = f"pg1-path={self.data}\npg1-port={self.port}\npg1-socket-path={self.root}\n"
        (self.root / "pgk.conf").write_text(
            f"[global]\nrepo1-path={self.root}/pgk\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=bench\nlock-path={self.root}/pgk-lock\n"
            f"log-path={self.root}/pgk-log\ncache-path={self.root}/pgk-cache\nprocess-max=2\nstart-fast=y\ncompress-level=3\n[b]\n{common}")
        block = "repo1-block=y\n" if self.block else ""
        (self.root / "pbr.conf").write_text(
            f"[global]\nrepo1-path={self.root}/pbr\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=bench\nlock-path={self.root}/pbr-lock\n"
            f"log-path={self.root}/pbr-log\nspool-path={self.root}/spool\nprocess-max=2\nstart-fast=y\ncompress-type=zst\ncompress-level=3\n"
            f"repo1-bundle=y\n{block}repo1-retention-full=9\n[b]\n{common}")
        for conf in ("pgk.conf", "pbr.conf"):
            os.chown(self.root / conf, self.user.pw_uid, self.user.pw_gid)
        self.start()
        self.run(PG / "pgbench", "-h", self.root, "-p", self.port, "-U", "postgres", "-i", "-q", "-s", self.scale, "postgres")
        words = "{" + ",".join(WORDS) + "}"
        self.sql(f"""create table docs as select g as id, now() - g * interval '1 minute' as at,
            (select string_agg(('{words}'::text[])[1 + floor(power(random(), 2) * {len(WORDS)})::int + s * 0], ' ') from generate_series(1, 40 + g % 3) s) as body,
            jsonb_build_object('id', g, 'kind', ('{words}'::text[])[1 + g % {len(WORDS)}], 'score', random(), 'token', md5(g::text)) as doc
            from generate_series(1, {self.scale * 4000}) g;
            create index on docs (at); create index on docs ((doc->>'token')); checkpoint;""")
        for tool in ("pgk", "pbr"):
            self.tool(tool, "stanza-create")

    def command(self, tool, *args):
        binary = [self.pgkeep, f"--config={self.root}/pgk.conf"] if tool == "pgk" else [self.pgbackrest, f"--config={self.root}/pbr.conf"]
        return binary + ["--stanza=b"] + list(args)

    def tool(self, tool, *args, **how):
        return self.run(*self.command(tool, *args), **how)

    def cold(self):
        """Sets the page cache up for a run: empty, or holding the cluster."""
        if self.warm:
            subprocess.run(["sync"])
            for path in self.data.rglob("*"):
                if path.is_file():
                    path.read_bytes()
            return
        subprocess.run(["sync"])
        Path("/proc/sys/vm/drop_caches").write_text("3\n")

    def size(self, tool):
        return sum(f.stat().st_size for f in (self.root / tool).rglob("*") if f.is_file())

    def pgdata_size(self):
        return sum(f.stat().st_size for f in self.data.rglob("*") if f.is_file() and "pg_wal" not in f.parts)

    def churn(self, share):
        """Changes about `share` of the pages of the big table by updates spread over it."""
        rows = int(self.sql("select reltuples::bigint from pg_class where relname='pgbench_accounts'"))
        pages = int(self.sql("select relpages from pg_class where relname='pgbench_accounts'"))
        step = max(1, int(rows / (pages * share)))
        self.sql(f"update pgbench_accounts set abalance = abalance + 1 where aid % {step} = 0; checkpoint;")


def machine(rig, a):
    """Where and of what the results are."""
    return {
        "cpu": re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1), "cores": os.cpu_count(),
        "kernel": os.uname().release, "pgdata_bytes": rig.pgdata_size(),
        "pgbackrest": subprocess.run([a.pgbackrest, "version"], capture_output=True, text=True).stdout.strip(),
        "pgbackrest_block_incremental": rig.block,
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip(),
    }


def pairs(rig, rounds, measure):
    out = {"pgk": [], "pbr": []}
    for n in range(rounds):
        for tool in (("pgk", "pbr") if n % 2 == 0 else ("pbr", "pgk")):
            out[tool].append(measure(tool, n))
    ratio = lambda what: statistics.median(a[what] / b[what] for a, b in zip(out["pgk"], out["pbr"]) if b[what])
    return {**out, "ratio_wall": ratio("wall"), "ratio_cpu": ratio("cpu")}


def clone(rig, rounds):
    """Seconds from `clone create` to the first answered query, caches cold, of a backup taken with its WAL."""
    command = " ".join(map(str, rig.command("pgk", "archive-push", "%p")))
    rig.sql(f"alter system set archive_command = '{command}'")
    rig.sql("select pg_reload_conf()")
    rig.tool("pgk", "--type=full", "backup")
    out, port = [], rig.port + 1
    for n in range(rounds):
        place, mountpoint = rig.root / f"clone{n}", rig.root / f"mount{n}"
        for path in (place, mountpoint):
            path.mkdir(mode=0o700)
            os.chown(path, rig.user.pw_uid, rig.user.pw_gid)
        rig.cold()
        began = time.monotonic()
        how = rig.tool("pgk", "--type=immediate", "--target-action=promote", "clone", "create", f"--dir={place}", f"--mountpoint={mountpoint}", timed=True)
        rig.run(PG / "pg_ctl", "-D", mountpoint, "-l", rig.root / "clone.log", "-W", "-o", f"-p {port}", "start")
        query = "select abalance from pgbench_accounts where aid = 4711"
        ask = [PG / "psql", "-h", "/tmp", "-p", port, "-U", "postgres", "-d", "postgres", "-XAtqc", query]
        while not rig.run(*ask, check=False).strip():
            if time.monotonic() - began > 120:
                rig.tool("pgk", "clone", "destroy", "--force", f"--dir={place}", check=False)
                sys.exit((rig.root / "clone.log").read_text()[-3000:])
            time.sleep(0.01)
        out.append({**how, "create": how["wall"], "wall": time.monotonic() - began})
        rig.run(PG / "pg_ctl", "-D", mountpoint, "-m", "immediate", "-w", "stop", check=False)
        rig.tool("pgk", "clone", "destroy", f"--dir={place}")
    return out


def show(name, r):
    """Prints one measure as soon as it is there."""
    med = lambda tool, what: statistics.median(x[what] for x in r[tool])
    if "pbr" not in r:
        print(f"{name:38} wall {med('pgk', 'wall'):7.2f} s, of which the command {med('pgk', 'create'):.2f} s, rss {med('pgk', 'rss'):4.0f} MiB", flush=True)
        return r
    line = f"{name:38} wall {med('pgk','wall'):7.2f} s vs {med('pbr','wall'):7.2f} s = {r['ratio_wall']:.2f}   cpu {med('pgk','cpu'):6.2f} vs {med('pbr','cpu'):6.2f} = {r['ratio_cpu']:.2f}   rss {med('pgk','rss'):4.0f} MiB vs {med('pbr','rss'):4.0f}"
    if "bytes" in r["pgk"][0]:
        line += f"   bytes {med('pgk','bytes'):,.0f} vs {med('pbr','bytes'):,.0f}"
    print(line, flush=True)
    return r


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scale", type=int, default=130)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--dir", default="/var/tmp/pgkeep-bench")
    p.add_argument("--pgbackrest", default="pgbackrest")
    p.add_argument("--pgkeep", default=str(Path(__file__).resolve().parents[2] / "target/release/pgkeep"))
    p.add_argument("--only", default="full,again,restore,delta,push,clone")
    p.add_argument("--warm", action="store_true", help="leave the page cache as it is before each run")
    p.add_argument("--keep", action="store_true", help="leave everything under --dir, the server stopped")
    p.add_argument("--out")
    a = p.parse_args()
    Path("/var/tmp/pgkeep-under-test").unlink(missing_ok=True)
    shutil.copy(a.pgkeep, "/var/tmp/pgkeep-under-test")
    os.chmod("/var/tmp/pgkeep-under-test", 0o755)
    rig, only = Rig(a.dir, "/var/tmp/pgkeep-under-test", a.pgbackrest, a.scale), a.only.split(",")
    rig.warm = a.warm
    results = {}
    try:
        rig.prepare()
        results["machine"] = machine(rig, a) | {"page_cache": "warm" if a.warm else "dropped"}
        print(json.dumps(results["machine"]), flush=True)
        no_wal = "--no-archive-check"

        def full(tool, n):
            if n:
                for path in (rig.root / tool, rig.root / f"{tool}-cache"):
                    if path.exists():
                        shutil.rmtree(path)
                        path.mkdir()
                        os.chown(path, rig.user.pw_uid, rig.user.pw_gid)
                rig.tool(tool, "stanza-create")
            rig.cold()
            before = rig.size(tool)
            return {**rig.tool(tool, "--type=full", no_wal, "backup", timed=True), "bytes": rig.size(tool) - before}

        def again(tool, n):
            rig.cold()
            before = rig.size(tool)
            return {**rig.tool(tool, "--type=full", no_wal, "backup", timed=True), "bytes": rig.size(tool) - before}

        def restore(tool, n):
            target = rig.root / "restored"
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
            os.chown(target, rig.user.pw_uid, rig.user.pw_gid)
            rig.cold()
            out = rig.tool(tool, f"--pg1-path={target}", "--type=none", "restore", timed=True)
            began = time.monotonic()
            subprocess.run(["sync", "-f", str(target)])
            return {**out, "sync_after": time.monotonic() - began}

        if "full" in only:
            results["first full"] = show("first full", pairs(rig, a.rounds, full))
        if "again" in only:
            results["second full, unchanged"] = show("second full, unchanged", pairs(rig, a.rounds, again))
        if "restore" in only:
            results["restore to empty"] = show("restore to empty", pairs(rig, a.rounds, restore))
        if "delta" in only:
            ahead = rig.root / "ahead"
            rig.churn(0.05)
            rig.stop()
            shutil.rmtree(ahead, ignore_errors=True)
            subprocess.run(["cp", "-a", rig.data, ahead], check=True)
            rig.start()

            def delta(tool, n):
                target = rig.root / "restored"
                shutil.rmtree(target, ignore_errors=True)
                subprocess.run(["cp", "-a", ahead, target], check=True)
                rig.cold()
                return rig.tool(tool, f"--pg1-path={target}", "--type=none", "--delta", "restore", timed=True)

            results["delta restore, 5 % of pages changed"] = show("delta restore, 5 % of pages changed", pairs(rig, a.rounds, delta))
            shutil.rmtree(ahead, ignore_errors=True)
        if "push" in only:
            # Distinct names and real content: segments the server has written. Those behind are recycled, their content old.
            rig.sql("checkpoint")
            began = int(time.time())
            rig.sql("update pgbench_accounts set abalance = abalance + 2 where aid % 20 = 0")
            current = rig.sql("select pg_walfile_name(pg_current_wal_lsn())")
            wal = sorted(f for f in (rig.data / "pg_wal").iterdir() if re.fullmatch("[0-9A-F]{24}", f.name) and f.name < current and int(f.stat().st_mtime) >= began)
            count = min(len(wal), a.rounds * 5)

            def push(tool, n):
                return rig.tool(tool, f"--pg1-path={rig.data}", "archive-push", wal[n], timed=True)

            results["archive-push of one segment"] = show("archive-push of one segment", pairs(rig, count, push))
        if "clone" in only:
            results["clone: command to first answer"] = show("clone: command to first answer", {"pgk": clone(rig, a.rounds)})
    finally:
        rig.stop()
        if not a.keep:
            shutil.rmtree(rig.root, ignore_errors=True)
        if a.out:
            Path(a.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
