//! Names of users and groups, from `/etc/passwd` and `/etc/group`.
//!
//! The files are read directly: the C library's way would load directory-service plugins into this process.
//! An account that only such a service knows has no name here, and its number stands for it.

use std::collections::HashMap;
use std::path::Path;

/// The accounts of this host as they were at one moment.
#[derive(Debug, Default, Clone)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both files. A file that cannot be read has no names in it.
    #[must_use]
    pub fn load() -> Self {
        Self { users: read("/etc/passwd".as_ref()), groups: read("/etc/group".as_ref()) }
    }

    /// The user's name, if known.
    #[must_use]
    pub fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }

    /// The group's name, if known.
    #[must_use]
    pub fn group(&self, gid: u32) -> Option<&str> {
        self.groups.get(&gid).map(String::as_str)
    }

    /// The number of a user of this name, if known.
    #[must_use]
    pub fn user_id(&self, name: &str) -> Option<u32> {
        self.users.iter().filter(|(_, n)| *n == name).map(|(id, _)| *id).min()
    }

    /// The number of a group of this name, if known.
    #[must_use]
    pub fn group_id(&self, name: &str) -> Option<u32> {
        self.groups.iter().filter(|(_, n)| *n == name).map(|(id, _)| *id).min()
    }
}

/// The name of one user, if known.
#[must_use]
pub fn user(uid: u32) -> Option<String> {
    read("/etc/passwd".as_ref()).remove(&uid)
}

fn read(path: &Path) -> HashMap<u32, String> {
    std::fs::read(path).map(|bytes| parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default()
}

/// Both files are `name:password:number:...`; the first line of a number counts, as in the C library.
fn parse(text: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        let (name, number) = (fields.next(), fields.nth(1).and_then(|n| n.parse().ok()));
        if let (Some(name), Some(number)) = (name, number)
            && !name.is_empty()
        {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_a_number_counts_and_broken_lines_do_not() {
        let names = parse("root:x:0:0::/root:/bin/sh\ntoor:x:0:0\n\nbroken\n:x:7:\nbad:x:y:\npostgres:x:101:104::");
        assert_eq!(names.len(), 2);
        assert_eq!(names.get(&0).map(String::as_str), Some("root"));
        assert_eq!(names.get(&101).map(String::as_str), Some("postgres"));
    }

    #[test]
    fn this_host_knows_root_both_ways() {
        let names = Names::load();
        assert_eq!(names.user(0), Some("root"));
        assert_eq!(names.user_id("root"), Some(0));
        assert_eq!(names.group(0), Some("root"));
        assert_eq!(names.group_id("root"), Some(0));
        assert_eq!(names.user(4_000_000_000), None);
    }
}
