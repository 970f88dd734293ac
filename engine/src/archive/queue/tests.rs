//! What is wanted, and what is taken out of the queue.

use super::*;
use pgkeep_formats::pg::timeline::TimelineId;
use pgkeep_formats::pg::version::Version;
use proptest::prelude::*;

const SIZE: WalSegmentSize = WalSegmentSize::MIN;

fn control(system: u64) -> ControlFile {
    let mut control = ControlFile::fabricated(Version::V16, system);
    control.wal_segment_size = SIZE;
    control
}

fn queue(root: &Path, system: u64, repositories: &[&str]) -> Queue {
    // After a colon the mark; none if it cannot be read.
    let one = |text: &&str| {
        let (config, mark) =
            text.split_once(':').map_or((*text, Some("m")), |(c, m)| (c, Some(m).filter(|m| !m.is_empty())));
        RepositoryIdentity { config: config.to_owned(), mark: mark.map(str::to_owned) }
    };
    let repositories: Vec<_> = repositories.iter().map(one).collect();
    Queue::new(&Spool::of(root, "main"), "main", &control(system), &repositories)
}

fn wanted(number: u64, segments: u64) -> Wanted {
    let first = WalSegment { timeline: TimelineId::FIRST, number };
    Wanted::new(first, SIZE, segments * SIZE.bytes())
}

fn content(byte: u8) -> Vec<u8> {
    vec![byte; SIZE.bytes() as usize]
}

#[test]
fn the_next_segments_are_wanted_of_one_timeline_only() {
    // 4 GiB hold 4096 segments of this size.
    let wanted = wanted(4094, 3);
    let names: Vec<_> = (0..).map_while(|n| wanted.name(n)).collect();
    assert_eq!(names, ["000000010000000000000FFE", "000000010000000000000FFF", "000000010000000100000000"]);
    assert!(names.iter().all(|name| wanted.contains(name)));
    for other in
        ["000000010000000000000FFD", "000000010000000100000001", "000000020000000000000FFE", "00000002.history", "plan"]
    {
        assert!(!wanted.contains(other), "{other}");
    }
    assert_eq!(self::wanted(1, 0).count(), 2, "fewer would be none ahead");
    let last = self::wanted(u64::MAX / SIZE.bytes(), 8);
    assert!(last.name(0).is_some() && last.name(1).is_none(), "there is no WAL behind the last position");
}

proptest! {
    #[test]
    fn what_has_a_name_is_contained(number in 0..1u64 << 40, segments in 0..50u64, at in 0..60u64) {
        let wanted = wanted(number, segments);
        if let Some(name) = wanted.name(at) {
            prop_assert!(wanted.contains(&name));
        }
    }
}

#[test]
fn what_was_put_is_taken_once() {
    let root = tempfile::tempdir().unwrap();
    let (queue, to) = (queue(root.path(), 7, &["repo1"]), root.path().join("RECOVERYXLOG"));
    let names: Vec<_> = (0..).map_while(|n| wanted(5, 3).name(n)).collect();
    assert_eq!(queue.take(&names[0], &to).unwrap(), None);
    queue.put(&names[0], &content(1)).unwrap();
    queue.put(&names[2], &content(3)).unwrap();
    assert_eq!(queue.filled(&wanted(5, 3)), 1, "up to the first that is not there");
    queue.put(&names[1], &content(2)).unwrap();
    assert_eq!(queue.filled(&wanted(5, 3)), 3);
    assert_eq!(queue.put("000000010000000000000009", b"short").unwrap_err().kind(), Kind::FileInvalid);

    std::fs::write(&to, "an earlier one").unwrap();
    assert_eq!(queue.take(&names[0], &to).unwrap(), Some(SIZE.bytes()));
    assert!(std::fs::read(&to).unwrap() == content(1));
    assert_eq!(queue.take(&names[0], &to).unwrap(), None);
    // A destination that cannot be is an error, and the segment stays.
    let error = queue.take(&names[1], &root.path().join("none/RECOVERYXLOG")).unwrap_err();
    assert_eq!(error.kind(), Kind::FileWrite);
}

#[test]
fn a_damaged_segment_is_not_delivered() {
    let root = tempfile::tempdir().unwrap();
    let (queue, to) = (queue(root.path(), 7, &["repo1"]), root.path().join("got"));
    let name = wanted(5, 1).name(0).unwrap();
    let (path, sum) = (queue.dir.join(&name), queue.dir.join(format!("{name}.sum")));
    type Damage<'a> = Box<dyn Fn() + 'a>;
    let damages: [Damage<'_>; 5] = [
        Box::new(|| std::fs::write(&path, content(2)).unwrap()),
        Box::new(|| std::fs::write(&path, &content(1)[1..]).unwrap()),
        Box::new(|| std::fs::write(&path, "").unwrap()),
        Box::new(|| std::fs::write(&sum, "").unwrap()),
        Box::new(|| std::fs::remove_file(&sum).unwrap()),
    ];
    for damage in damages {
        queue.put(&name, &content(1)).unwrap();
        damage();
        assert_eq!(queue.take(&name, &to).unwrap(), None);
        assert!(!to.exists());
    }
    queue.put(&name, &content(1)).unwrap();
    assert!(queue.take(&name, &to).unwrap().is_some());
}

#[test]
fn nothing_is_delivered_for_another_cluster_or_from_other_repositories() {
    let root = tempfile::tempdir().unwrap();
    let (ours, to) = (queue(root.path(), 7, &["repo1"]), root.path().join("got"));
    let name = wanted(5, 1).name(0).unwrap();
    let queue = |system, repositories: &[&str]| queue(root.path(), system, repositories);
    for other in [queue(8, &["repo1"]), queue(7, &["repo2"]), queue(7, &[]), queue(7, &["repo1:made anew"])] {
        ours.put(&name, &content(1)).unwrap();
        ours.say_missing(&name).unwrap();
        ours.say_failed(&name, 103, "no").unwrap();
        assert!(!other.has(&name) && other.take(&name, &to).unwrap().is_none() && !to.exists());
        assert!(other.take_missing(&name).unwrap().is_none() && other.take_failed(&name).unwrap().is_none());
        other.settle(&wanted(5, 2)).unwrap();
        assert!(!ours.has(&name), "what is not theirs is removed by those who fill the queue");
    }
    ours.say_missing(&name).unwrap();
    ours.say_failed(&name, 103, "no").unwrap();
    let own = Some(std::process::id());
    assert_eq!((ours.take_missing(&name).unwrap(), ours.take_failed(&name).unwrap()), (own, own));
    assert_eq!((ours.take_missing(&name).unwrap(), ours.take_failed(&name).unwrap()), (None, None));
    // While the repository is away its WAL is as good as before.
    ours.put(&name, &content(1)).unwrap();
    assert!(queue(7, &["repo1:"]).take(&name, &to).unwrap().is_some());
}

#[test]
fn what_is_checked_is_what_is_delivered() {
    let root = tempfile::tempdir().unwrap();
    let (queue, to) = (queue(root.path(), 7, &["repo1"]), root.path().join("got"));
    let name = wanted(5, 1).name(0).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let taken = std::thread::scope(|scope| {
        scope.spawn(|| {
            // A good one, and at once another in its place.
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                queue.put(&name, &content(1)).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(2));
                spool::put(&queue.dir, &name, &content(2), SEGMENT_MODE).unwrap();
            }
        });
        let mut taken = 0;
        let begun = std::time::Instant::now();
        while taken < 20 && begun.elapsed() < std::time::Duration::from_secs(60) {
            std::thread::yield_now();
            if queue.take(&name, &to).unwrap().is_some() {
                taken += 1;
                assert!(std::fs::read(&to).unwrap() == content(1), "what was checked was not delivered");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        taken
    });
    assert_eq!(taken, 20, "hardly a whole one was delivered in a minute");
    let left =
        std::fs::read_dir(&queue.dir).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_str() != Some("plan"));
    assert!(left.count() <= 2, "claimed segments were left behind");
}

#[test]
fn settling_keeps_what_is_wanted_and_says_what_is_fetched() {
    let root = tempfile::tempdir().unwrap();
    let queue = queue(root.path(), 7, &["repo1"]);
    let names: Vec<_> = (0..).map_while(|n| wanted(5, 4).name(n)).collect();
    names.iter().for_each(|name| queue.put(name, &content(1)).unwrap());
    queue.say_missing(&names[3]).unwrap();
    std::fs::remove_file(queue.dir.join(format!("{}.sum", names[2]))).unwrap();
    queue.settle(&wanted(6, 3)).unwrap();
    let mut left: Vec<_> = std::fs::read_dir(&queue.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    let sum = |name: &str| format!("{name}.sum");
    assert_eq!(left, [&names[1], &sum(&names[1]), &names[3], &sum(&names[3]), "plan"].map(std::ffi::OsString::from));
    let own = std::process::id().cast_signed();
    assert!(queue.is_planned(&names[2], own) && !queue.is_planned(&names[0], own));
    assert!(!queue.is_planned(&names[2], own + 1), "the plan of a process that is gone");
}
