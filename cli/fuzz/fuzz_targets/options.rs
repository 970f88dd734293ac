#![no_main]
//! Whatever stands in the files, the environment and the command line: it is resolved or refused, never a panic.

use pgkeep_cli::option::table::TABLE;
use pgkeep_cli::option::{Invocation, load};
use std::cell::OnceCell;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use tempfile::TempDir;

thread_local! {
    /// Where the files lie: one directory, as an input is one call on one thread.
    static ETC: OnceCell<TempDir> = const { OnceCell::new() };
}

/// A byte of 128 and more with the one behind it stands for the name of an option: letters by chance hardly ever make one.
fn expanded(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        match byte {
            0x80.. => {
                let number = usize::from(byte & 0x7f) << 8 | usize::from(rest.next().copied().unwrap_or_default());
                out.extend_from_slice(TABLE[number % TABLE.len()].name.as_bytes());
            }
            _ => out.push(*byte),
        }
    }
    out
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.split(|b| *b == 0).map(expanded);
    let mut part = || parts.next().unwrap_or_default();
    let (file, more, args, vars) = (part(), part(), part(), part());
    ETC.with(|etc| {
        let etc = etc.get_or_init(|| tempfile::tempdir_in("/dev/shm").expect("no directory"));
        let home = etc.path().join("pgkeep");
        std::fs::create_dir_all(home.join("conf.d")).expect("no directory");
        std::fs::write(home.join("pgkeep.conf"), file).expect("no file");
        std::fs::write(home.join("conf.d/more.conf"), more).expect("no file");
        let lines = |text: Vec<u8>| -> Vec<Vec<u8>> { text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect() };
        let vars = lines(vars).into_iter().filter_map(|line| {
            let at = line.iter().position(|b| *b == b'=')?;
            let name = [b"PGKEEP_".as_slice(), &line[..at].to_ascii_uppercase()].concat();
            Some((OsString::from_vec(name), OsString::from_vec(line[at + 1..].to_vec())))
        });
        let invocation = Invocation {
            argv0: "pgkeep".into(),
            args: lines(args).into_iter().map(OsString::from_vec).collect(),
            vars: vars.collect(),
            euid: 1000,
            cwd: "/".into(),
            exe: "/usr/bin/pgkeep".into(),
            etc: etc.path().to_owned(),
        };
        drop(load(&invocation));
    });
});
