//! Words and what they are about; what is removed, and what is not.

use super::*;
use std::os::unix::fs::symlink;

const NAME: &str = "000000010000000000000003";

fn binding(stanza: &str, repositories: &[&str]) -> Binding {
    let one = |config: &&str| RepositoryIdentity { config: (*config).to_owned(), mark: Some((*config).to_owned()) };
    Binding::new(stanza, None, &repositories.iter().map(one).collect::<Vec<_>>())
}

fn said(path: &Path, binding: &Binding) -> Status {
    let content = std::fs::read(path).unwrap();
    let file = Identity::new(&std::fs::metadata(path).unwrap(), Some(&content));
    Status::new(Outcome::Pushed, "", Some((binding, file)))
}

#[test]
fn words_are_read_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    std::fs::write(&path, "content").unwrap();
    let ours = binding("main", &["repo1"]);
    let about = || Some((&ours, Identity::of(&path).unwrap()));
    let hashed = Identity::new(&std::fs::metadata(&path).unwrap(), Some(b"content"));
    for status in [
        Status::new(Outcome::Pushed, "", about()),
        Status::new(Outcome::Pushed, "WAL file exists already\nand in repo2", Some((&ours, hashed))),
        Status::new(Outcome::Dropped, "dropped WAL file", about()),
        Status::new(Outcome::Failed(104), "failed:\nrepo1: no\nhint: look", about()),
        Status::new(Outcome::Failed(103), "no repository", None),
        Status::new(Outcome::Failed(104), "repo2: no", about()).held_by([1, 3].into()),
        Status::new(Outcome::Dropped, "dropped WAL file", about()).held_by([256].into()),
    ] {
        assert_eq!(Status::parse(&status.encode()), status);
    }
    let text = Status::new(Outcome::Failed(45), "other content", None).encode();
    assert_eq!(text, "45\nother content\n", "as others write it");
}

#[test]
fn words_of_others_are_about_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    let ours = binding("main", &["repo1"]);
    std::fs::write(&path, "content").unwrap();
    let cases = [
        ("", Outcome::Pushed, ""),
        ("0", Outcome::Pushed, ""),
        ("0\nwarning\n", Outcome::Pushed, "warning"),
        ("55\nmissing\n", Outcome::Failed(55), "missing"),
        ("999\nx", Outcome::Failed(125), "999\nx"),
        ("what is this", Outcome::Failed(125), "what is this"),
        ("0\n#file ", Outcome::Pushed, ""),
        ("0\n#file for=x size=1", Outcome::Pushed, ""),
        ("55\nx\n#held 1,,y", Outcome::Failed(55), "x"),
        ("\u{0}\u{0}", Outcome::Failed(125), "\u{0}\u{0}"),
    ];
    for (text, outcome, message) in cases {
        let status = Status::parse(text);
        assert_eq!((status.outcome, status.message.as_str()), (outcome, message), "{text:?}");
        assert!(!status.is_about(&ours, &path).unwrap(), "{text:?}");
    }
}

#[test]
fn a_word_is_about_one_content_of_one_cluster_in_the_same_repositories() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    std::fs::write(&path, "content").unwrap();
    let ours = binding("main", &["repo1"]);
    let word = Status::parse(&said(&path, &ours).encode());
    assert!(word.is_about(&ours, &path).unwrap());
    for other in [binding("other", &["repo1"]), binding("main", &["repo1", "repo2"]), binding("main", &["repo2"])] {
        assert!(!word.is_about(&other, &path).unwrap());
    }
    // The same content written again is the same file, other content of the same size is not.
    let other = dir.path().join("other");
    std::fs::write(&other, "content").unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert!(word.is_about(&ours, &path).unwrap());
    std::fs::write(&path, "CONTENT").unwrap();
    assert!(!word.is_about(&ours, &path).unwrap());
    std::fs::remove_file(&path).unwrap();
    assert!(!word.is_about(&ours, &path).unwrap());
    // Somebody passes over a file that is lost.
    let lost = Status::new(Outcome::Failed(55), "missing", Some((&ours, Identity::of(&path).unwrap())));
    assert!(Status::parse(&lost.encode()).is_about(&ours, &path).unwrap());
}

#[test]
fn a_binding_keeps_its_parts_apart() {
    assert_ne!(binding("a", &["b", "c"]), binding("a", &["bc"]));
    assert_ne!(binding("ab", &["c"]), binding("a", &["bc"]));
    assert_ne!(binding("a", &[""]), binding("a", &[]));
    assert_eq!(binding("a", &["b"]), binding("a", &["b"]));
}

#[test]
fn settling_leaves_good_words_about_what_is_ready_and_what_is_not_ours() {
    let root = tempfile::tempdir().unwrap();
    let spool = Spool::of(root.path(), "main");
    let none = HashSet::new();
    assert!(spool.settle(&[], &none).unwrap().good.is_empty(), "a spool that is not there is empty");
    Spool::prepare(spool.out()).unwrap();
    let (ours, other) = (binding("main", &[]), "000000010000000000000004");
    for name in [NAME, other] {
        let path = root.path().join(name);
        std::fs::write(&path, name).unwrap();
        spool.say(name, &said(&path, &ours)).unwrap();
        spool.say(name, &Status::new(Outcome::Failed(55), "", None)).unwrap();
    }
    spool.say_of_all(&Status::new(Outcome::Failed(103), "", None)).unwrap();
    std::fs::write(spool.out().join("x.1-1.pgkeep.tmp"), "").unwrap();
    std::fs::write(spool.out().join("README"), "").unwrap();
    assert!(spool.ok(NAME).unwrap().is_some(), "a failure takes no good word away");
    assert_eq!(spool.error(NAME).unwrap().unwrap().outcome, Outcome::Failed(55));

    let (ready, tried) = ([NAME.to_owned()], HashSet::from([NAME.to_owned(), other.to_owned()]));
    assert_eq!(spool.settle(&ready, &tried).unwrap().failed.keys().collect::<Vec<_>>(), [NAME]);
    assert!(spool.error(NAME).unwrap().is_some(), "what a run has said itself stays");
    let settled = spool.settle(&ready, &none).unwrap();
    assert_eq!(settled.good.keys().chain(settled.failed.keys()).collect::<Vec<_>>(), [NAME, NAME]);
    let mut left: Vec<_> = std::fs::read_dir(spool.out()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [format!("{NAME}.ok").as_str(), "README"]);
    spool.forget(NAME).unwrap();
    spool.forget(NAME).unwrap();
    assert!(spool.ok(NAME).unwrap().is_none() && spool.error(NAME).unwrap().is_none());
}

#[test]
fn wiping_removes_what_commands_left_and_follows_no_link() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(Spool::wipe(root.path(), "main").unwrap(), 0);
    assert_eq!(Spool::wipe(&root.path().join("none"), "main").unwrap(), 0);
    let (spool, elsewhere) = (Spool::of(root.path(), "main"), Spool::of(root.path(), "main2"));
    for dir in [spool.out(), spool.queue(), elsewhere.out()] {
        Spool::prepare(dir).unwrap();
    }
    let files = [
        spool.out().join(format!("{NAME}.ok")),
        spool.out().join("00000002.history.error"),
        spool.out().join("global.error"),
        spool.queue().join(NAME),
        spool.queue().join(format!("{NAME}.sum")),
        spool.queue().join("plan"),
    ];
    let kept = [spool.out().join("notes"), elsewhere.out().join(format!("{NAME}.ok"))];
    files.iter().chain(&kept).for_each(|path| std::fs::write(path, "x").unwrap());
    assert_eq!(Spool::wipe(root.path(), "main").unwrap(), files.len() as u64);
    assert!(files.iter().all(|path| !path.exists()) && kept.iter().all(|path| path.exists()));

    let linked = root.path().join("archive/linked");
    symlink(root.path().join("archive/main2"), &linked).unwrap();
    assert!(Spool::wipe(root.path(), "linked").is_err());
    assert!(kept[1].exists());
}
