//! Backups beside production load: limits hold by construction, and a backup that waits for them can be stopped.
//!
//! Time is the limiters' own where rates are looked at: it moves when somebody waits, so nothing here depends on the speed
//! of the machine.

use pgkeep_engine::backup::{self, BackupReport};
use pgkeep_engine::limit::{BURST, Limits, Meter};
use pgkeep_engine::observe::{Cancel, Silent};
use pgkeep_engine::{Error, Result};
use pgkeep_formats::repo::records::BackupType;
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::offline::{Ledger, Tree, World as Offline, invariants, open};
use support::{World, majors};

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

/// Time that moves to where somebody waits for it. Every look at the CPU time finds a millisecond more.
#[derive(Debug, Clone, Default)]
struct Waited {
    now: Arc<AtomicU64>,
    cpu: Arc<AtomicU64>,
    sleeps: Arc<AtomicU64>,
    /// At which sleep somebody asks for the end.
    cancel: Option<(u64, Cancel)>,
}

impl Meter for Waited {
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    fn cpu(&self) -> u64 {
        self.cpu.fetch_add(1_000_000, Ordering::SeqCst)
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

fn run(world: &Offline, limits: Arc<Limits>, cancel: &Cancel) -> Result<BackupReport> {
    let mut options = world.options(BackupType::Full);
    options.limits = limits;
    world.clock.advance(60);
    backup::run(&open(&world.store)?, &options, &Silent, cancel, &*world.clock)
}

/// The repository is whole, and so is its only backup.
fn check(world: &Offline, report: &BackupReport) {
    let expected = BTreeMap::from([(report.commit.label.clone(), Tree::of_files(world.cluster.path()))]);
    let labels = invariants(&world.store, &expected, &mut Ledger::default());
    assert_eq!(labels, BTreeSet::from([report.commit.label.clone()]));
}

#[test]
fn a_limited_backup_reads_everything_and_no_faster_than_allowed() {
    let world = Offline::new(71, 8);
    let (rate, meter) = (2 * MIB, Waited::default());
    let limits = Limits::with_meter(NonZero::new(rate), None, &Cancel::default(), Box::new(meter.clone()));
    let report = run(&world, Arc::clone(&limits), &Cancel::default()).unwrap();

    // All that was read passed the limiter, but for pg_control at the end.
    let passed = limits.totals().bytes;
    assert!(report.read > 8 * MIB);
    assert_eq!(passed + 8192, report.read);
    let (least, took) = ((passed * SECOND).div_ceil(rate), meter.now());
    // What is paid for without waiting, small files, may be outstanding at the end.
    let (slack, rounding) = (BURST.as_nanos() as u64, passed / 1024);
    assert!(took + slack >= least && took <= least + rounding, "{took} ns instead of {least}");
    assert_eq!(limits.totals().cpu_waited.as_nanos(), 0);

    check(&world, &report);
}

#[test]
fn old_pages_count_too() {
    let world = Offline::new(73, 4);
    run(&world, Limits::none(), &Cancel::default()).unwrap();
    world.cluster.edit("base/5/16384", &[40, 50, 60]);
    let meter = Waited::default();
    let limits = Limits::with_meter(NonZero::new(2 * MIB), None, &Cancel::default(), Box::new(meter));
    let mut options = world.options(BackupType::Incr);
    options.limits = Arc::clone(&limits);
    world.clock.advance(60);
    let report =
        backup::run(&open(&world.store).unwrap(), &options, &Silent, &Cancel::default(), &*world.clock).unwrap();
    // Beside the files the sealed chunk of the old pages, most of which does not compress.
    let more = limits.totals().bytes + 8192 - report.read;
    assert!(more > 32 << 10 && more < 1 << 20, "{more} bytes of old pages");
}

#[test]
fn cpu_time_is_paid_for_between_tasks() {
    let world = Offline::new(72, 8);
    let meter = Waited::default();
    let limits = Limits::with_meter(None, NonZero::new(100), &Cancel::default(), Box::new(meter.clone()));
    let report = run(&world, Arc::clone(&limits), &Cancel::default()).unwrap();
    // A tenth of a CPU: each millisecond used takes ten.
    let tasks = meter.cpu.load(Ordering::SeqCst) / 1_000_000;
    assert!(tasks > 8, "{tasks}");
    let paid = (tasks - 1) * 10_000_000;
    assert_eq!((meter.now(), limits.totals().bytes), (paid, 0));
    check(&world, &report);
}

#[test]
fn a_backup_that_waits_for_its_limit_stops_when_asked() {
    let world = Offline::new(73, 8);
    let cancel = Cancel::default();
    // 30 sleeps are 1.5 s at the most, and two workers have asked for 64 KiB more each.
    let meter = Waited { cancel: Some((30, cancel.clone())), ..Waited::default() };
    let limits = Limits::with_meter(NonZero::new(64 << 10), None, &cancel, Box::new(meter));
    let stopped = run(&world, Arc::clone(&limits), &cancel);
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    assert!(limits.totals().bytes < MIB / 2, "{:?}", limits.totals());
    let report = run(&world, Limits::none(), &Cancel::default()).unwrap();
    check(&world, &report);
}

#[test]
fn the_command_takes_limits_tells_utilisation_and_stops_when_interrupted() {
    let world = World::new(majors()[0]);
    world.cluster.pgbench_init(5);
    let accounts = world.cluster.psql("SELECT pg_relation_filepath('pgbench_accounts')");
    // It would take minutes, and half of them for the table of accounts.
    let slow = ["--start-fast", "--log-level-console=detail", "--io-limit=512KB", "--type=full", "backup"];
    let mut running = world.spawn(slow);
    running.wait_for("backup file ");
    running.signal(Signal::INT);
    let run = running.wait();
    assert_eq!(run.code, Some(63), "{run}");
    assert!(!run.says(&format!("backup file {accounts} ")) && !run.says("panicked"), "{run}");
    assert_eq!(world.labels(), Vec::<String>::new());

    let run = world.ok([
        "--start-fast",
        "--log-level-console=detail",
        "--io-limit=1GB",
        "--cpu-limit=90.5%",
        "--type=full",
        "backup",
    ]);
    assert!(run.says("--cpu-limit=90.5%") && run.says("--io-limit=1GiB"), "{run}");
    assert!(run.says(&format!("backup file {accounts} ")), "{run}");
    let lines: Vec<_> = run.messages("DETAIL").into_iter().filter(|l| l.starts_with("stage utilisation: ")).collect();
    assert_eq!(lines.len(), 1, "{run}");
    for part in ["walk ", ", read ", ", encode ", ", upload ", "workers for work ", "for cpu-limit ", "the limit was: "]
    {
        assert!(lines[0].contains(part), "{part}: {}", lines[0]);
    }
    world.ok(["verify"]);
}
