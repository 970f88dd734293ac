//! Whole invocations against the rules: precedence, sections, files, numbers, refusals.

use super::def::{Group, Scope};
use super::table::TABLE;
use super::*;
use proptest::prelude::*;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tempfile::TempDir;

mod any;
mod precedence;
mod refusals;

/// A host with configuration of its own.
struct Host {
    etc: TempDir,
    vars: Vec<(OsString, OsString)>,
    argv0: &'static str,
    euid: u32,
}

impl Host {
    fn new() -> Self {
        Self { etc: tempfile::tempdir().unwrap(), vars: Vec::new(), argv0: "/usr/bin/pgkeep", euid: 1000 }
    }

    fn with(config: &str) -> Self {
        let host = Self::new();
        host.file("pgkeep/pgkeep.conf", config);
        host
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.etc.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.into(), value.into()));
        self
    }

    fn invocation(&self, args: &str) -> Invocation {
        Invocation {
            argv0: self.argv0.into(),
            args: args.split(' ').filter(|a| !a.is_empty()).map(OsString::from).collect(),
            vars: self.vars.clone(),
            euid: self.euid,
            cwd: "/work dir".into(),
            exe: "/usr/bin/pgkeep".into(),
            etc: self.etc.path().to_owned(),
        }
    }

    fn run(&self, args: &str) -> Result<Loaded, OptionError> {
        load(&self.invocation(args))
    }

    fn get(&self, args: &str) -> Settings {
        self.run(args).unwrap_or_else(|e| panic!("{args}: {e}")).settings
    }

    fn status(&self, args: &str) -> u8 {
        self.run(args).map_or_else(|e| e.status.0, |_| 0)
    }

    fn notices(&self, level: Level, args: &str) -> Vec<String> {
        let loaded = self.run(args).unwrap_or_else(|e| panic!("{args}: {e}"));
        loaded.notices.into_iter().filter(|n| n.level == level).map(|n| n.text).collect()
    }
}

const PG: &str = "[demo]\npg1-path=/pg\n";
