//! The host's time zone, found without looking through the whole zone database.
//!
//! jiff's own search lists every zone directory first, which costs 5 ms: more than all the rest of a start, and
//! `archive-push` starts once per WAL segment. The usual places are read directly; jiff is asked only when
//! `TZ` holds something unusual.

use jiff::Zoned;
use jiff::tz::TimeZone;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::LazyLock;

static LOCAL: LazyLock<TimeZone> = LazyLock::new(|| {
    find(std::env::var_os("TZ").as_deref(), Path::new("/etc/localtime"), Path::new("/usr/share/zoneinfo"))
        .unwrap_or_else(TimeZone::system)
});

/// The host's time zone, found once per process.
#[must_use]
pub fn local() -> TimeZone {
    LOCAL.clone()
}

/// Now, in the host's time zone.
#[must_use]
pub fn now() -> Zoned {
    jiff::Timestamp::now().to_zoned(local())
}

/// The zone that `TZ` names, else the one of `localtime`, else UTC. `None` if `TZ` is beyond us.
fn find(tz: Option<&OsStr>, localtime: &Path, database: &Path) -> Option<TimeZone> {
    match tz {
        None => Some(read("Local", localtime).unwrap_or(TimeZone::UTC)),
        Some(tz) => {
            let name = tz.to_str()?.trim_start_matches(':');
            match name {
                "" | "UTC" => Some(TimeZone::UTC),
                name if name.starts_with('/') => read("Local", Path::new(name)),
                name if name.contains("..") => None,
                name => read(name, &database.join(name)),
            }
        }
    }
}

fn read(name: &str, path: &Path) -> Option<TimeZone> {
    TimeZone::tzif(name, &std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A zone file of the older form: one offset, no changes.
    fn tzif(seconds: i32, name: &str) -> Vec<u8> {
        let mut bytes = b"TZif\0".to_vec();
        bytes.extend([0; 15]);
        for count in [0_u32, 0, 0, 0, 1, u32::try_from(name.len() + 1).unwrap()] {
            bytes.extend(count.to_be_bytes());
        }
        bytes.extend(seconds.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes
    }

    #[test]
    fn the_usual_places_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("Area")).unwrap();
        std::fs::write(path("localtime"), tzif(3600, "LOC")).unwrap();
        std::fs::write(path("Area/City"), tzif(-7200, "CIT")).unwrap();
        let at = jiff::Timestamp::UNIX_EPOCH;
        let offset = |tz: Option<&str>, localtime: &str| {
            find(tz.map(OsStr::new), &path(localtime), dir.path()).map(|zone| zone.to_offset(at).seconds())
        };
        assert_eq!(offset(None, "localtime"), Some(3600));
        assert_eq!(offset(None, "missing"), Some(0));
        assert_eq!(offset(Some("Area/City"), "localtime"), Some(-7200));
        assert_eq!(offset(Some(":Area/City"), "localtime"), Some(-7200));
        assert_eq!(offset(Some(path("Area/City").to_str().unwrap()), "localtime"), Some(-7200));
        assert_eq!(offset(Some(""), "localtime"), Some(0));
        assert_eq!(offset(Some("UTC"), "localtime"), Some(0));
        for beyond in ["CET-1CEST", "../x", "Area", "No/Where"] {
            assert_eq!(offset(Some(beyond), "localtime"), None, "{beyond}");
        }
    }
}
