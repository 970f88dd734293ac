//! Time here moves when somebody waits for it and when a test says so.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

#[derive(Default)]
struct Fake {
    now: AtomicU64,
    cpu: AtomicU64,
    sleeps: AtomicU64,
    /// Number of the sleep that sets this flag.
    cancel: Option<(u64, Cancel)>,
}

impl Meter for Arc<Fake> {
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    fn cpu(&self) -> u64 {
        self.cpu.load(Ordering::SeqCst)
    }

    fn sleep_until(&self, time: u64) {
        let number = self.sleeps.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some((at, cancel)) = &self.cancel
            && *at == number
        {
            cancel.cancel();
        }
        self.now.fetch_max(time, Ordering::SeqCst);
    }
}

fn limits(io: u64, cpu: u64) -> (Arc<Limits>, Arc<Fake>) {
    let fake = Arc::new(Fake { now: AtomicU64::new(5 * SECOND), ..Fake::default() });
    let meter = Box::new(Arc::clone(&fake));
    (Limits::with_meter(NonZero::new(io), NonZero::new(cpu), &Cancel::default(), meter), fake)
}

#[test]
fn reading_takes_the_time_it_should_and_no_more() {
    let (limits, fake) = limits(2 * MIB, 0);
    let mut left = 10 * MIB as usize;
    while left > 0 {
        left -= limits.read(left.min(1 << 20)).unwrap();
    }
    assert_eq!(fake.now() - 5 * SECOND, 5 * SECOND);
    assert_eq!(limits.totals().bytes, 10 * MIB);
    assert_eq!(limits.totals().read_waited, Duration::from_secs(5));
}

#[test]
fn a_pause_saves_a_burst_and_no_more() {
    let (limits, fake) = limits(100 * MIB, 0);
    fake.now.fetch_add(60 * SECOND, Ordering::SeqCst);
    let began = fake.now();
    let mut free = 0;
    while fake.now() == began {
        free += limits.read(64 << 10).unwrap() as u64;
    }
    // The last one waited.
    let burst = 100 * MIB * 75 / 1000;
    assert!(free - (64 << 10) <= burst && free > burst, "{free}");
}

#[test]
fn pieces_are_small_but_whole_pages() {
    for (rate, piece) in [(1, 64 << 10), (2 * MIB, 128 << 10), (200 * MIB, 1 << 20), (u64::MAX, 1 << 20)] {
        let (limits, _) = limits(rate, 0);
        if rate > 1 {
            assert_eq!(limits.read(64 << 20).unwrap(), piece, "{rate}");
        }
        assert_eq!(limits.io.as_ref().unwrap().piece, piece as u64);
    }
}

#[test]
fn what_was_charged_is_paid_by_the_next() {
    let (limits, fake) = limits(MIB, 0);
    limits.charge(MIB as usize);
    assert_eq!(fake.now(), 5 * SECOND);
    limits.read(64 << 10).unwrap();
    assert_eq!(fake.now(), 6 * SECOND + SECOND / 16);
}

#[test]
fn who_comes_first_is_served_first() {
    let (limits, fake) = limits(MIB, 0);
    let io = limits.io.as_ref().unwrap();
    let turns: Vec<u64> = (0..8).map(|_| io.admit(fake.now(), 64 << 10)).collect();
    assert_eq!(turns, (1..=8).map(|n| 5 * SECOND + n * SECOND / 16).collect::<Vec<_>>());
}

#[test]
fn many_threads_together_stay_below_the_rate() {
    let (limits, fake) = limits(64 * MIB, 0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..64 {
                    let mut left = 1 << 20;
                    while left > 0 {
                        left -= limits.read(left).unwrap();
                    }
                }
            });
        }
    });
    let span = fake.now() - 5 * SECOND;
    assert_eq!(limits.totals().bytes, 512 * MIB);
    // All 512 MiB are paid for, and nobody slept longer than to his turn.
    assert_eq!(span, 8 * SECOND);
}

#[test]
fn cpu_time_of_the_process_is_paid_for_by_pauses() {
    // Half a CPU; every piece of work uses 10 ms of CPU in 10 ms.
    let (limits, fake) = limits(0, 500);
    for _ in 0..100 {
        fake.cpu.fetch_add(10_000_000, Ordering::SeqCst);
        fake.now.fetch_add(10_000_000, Ordering::SeqCst);
        limits.pace().unwrap();
    }
    assert_eq!(fake.now() - 5 * SECOND, 2 * SECOND);
    assert_eq!(limits.totals().cpu_waited, Duration::from_secs(1));
    assert_eq!(limits.totals().bytes, 0);
}

#[test]
fn work_below_the_limit_is_not_held_back() {
    let (limits, fake) = limits(0, 1500);
    for _ in 0..100 {
        fake.cpu.fetch_add(14_000_000, Ordering::SeqCst);
        fake.now.fetch_add(10_000_000, Ordering::SeqCst);
        limits.pace().unwrap();
    }
    assert_eq!(fake.sleeps.load(Ordering::SeqCst), 0);
}

#[test]
fn threads_are_as_many_as_the_limit_can_feed() {
    for (cpu, workers) in [(0, 16), (50, 2), (1000, 2), (1500, 3), (8000, 9), (64_000, 16)] {
        assert_eq!(limits(0, cpu).0.workers(16), workers, "{cpu}");
    }
    assert_eq!(limits(0, 8000).0.workers(1), 1);
}

#[test]
fn a_request_to_stop_is_seen_within_a_nap() {
    let cancel = Cancel::default();
    let fake = Arc::new(Fake { cancel: Some((3, cancel.clone())), ..Fake::default() });
    // A piece of 64 KiB takes a day.
    let limits = Limits::with_meter(NonZero::new(1), NonZero::new(1), &cancel, Box::new(Arc::clone(&fake)));
    assert!(matches!(limits.read(1 << 20), Err(Error::Interrupted)));
    assert_eq!(fake.sleeps.load(Ordering::SeqCst), 3);
    assert_eq!(fake.now(), 3 * nanos(NAP));
    assert!(matches!(limits.pace(), Err(Error::Interrupted)));
    assert_eq!(limits.totals(), LimitTotals::default());
}

#[test]
fn the_end_of_the_operation_ends_all_waits() {
    let (limits, fake) = limits(1, 1);
    limits.end();
    fake.cpu.fetch_add(SECOND, Ordering::SeqCst);
    assert!(matches!(limits.read(1), Err(Error::Interrupted)));
    assert!(matches!(limits.pace(), Err(Error::Interrupted)));
    assert_eq!(fake.sleeps.load(Ordering::SeqCst), 0);
}

#[test]
fn without_limits_nothing_waits_or_is_cut() {
    let limits = Limits::none();
    assert_eq!(limits.read(64 << 20).unwrap(), 64 << 20);
    limits.charge(1);
    limits.pace().unwrap();
    assert_eq!((limits.totals(), limits.workers(7)), (LimitTotals::default(), 7));
}

#[test]
fn the_machines_clocks_go_forward() {
    let (now, cpu) = (SystemMeter.now(), SystemMeter.cpu());
    let mut hash = 0_u64;
    while SystemMeter.cpu() == cpu {
        hash = std::hint::black_box(hash.wrapping_mul(31) + 1);
    }
    SystemMeter.sleep_until(now + 2_000_000);
    assert!(SystemMeter.now() >= now + 2_000_000 && cpu > 0);
    SystemMeter.sleep_until(0);
}

proptest! {
    /// Whatever is asked for at whatever times: between any two admissions no more passes than the rate and a burst allow.
    #[test]
    fn no_span_of_time_gets_more_than_its_share(
        rate in 1_u64 << 16..1 << 30,
        asked in prop::collection::vec((0_u64..200_000_000, 1_usize..300_000), 1..60),
    ) {
        let (limits, fake) = limits(rate, 0);
        let mut passed = vec![];
        for (pause, bytes) in asked {
            fake.now.fetch_add(pause, Ordering::SeqCst);
            let read = limits.read(bytes).unwrap();
            prop_assert!((1..=bytes).contains(&read));
            passed.push((fake.now(), read as u64));
        }
        for from in 0..passed.len() {
            for to in from..passed.len() {
                // A piece is paid in advance, so the first of a span counts with the time before it.
                let bytes: u64 = passed[from + 1..=to].iter().map(|p| p.1).sum();
                let span = passed[to].0 - passed[from].0;
                let most = u128::from(rate) * u128::from(span + nanos(BURST)) / SECOND_NANOS;
                prop_assert!(u128::from(bytes) <= most + 1, "{bytes} of {most} in {span}");
            }
        }
    }
}
