//! What is said to `clone` is used or refused.

use crate::places::{Places, world};
use std::fs;
use support::world::data;

#[test]
fn what_would_change_nothing_is_refused() {
    let (world, _) = world();
    let places = Places::new(&world, "o");
    places.create(&world, &[]);
    for (what, option) in [("start", "--port=6000"), ("mount", "--set=latest"), ("reset", "--type=immediate")] {
        let run = world.expect(31, places.args(what).into_iter().chain([option.to_owned()]));
        let name = option.trim_start_matches("--").split('=').next().unwrap();
        assert!(run.says(&format!("option '{name}' is for making a clone, not for 'clone {what}'")), "{run}");
    }
    assert!(places.is_mounted(&world));
    world.ok(places.args("destroy"));
}

#[test]
fn clones_get_ports_of_their_own_and_keep_them_while_they_do_not_run() {
    let (world, _) = world();
    let info = |places: &Places| places.info(&world);
    let (one, two) = (Places::new(&world, "one"), Places::new(&world, "two"));
    one.create(&world, &[]);
    two.create(&world, &["--type=immediate"]);
    assert_ne!(info(&one)["port"], info(&two)["port"]);
    assert_eq!((&info(&one)["type"], &info(&two)["type"]), (&"default".into(), &"immediate".into()));
    let held = info(&one)["held"].as_u64().unwrap();
    assert!(held > 0 && held < info(&one)["bytes"].as_u64().unwrap(), "{held}");

    // Made anew it may get another, and the server listens there.
    let sockets = world.sandbox.dir("sockets");
    let more = [
        format!("--port={}", world.cluster.port()),
        format!("--socket-path={}", sockets.display()),
        "--start".to_owned(),
        format!("--pg-bin={}", world.pg_bin().display()),
    ];
    world.ok(two.args("reset").into_iter().chain(more));
    assert_eq!(info(&two)["port"], world.cluster.port());
    assert!(sockets.join(format!(".s.PGSQL.{}", world.cluster.port())).exists());
    for places in [&one, &two] {
        let run = world.run(places.args("stop"));
        assert_eq!(run.code, Some(0), "{run}");
        world.ok(places.args("destroy"));
    }
}

#[test]
fn a_clone_is_not_made_inside_a_data_directory() {
    let (world, _) = world();
    let before = data(&world.cluster);
    let inside = world.cluster.data_dir().join("clone");
    let outside = world.path("outside");
    for (dir, mountpoint) in [(&inside, &outside), (&outside, &inside)] {
        let args = [format!("--dir={}", dir.display()), format!("--mountpoint={}", mountpoint.display())];
        let run = world.expect(32, ["clone".to_owned(), "create".to_owned()].into_iter().chain(args));
        assert!(run.says("lies in the data directory"), "{run}");
        assert!(!inside.exists() && !outside.exists());
    }
    let run = world.expect(32, ["mount", inside.to_str().unwrap()]);
    assert!(run.says("lies in the data directory") && !inside.exists(), "{run}");
    assert_eq!(data(&world.cluster), before);
}

#[test]
fn nothing_is_mounted_or_made_inside_the_repository() {
    let (world, _) = world();
    let repository = world.sandbox.repo();
    let before = fs::read_dir(&repository).unwrap().count();
    let (inside, outside) = (repository.join("clone"), world.path("outside"));
    for (dir, mountpoint) in [(&inside, &outside), (&outside, &inside)] {
        let args = [format!("--dir={}", dir.display()), format!("--mountpoint={}", mountpoint.display())];
        let run = world.expect(32, ["clone".to_owned(), "create".to_owned()].into_iter().chain(args));
        assert!(run.says("lies in the repository"), "{run}");
        assert!(!inside.exists() && !outside.exists());
    }
    for place in [&inside, &repository] {
        let run = world.expect(32, ["mount", place.to_str().unwrap()]);
        assert!(run.says("lies in the repository"), "{run}");
    }
    assert_eq!(fs::read_dir(&repository).unwrap().count(), before);
}
