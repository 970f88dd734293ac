//! The protocol of writers, expire, readers and garbage collection, as a model small enough to try every order of its steps.
//!
//! A step is one request to the store, or one answer used. Whoever is not chosen stands still: that is a stall, and a crash is
//! a stall without end, so both are in every run. Each session may lose the reply to its commit once. Garbage collection may
//! fence anybody at any moment, since clocks, which only decide when it tries, may say anything. Lists are taken one after the
//! other, so what they tell does not fit together.
//!
//! A session stores one pack, of its own number, or uses one that it finds; session 0 is a backup that was there before. One
//! that *rewrites* stores what another pack holds once more (G6), and its commit says so.

mod run;
mod steps;

pub(super) use run::{Outcome, explore};

/// Sessions, and packs. The first has committed before anything begins.
pub(super) const SESSIONS: usize = 3;
/// Generations that a run may publish, and the first.
pub(super) const GENERATIONS: usize = 5;
/// How many collect at once.
pub(super) const COLLECTORS: usize = 2;
/// Not condemned.
pub(super) const NEVER: u8 = u8::MAX;

/// What is left out of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weakness {
    /// Nothing.
    None,
    /// A writer goes on with what it read first, whether or not it was the newest when its session was there (W2).
    StartsBlindly,
    /// Packs go although a session is open that began before they were condemned (G5).
    DoesNotWait,
    /// Packs go by the marks that condemned them (G5).
    MarksOnce,
    /// A commit is visible whatever the generations say.
    NoBoundary,
    /// A writer believes the reply to its commit (W8).
    BelievesItsReply,
    /// A pack that is in use again is taken off the list of the condemned.
    Forgives,
    /// A reader does not look for the marker behind its pin.
    PinsBlindly,
    /// A marker of expiry may be taken back.
    TakesMarkersBack,
    /// Records of sessions go although the boundary does not exclude them.
    ForgetsEarly,
    /// The store's lists may lack a session that is open.
    StaleSessions,
    /// A pack counts as rewritten though what it was rewritten to is condemned (G6).
    MovesToCondemned,
    /// What a pack was rewritten to goes once the pack itself is gone (G6).
    TargetsAreFree,
    /// That a pack was rewritten is forgotten while backups name it (G6).
    ForgetsMoves,
    /// A reader does not look for a chunk again when its pack is gone.
    LooksOnce,
}

/// Who takes part, and how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cast {
    /// Sessions that write, from 1 on.
    pub(super) writers: usize,
    /// Runs of each collector.
    pub(super) runs: [u8; COLLECTORS],
    /// Of these, how many of the last ones rewrite.
    pub(super) rewriters: usize,
    /// Whether there is a reader.
    pub(super) reader: bool,
    /// Which sessions' backups may expire, bit by bit.
    pub(super) expires: u8,
    /// What it begins with.
    pub(super) start: Start,
    /// What is left out.
    pub(super) weakness: Weakness,
}

/// What there is at first. But for the first kind nobody is fenced, and no reply lost, which makes it small enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// One backup, of session 0.
    Backup,
    /// It has expired, and session 1 is about to commit one that uses its pack.
    Late,
    /// It has expired; session 2 has rewritten what it used, and something else of its pack is in use.
    Rewritten,
}

/// What ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) enum End {
    #[default]
    None,
    Commit,
    Fence,
}

/// A session as the store has it, and its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Session {
    pub(super) at: u8,
    pub(super) generation: u8,
    pub(super) condemned: u8,
    /// The pack its backup needs, or that it rewrites to.
    pub(super) pack: u8,
    /// One more than the pack that it rewrites; 0 for a backup.
    pub(super) moves: u8,
    pub(super) lost_reply: bool,
    pub(super) open: bool,
    pub(super) end: End,
    pub(super) expired: bool,
    /// Somebody meant it to expire, or no backup needs what it rewrote, whatever became of the marker.
    pub(super) let_go: bool,
}

/// One published generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Generation {
    pub(super) boundary: u8,
    pub(super) catalogue: u8,
    pub(super) since: [u8; SESSIONS],
}

/// A process that collects: where it is, and what it has listed. Sets are bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Collector {
    pub(super) at: u8,
    pub(super) runs: u8,
    pub(super) n: u8,
    pub(super) packs: u8,
    pub(super) sessions: u8,
    pub(super) commits: u8,
    pub(super) fences: u8,
    pub(super) expired: u8,
    pub(super) pins: u8,
    /// Packs that the first marks found in use.
    pub(super) live: u8,
    /// Packs or sessions that go.
    pub(super) doomed: u8,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) sessions: [Session; SESSIONS],
    pub(super) packs: u8,
    pub(super) index: u8,
    /// Packs of which something else is in use, that nobody rewrites.
    pub(super) held: u8,
    pub(super) generations: [Generation; GENERATIONS],
    pub(super) newest: u8,
    pub(super) collectors: [Collector; COLLECTORS],
    pub(super) reader: u8,
    pub(super) reads: u8,
    /// The pack that the reader takes its chunk from.
    pub(super) place: u8,
    pub(super) pins: u8,
}

impl State {
    /// Nobody collects.
    pub(super) fn first(cast: &Cast) -> Self {
        let nothing = Generation { boundary: 0, catalogue: 0, since: [NEVER; SESSIONS] };
        let mut collectors = [Collector::default(); COLLECTORS];
        collectors.iter_mut().zip(cast.runs).for_each(|(c, runs)| c.runs = runs);
        let mut first = Self {
            sessions: [Session::default(); SESSIONS],
            packs: 1,
            index: 1,
            held: 0,
            generations: [nothing; GENERATIONS],
            newest: 0,
            collectors,
            reader: 0,
            reads: 0,
            place: 0,
            pins: 0,
        };
        let over = Session { at: steps::DONE, open: true, end: End::Commit, ..Session::default() };
        first.sessions[0] =
            Session { expired: cast.start != Start::Backup, let_go: cast.start != Start::Backup, ..over };
        match cast.start {
            Start::Backup => {}
            Start::Late => first.sessions[1] = Session { at: steps::COMMITS, open: true, ..Session::default() },
            Start::Rewritten => {
                first.sessions[2] = Session { pack: 2, moves: 1, ..over };
                (first.packs, first.index, first.held, first.newest) = (0b101, 0b101, 1, 1);
                first.generations[1].catalogue = 0b100;
            }
        }
        first
    }

    /// The newest generation.
    pub(super) fn generation(&self) -> &Generation {
        &self.generations[usize::from(self.newest)]
    }

    /// Whether a session's backup is visible.
    pub(super) fn is_visible(&self, s: usize, weakness: Weakness) -> bool {
        let (session, newest) = (&self.sessions[s], self.generation());
        let counts =
            session.generation >= newest.boundary || has(newest.catalogue, s) || weakness == Weakness::NoBoundary;
        session.end == End::Commit && !session.expired && counts
    }

    /// Packs that hold what a pack held at first: itself, and those it was rewritten to.
    pub(super) fn copies(&self, pack: u8) -> u8 {
        let mut copies = 1 << pack;
        for _ in 0..SESSIONS {
            let rewritten = |s: &Session| s.moves > 0 && has(copies, usize::from(s.moves - 1)) && s.at > steps::COPIES;
            copies |= self.sessions.iter().filter(|s| rewritten(s)).fold(0, |set, s| set | 1 << s.pack);
        }
        copies
    }

    /// What must always hold; the name of what does not.
    pub(super) fn broken(&self, weakness: Weakness) -> Option<&'static str> {
        for (s, session) in self.sessions.iter().enumerate().filter(|(_, s)| s.moves == 0) {
            let visible = self.is_visible(s, weakness);
            if visible && self.copies(session.pack) & self.packs & self.index == 0 {
                return Some("Closure: no pack that the index names has what a visible backup needs");
            }
            if session.at == steps::DONE && !session.let_go && !visible {
                return Some("Commit: a backup that was reported is not visible");
            }
        }
        let lost = || match weakness {
            Weakness::LooksOnce => !has(self.packs, usize::from(self.place)),
            _ => self.copies(self.sessions[usize::from(self.reads)].pack) & self.packs & self.index == 0,
        };
        (self.reader == steps::HOLDS && lost()).then_some("Pin: a pinned backup lacks a pack")
    }
}

/// Whether a set has a member.
pub(super) fn has(set: u8, member: usize) -> bool {
    set & (1 << member) != 0
}
