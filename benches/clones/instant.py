"""`restore --instant` while pgbench runs on it, until the directory is an ordinary one, beside classic restores of the same backup.

A classic restore ends when the data is durable; what it is compared with is the time to the end of `clone promote`, with the server running again, which is a little more.
"""
import copy
import json
import shutil
import subprocess
import time

from place import FIRST_QUERY, Server, evict, fail

GLANCE = 0.1


def instant(a, rig, variants, path):
    # Root does not serve a data directory whose parents belong to others.
    rig = copy.copy(rig)
    rig.as_root = False
    runs = []
    for n in range(a.rounds):
        target, classic = rig.restore("classic")
        shutil.rmtree(target)
        runs.append({"classic": classic, **one(a, rig)})
        r = runs[-1]
        print(f"instant  classic {classic['wall']:6.2f} s; command {r['command']:5.2f} s, first answer {r['first_answer']:5.2f} s, all there {r['hydrated']:6.2f} s "
              f"= {r['hydrated'] / classic['wall']:.2f}, ordinary {r['ordinary']:6.2f} s = {r['ordinary'] / classic['wall']:.2f}; {r['transactions']} transactions by then", flush=True)
    return runs


def one(a, rig):
    target = rig.runner.mkdir(rig.root / "instant")
    hidden = target.with_name(".instant.pgkeep")
    server = Server(rig.runner, rig.sockets, rig.port + 3, target)
    pg_ctl = rig.runner.pg_bin / "pg_ctl"
    load = None
    rig.cold()
    began = time.monotonic()
    since = lambda: time.monotonic() - began
    try:
        rig.run(f"--pg1-path={target}", "--type=immediate", "--target-action=promote", "--instant", "restore")
        out = {"command": since()}
        with open(target / "postgresql.auto.conf", "a") as f:
            f.write(f"\nport = {server.port}\nunix_socket_directories = '{rig.sockets}'\narchive_mode = off\nlisten_addresses = ''\n")
        subprocess.run([str(c) for c in [*rig.runner.prefix(), pg_ctl, "-D", target, "-l", rig.root / "instant.log", "-w", "-t", "600", "start"]],
                       check=True, stdout=subprocess.DEVNULL)
        if server.sql(FIRST_QUERY) != "0":
            fail("the first query's answer is wrong")
        out["first_answer"] = since()
        while server.sql("select pg_is_in_recovery()") != "f":
            time.sleep(0.02)
        # As many transactions as there are rows in the history, which is empty in the backup.
        rate = ["-R", a.rate] if a.rate else []
        load = subprocess.Popen([str(c) for c in [*rig.runner.prefix(), rig.runner.pg_bin / "pgbench", *server.where(), "-n", "-c", a.clients, "-j", "2", *rate, "-T", "36000", "postgres"]],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while state(rig, hidden) != "done":
            time.sleep(GLANCE)
        out["hydrated"] = since()
        load.terminate()
        load.wait()
        load = None
        out["transactions"] = int(server.sql("select count(*) from pgbench_history"))
        rig.run("clone", "promote", f"--dir={hidden}", f"--pg-bin={rig.runner.pg_bin}")
        out["ordinary"] = since()
        if int(server.sql("select count(*) from pgbench_history")) != out["transactions"]:
            fail("transactions are gone")
        return out
    finally:
        if load:
            load.terminate()
            load.wait()
        rig.runner.run(pg_ctl, "-D", target, "-m", "immediate", "-w", "stop", check=False)
        rig.run("clone", "destroy", "--force", f"--dir={hidden}", check=False)
        evict(rig.repo)
        shutil.rmtree(target, ignore_errors=True)


def state(rig, hidden):
    """What `clone info` says of hydration, asked without the log lines that are kept."""
    text = subprocess.run([str(c) for c in [*rig.prefix(), rig.pgkeep, f"--config={rig.config}", "--log-level-console=off", "--output=json", "clone", "info", f"--dir={hidden}"]],
                          capture_output=True, text=True, check=True).stdout
    return (json.loads(text).get("hydration") or {}).get("state")
