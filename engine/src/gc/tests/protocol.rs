//! The protocol holds, and each part of it is needed.

use super::super::model::{Cast, Outcome, Start, Weakness, explore};

const WHOLE: Cast = Cast {
    writers: 1,
    rewriters: 0,
    runs: [2, 0],
    reader: false,
    expires: 0b111,
    start: Start::Backup,
    weakness: Weakness::None,
};
/// The story of a pack that was condemned while a session used it.
const LATE: Cast = Cast { writers: 2, runs: [1, 1], expires: 0b010, start: Start::Late, ..WHOLE };

/// A backup that was there, and a session that rewrites its pack.
const REWRITTEN: Cast = Cast { rewriters: 1, runs: [3, 0], expires: 0b001, ..WHOLE };
/// A pack of which one chunk was rewritten, for a backup that has expired, and another was not.
const HELD: Cast = Cast { runs: [1, 1], expires: 0b010, start: Start::Rewritten, ..WHOLE };

fn holds(cast: Cast) {
    match explore(&cast) {
        Outcome::Fails(why, story) => panic!("{why}: {cast:?}\n{}", story.join("\n")),
        Outcome::Holds(states) => println!("{states} states"),
    }
}

#[test]
fn it_holds_with_two_writers() {
    holds(Cast { writers: 2, runs: [1, 0], expires: 0b011, ..WHOLE });
}

#[test]
fn it_holds_with_two_collectors() {
    holds(Cast { runs: [1, 1], expires: 0b001, ..WHOLE });
}

#[test]
fn it_holds_when_collected_twice() {
    holds(Cast { runs: [2, 0], ..WHOLE });
}

#[test]
fn it_holds_with_a_reader() {
    holds(Cast { reader: true, ..WHOLE });
}

#[test]
fn it_holds_when_a_condemned_pack_comes_into_use() {
    holds(LATE);
}

#[test]
fn it_holds_when_packs_are_rewritten() {
    holds(REWRITTEN);
}

#[test]
fn it_holds_when_packs_are_rewritten_beside_a_reader() {
    holds(Cast { reader: true, ..REWRITTEN });
}

#[test]
fn it_holds_when_packs_are_rewritten_by_two() {
    holds(Cast { writers: 2, rewriters: 2, expires: 0, runs: [2, 0], ..REWRITTEN });
}

#[test]
fn it_holds_when_packs_are_rewritten_beside_a_writer() {
    holds(Cast { writers: 2, expires: 0b010, runs: [2, 0], ..REWRITTEN });
}

#[test]
fn it_holds_when_packs_are_rewritten_and_two_collect() {
    holds(Cast { runs: [2, 1], ..REWRITTEN });
}

#[test]
fn it_holds_when_a_chunk_comes_into_use_that_was_rewritten() {
    holds(HELD);
}

#[test]
fn every_part_of_it_is_needed() {
    let read = Cast { writers: 0, reader: true, ..WHOLE };
    for (weakness, cast, invariant) in [
        (Weakness::StartsBlindly, WHOLE, "Closure"),
        (Weakness::DoesNotWait, WHOLE, "Closure"),
        (Weakness::MarksOnce, WHOLE, "Closure"),
        (Weakness::NoBoundary, WHOLE, "Closure"),
        (Weakness::BelievesItsReply, WHOLE, "Commit"),
        (Weakness::Forgives, LATE, "Closure"),
        (Weakness::PinsBlindly, read, "Pin"),
        (Weakness::TakesMarkersBack, WHOLE, "Closure"),
        (Weakness::ForgetsEarly, WHOLE, "Commit"),
        (Weakness::StaleSessions, WHOLE, "Closure"),
        (Weakness::MovesToCondemned, HELD, "Closure"),
        (Weakness::TargetsAreFree, REWRITTEN, "Closure"),
        (Weakness::ForgetsMoves, Cast { runs: [4, 0], ..REWRITTEN }, "Closure"),
        (Weakness::LooksOnce, Cast { reader: true, ..REWRITTEN }, "Pin"),
    ] {
        match explore(&Cast { weakness, ..cast }) {
            Outcome::Holds(states) => panic!("{weakness:?} does no harm in {states} states"),
            Outcome::Fails(why, story) => {
                assert!(why.starts_with(invariant), "{weakness:?}: {why}\n{}", story.join("\n"));
                // Told with --nocapture.
                println!("{weakness:?}: {why}\n    {}", story.join("\n    "));
            }
        }
    }
}
