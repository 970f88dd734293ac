//! What each can do next.

use super::{COLLECTORS, Cast, Collector, End, GENERATIONS, Generation, NEVER, SESSIONS, Start, State, Weakness, has};

/// A writer whose pack is on its way: what it rewrites has been read.
pub(super) const COPIES: u8 = 3;
/// A writer that has all its packs.
pub(super) const COMMITS: u8 = 7;
/// A writer whose backup was reported.
pub(super) const DONE: u8 = 20;
/// A writer that gave up.
const FAILED: u8 = 21;
/// A reader that relies on its pin.
pub(super) const HOLDS: u8 = 3;

/// A step, for the story. Numbers are those of sessions and collectors; what a collector does is told by its place.
#[derive(Debug, Clone, Copy)]
#[expect(dead_code, reason = "what it holds is told by Debug")]
pub(super) enum Step {
    Begin,
    Write {
        session: usize,
        at: u8,
    },
    LosesReply {
        session: usize,
    },
    Collect {
        by: usize,
        at: u8,
    },
    Fence {
        session: usize,
    },
    Expire {
        session: usize,
    },
    TakeMarkerBack {
        session: usize,
    },
    /// What held a pack expires.
    LetGo,
    Read {
        at: u8,
    },
}

type Each<'a> = dyn FnMut(Step, State) + 'a;

/// Calls `each` for every step that somebody can make.
pub(super) fn all(state: &State, cast: &Cast, each: &mut Each<'_>) {
    for s in 1..=cast.writers {
        write(state, s, cast, each);
    }
    for by in 0..COLLECTORS {
        collect(state, by, cast.weakness, each);
    }
    for (s, session) in state.sessions.iter().enumerate() {
        if session.open && session.end == End::None && cast.start == Start::Backup {
            let mut next = *state;
            next.sessions[s].end = End::Fence;
            each(Step::Fence { session: s }, next);
        }
        if has(cast.expires, s) && state.is_visible(s, cast.weakness) {
            let mut next = *state;
            (next.sessions[s].expired, next.sessions[s].let_go) = (true, true);
            each(Step::Expire { session: s }, next);
        }
        if cast.weakness == Weakness::TakesMarkersBack && session.expired && session.end == End::Commit {
            let mut next = *state;
            (next.sessions[s].expired, next.sessions[s].let_go) = (false, false);
            each(Step::TakeMarkerBack { session: s }, next);
        }
    }
    if state.held != 0 {
        each(Step::LetGo, State { held: 0, ..*state });
    }
    if cast.reader {
        read(state, cast.weakness, each);
    }
}

/// W0 to W8.
fn write(state: &State, s: usize, cast: &Cast, each: &mut Each<'_>) {
    let me = state.sessions[s];
    let mut go = |change: &dyn Fn(&mut State)| {
        let mut next = *state;
        change(&mut next);
        each(Step::Write { session: s, at: me.at }, next);
    };
    let fail = |next: &mut State| {
        let session = &mut next.sessions[s];
        session.at = FAILED;
        if session.end == End::None {
            session.end = End::Fence;
        }
    };
    match me.at {
        // W0, W1.
        0 => go(&|next| (next.sessions[s].generation, next.sessions[s].at) = (state.newest, 1)),
        1 => go(&|next| (next.sessions[s].open, next.sessions[s].at) = (true, 2)),
        // W2.
        2 if me.generation != state.newest && cast.weakness != Weakness::StartsBlindly => go(&fail),
        2 => go(&|next| {
            next.sessions[s].condemned = condemned(&state.generations[usize::from(me.generation)]);
            next.sessions[s].at = 3;
        }),
        // W3: something that is found, or something new.
        // G6: what is there is stored again.
        COPIES if s + cast.rewriters > cast.writers => {
            let usable = state.index & state.packs & !me.condemned;
            for p in (0..SESSIONS).filter(|p| has(usable, *p)) {
                go(&|next| {
                    let session = &mut next.sessions[s];
                    (session.moves, session.pack, session.at) = (p as u8 + 1, s as u8, 4);
                });
            }
        }
        COPIES => {
            let usable = state.index & state.packs & !me.condemned;
            for p in (0..SESSIONS).filter(|p| has(usable, *p)) {
                go(&|next| (next.sessions[s].pack, next.sessions[s].at) = (p as u8, 6));
            }
            go(&|next| (next.sessions[s].pack, next.sessions[s].at) = (s as u8, 4));
        }
        // W4.
        4 => go(&|next| (next.packs, next.sessions[s].at) = (next.packs | 1 << s, 5)),
        5 => go(&|next| (next.index, next.sessions[s].at) = (next.index | 1 << s, 6)),
        // W6: it is there. That it was condemned meanwhile does no harm.
        6 if !has(state.packs, usize::from(me.pack)) => go(&fail),
        6 => go(&|next| next.sessions[s].at = COMMITS),
        // W7, perhaps twice.
        COMMITS if me.end == End::Fence => go(&fail),
        COMMITS => {
            go(&|next| (next.sessions[s].end, next.sessions[s].at) = (End::Commit, 8));
            if !me.lost_reply && cast.start == Start::Backup {
                let mut next = *state;
                (next.sessions[s].end, next.sessions[s].lost_reply) = (End::Commit, true);
                each(Step::LosesReply { session: s }, next);
            }
        }
        // W8.
        8 => {
            let newest = state.generation();
            let visible = newest.boundary <= me.generation || has(newest.catalogue, s);
            let at = if visible || cast.weakness == Weakness::BelievesItsReply { DONE } else { FAILED };
            go(&|next| next.sessions[s].at = at);
        }
        _ => {}
    }
}

fn read(state: &State, weakness: Weakness, each: &mut Each<'_>) {
    let s = usize::from(state.reads);
    let mut go = |reader: u8, reads: usize, place: usize, pins: u8| {
        let next = State { reader, reads: reads as u8, place: place as u8, pins, ..*state };
        each(Step::Read { at: state.reader }, next);
    };
    match state.reader {
        0 => {
            let backups = (0..SESSIONS).filter(|s| state.sessions[*s].moves == 0 && state.is_visible(*s, weakness));
            backups.for_each(|s| go(1, s, 0, 0));
        }
        1 => go(2, s, 0, 1 << s),
        2 if state.is_visible(s, weakness) || weakness == Weakness::PinsBlindly => {
            let there = state.copies(state.sessions[s].pack) & state.packs & state.index;
            (0..SESSIONS).filter(|p| has(there, *p)).for_each(|p| go(HOLDS, s, p, state.pins));
            go(5, s, 0, 0);
        }
        2 | HOLDS => go(5, s, 0, 0),
        _ => {}
    }
}

/// G1 to G5, and what goes afterwards.
fn collect(state: &State, by: usize, weakness: Weakness, each: &mut Each<'_>) {
    let me = state.collectors[by];
    let mut go = |me: Collector, change: &dyn Fn(&mut State)| {
        let mut next = *state;
        next.collectors[by] = me;
        change(&mut next);
        each(Step::Collect { by, at: state.collectors[by].at }, next);
    };
    let still = |_: &mut State| {};
    let idle = Collector { runs: me.runs.saturating_sub(1), ..Collector::default() };
    let stage = |at: u8| Collector { at, ..me };
    match me.at {
        0 if me.runs > 0 => go(Collector { n: state.newest, ..stage(1) }, &still),
        // G2, G3: lists, in an order that matters.
        1..=5 | 7..=10 => {
            let first = me.at <= 5;
            // The second time packs are known.
            let what = if first { me.at - 1 } else { me.at - 6 };
            let mut now = stage(me.at + 1);
            list(state, &mut now, what);
            let mut done = |mut now: Collector| {
                match now.at {
                    6 => now.live = in_use(state, &now, weakness),
                    11 => now.doomed = doomed(state, &now, weakness),
                    _ => {}
                }
                go(now, &still);
            };
            done(now);
            if weakness == Weakness::StaleSessions && what == 1 && now.sessions & !1 != 0 {
                done(Collector { sessions: now.sessions & 1, ..now });
            }
        }
        // G4.
        6 if me.n != state.newest => go(idle, &still),
        6 => match plan(state, &me, weakness) {
            Some(generation) if usize::from(me.n) + 1 < GENERATIONS => {
                let n = me.n + 1;
                go(Collector { n, ..stage(7) }, &|next| {
                    next.generations[usize::from(n)] = generation;
                    next.newest = n;
                });
            }
            Some(_) => go(idle, &still),
            None => go(stage(7), &still),
        },
        // G5: entries of the index, then packs.
        11 => go(stage(12), &|next| next.index &= !me.doomed),
        12 => match (0..SESSIONS).find(|p| has(me.doomed & state.packs, *p)) {
            Some(p) => go(me, &|next| next.packs &= !(1 << p)),
            None => go(stage(13), &still),
        },
        13 => go(Collector { doomed: leftovers(state, &me, weakness), ..stage(14) }, &still),
        // Record of the session, its end, its marker.
        14 => match (0..SESSIONS).find(|s| has(me.doomed, *s)) {
            None => go(idle, &still),
            Some(s) if state.sessions[s].open => go(me, &|next| next.sessions[s].open = false),
            Some(s) if state.sessions[s].end != End::None => go(me, &|next| next.sessions[s].end = End::None),
            Some(s) => go(Collector { doomed: me.doomed & !(1 << s), ..me }, &|next| next.sessions[s].expired = false),
        },
        _ => {}
    }
}

fn list(state: &State, me: &mut Collector, what: u8) {
    let set = |of: &dyn Fn(usize) -> bool| (0..SESSIONS).filter(|s| of(*s)).fold(0u8, |set, s| set | 1 << s);
    match what {
        0 => me.packs = state.packs,
        1 => me.sessions = set(&|s| state.sessions[s].open),
        2 => {
            me.commits = set(&|s| state.sessions[s].end == End::Commit);
            me.fences = set(&|s| state.sessions[s].end == End::Fence);
        }
        3 => me.expired = set(&|s| state.sessions[s].expired),
        _ => me.pins = state.pins,
    }
}

fn condemned(generation: &Generation) -> u8 {
    (0..SESSIONS).filter(|p| generation.since[*p] != NEVER).fold(0, |set, p| set | 1 << p)
}

/// Sessions that have not ended, as far as this one knows.
fn open(me: &Collector) -> u8 {
    me.sessions & !(me.commits | me.fences)
}

fn is_backup(state: &State, s: usize) -> bool {
    state.sessions[s].moves == 0
}

/// Commits that count, of backups and of what rewrote.
fn visible(state: &State, me: &Collector, weakness: Weakness) -> u8 {
    let known = &state.generations[usize::from(me.n)];
    let counts = |s: &usize| {
        weakness == Weakness::NoBoundary || state.sessions[*s].generation >= known.boundary || has(known.catalogue, *s)
    };
    (0..SESSIONS).filter(|s| has(me.commits & !me.expired, *s)).filter(counts).fold(0, |set, s| set | 1 << s)
}

/// Packs that visible and pinned backups name, and those they were rewritten to, as far as any commit tells.
fn named(state: &State, me: &Collector, weakness: Weakness) -> u8 {
    let backups = visible(state, me, weakness) | (me.pins & me.commits);
    let backups = (0..SESSIONS).filter(|s| has(backups, *s) && is_backup(state, *s));
    let mut named = backups.fold(0, |set, s| set | 1 << state.sessions[s].pack);
    for _ in 0..SESSIONS {
        let rewrote = |s: &usize| {
            let from = || usize::from(state.sessions[*s].moves - 1);
            has(me.commits, *s)
                && !is_backup(state, *s)
                && has(named, from())
                && (has(me.packs, from()) || weakness != Weakness::TargetsAreFree)
        };
        named |= (0..SESSIONS).filter(rewrote).fold(0, |set, s| set | 1 << s);
    }
    named
}

/// Whether what a pack holds lies safely in another.
fn is_moved(state: &State, me: &Collector, pack: usize, weakness: Weakness) -> bool {
    let known = &state.generations[usize::from(me.n)];
    let told = known.catalogue & me.commits;
    let from = |s: &usize| has(told, *s) && usize::from(state.sessions[*s].moves) == pack + 1;
    (0..SESSIONS).filter(from).any(|s| {
        let stays = known.since[s] == NEVER || weakness == Weakness::MovesToCondemned;
        has(me.packs, s) && stays || is_moved(state, me, s, weakness)
    })
}

fn in_use(state: &State, me: &Collector, weakness: Weakness) -> u8 {
    let named = named(state, me, weakness);
    let kept = (0..SESSIONS).filter(|p| has(named, *p) && !is_moved(state, me, *p, weakness));
    kept.fold(state.held, |set, p| set | 1 << p)
}

/// What rewrote a pack that is gone and that nobody names any more.
fn obsolete(state: &State, me: &Collector, weakness: Weakness) -> u8 {
    let named = named(state, me, weakness);
    let over = |s: &usize| {
        let from = usize::from(state.sessions[*s].moves) - 1;
        !has(me.packs, from) && (!has(named, from) || weakness == Weakness::ForgetsMoves)
    };
    (0..SESSIONS).filter(|s| has(me.commits, *s) && !is_backup(state, *s)).filter(over).fold(0, |set, s| set | 1 << s)
}

/// The next generation, if it differs.
fn plan(state: &State, me: &Collector, weakness: Weakness) -> Option<Generation> {
    let old = state.generations[usize::from(me.n)];
    let earliest = (0..SESSIONS).filter(|s| has(open(me), *s)).map(|s| state.sessions[s].generation).min();
    let boundary = old.boundary.max(me.n.min(earliest.unwrap_or(NEVER)));
    let mut since = [NEVER; SESSIONS];
    for p in (0..SESSIONS).filter(|p| has(me.packs, *p)) {
        // A pack has the number of the session that stored it.
        let dead = !has(me.live, p) && !has(open(me), p);
        since[p] = match old.since[p] {
            NEVER if dead => me.n + 1,
            before if before != NEVER && (dead || weakness != Weakness::Forgives) => before,
            _ => NEVER,
        };
    }
    // Once it is below the boundary it can be left out for good.
    let excluded = (0..SESSIONS).filter(|s| state.sessions[*s].generation < boundary).fold(0, |set, s| set | 1 << s);
    let catalogue = visible(state, me, weakness) & !(obsolete(state, me, weakness) & excluded);
    let new = Generation { boundary, catalogue, since };
    (new != old).then_some(new)
}

fn doomed(state: &State, me: &Collector, weakness: Weakness) -> u8 {
    let generation = &state.generations[usize::from(me.n)];
    let earliest = (0..SESSIONS).filter(|s| has(open(me), *s)).map(|s| state.sessions[s].generation).min();
    let live = if weakness == Weakness::MarksOnce { me.live } else { me.live | in_use(state, me, weakness) };
    let may = |p: &usize| {
        let since = generation.since[*p];
        let quiet = earliest.is_none_or(|earliest| earliest >= since) || weakness == Weakness::DoesNotWait;
        since != NEVER && !has(live, *p) && quiet
    };
    (0..SESSIONS).filter(may).fold(0, |set, p| set | 1 << p)
}

/// Sessions of which nothing need be known any more: they have ended, and can never be visible.
fn leftovers(state: &State, me: &Collector, weakness: Weakness) -> u8 {
    let known = &state.generations[usize::from(me.n)];
    let over = |s: &usize| {
        let excluded = state.sessions[*s].generation < known.boundary && !has(known.catalogue, *s);
        let gone = has(me.fences, *s) || has(me.commits & (me.expired | u8::from(excluded) << s), *s);
        gone && !has(me.pins, *s) && (excluded || weakness == Weakness::ForgetsEarly)
    };
    (0..SESSIONS).filter(over).fold(0, |set, s| set | 1 << s)
}
