//! The `pgkeep` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(pgkeep_cli::run(&pgkeep_cli::option::Invocation::of_process()).0)
}
