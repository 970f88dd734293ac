//! Whether a segment in the archive is this server's.

use super::*;

#[test]
fn a_segment_is_compared_as_long_as_the_server_has_it() {
    let (_, repositories) = one(Version::V16);
    let cluster = Cluster::new(Version::V16, SYSTEM);
    let name = cluster.segment(3, 1);
    cluster.push(&repositories, &name).unwrap();
    let repository = repositories[0].repository.as_ref().unwrap();
    let check = || check_own(repository, "main", "16-1", cluster.path(), &name, true).map_err(|e| e.kind());
    cluster.segment(3, 2);
    assert_eq!(check(), Ok(()), "without a mark it is being written");
    for end in ["ready", "done"] {
        let mark = cluster.wal("archive_status").join(format!("{name}.{end}"));
        std::fs::write(&mark, "").unwrap();
        assert_eq!(check(), Err(Kind::ArchiveDuplicate), "marked {end}, and the archive has another one");
        cluster.segment(3, 1);
        assert_eq!(check(), Ok(()));
        // What was made another segment while it was read says so.
        cluster.file(&name, &cluster.content(segment(9), 2));
        assert_eq!(check(), Ok(()));
        std::fs::remove_file(cluster.wal(&name)).unwrap();
        assert_eq!(check(), Ok(()));
        cluster.segment(3, 2);
        std::fs::remove_file(mark).unwrap();
    }
}
