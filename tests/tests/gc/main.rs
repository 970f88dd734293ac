//! Garbage collection gives space back, and harms no backup: whatever stops it, whoever works beside it.

mod crash;
mod frozen;
mod kept;
mod life;
mod rewrite;
mod server;
