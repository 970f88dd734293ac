"""Results as markdown."""
import statistics

MIB = 2**20


def table(head, rows):
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(out + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def mib(n):
    return "–" if n is None else f"{n / MIB:,.1f}"


def seconds(n):
    return "–" if n is None else f"{n:.2f}"


def read(run):
    """What the tool and the server's processes asked for, and what came from PGDATA's own device if it has one."""
    return run["read"] + run.get("server_read", 0)


def cpu(run):
    return run["cpu"] + run.get("server_cpu", 0)


def render(result):
    return pairs(result) if "pairs" in result else thirty_days(result)


def heading(result):
    m = result["machine"]
    tools = ", ".join(m[name] if name in m[name].lower() else f"{name} {m[name]}" for name in ("pgkeep", "pgbackrest", "restic", "rustic") if name in m)
    return (f"{m['cpu']}, {m['cores']} cores, kernel {m['kernel']}; {m['postgresql']}; {tools}; commit {m['commit']}; PGDATA {mib(m['pgdata_bytes'])} MiB; "
            f"page cache {m['page_cache']}.")


def thirty_days(result):
    days, names = result["days"], result["tools"]
    of = lambda day, name: day["tools"][name]
    parts = [f"# {len(days)} days\n", heading(result) + "\n", "## Added to the repository by each backup, MiB without WAL\n"]
    rows = []
    for d in days:
        changed = f"{100 * d['pages_changed'] / d['pages']:.1f} %" if d["day"] > 1 else "all"
        rows.append([d["day"], of(d, names[0])["type"], d["distribution"] if d["day"] > 1 else "", changed, *(mib(of(d, n)["bytes"]) for n in names)])
    parts.append(table(["day", "type", "change", "pages changed", *names], rows))

    parts.append("\n## By type: MiB added, seconds, MiB read\n")
    rows = []
    for label, chosen in (("first full", days[:1]), ("later fulls", [d for d in days[1:] if of(d, names[0])["type"] == "full"]),
                          ("increments, uniform", [d for d in days if of(d, names[0])["type"] == "incr" and d["distribution"] == "uniform"]),
                          ("increments, zipf", [d for d in days if of(d, names[0])["type"] == "incr" and d["distribution"] == "zipf"]),
                          ("all increments", [d for d in days if of(d, names[0])["type"] == "incr"])):
        for n in names if chosen else ():
            mean = lambda f: statistics.mean(f(of(d, n)) for d in chosen)
            device = mib(mean(lambda r: r["device"])) if all("device" in of(d, n) for d in chosen) else "–"
            rows.append([label, n, mib(mean(lambda r: r["bytes"])), seconds(mean(lambda r: r["wall"])), seconds(mean(cpu)), mib(mean(read)), device,
                         f"{max(of(d, n)['rss'] for d in chosen):.0f}"])
    parts.append(table(["backups", "tool", "added", "wall", "CPU", "read by calls", "read from PGDATA's device", "largest RSS"], rows))

    parts.append("\n## In the end, MiB\n")
    rows, keep = [], result.get("keep")
    for n in names:
        total, restore = result["totals"][n], result["restore"][n]
        kept = keep and keep["tools"].get(n)
        rows.append([n, mib(total["bytes"]), mib(total["wal_bytes"]) if total["wal_bytes"] else "–", f"{mib(kept['bytes'])} ({kept['backups']} backups)" if kept else "–",
                     seconds(restore["first"]["wall"]), seconds(restore["last"]["wall"]), mib(restore["first"]["read"]), mib(restore["last"]["read"]),
                     "same" if restore["last"]["same"] else "**differ**"])
    last = f"after keeping the last {keep['last']}" if keep else "after keeping the last 7"
    parts.append(table(["tool", "repository without WAL", "WAL", last, "restore of first, s", "of last, s", "read for first", "for last", "tables"], rows))
    for n, of in result.get("beside_fresh", {}).items():
        wall = statistics.median(a["wall"] / b["wall"] for a, b in zip(of["last"], of["fresh"]))
        read_by = of["last"][0]["read"] / of["fresh"][0]["read"]
        parts.append(f"\n{n}: restoring the last backup beside a full of the same state alone in its repository, median of {len(of['last'])} in turn: "
                     f"wall {wall:.2f}, bytes read {read_by:.2f}.")
    written = sum(d.get("wal_bytes", 0) for d in days)
    if written:
        parts.append(f"\nWAL segments written: {mib(written)} MiB.")
    for n in names:
        if details := result["totals"][n]["details"]:
            parts.append(f"\n## {n}: what the repository holds\n\n{stats(details)}")
    return "\n".join(parts)


def stats(details):
    """A summary of pgkeep's repo-stats."""
    chunks, selection = details["pack"]["chunk"], details["selection"]
    rows = [[f"{group}: {name}", t["chunks"], mib(t["plain-bytes"]), mib(t["stored-bytes"])] for group in ("kind", "encoding") for name, t in chunks[group].items() if t["chunks"]]
    rows += [[name, t["count"], "", mib(t["bytes"])] for name, t in details["object"].items()]
    first, last = selection["backup"][0], selection["backup"][-1]
    text = table(["", "number", "plain MiB", "stored MiB"], rows)
    return (f"{text}\n\nDeduplication {selection['deduplication']}, compression {selection['compression']}. Read amplification of the first backup "
            f"{first['read-amplification']}, of the last {last['read-amplification']}; pages per extent {first['pages-per-extent']} and {last['pages-per-extent']}.")


def pairs(result):
    parts = ["# One change at a time\n", heading(result) + "\n"]
    for name, measure in result["pairs"].items():
        parts.append(f"## {name}\n")
        if "pages_changed" in measure:
            parts.append(f"Pages changed: {', '.join(f'{100 * x:.2f} %' for x in measure['pages_changed'])}.\n")
        rows = []
        for tool, runs in measure["tools"].items():
            median = lambda f: statistics.median(f(r) for r in runs)
            device = mib(median(lambda r: r["device"])) if all("device" in r for r in runs) else "–"
            rows.append([tool, len(runs), mib(median(lambda r: r["bytes"])), seconds(median(lambda r: r["wall"])), seconds(median(cpu)), mib(median(read)), device])
        parts.append(table(["tool", "rounds", "added, MiB", "wall, s", "CPU, s", "read by calls, MiB", "read from PGDATA's device, MiB"], rows) + "\n")
        base = next(iter(measure["tools"]))
        for tool, runs in list(measure["tools"].items())[1:]:
            ratios = [a["wall"] / b["wall"] for a, b in zip(measure["tools"][base], runs) if b["wall"]]
            if ratios:
                parts.append(f"- wall of {base} by {tool}, median of the rounds: {statistics.median(ratios):.2f}")
        parts.append("")
    return "\n".join(parts)
