"""One change at a time, round by round: every tool backs up the same state in turn, and who goes first changes.

increment   1 % of pages changed, an incremental backup
weekly      5 % of pages changed, a full backup: what it adds and how long it takes
replica     a stopped standby, backed up into the repository that holds its primary: what it adds (tools that know no other cluster's chunks store it anew,
            so only pgkeep and restic are asked)
"""
import json
import shutil
from pathlib import Path

import report
from rig import Cluster, clean, evict
from tools import Pgkeep, Restic


def run(a, make_cluster, tools_of, machine):
    runner, cluster, data = make_cluster(a)
    only, result = a.only.split(","), {"settings": {"scale": a.scale, "rounds": a.rounds, "seed": a.seed, "variant": a.variant}, "pairs": {}}
    try:
        result["machine"] = machine(a, cluster)
        tools = tools_of(a, runner, cluster)
        for tool in tools:
            tool.backup(True)
        day = 1
        for name, share, full in (("increment", 0.01, False), ("weekly", 0.05, True)):
            if name not in only:
                continue
            found = result["pairs"][name] = {"pages_changed": [], "tools": {t.name: [] for t in tools}}
            for turn in range(a.rounds):
                day, lsn = day + 1, cluster.lsn()
                data.change(day, share, ("uniform", "zipf")[turn % 2], others=False)
                pages, changed = cluster.changed_pages(lsn)
                found["pages_changed"].append(changed / pages)
                for at in range(len(tools)):
                    tool = tools[(at + turn) % len(tools)]
                    found["tools"][tool.name].append(measured(a, cluster, tool, lambda: tool.backup(full)))
        if "replica" in only:
            result["pairs"]["replica"] = replica(a, runner, cluster, tools)
        if a.out:
            Path(a.out).write_text(json.dumps(result, indent=1) + "\n")
    finally:
        cluster.discard()
        if not a.keep:
            clean(a.dir)
    print(report.pairs(result))


def measured(a, cluster, tool, backup):
    before = tool.data_bytes()
    if a.cold:
        evict(cluster.data, tool.home)
    out = backup()
    out["bytes"] = tool.data_bytes() - before
    print(f"{tool.name:16} {out['bytes'] / 2**20:9.2f} MiB {out['wall']:7.1f} s", flush=True)
    return out


def replica(a, runner, cluster, tools):
    """A standby that has replayed everything and was stopped."""
    standby = Cluster(runner, "standby", a.port + 2)
    runner.mkdir(standby.archive)
    runner.run(runner.pg_bin / "pg_basebackup", "-h", cluster.home, "-p", cluster.port, "-U", "postgres", "-D", standby.data, "-X", "stream", "-R", "--checkpoint=fast", "--no-sync")
    with open(standby.data / "postgresql.conf", "a") as f:
        f.write(f"port={standby.port}\nunix_socket_directories='{standby.home}'\narchive_command='cp %p {standby.archive}/%f'\n")
    found = {"tools": {}}
    standby.start()
    try:
        target = cluster.sql("select pg_current_wal_flush_lsn()")
        while standby.sql(f"select pg_last_wal_replay_lsn() >= '{target}'") != "t":
            pass
        # Changes of its own: what a standby that serves reads and restarts has and the primary has not.
        standby.sql("checkpoint")
    finally:
        standby.stop()
    for tool in tools:
        if isinstance(tool, Pgkeep):
            config, stanza = tool.config.read_text(), tool.stanza
            tool.configure("replica", standby, tool.repo)
            runner.run(*tool.command("--no-online", "stanza-create"))
            run_it = lambda: runner.measure(*tool.command("--type=full", "--no-online", "backup"))
        elif isinstance(tool, Restic):
            run_it = lambda: runner.measure(tool.binary, "backup", "--force", standby.data, env=tool.env)
        else:
            continue
        found["tools"][tool.name] = [measured(a, standby, tool, run_it)]
        if isinstance(tool, Pgkeep):
            runner.write(tool.config, config)
            tool.stanza = stanza
    shutil.rmtree(standby.home)
    return found
