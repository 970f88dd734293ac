#!/usr/bin/env python3
"""Clones beside classic restores of the same backup, on the same disk: how soon they answer, how fast they are read and written, what they take.

    benches/clones/clones.py --pg-bin /usr/lib/postgresql/17/bin --out result.json
    benches/clones/clones.py --pg-bin /usr/lib/postgresql/17/bin --scale 2 --rounds 1 --seconds 2 --out smoke.json     # does it work at all
    benches/clones/clones.py --variant auto= --variant cached=--clone-open-mode=cached --only pgbench ...              # modes in turn

Runs as root. Everything is made under --dir and removed. All that is compared is run in turn, round by round, and the median of the rounds' ratios is
what counts. "Cold" means that repository, clone and restore were taken out of the page cache before; PostgreSQL's programs stay in it.

    start    `clone create --start` to its end, and to the first answered query
    lookup   the first look-up of a row by its key in the large table, cold: milliseconds, bytes the daemon read for it, MiB the clone grew by
    random   reads of 8 KiB at random places of the table's first segment, cold, and again
    scan     the segment from begin to end, cold, again at once, and once more when the clone has made durable what it fetched; beside it how fast a
             classic restore writes
    table    the whole table read by one process of the server, cold and again
    pgbench  transactions a second after one warm pass and as many seconds, selects only and TPC-B, beside a native server
    ten      memory and disk of ten idle clones with their servers
    instant  `restore --instant` under pgbench until the directory is ordinary, beside a classic restore
    extract  a small table out of the backup: seconds, and how much of the repository was read for it
"""
import json
import time
from pathlib import Path

from instant import instant
from place import FIRST_QUERY, Bench, arguments, clean, evict, fail, median, parsed, random_reads, scan

MEASURES = ("start", "lookup", "random", "scan", "table", "pgbench", "ten", "instant", "extract")
# A clone makes what it has fetched durable every ten seconds; a file that is whole is then read past the daemon by whoever opens it next.
SETTLED_SECONDS = 12
CLONES = 10


def turns(names, round_number):
    """Who goes first changes from round to round."""
    at = round_number % len(names)
    return names[at:] + names[:at]


def start(a, rig, variants, path):
    out = {name: [] for name in variants}
    for n in range(a.rounds):
        for name in turns(list(variants), n):
            rig.cold()
            began = time.monotonic()
            clone = rig.clone("start", rig.port + 1, variants[name])
            command = time.monotonic() - began
            if clone.sql(FIRST_QUERY) != "0":
                fail("the first query's answer is wrong")
            out[name].append({"command": command, "first_answer": time.monotonic() - began, "disk": clone.disk(), "rss": clone.rss()})
            clone.destroy()
    for name, runs in out.items():
        print(f"start    {name:12} command {median(r['command'] for r in runs):6.2f} s, first answer {median(r['first_answer'] for r in runs):6.2f} s", flush=True)
    return out


def lookup(a, rig, variants, path):
    rows = a.scale * 100_000
    out = {name: [] for name in [*variants, "native"]}
    native, _ = rig.native("native", rig.port + 2)
    for n in range(a.rounds):
        key = (n * 7_919_993 + 1_234_567) % rows + 1
        query = f"select abalance from pgbench_accounts where aid = {key}"
        for name in turns(list(out), n):
            if name == "native":
                evict(native.data)
                out[name].append({"ms": native.timed(query)})
                continue
            clone = rig.clone("lookup", rig.port + 1, variants[name])
            clone.stop()
            rig.cold(clone.dir)
            clone.start()
            before, disk = clone.counters(), clone.disk()
            ms = clone.timed(query)
            # What the daemon reads of a clone's own files counts too: it cannot be told apart, and is little.
            out[name].append({"ms": ms, "read": clone.counters()["read"] - before["read"], "grown": clone.disk() - disk})
            clone.destroy()
    rig.stop_native(native)
    clean(native.data)
    for name, runs in out.items():
        more = "" if name == "native" else f", {median(r['read'] for r in runs) / 2**20:.2f} MiB read, {median(r['grown'] for r in runs):.2f} MiB grown"
        print(f"lookup   {name:12} {median(r['ms'] for r in runs):6.1f} ms{more}", flush=True)
    return out


def reads(a, rig, variants, path, measure, settled):
    """Cold and again, of clones and of a restore in turn; and what a restore takes, once a round."""
    out = {name: [] for name in [*variants, "native"]}
    for n in range(a.rounds):
        target, took = rig.restore("restored", recovery=False)
        out.setdefault("restore", []).append(took | {"mb_per_second": took["bytes"] / took["wall"] / 1e6})
        for name in turns([*variants, "native"], n):
            if name == "native":
                evict(target)
                out[name].append({"cold": measure(target / path, n), "again": measure(target / path, n)})
                continue
            clone = rig.clone("reads", None, variants[name])
            rig.cold(clone.dir)
            before = clone.counters()
            found = {"cold": measure(clone.mountpoint / path, n)}
            after = clone.counters()
            found |= {"again": measure(clone.mountpoint / path, n), "read": after["read"] - before["read"], "cpu": after["cpu"] - before["cpu"], "rss": clone.rss()}
            if settled:
                time.sleep(SETTLED_SECONDS)
                found["settled"] = measure(clone.mountpoint / path, n)
            # The daemon has written what it fetched; that reaches the disk before the next is measured.
            clone.destroy()
            out[name].append(found)
        clean(target)
    return out


def ratio(runs, others, what="again", of=None):
    """The median of the rounds' ratios."""
    return median(r[what] / o[of or what] for r, o in zip(runs, others))


def random_measure(a, rig, variants, path):
    out = reads(a, rig, variants, path, lambda file, n: random_reads(file, a.reads, n), False)
    for name in [*variants, "native"]:
        runs = out[name]
        print(f"random   {name:12} cold {median(r['cold']['per_second'] for r in runs):8.0f}/s, p50 {median(r['cold']['p50_us'] for r in runs):6.0f} us, "
              f"p99 {median(r['cold']['p99_us'] for r in runs):6.0f} us; again {median(r['again']['per_second'] for r in runs):8.0f}/s", flush=True)
    return out


def scan_measure(a, rig, variants, path):
    out = reads(a, rig, variants, path, lambda file, _: scan(file), True)
    native, restores = out["native"], out["restore"]
    for name in variants:
        runs = out[name]
        print(f"scan     {name:12} cold {median(r['cold'] for r in runs):6.0f} MB/s = {ratio(runs, restores, 'cold', 'mb_per_second'):.2f} of a restore, "
              f"{median(r['cpu'] for r in runs):.2f} s of CPU; again {median(r['again'] for r in runs):6.0f} MB/s = {ratio(runs, native):.2f} of native; "
              f"settled {median(r['settled'] for r in runs):6.0f} MB/s = {ratio(runs, native, 'settled', 'again'):.2f}", flush=True)
    print(f"scan     {'native':12} cold {median(r['cold'] for r in native):6.0f} MB/s; again {median(r['again'] for r in native):6.0f} MB/s", flush=True)
    print(f"scan     {'restore':12} {median(r['mb_per_second'] for r in restores):6.0f} MB/s", flush=True)
    return out


def table(a, rig, variants, path):
    out = {name: [] for name in [*variants, "native"]}
    # What a query costs beside the reading of pages is the same for all, and part of it.
    query = "set max_parallel_workers_per_gather = 0; select count(*) from pgbench_accounts where abalance <> 0"
    native, _ = rig.native("native", rig.port + 2)
    for n in range(a.rounds):
        for name in turns(list(out), n):
            if name == "native":
                server = native
                evict(native.data)
            else:
                server = rig.clone("table", rig.port + 1, variants[name])
                rig.cold(server.dir)
            out[name].append({"cold": server.timed(query), "again": server.timed(query), "once_more": server.timed(query)})
            if server is not native:
                server.destroy()
    rig.stop_native(native)
    clean(native.data)
    for name, runs in out.items():
        best = median(min(r["again"], r["once_more"]) / min(o["again"], o["once_more"]) for r, o in zip(runs, out["native"]))
        print(f"table    {name:12} cold {median(r['cold'] for r in runs):7.0f} ms = {ratio(runs, out['native'], 'cold'):.2f} of native, "
              f"again {median(r['again'] for r in runs):7.0f} ms = {best:.2f} of native's time", flush=True)
    return out


def pgbench(a, rig, variants, path):
    native, _ = rig.native("native", rig.port + 2)
    servers = {"native": native} | {name: rig.clone(f"pgbench-{name}", rig.port + 3 + n, options) for n, (name, options) in enumerate(variants.items())}
    out = {kind: {name: [] for name in servers} for kind in ("select", "tpcb")}
    for server in servers.values():
        if a.hydrate and server is not native:
            server.hydrate()
            # Files switch to passthrough when nobody has them open.
            server.stop()
            server.start()
        server.sql("select pg_prewarm(oid, 'read') from pg_class where relname like 'pgbench_accounts%'")
    time.sleep(SETTLED_SECONDS)
    for n in range(a.rounds):
        for kind, options in (("select", ["-S"]), ("tpcb", [])):
            for name in turns(list(servers), n):
                servers[name].sql("checkpoint")
                out[kind][name].append(servers[name].pgbench("-c", a.clients, "-j", 2, "-T", a.seconds, *options))
    rss = {name: server.rss() for name, server in servers.items() if name != "native"}
    for name in variants:
        servers[name].destroy()
    rig.stop_native(native)
    clean(native.data)
    for kind, runs in out.items():
        for name in servers:
            ratio = median(x / y for x, y in zip(runs[name], runs["native"]))
            print(f"pgbench  {name:12} {kind:6} {median(runs[name]):8.0f} tps = {ratio:.2f} of native   {' '.join(f'{x / y:.2f}' for x, y in zip(runs[name], runs['native']))}", flush=True)
    return out | {"rss": rss, "hydrated": a.hydrate}


def ten(a, rig, variants, path):
    out = {}
    for name, options in variants.items():
        clones = [rig.clone(f"ten{n}", rig.port + 1 + n, options) for n in range(CLONES)]
        time.sleep(1)
        out[name] = [{"disk": clone.disk(), "wal": clone.disk("data/pg_wal"), "rss": clone.rss()} for clone in clones]
        for clone in clones:
            clone.destroy()
        runs = out[name]
        print(f"ten      {name:12} disk {median(r['disk'] for r in runs):.1f} MiB each (most {max(r['disk'] for r in runs):.1f}), of which WAL {median(r['wal'] for r in runs):.1f} MiB, "
              f"own memory {median(r['rss']['anonymous'] for r in runs):.1f} MiB, with mapped {median(r['rss']['with_mapped'] for r in runs):.1f} MiB", flush=True)
    return out


def extract(a, rig, variants, path):
    out = [rig.extract("public.small") for _ in range(a.rounds)]
    print(f"extract  {median(r['sql_bytes'] for r in out) / 2**20:.0f} MiB of SQL in {median(r['wall'] for r in out):.1f} s, "
          f"{median(r['fetched_mib'] for r in out):.1f} MiB of the repository read", flush=True)
    return out


def main():
    p = arguments(__doc__, MEASURES, 125, 6653, "/var/tmp/pgkeep-clones", "/usr/lib/postgresql/17/bin")
    p.add_argument("--seconds", type=int, default=10, help="of each pgbench run")
    p.add_argument("--clients", type=int, default=4, help="of pgbench")
    p.add_argument("--rate", type=int, help="transactions a second that pgbench is held to beside an instant restore; without it does what it can")
    p.add_argument("--reads", type=int, default=50_000, help="random ones")
    p.add_argument("--hydrate", action="store_true", help="pgbench on hydrated clones, restarted since")
    p.add_argument("--variant", action="append", metavar="NAME=OPTIONS", help="clones made with these options; may be repeated")
    p.add_argument("--keep", action="store_true", help="leave cluster and repository under --dir; the next run with the same --scale begins with them")
    a = parsed(p, MEASURES)
    variants = {name: options.split() for name, _, options in (v.partition("=") for v in a.variant or ["auto="])}
    run(a, variants)


def run(a, variants):
    done = Path(a.dir) / f"made-{a.scale}"
    if not done.exists():
        clean(a.dir)
    bench = Bench(a)
    measures = {"start": start, "lookup": lookup, "random": random_measure, "scan": scan_measure, "table": table, "pgbench": pgbench, "ten": ten, "instant": instant, "extract": extract}
    try:
        if not done.exists():
            done.write_text(json.dumps(bench.back_up(lambda source: {"table": source.table_path()})))
        facts = json.loads(done.read_text())
        bench.measure(facts, measures, variants, facts["table"])
    finally:
        bench.rig.clean()
        if not a.keep:
            clean(a.dir)


if __name__ == "__main__":
    main()
