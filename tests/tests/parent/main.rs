//! Promise: pages are compared with the newest backup of the cluster, whatever stanza it is in; if that one cannot be read,
//! or goes away meanwhile, a backup is larger, or fails, but never wrong.

mod offline;
mod replica;
