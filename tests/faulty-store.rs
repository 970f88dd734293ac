//! `faulty-store SOURCE MOUNTPOINT [--delay-ms N] [--name-delay-ms N] [--fail PATTERN] [--probability P]`
//!
//! Shows a repository as a slow or broken one until SIGTERM or SIGINT: for benches and for trying things out. SIGUSR1
//! makes it unreachable, SIGUSR2 reachable again. Prints `serving` once it can be used.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use support::faulty::Faulty;

const USAGE: &str =
    "usage: faulty-store SOURCE MOUNTPOINT [--delay-ms N] [--name-delay-ms N] [--fail PATTERN] [--probability P]";

#[derive(Default)]
struct Arguments {
    paths: Vec<PathBuf>,
    delay_ms: u64,
    name_delay_ms: u64,
    fail: Option<String>,
    probability: Option<f64>,
}

fn arguments() -> Option<Arguments> {
    let mut found = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--delay-ms" => found.delay_ms = words.next()?.parse().ok()?,
            "--name-delay-ms" => found.name_delay_ms = words.next()?.parse().ok()?,
            "--fail" => found.fail = Some(words.next()?),
            "--probability" => found.probability = Some(words.next()?.parse().ok()?),
            option if option.starts_with('-') => return None,
            path => found.paths.push(path.into()),
        }
    }
    (found.paths.len() == 2).then_some(found)
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    // Before anybody can be told that it serves, and so may end it.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2]).expect("cannot handle signals");
    let faulty = Faulty::mount(&arguments.paths[0], &arguments.paths[1]);
    faulty.set_delay(Duration::from_millis(arguments.delay_ms));
    faulty.set_name_delay(Duration::from_millis(arguments.name_delay_ms));
    if arguments.fail.is_some() || arguments.probability.is_some() {
        faulty.fail_some(arguments.fail.as_deref().unwrap_or_default(), arguments.probability.unwrap_or(1.0));
    }
    println!("serving");
    for signal in signals.forever() {
        match signal {
            SIGUSR1 => faulty.hang(true),
            SIGUSR2 => faulty.hang(false),
            _ => break,
        }
    }
    println!("{} reads", faulty.reads());
    ExitCode::SUCCESS
}
