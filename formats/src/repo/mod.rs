//! The repository format: `FORMAT.md`, one module per kind of object.
