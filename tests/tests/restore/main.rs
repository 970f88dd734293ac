//! Promise: what was backed up comes back, to the moment asked for, and half a restore is never taken for a whole one.

mod crash;
mod databases;
mod delta;
mod guards;
mod options;
mod targets;
mod timelines;
