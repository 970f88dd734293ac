//! The protocol holds, and each part of it is needed.

use super::super::model::{Cast, Outcome, Weakness, explore};

const WHOLE: Cast =
    Cast { writers: 1, runs: [2, 0], reader: false, expires: 0b111, late: false, weakness: Weakness::None };
/// The story of a pack that was condemned while a session used it.
const LATE: Cast = Cast { writers: 2, runs: [1, 1], expires: 0b010, late: true, ..WHOLE };

fn holds(cast: Cast) {
    if let Outcome::Fails(why, story) = explore(&cast) {
        panic!("{why}: {cast:?}\n{}", story.join("\n"));
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
