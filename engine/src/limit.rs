//! What an operation may take of a machine that has other work: bytes read a second, and CPU time.
//!
//! Both limiters are one algorithm. A schedule holds the time at which everything admitted so far is paid for; who wants
//! more moves it on by the price and waits for the time he finds. So the order of arrival is the order of service, nobody
//! overtakes, and threads that ask for a piece at a time share alike. Time that nobody used is forgotten but for
//! [`BURST`], so over any span of time no more than rate × (span + [`BURST`]) is admitted. It begins with nothing saved.
//!
//! - [`Limits::read`] is asked before each piece is read, so bytes are paid in advance. They are bytes asked of the file
//!   system: whether the page cache has them is not known here. The kernel's readahead comes on top, and evens out.
//! - [`Limits::pace`] is asked between two pieces of work, and pays for the CPU time that the whole process has used since
//!   it was last asked: the threads that do not ask are paid for by those that do.
//!
//! Threads: any number, no lock. Waits are sleeps of at most [`NAP`], between which cancellation is looked at.

use crate::observe::Cancel;
use crate::{Error, Result};
use rustix::time::{ClockId, clock_gettime};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Worth of a limit that may be used at once after a pause.
pub const BURST: Duration = Duration::from_millis(75);
/// Longest sleep: how long a request to stop may go unnoticed.
pub const NAP: Duration = Duration::from_millis(50);
/// Pieces are multiples of this, so that no page of any size is read in two halves.
const PIECE_BYTES_MIN: u64 = 64 << 10;
const PIECE_BYTES_MAX: u64 = 1 << 20;
const SECOND_NANOS: u128 = 1_000_000_000;

/// What limits are measured by.
pub trait Meter: Send + Sync {
    /// Time since a fixed moment, in nanoseconds; never goes back.
    fn now(&self) -> u64;
    /// CPU time the process has used, in nanoseconds; never goes back.
    fn cpu(&self) -> u64;
    /// Sleeps until [`Self::now`] is about `time`.
    fn sleep_until(&self, time: u64);
}

/// The machine's clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemMeter;

fn clock(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    // Neither clock is ever negative, and 64 bits of nanoseconds are five centuries.
    time.tv_sec.unsigned_abs().saturating_mul(SECOND_NANOS as u64).saturating_add(time.tv_nsec.unsigned_abs())
}

impl Meter for SystemMeter {
    fn now(&self) -> u64 {
        clock(ClockId::Monotonic)
    }

    fn cpu(&self) -> u64 {
        clock(ClockId::ProcessCPUTime)
    }

    fn sleep_until(&self, time: u64) {
        std::thread::sleep(Duration::from_nanos(time.saturating_sub(self.now())));
    }
}

/// When everything admitted so far is paid for.
#[derive(Debug)]
struct Schedule(AtomicU64);

impl Schedule {
    /// Admits something that takes `price` nanoseconds at the limit's rate; answers when it may begin.
    fn admit(&self, now: u64, price: u64) -> u64 {
        let oldest = now.saturating_sub(nanos(BURST));
        let next = |paid: u64| paid.max(oldest).saturating_add(price);
        let mut paid = self.0.load(Ordering::Relaxed);
        while let Err(other) = self.0.compare_exchange_weak(paid, next(paid), Ordering::Relaxed, Ordering::Relaxed) {
            paid = other;
        }
        next(paid)
    }
}

/// What `amount` takes at `per_second`; rounded up, so that many small amounts never take less than they should.
fn price(amount: u64, per_second: NonZero<u64>) -> u64 {
    let price = (u128::from(amount) * SECOND_NANOS).div_ceil(u128::from(per_second.get()));
    u64::try_from(price).unwrap_or(u64::MAX)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// So many bytes a second, over all threads.
#[derive(Debug)]
struct RateLimiter {
    per_second: NonZero<u64>,
    schedule: Schedule,
    /// Most bytes admitted at once.
    piece: u64,
    bytes: AtomicU64,
    waited: AtomicU64,
}

impl RateLimiter {
    fn new(per_second: NonZero<u64>, now: u64) -> Self {
        let burst = u128::from(per_second.get()) * BURST.as_millis() / 1000;
        let piece = u64::try_from(burst).unwrap_or(u64::MAX).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
        Self {
            per_second,
            schedule: Schedule(AtomicU64::new(now)),
            piece: piece - piece % PIECE_BYTES_MIN,
            bytes: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }

    fn admit(&self, now: u64, bytes: u64) -> u64 {
        self.schedule.admit(now, price(bytes, self.per_second))
    }
}

/// So much CPU time a second, over all threads of the process.
#[derive(Debug)]
struct CpuLimiter {
    /// Thousandths of a CPU.
    thousandths: NonZero<u64>,
    schedule: Schedule,
    /// CPU time that is paid for.
    seen: AtomicU64,
    waited: AtomicU64,
}

impl CpuLimiter {
    fn new(thousandths: NonZero<u64>, now: u64, cpu: u64) -> Self {
        let schedule = Schedule(AtomicU64::new(now));
        Self { thousandths, schedule, seen: AtomicU64::new(cpu), waited: AtomicU64::new(0) }
    }

    fn admit(&self, now: u64, cpu: u64) -> u64 {
        let used = cpu.saturating_sub(self.seen.fetch_max(cpu, Ordering::Relaxed));
        let price = (u128::from(used) * 1000).div_ceil(u128::from(self.thousandths.get()));
        self.schedule.admit(now, u64::try_from(price).unwrap_or(u64::MAX))
    }
}

/// What limits have let through and cost so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct LimitTotals {
    /// Bytes that passed the limit of reading; 0 if there is none.
    pub bytes: u64,
    /// How long threads waited for it, together.
    pub read_waited: Duration,
    /// How long threads waited for the limit of CPU time, together.
    pub cpu_waited: Duration,
}

/// The limits of one operation, shared by its threads.
pub struct Limits {
    io: Option<RateLimiter>,
    cpu: Option<CpuLimiter>,
    meter: Box<dyn Meter>,
    cancel: Cancel,
    ended: AtomicBool,
}

impl std::fmt::Debug for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits").field("io", &self.io).field("cpu", &self.cpu).finish_non_exhaustive()
    }
}

impl Limits {
    /// No limits at all: nothing waits, and nothing is counted.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Self::new(None, None, &Cancel::default())
    }

    /// Limits of `io` bytes a second and of `cpu` thousandths of a CPU. Counting begins now; waits end when `cancel` asks.
    #[must_use]
    pub fn new(io: Option<NonZero<u64>>, cpu: Option<NonZero<u64>>, cancel: &Cancel) -> Arc<Self> {
        Self::with_meter(io, cpu, cancel, Box::new(SystemMeter))
    }

    /// As [`Self::new`], by other clocks.
    #[must_use]
    pub fn with_meter(
        io: Option<NonZero<u64>>,
        cpu: Option<NonZero<u64>>,
        cancel: &Cancel,
        meter: Box<dyn Meter>,
    ) -> Arc<Self> {
        let (now, used) = (meter.now(), meter.cpu());
        Arc::new(Self {
            io: io.map(|per_second| RateLimiter::new(per_second, now)),
            cpu: cpu.map(|thousandths| CpuLimiter::new(thousandths, now, used)),
            meter,
            cancel: cancel.clone(),
            ended: AtomicBool::new(false),
        })
    }

    /// Waits until bytes may be read, and answers how many: `wanted` or fewer, but never none of some.
    ///
    /// What it answers is paid for, read or not. Fewer are a multiple of every size of page.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a request to stop or [`Self::end`].
    pub fn read(&self, wanted: usize) -> Result<usize> {
        let Some(io) = &self.io else { return Ok(wanted) };
        let bytes = wanted.min(usize::try_from(io.piece).unwrap_or(usize::MAX));
        let until = io.admit(self.meter.now(), bytes as u64);
        self.wait(until, &io.waited)?;
        io.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Counts bytes that were read by a thread that must not wait; the next to ask waits for them.
    pub fn charge(&self, bytes: usize) {
        if let Some(io) = &self.io {
            io.admit(self.meter.now(), bytes as u64);
            io.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Waits until the CPU time that the process has used is paid for. To be asked between two pieces of work.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a request to stop or [`Self::end`].
    pub fn pace(&self) -> Result<()> {
        let Some(cpu) = &self.cpu else { return Ok(()) };
        let until = cpu.admit(self.meter.now(), self.meter.cpu());
        self.wait(until, &cpu.waited)
    }

    /// Ends the caller as a wait would; for those who wait for something else.
    ///
    /// # Errors
    /// [`Error::Interrupted`] after a request to stop or [`Self::end`].
    pub fn check(&self) -> Result<()> {
        self.cancel.check()?;
        if self.ended.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Whether reading is limited.
    #[must_use]
    pub fn limits_reading(&self) -> bool {
        self.io.is_some()
    }

    /// How many of `wanted` threads are of use: with far more than the CPUs allowed, all would work and then all would wait,
    /// which others feel as jerks.
    #[must_use]
    pub fn workers(&self, wanted: usize) -> usize {
        let of_use = |cpu: &CpuLimiter| usize::try_from(cpu.thousandths.get().div_ceil(1000)).unwrap_or(usize::MAX);
        self.cpu.as_ref().map_or(wanted, |cpu| wanted.min(of_use(cpu).saturating_add(1)))
    }

    /// Ends all waits, now and later, with [`Error::Interrupted`]: for an operation that has failed elsewhere.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// What came of it so far.
    #[must_use]
    pub fn totals(&self) -> LimitTotals {
        let time = |waited: &AtomicU64| Duration::from_nanos(waited.load(Ordering::Relaxed));
        LimitTotals {
            bytes: self.io.as_ref().map_or(0, |io| io.bytes.load(Ordering::Relaxed)),
            read_waited: self.io.as_ref().map_or(Duration::ZERO, |io| time(&io.waited)),
            cpu_waited: self.cpu.as_ref().map_or(Duration::ZERO, |cpu| time(&cpu.waited)),
        }
    }

    fn wait(&self, until: u64, waited: &AtomicU64) -> Result<()> {
        let began = self.meter.now();
        let mut now = began;
        loop {
            self.check()?;
            if now >= until {
                waited.fetch_add(now.saturating_sub(began), Ordering::Relaxed);
                return Ok(());
            }
            self.meter.sleep_until(until.min(now.saturating_add(nanos(NAP))));
            now = self.meter.now();
        }
    }
}

#[cfg(test)]
mod tests;
