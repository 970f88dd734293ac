//! Promise: WAL that `archive-push` acknowledged comes back from `archive-get` byte for byte, and nothing else ever does.

mod kill;
mod rules;
mod several;
