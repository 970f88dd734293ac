//! Items 1 to 21, in their order, on one cluster.

mod back;
mod first;
mod sets;

use support::{Cluster, Mode};

use crate::{
    brief,
    rig::{Guide, item, says},
    whole,
};

#[test]
fn items_1_to_21_on_one_cluster() {
    for major in whole() {
        println!("== PostgreSQL {major}");
        let mut guide = Guide::new(Cluster::builder(major));
        first::install(&mut guide);
        first::backups(&mut guide);
        first::disaster(&mut guide);
        first::monitor(&guide);
        sets::bundles_and_blocks(&mut guide);
        sets::annotations(&guide);
        sets::retention(&mut guide);
        back::delta(&mut guide);
        back::one_database(&mut guide);
        back::point_in_time(&mut guide);
        back::every_target(&guide);
        gone(&mut guide);
    }
}

#[test]
fn items_1_to_10_on_the_other_majors() {
    for major in brief() {
        println!("== PostgreSQL {major}");
        let mut guide = Guide::new(Cluster::builder(major));
        first::install(&mut guide);
        first::backups(&mut guide);
        first::disaster(&mut guide);
        first::monitor(&guide);
    }
}

/// Items 21, and what 22 has of several repositories.
fn gone(guide: &mut Guide) {
    item("22", "a second repository, a directory here");
    let second = guide.sandbox.dir("repo2").display().to_string();
    guide.set("global", "repo2-path", &second);
    guide.set("global", "repo2-retention-full", "2");
    guide.ok("stanza-create");
    let run = guide.ok("check");
    for repo in ["on repo1", "on repo2"] {
        let lines =
            run.messages("INFO").into_iter().filter(|m| m.contains("successfully archived") && m.ends_with(repo));
        assert_eq!(lines.count(), 1, "{run}");
    }
    let label = guide.backup("--repo=2 --type=full");
    let info = guide.info("--repo=2");
    assert!(info["backup"][0]["label"] == label && info["backup"].as_array().unwrap().len() == 1, "{info:#}");

    item("21", "the stanza is removed, if it was stopped and its server too");
    says(&guide.expect(37, "stanza-delete"), &["[037]"]);
    says(&guide.expect(55, "--repo=2 stanza-delete"), &["[055]", "stop file"]);
    guide.ok("stop");
    says(&guide.expect(38, "--repo=2 stanza-delete"), &["[038]", "postmaster.pid"]);
    guide.ok("--repo=2 --force stanza-delete");
    guide.cluster.stop(Mode::Fast);
    guide.ok("stop");
    guide.ok("--repo=1 stanza-delete");
    let run = guide.shell_expect(0, "pgbackrest --stanza=demo info");
    says(&run, &["status: error (missing stanza path)"]);
}
