//! Who the restored files shall belong to.

use crate::pg::datadir::names::Names;
use rustix::fs::{Gid, Uid};

/// Numbers for the manifest's names of owners and groups.
pub(super) struct Owners(Option<Vec<(u32, u32)>>);

impl Owners {
    /// Without privileges everything belongs to who restores. Root gives each file to the owner that the manifest names;
    /// where this host does not know the name, to `fallback`, who owns the data directory, or to root.
    pub(super) fn new(names: &[String], uid: u32, fallback: Option<(u32, u32)>) -> Self {
        if uid != 0 {
            return Self(None);
        }
        let (user, group) = fallback.unwrap_or((0, 0));
        let here = Names::load();
        let number = |name: &String| name.parse().ok();
        let both = |name: &String| {
            let uid = here.user_id(name).or_else(|| number(name)).unwrap_or(user);
            (uid, here.group_id(name).or_else(|| number(name)).unwrap_or(group))
        };
        Self(Some(names.iter().map(both).collect()))
    }

    /// Owner and group for two names of the manifest; `None` if they are not to be changed.
    pub(super) fn of(&self, user: u32, group: u32) -> Option<(Uid, Gid)> {
        let numbers = self.0.as_ref()?;
        let (uid, _) = *numbers.get(user as usize)?;
        let (_, gid) = *numbers.get(group as usize)?;
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gives_files_to_named_owners_and_the_rest_to_the_directorys() {
        let names = ["root".to_owned(), "4000000".to_owned(), "nobody-of-this-name".to_owned()];
        let owners = Owners::new(&names, 0, Some((7, 8)));
        let raw = |user, group| owners.of(user, group).map(|(u, g)| (u.as_raw(), g.as_raw()));
        assert_eq!(raw(0, 1), Some((0, 4_000_000)));
        assert_eq!(raw(2, 2), Some((7, 8)));
        assert_eq!(raw(9, 0), None);
        assert!(Owners::new(&names, 101, None).of(0, 0).is_none());
    }
}
