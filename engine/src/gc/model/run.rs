//! Trying everything, breadth first, so that what fails is told by the shortest story.

use super::{Cast, State, steps};
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What came of it.
#[derive(Debug)]
pub(in crate::gc) enum Outcome {
    /// It holds in all of so many states.
    Holds(usize),
    /// It does not: why, and the steps that lead there.
    Fails(&'static str, Vec<String>),
}

/// States beyond which a run is too large for a test.
const STATES_MAX: usize = 40_000_000;

/// Goes through all states that can be reached.
pub(in crate::gc) fn explore(cast: &Cast) -> Outcome {
    let first = State::first(cast);
    // Of a state that was dealt with only its hash is kept, and who led there: its story can then be told.
    let mut seen: HashSet<u64, BuildHasherDefault<Plain>> = HashSet::default();
    seen.insert(hash(&first));
    let mut came_from: Vec<(u32, steps::Step)> = vec![(0, steps::Step::Begin)];
    let mut layer = vec![(0u32, first)];
    let mut next = Vec::new();
    let mut followers = Vec::new();
    while !layer.is_empty() {
        for (number, state) in layer.drain(..) {
            followers.clear();
            steps::all(&state, cast, &mut |step, state| followers.push((step, state)));
            for (step, state) in followers.drain(..) {
                if !seen.insert(hash(&state)) {
                    continue;
                }
                let mine = u32::try_from(came_from.len()).unwrap();
                came_from.push((number, step));
                if let Some(why) = state.broken(cast.weakness) {
                    return Outcome::Fails(why, story(&came_from, mine));
                }
                assert!(came_from.len() < STATES_MAX, "too many states: {cast:?}");
                next.push((mine, state));
            }
        }
        std::mem::swap(&mut layer, &mut next);
    }
    Outcome::Holds(came_from.len())
}

/// A multiplication a word: what the standard library's hasher takes is most of the time otherwise.
#[derive(Default)]
struct Mixing(u64);

impl Hasher for Mixing {
    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let word = word.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            let mixed = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
            self.0 = ((mixed >> 64) as u64 ^ mixed as u64).rotate_left(23).wrapping_add(word);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What is hashed already.
#[derive(Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn hash(state: &State) -> u64 {
    let mut hasher = Mixing::default();
    state.hash(&mut hasher);
    hasher.finish()
}

fn story(came_from: &[(u32, steps::Step)], mut number: u32) -> Vec<String> {
    let mut out = Vec::new();
    while number != 0 {
        let (from, step) = came_from[number as usize];
        out.push(format!("{step:?}"));
        number = from;
    }
    out.reverse();
    out
}
