"""The data of the bench and what a day does to it. Everything is drawn from one seed: two runs make the same rows.

Text. A small vocabulary, or one sentence repeated, makes any compressor look good and hides what a repository adds. Here a word is one of
50 000 made of random syllables, drawn by Zipf's law (rank r with weight 1/r, as in natural language), and every line mixes words with numbers,
hexadecimal tokens and uuids that occur once. Such text shrinks some two and a half times, as ordinary heaps do.

Tables, with their share of a cluster at scale 1 (about 1.3 GB):
    pgbench_accounts    4 000 000 rows, fill factor 90; filler is text, each row its own    650 MB with its key
    events              append only; index on time and on a random uuid                    350 MB
    documents           bodies of 1 to 30 KB, in TOAST                                     120 MB
    wide                50 columns: numbers, timestamps, short text                        150 MB
    jobs                a queue: rows come, are worked on, and go                          some MB

A day changes pages of accounts, documents and wide by picking *pages* and updating a row on each, so that the share of changed pages is about the one asked for,
whatever the distribution: *uniform* picks every page with the same chance; *zipf* picks page rank r with weight 1/r under a fixed permutation, so the same hot pages
change day after day and many rows of them; *mixed* does the one on odd and the other on even days. Then events are appended, the queue is turned over,
history is written, and all is vacuumed. What share of all pages has changed in the end is measured and recorded.
"""
import random

WORDS, STREAM, STRIDES = 50_000, 1_000_000, 97
ACCOUNTS, EVENTS, DOCUMENTS, WIDE, JOBS = 4_000_000, 1_000_000, 15_000, 200_000, 20_000
WIDE_INTS, WIDE_TEXTS = 30, 10
BATCH = 2_000


class Text:
    """Draws text."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        syllables = [c + v + e for c in "b c d f g h k l m n p r s t v w z st tr pl".split() for v in "a e i o u ai ou".split() for e in ("", "n", "r", "s", "l")]
        words = set()
        while len(words) < WORDS:
            words.add("".join(self.random.choices(syllables, k=self.random.choice((1, 2, 2, 3, 3, 4)))))
        self.words = self.random.sample(sorted(words), WORDS)
        total, weights = 0.0, []
        for rank in range(1, WORDS + 1):
            total += 1 / rank
            weights.append(total)
        self.stream = self.random.choices(self.words, cum_weights=weights, k=STREAM)

    def sentence(self, words):
        """That many words, every eighth replaced by something that occurs once."""
        # Drawing each word anew would take most of an hour. Every n-th word of a long stream, from anywhere, has the same frequencies, and
        # with the stride drawn as well no two sentences share a phrase.
        r = self.random.random
        stride = 1 + int(r() * STRIDES)
        start = int(r() * (STREAM - words * stride))
        out = self.stream[start:start + words * stride:stride]
        for at in range(int(r() * 8), words, 8):
            kind = r()
            out[at] = str(int(2 ** (8 + 40 * kind))) if kind < 0.4 else f"{int(r() * 2**64):x}" if kind < 0.7 else f"{r() * 99999:.2f}"
        return " ".join(out)

    def uuid(self):
        h = f"{self.random.getrandbits(128):032x}"
        return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    def short(self):
        """At most 84 characters, as pgbench's filler holds."""
        return self.sentence(10)[:84].rstrip()


class Pages:
    """Picks distinct pages of a table."""

    def __init__(self, seed):
        self.seed = seed

    def pick(self, rng, pages, count, distribution):
        """Pages and how often each is hit."""
        count = min(count, pages)
        if distribution == "uniform":
            return {page: 1 for page in rng.sample(range(pages), count)}
        # Hot pages stay hot: the permutation depends on the table's size alone.
        order = list(range(pages))
        random.Random(self.seed).shuffle(order)
        hits = {}
        while len(hits) < count:
            page = order[int(pages ** rng.random()) - 1]
            # Past some rows of a page more hits change nothing for a backup.
            hits[page] = min(hits.get(page, 0) + 1, 8)
        return hits


class Data:
    """Makes the tables and changes them."""

    def __init__(self, cluster, scale, seed):
        self.cluster, self.scale, self.text = cluster, scale, Text(seed)
        self.random, self.pages = random.Random(seed + 1), Pages(seed + 2)
        self.accounts, self.documents, self.wide = (max(200, int(n * scale)) for n in (ACCOUNTS, DOCUMENTS, WIDE))
        self.events, self.jobs = max(500, int(EVENTS * scale)), max(100, int(JOBS * scale))
        self.next_event, self.next_job = 1, 1

    def copy(self, table, rows):
        """A COPY with its data."""
        yield f"copy {table} from stdin;\n"
        batch = []
        for row in rows:
            batch.append("\t".join(map(str, row)))
            if len(batch) == BATCH:
                yield "\n".join(batch) + "\n"
                batch = []
        yield "".join(line + "\n" for line in batch) + "\\.\n"

    def create(self):
        ints = ", ".join(f"n{i} bigint" for i in range(WIDE_INTS))
        texts = ", ".join(f"s{i} text" for i in range(WIDE_TEXTS))

        def script():
            yield ("create table pgbench_branches (bid int not null primary key, bbalance int, filler char(88)) with (fillfactor=90);"
                   "create table pgbench_tellers (tid int not null primary key, bid int, tbalance int, filler char(84)) with (fillfactor=90);"
                   "create table pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));"
                   "create table pgbench_accounts (aid int not null, bid int, abalance int, filler char(84)) with (fillfactor=90);"
                   "create table events (id bigint, at timestamptz, kind text, actor uuid, body text);"
                   "create table documents (id int, title text, body text, meta jsonb);"
                   f"create table wide (id int, changed timestamptz, price numeric(12,2), {ints}, {texts}) with (fillfactor=90);"
                   "create table jobs (id bigint, state text, due timestamptz, payload text);\n")
            branches = max(1, self.accounts // 100_000)
            yield f"insert into pgbench_branches select g, 0, '' from generate_series(1, {branches}) g;\n"
            yield f"insert into pgbench_tellers select g, 1 + (g - 1) / 10, 0, '' from generate_series(1, {branches * 10}) g;\n"
            yield from self.copy("pgbench_accounts", ((a, 1 + (a - 1) // 100_000, self.random.randrange(-5000, 5000), self.text.short()) for a in range(1, self.accounts + 1)))
            yield from self.copy("events", self.new_events(self.events, 0))
            yield from self.copy("documents", ((d, self.text.sentence(6), self.body(), self.meta(d)) for d in range(1, self.documents + 1)))
            yield from self.copy("wide", (self.wide_row(w) for w in range(1, self.wide + 1)))
            yield from self.copy("jobs", self.new_jobs(self.jobs))
            yield ("alter table pgbench_accounts add primary key (aid); create index on events (at); create index on events (actor);"
                   "alter table documents add primary key (id); create index on documents ((meta->>'owner'));"
                   "alter table wide add primary key (id); create index on wide (n0); alter table jobs add primary key (id); create index on jobs (state, due);\n")
            yield "vacuum (freeze, analyze);\ncheckpoint;\n"

        self.cluster.feed(script())

    def new_events(self, count, day):
        r = self.random
        for n in range(count):
            second = n * 86_400 // max(1, count)
            yield (self.next_event, f"2026-01-01 00:00:00+00".replace("01-01", f"{1 + day // 28:02}-{1 + day % 28:02}").replace("00:00:00", f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"),
                   r.choice(("login", "order", "view", "change", "payment")), self.text.uuid(), self.text.sentence(r.randrange(8, 24)))
            self.next_event += 1

    def new_jobs(self, count):
        for _ in range(count):
            yield (self.next_job, "new", "2026-01-01", self.text.sentence(12))
            self.next_job += 1

    def body(self):
        return self.text.sentence(int(150 * 30 ** self.random.random()))

    def meta(self, number):
        r = self.random
        return '{"owner": "%s", "score": %.6f, "revision": %d, "token": "%032x"}' % (self.text.words[number % 500], r.random(), r.randrange(100), r.getrandbits(128))

    def wide_row(self, number):
        r = self.random
        ints = [r.getrandbits(r.choice((8, 16, 31, 48))) for _ in range(WIDE_INTS)]
        return [number, "2026-01-01", f"{r.randrange(10**7) / 100:.2f}", *ints, *(self.text.sentence(2) for _ in range(WIDE_TEXTS))]

    def keys(self, table, rows, share, distribution):
        """Keys of rows on a share of a table's pages; rows lie in the order of their keys, as far as they were never moved."""
        pages = self.relpages(f"relname = '{table}'")
        for page, hits in self.pages.pick(self.random, pages, int(pages * share) + 1, distribution).items():
            first, last = page * rows // pages + 1, (page + 1) * rows // pages
            for key in {self.random.randint(first, max(first, last)) for _ in range(hits)}:
                yield key

    def relpages(self, which):
        return int(self.cluster.sql(f"select sum(relpages) from pg_class where {which}"))

    def change(self, day, share, distribution, others=True):
        """What happens on a day: updates that touch this share of all pages, and what else happens."""
        r, text = self.random, self.text
        # Only heaps are picked from, so more of their pages.
        share = min(1.0, share * self.relpages("relpages > 0") / self.relpages("relname in ('pgbench_accounts', 'wide', 'documents')"))
        accounts = [(k, r.randrange(-5000, 5000), text.short() if r.random() < 0.3 else "\\N") for k in self.keys("pgbench_accounts", self.accounts, share, distribution)]
        wide = [(k, r.getrandbits(31), text.sentence(2)) for k in self.keys("wide", self.wide, share, distribution)]
        documents = [(k, r.randrange(1, 2000), text.sentence(10)) for k in self.keys("documents", self.documents, share, distribution)]
        turned = max(20, self.jobs // 2)

        def script():
            yield ("create temp table a (aid int, delta int, filler text); create temp table w (id int, n bigint, s text); create temp table d (id int, at int, s text);\n")
            yield from self.copy("a", accounts)
            yield from self.copy("w", wide)
            yield from self.copy("d", documents)
            yield (f"update pgbench_accounts p set abalance = abalance + delta, filler = coalesce(a.filler, p.filler) from a where a.aid = p.aid;"
                   f"insert into pgbench_history select 1, 1, aid, delta, timestamp '2026-01-01' + {day} * interval '1 day' from a;"
                   "update pgbench_branches set bbalance = bbalance + (select sum(delta) from a) where bid = 1; update pgbench_tellers set tbalance = tbalance + 1;"
                   "update wide t set changed = now(), n1 = w.n, s1 = w.s from w where w.id = t.id;"
                   "update documents t set body = overlay(body placing d.s from least(d.at, length(body))), meta = meta || '{\"edited\": true}' from d where d.id = t.id;\n")
            if not others:
                yield "checkpoint;\n"
                return
            yield from self.copy("events", self.new_events(max(10, self.events // 200), day))
            yield from self.copy("jobs", self.new_jobs(turned))
            yield (f"update jobs set state = 'running' where id in (select id from jobs where state = 'new' order by id limit {turned});"
                   "update jobs set state = 'done' where state = 'running'; delete from jobs where state = 'done';\n")
            # Daily, as autovacuum would: then it cleans pages that have changed anyway. Once a week it would change a quarter of all pages in one day.
            yield "vacuum (analyze);\ncheckpoint;\n"

        self.cluster.feed(script())


def fingerprint(cluster):
    """Rows and contents of every table."""
    out = {}
    for table in ("pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history", "events", "documents", "wide", "jobs"):
        out[table] = cluster.sql(f"select count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) from {table} t")
    return out
