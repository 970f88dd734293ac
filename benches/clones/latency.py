#!/usr/bin/env python3
"""Clones of a repository whose store answers late: what access traces and the server's own prefetching are worth.

    cargo build --release -p pgkeep-cli && cargo build --release -p pgkeep-tests --bin faulty-store
    benches/clones/latency.py --pg-bin /usr/lib/postgresql/15/bin --out result.json
    benches/clones/latency.py --pg-bin /usr/lib/postgresql/15/bin --scale 2 --rounds 1 --out smoke.json     # does it work at all

Runs as root. Everything is made under --dir and removed. The repository is shown by `faulty-store`, which waits --delay-ms before each read it answers;
requests wait beside each other, as on a network. All that is compared is run in turn, round by round; medians are what counts. Repository and cache are
taken out of the page cache before each clone.

    trace    `clone create --start` to its end, the first answered query, and a fixed work (look-ups by key, then a small scan): a clone without traces,
             the next one, which has that one's trace, and one whose server is started when all of the trace was fetched
    hydrate  the same while all is hydrated from the begin, without and with traces: heat first
    wal      how long the server replays WAL of a pgbench run behind the backup, by its own log, and bytes the daemon read meanwhile: with full-page images
             (which the first change of each page behind the backup's checkpoint has) and without, and with the server's settings of prefetching
"""
import json
import random
import re
import shutil
import signal
import subprocess
import time

from place import FIRST_QUERY, PROGRAMS, ROWS, Bench, Clone, arguments, clean, fail, median, parsed

MEASURES = ("trace", "hydrate", "wal")
WORK_LOOKUPS = 200
WORK_ROWS = 40_000
ENDED = "that earlier clones needed first"
# What the server is told besides, by name.
WAL_VARIANTS = {
    "off": {"recovery_prefetch": "off"},
    "server": {"recovery_prefetch": "try", "maintenance_io_concurrency": "10", "wal_decode_buffer_size": "512kB"},
    "64": {"recovery_prefetch": "try", "maintenance_io_concurrency": "64", "wal_decode_buffer_size": "512kB"},
    "256-8MB": {"recovery_prefetch": "try", "maintenance_io_concurrency": "256", "wal_decode_buffer_size": "8MB"},
    # What pgkeep chooses.
    "chosen": {},
}


class Store:
    """The repository at another place, slow."""

    def __init__(self, rig, program, delay_ms):
        self.rig, self.shown = rig, rig.runner.mkdir(rig.root / "slow")
        self.process = subprocess.Popen([str(program), str(rig.repo), str(self.shown), "--delay-ms", str(delay_ms)], stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "serving":
            fail("the slow store does not serve")
        fast = rig.config
        rig.config = rig.root / "conf.slow"
        rig.runner.write(rig.config, fast.read_text().replace("clone-trace=n\n", "").replace(f"repo1-path={rig.repo}\n", f"repo1-path={self.shown}\n"))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=60)[0]


class Late(Clone):
    """A clone of the slow repository."""

    def __init__(self, rig, name, *options, port, how=None):
        super().__init__(rig, name, port, options)
        # The first backup: behind it come changes.
        how = how or ("--type=immediate", "--target-action=promote", f"--set={newest(rig, 0)}")
        rig.made.append(self)
        rig.cold()
        self.began = time.monotonic()
        rig.run(*how, "clone", "create", f"--dir={self.dir}", f"--mountpoint={self.mountpoint}", f"--port={port}", f"--socket-path={rig.sockets}", *options)
        self.created = self.since()

    def since(self):
        return time.monotonic() - self.began

    def start(self):
        self.rig.run("clone", "start", f"--dir={self.dir}", f"--pg-bin={self.rig.runner.pg_bin}", *(o for o in self.options if not o.startswith("--recovery-option")))

    def log(self):
        text = "".join(path.read_text() for path in (self.rig.root / "log").glob("*") if path.is_file())
        return [line for line in text.splitlines() if f"clone '{self.dir}': fetched" in line and ENDED in line]

    def wait_prefetched(self):
        """Bytes that were fetched because of a trace, once that is over."""
        while not self.log():
            time.sleep(0.02)
        # As people read it: 12.5MB.
        number, unit = re.match(r"([\d.]+)(\w+)", self.log()[-1].split("fetched ")[1]).groups()
        return round(float(number) * 1024 ** ("B", "KB", "MB", "GB").index(unit))


def newest(rig, number=-1):
    """The label of a backup."""
    text = rig.runner.run(rig.pgkeep, f"--config={rig.config}", "--stanza=b", "--output=json", "info")
    return json.loads(text)[0]["backup"][number]["label"]


def forget(rig):
    """No clone has left a trace, and no clone a log line."""
    shutil.rmtree(rig.repo / "traces", ignore_errors=True)
    for path in (rig.root / "log").glob("*"):
        path.unlink()


def wait_traced(rig, count):
    deadline = time.monotonic() + 60
    while len([*rig.repo.glob("traces/b/*")]) < count:
        if time.monotonic() > deadline:
            fail("no trace was recorded")
        time.sleep(0.02)


def work_file(a, rig):
    rng = random.Random(a.seed)
    rows = a.scale * ROWS
    lines = [f"select abalance from pgbench_accounts where aid = {rng.randrange(rows) + 1};" for _ in range(WORK_LOOKUPS)]
    first = rng.randrange(rows - WORK_ROWS)
    lines.append(f"select count(*), sum(abalance) from pgbench_accounts where aid between {first} and {first + WORK_ROWS - 1};")
    path = rig.root / "work.sql"
    rig.runner.write(path, "\n".join(lines) + "\n")
    return path


def use(clone, work):
    """What its user sees, from the begin of making it."""
    clone.start()
    out = {"command": clone.since()}
    if clone.sql(FIRST_QUERY) != "0":
        fail("the first query's answer is wrong")
    out["first_answer"] = clone.since()
    began = time.monotonic()
    answer = clone.runner.run(*clone.psql("-f", work)).strip().splitlines()
    out["work"] = time.monotonic() - began
    if answer[-1] != f"{WORK_ROWS}|0":
        fail(f"the work's answer is wrong: {answer[-1]}")
    return out | {"done": clone.since(), "disk": clone.disk(), "created": clone.created}


def show(measure, out):
    for name, runs in out.items():
        of = lambda what: f"{what} {median(r[what] for r in runs):6.2f} s"
        more = f", {of('hydrated')}" if "hydrated" in runs[0] else ""
        fetched = f", of the trace {median(r['prefetched'] for r in runs) / 2**20:.1f} MiB" if "prefetched" in runs[0] else ""
        print(f"{measure:8} {name:10} {of('created')}, {of('command')}, {of('first_answer')}, {of('work')}, {of('done')}{more}, disk {median(r['disk'] for r in runs):.0f} MiB{fetched}", flush=True)
    return out


def trace(a, rig, work):
    out = {"without": [], "with": [], "warm": []}
    for _ in range(a.rounds):
        forget(rig)
        for number, name in enumerate(out):
            clone = Late(rig, "trace", port=rig.port + 1)
            waited = 0.0
            if name == "warm":
                clone.wait_prefetched()
                waited = clone.since()
                clone.began += waited - clone.created
            run = use(clone, work)
            if name != "without":
                run["prefetched"] = clone.wait_prefetched()
            clone.destroy()
            wait_traced(rig, min(number + 1, 3))
            out[name].append(run)
    return show("trace", out)


def hydrate(a, rig, work):
    out = {"without": [], "with": []}
    for _ in range(a.rounds):
        forget(rig)
        clone = Late(rig, "seed", port=rig.port + 1)
        use(clone, work)
        clone.destroy()
        wait_traced(rig, 1)
        for name in out:
            clone = Late(rig, "hydrate", *([] if name == "with" else ["--clone-trace=n"]), port=rig.port + 1)
            hydrating = subprocess.Popen([str(c) for c in [*rig.prefix(), rig.pgkeep, f"--config={rig.config}", "--stanza=b", "clone", "hydrate", f"--dir={clone.dir}"]], stdout=subprocess.DEVNULL)
            run = use(clone, work)
            if hydrating.wait() != 0:
                fail("hydration failed")
            run["hydrated"] = clone.since()
            if name == "with":
                run["prefetched"] = clone.wait_prefetched()
            clone.destroy()
            out[name].append(run)
    return show("hydrate", out)


def replayed(clone):
    """Seconds of replay and bytes of WAL, by the server's log."""
    text = (clone.dir / "data/pgkeep-clone.log").read_text(errors="replace")
    line = next((line for line in text.splitlines() if "redo done at" in line), None) or fail(f"no redo in the log\n{text[-2000:]}")
    lsn = lambda word: (lambda parts: (int(parts[0], 16) << 32) + int(parts[1], 16))(word.split("/"))
    starts = next(line for line in text.splitlines() if "redo starts at" in line).rsplit(" ", 1)[1]
    return {"seconds": float(line.split("elapsed: ")[1].split()[0]), "wal": lsn(line.split("redo done at ")[1].split()[0]) - lsn(starts)}


def wal(a, rig, work):
    """Recovery to a name that the source set behind each stretch of WAL."""
    out = {}
    for stretch, target in (("images", "with-images"), ("none", "without-images")):
        for _ in range(a.rounds):
            for name, options in WAL_VARIANTS.items():
                chosen = [f"--recovery-option={key}={value}" for key, value in options.items()]
                # Behind the backup that was made before the stretch.
                label = (rig.root / f"label-{stretch}").read_text()
                clone = Late(rig, "wal", "--clone-trace=n", *chosen, port=rig.port + 1,
                             how=("--type=name", f"--target={target}", "--target-action=promote", f"--set={label}"))
                before = clone.counters()
                clone.start()
                after = clone.counters()
                run = replayed(clone) | {"command": clone.since(), "read": after["read"] - before["read"]}
                clone.destroy()
                out.setdefault(f"{stretch}/{name}", []).append(run)
    for name, runs in out.items():
        print(f"wal      {name:16} replay {median(r['seconds'] for r in runs):6.2f} s of {median(r['wal'] for r in runs) / 2**20:.0f} MiB, start {median(r['command'] for r in runs):6.2f} s, "
              f"{median(r['read'] for r in runs) / 2**20:.1f} MiB read by the daemon", flush=True)
    return out


def stretches(a, rig, source):
    """Two backups, each with a stretch of WAL behind it: with full-page images and without."""
    own = [str(c) for c in [rig.pgkeep, f"--config={rig.config}", "--stanza=b"]]
    for stretch, target, images in (("images", "with-images", "on"), ("none", "without-images", "off")):
        source.sql(f"alter system set full_page_writes = {images}")
        source.sql("select pg_reload_conf()")
        if stretch == "none":
            source.sql("checkpoint")
            rig.runner.run(*own, "--type=incr", "backup")
        rig.runner.write(rig.root / f"label-{stretch}", newest(rig))
        rig.runner.run(rig.runner.pg_bin / "pgbench", *source.where(), "-n", "-c", 4, "-j", 2, "-t", a.transactions // 4, "postgres")
        source.sql(f"select pg_create_restore_point('{target}')")
        segment = source.sql("select pg_walfile_name(pg_switch_wal())")
        while source.sql("select last_archived_wal from pg_stat_archiver") < segment:
            time.sleep(0.1)


def main():
    p = arguments(__doc__, MEASURES, 30, 6753, "/var/tmp/pgkeep-latency", "/usr/lib/postgresql/15/bin")
    p.add_argument("--delay-ms", type=int, default=30, help="of each read of the store")
    p.add_argument("--transactions", type=int, default=20_000, help="of pgbench behind the backup, for the measure wal")
    p.add_argument("--faulty-store", default=str(PROGRAMS / "faulty-store"))
    run(parsed(p, MEASURES))


def run(a):
    clean(a.dir)
    bench = Bench(a)
    rig, program = bench.rig, bench.program(a.faulty_store, "faulty-store")

    def behind(source):
        if "wal" in a.only.split(","):
            stretches(a, rig, source)
        return {}

    store = None
    try:
        facts = bench.back_up(behind)
        store = Store(rig, program, a.delay_ms)
        bench.measure(facts, {"trace": trace, "hydrate": hydrate, "wal": wal}, work_file(a, rig))
    finally:
        rig.clean()
        if store:
            print(f"the store: {store.end().strip()}", flush=True)
        clean(a.dir)


if __name__ == "__main__":
    main()
