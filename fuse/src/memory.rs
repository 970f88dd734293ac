//! Memory that nothing needs any more.

/// Gives free memory back to the system.
///
/// The allocator keeps what threads have freed, each thread's part for itself: after a scan of a large table that is more
/// than everything a served clone needs. Takes some milliseconds after such a scan and microseconds otherwise.
#[cfg(target_env = "gnu")]
pub(crate) fn give_back() {
    // SAFETY: any thread may call it at any time; it touches free memory only.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}
