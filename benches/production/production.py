#!/usr/bin/env python3
"""What a full backup costs production: pgbench's transactions a second alone and while a backup runs, with and without limits.

Every round runs pgbench once per variant, in an order that rotates; the ratio to "alone" of the same round is what counts, and
the median over the rounds. Only transactions that end while a backup runs are counted, so a short backup is repeated, each time
into a new repository, until pgbench ends. What is short is CPU, shared by clients, server and backup, and the disk's syncs; on as many
cores as workers expect half of the transactions without limits, and with a limit the share it leaves. The server syncs (fsync=on), its pages are in the page cache, WAL goes nowhere.

    benches/production/production.py --pgbackrest PATH --scale 100 --seconds 60 --rounds 3 --out benches/results/NAME.json

Needs: a release build of pgkeep, pgbackrest, postgresql-15 with pgbench, GNU time, root, a machine that does nothing else.
Settings as in benches/compare/compare.py: zstd 3, encryption on, two workers, page checksums on.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compare"))
from compare import PG, Rig, machine  # noqa: E402

WARM_UP = 3


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Production(Rig):
    def prepare(self):
        super().prepare()
        self.sql("alter system set fsync = on")
        self.sql("select pg_reload_conf()")
        self.logs = self.root / "load"
        self.logs.mkdir()
        os.chown(self.logs, self.user.pw_uid, self.user.pw_gid)

    def fresh(self, tool):
        """Empties a tool's repository, so that the next full is a first one."""
        for path in (self.root / tool, self.root / f"{tool}-cache"):
            if path.exists():
                shutil.rmtree(path)
                path.mkdir()
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        self.tool(tool, "stanza-create")

    def load(self, clients, seconds):
        """Starts pgbench; each transaction is logged with the time of its end."""
        for old in self.logs.iterdir():
            old.unlink()
        command = self.as_user() + [PG / "pgbench", "-h", self.root, "-p", self.port, "-U", "postgres", "-n", "-c", clients, "-j", 2, "-T", seconds,
                                    "-l", f"--log-prefix={self.logs}/t", "postgres"]
        return subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def transactions(self):
        """End and latency in seconds of every transaction."""
        for log in self.logs.iterdir():
            for line in log.read_text().splitlines():
                part = line.split()
                if len(part) >= 6:
                    yield int(part[4]) + int(part[5]) / 1e6, int(part[2]) / 1e6

    def measure(self, variant, clients, seconds):
        tool, options = variant
        if tool:
            self.fresh(tool)
        self.sql("checkpoint")
        pgbench = self.load(clients, WARM_UP + seconds)
        output = []
        reader = threading.Thread(target=lambda: output.append(pgbench.stdout.read()))
        reader.start()
        time.sleep(WARM_UP)
        windows, runs = [], []
        try:
            began = time.time()
            while tool and pgbench.poll() is None:
                if runs:
                    self.fresh(tool)
                start = time.time()
                how = self.tool(tool, *options, "--type=full", "--no-archive-check", "backup", timed=True)
                windows.append((start, time.time()))
                runs.append(how)
            pgbench.wait()
        finally:
            if pgbench.poll() is None:
                pgbench.terminate()
            reader.join()
        if pgbench.returncode != 0:
            sys.exit(f"pgbench failed: {output[0][-2000:]}")
        all_done = list(self.transactions())
        end = max(t for t, _ in all_done)
        windows = [(a, min(b, end)) for a, b in windows or [(began, end)] if a < end]
        counted = sorted(took for at, took in all_done if any(a <= at < b for a, b in windows))
        if not counted:
            sys.exit("no transaction ended while a backup ran")
        span = sum(b - a for a, b in windows)
        out = {"tps": len(counted) / span, "seconds": span, "p50_ms": percentile(counted, 0.5) * 1000, "p99_ms": percentile(counted, 0.99) * 1000}
        if runs:
            # All of them ran to their end; the last one may have ended without load.
            out |= {"backups": len(runs), "backup_wall": statistics.median(r["wall"] for r in runs), "backup_cpu": statistics.median(r["cpu"] for r in runs)}
        return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scale", type=int, default=20)
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--clients", type=int, default=4)
    p.add_argument("--io-limit", default="25MB")
    p.add_argument("--cpu-limit", default="25%")
    p.add_argument("--only", help="variants, separated by commas; 'alone' is always there")
    p.add_argument("--dir", default="/var/tmp/pgkeep-production")
    p.add_argument("--pgbackrest", default="pgbackrest")
    p.add_argument("--pgkeep", default=str(Path(__file__).resolve().parents[2] / "target/release/pgkeep"))
    p.add_argument("--out")
    a = p.parse_args()
    binary = Path(a.dir + "-pgkeep")
    binary.unlink(missing_ok=True)
    shutil.copy(a.pgkeep, binary)
    binary.chmod(0o755)
    variants = {
        "alone": (None, []),
        "pgkeep": ("pgk", []),
        "pgkeep io-limit": ("pgk", [f"--io-limit={a.io_limit}"]),
        "pgkeep cpu-limit": ("pgk", [f"--cpu-limit={a.cpu_limit}"]),
        "pgkeep priority": ("pgk", ["--priority=19"]),
        "pgbackrest": ("pbr", []),
        "pgbackrest priority": ("pbr", ["--priority=19"]),
    }
    if a.only:
        variants = {name: v for name, v in variants.items() if name == "alone" or name in a.only.split(",")}
    rig = Production(a.dir, str(binary), a.pgbackrest, a.scale)
    results = {}
    try:
        rig.prepare()
        results["machine"] = machine(rig, a) | {"load_before": os.getloadavg()}
        results["settings"] = {"scale": a.scale, "seconds": a.seconds, "clients": a.clients, "io_limit": a.io_limit, "cpu_limit": a.cpu_limit}
        print(json.dumps(results["machine"]), flush=True)
        runs = results["runs"] = {name: [] for name in variants}
        for n in range(a.rounds):
            names = list(variants)
            for name in names[n % len(names):] + names[:n % len(names)]:
                runs[name].append(rig.measure(variants[name], a.clients, a.seconds))
        for name, all_runs in runs.items():
            med = lambda what: statistics.median(r[what] for r in all_runs)
            ratio = statistics.median(r["tps"] / alone["tps"] for r, alone in zip(all_runs, runs["alone"]))
            summary = results.setdefault("summary", {})[name] = {"ratio_tps": ratio, **{what: med(what) for what in all_runs[0]}}
            line = f"{name:20} {summary['tps']:8.0f} tps = {ratio:.2f}   p50 {summary['p50_ms']:6.2f} ms   p99 {summary['p99_ms']:7.2f} ms"
            if "backup_wall" in summary:
                line += f"   backup {summary['backup_wall']:6.1f} s, cpu {summary['backup_cpu']:6.1f} s"
            print(line, flush=True)
    finally:
        rig.stop()
        shutil.rmtree(rig.root, ignore_errors=True)
        binary.unlink(missing_ok=True)
        if a.out:
            Path(a.out).write_text(json.dumps(results, indent=1) + "\n")


main()
