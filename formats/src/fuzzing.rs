//! Every decoder as a function of arbitrary bytes, for `fuzz/` and for the test `arbitrary_bytes`.
//!
//! An entry point decodes, and where the format can be written too, checks that writing what was read and reading
//! it again gives the same. It may panic for no input at all. A family of formats has a module with a
//! `TARGETS` list; a new one is added to [`all`], and gets a file in `fuzz/fuzz_targets` per entry point.

pub mod pg;
pub mod repo;

/// One entry point. The name is that of the file in `fuzz/fuzz_targets`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of the fuzz target.
    pub name: &'static str,
    /// The entry point.
    pub run: fn(&[u8]),
}

/// All entry points of all families.
pub fn all() -> impl Iterator<Item = Target> {
    [pg::TARGETS, repo::TARGETS].into_iter().flatten().copied()
}
