//! Options: one table, and what reads it.
//!
//! `Invocation` (arguments, environment, user) -> [`load`] -> [`Loaded`] with [`Settings`]. Rows are in
//! [`table`]; [`lookup`] maps written names to rows; [`argv`], [`mod@env`] and [`ini`] read the three places;
//! `resolve` merges them: command line over environment over file over default. Names and rules are
//! pgBackRest's. Nothing here prints; what a person should know comes back as [`Notice`]s.
//! Cost: well under a millisecond, because `archive-push` runs once per WAL segment.

pub mod action;
pub mod argv;
pub mod command;
mod compose;
pub mod def;
pub mod env;
mod error;
mod files;
pub mod ini;
pub mod lookup;
mod more;
mod nearest;
mod program;
mod resolve;
mod rules;
mod settings;
pub mod table;
#[cfg(test)]
mod tests;
mod value;

pub use action::{Action, actions};
pub use command::{Command, Role};
pub use compose::{archive_command_of_clone, restore_command, restore_command_of_clone};
pub use def::{Def, Type};
pub use error::OptionError;
pub use program::{PGBACKREST, PGKEEP, Program};
pub use resolve::{Invocation, Level, Loaded, Notice, load, load_for_help};
pub use rules::{check_supported, options_of};
pub use settings::{Cipher, Pg, Repo, Setting, Settings, Source};
pub use table::Opt;
pub use value::{Secret, Value};
