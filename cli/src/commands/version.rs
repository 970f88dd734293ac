//! `version`: for people, and with `--output=num` as one number for programs.

use super::Context;
use crate::VERSION;
use crate::error::Failure;
use crate::exit::Status;
use crate::option::{Opt, PGBACKREST, Program};
use crate::render;

/// The pgBackRest release whose contract is kept. Monitors refuse to talk to a `pgbackrest` that is too old, so
/// this is what the program says of itself under that name.
const PGBACKREST_VERSION: &str = "2.59.1";

pub(super) fn run(context: &Context<'_>) -> Result<Status, Failure> {
    let program = context.settings.program();
    let version = version_of(program);
    render::print(&match context.settings.text(Opt::Output) {
        Some("num") => number(version).to_string(),
        _ => format!("{} {version}\n", program.title),
    })?;
    Ok(Status::OK)
}

fn version_of(program: &Program) -> &'static str {
    if *program == PGBACKREST { PGBACKREST_VERSION } else { VERSION }
}

/// `2.59.1` as 2059001.
fn number(version: &str) -> u64 {
    version.split('.').take(3).fold(0, |n, part| n * 1000 + part.parse::<u64>().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_too() {
        assert_eq!(number("2.59.1"), 2_059_001);
        assert_eq!(number("0.1.0"), 1000);
        assert_eq!(number("1.2.3-rc1"), 1_002_000);
    }
}
