//! Data directories that `initdb` made once, copied for each cluster that wants one like it: that takes a quarter of the
//! time, and a run makes some two hundred.
//!
//! A copy gets a system identifier of its own, as `initdb` gives one: in `pg_control`, and in the header of the first WAL
//! segment, which the server compares with it.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use super::Binaries;
use crate::account;

/// Where an identifier is: it is the first thing in `pg_control`, and follows the short header of a WAL page.
const IN_CONTROL: u64 = 0;
const IN_WAL: u64 = 24;
/// Places where the checksum of `pg_control` may be, which covers all before it. They differ from major to major.
const CHECKSUM_PLACES: std::ops::Range<usize> = 200..400;

/// Fills an empty directory of the servers' account with a new cluster.
pub(super) fn initdb(binaries: &Binaries, args: &[&str], data: &Path) {
    let Some(template) = kept(binaries, args) else { return run(binaries, args, data) };
    let out = Command::new("cp").arg("-a").arg(template.join(".")).arg(data).output().expect("cannot run cp");
    assert!(out.status.success(), "cannot copy {}: {}", template.display(), String::from_utf8_lossy(&out.stderr));
    identify(data);
}

fn run(binaries: &Binaries, args: &[&str], data: &Path) {
    let mut initdb = account::command(binaries.own("initdb"));
    let out = initdb.arg("-D").arg(data).args(args).output().expect("cannot run initdb");
    assert!(out.status.success(), "initdb failed:\n{}", String::from_utf8_lossy(&out.stderr));
}

/// What this `initdb` makes of these arguments, made now if it was not yet; `None` where nothing can be kept.
fn kept(binaries: &Binaries, args: &[&str]) -> Option<PathBuf> {
    // A part of it would lie elsewhere.
    if args.iter().any(|arg| arg.contains('/')) {
        return None;
    }
    let cache = super::cache().join("initdb");
    let version = account::command(binaries.own("postgres")).arg("--version").output().expect("cannot run postgres");
    let key = format!("{} {args:?}", String::from_utf8_lossy(&version.stdout));
    let name = format!("{}-{}", binaries.major(), &blake3::hash(key.as_bytes()).to_hex()[..16]);
    let place = cache.join(name);
    if place.exists() {
        return Some(place);
    }
    // Who may not write there makes each cluster anew.
    fs::create_dir_all(&cache).ok()?;
    let part = tempfile::Builder::new().prefix("part-").tempdir_in(&cache).ok()?;
    fs::set_permissions(part.path(), fs::Permissions::from_mode(0o755)).expect("cannot set a mode");
    let data = account::private_dir(&part.path().join("data"));
    run(binaries, args, &data);
    // It stays: whole, whatever happens to the machine.
    rustix::fs::syncfs(File::open(&data).expect("cannot open a directory")).expect("cannot sync");
    match fs::rename(&data, &place) {
        // Another test has made the same meanwhile.
        Err(_) if place.exists() => {}
        result => result.unwrap_or_else(|error| panic!("cannot rename to {}: {error}", place.display())),
    }
    Some(place)
}

/// Makes a copied cluster one of its own.
fn identify(data: &Path) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    let mut random = [0; 4];
    getrandom::fill(&mut random).expect("no randomness");
    let identifier = (seconds << 32 | u64::from(u32::from_ne_bytes(random))).to_ne_bytes();

    let control = data.join("global/pg_control");
    let mut bytes = fs::read(&control).expect("cannot read pg_control");
    let is_there = |at: &usize| crc32c::crc32c(&bytes[..*at]).to_ne_bytes() == bytes[*at..*at + 4];
    let checksum = CHECKSUM_PLACES.step_by(4).find(is_there).expect("pg_control has no checksum");
    bytes[..8].copy_from_slice(&identifier);
    let sum = crc32c::crc32c(&bytes[..checksum]).to_ne_bytes();
    overwrite(&control, IN_CONTROL, &identifier);
    overwrite(&control, checksum as u64, &sum);
    for segment in fs::read_dir(data.join("pg_wal")).expect("cannot list pg_wal").map(Result::unwrap) {
        if segment.file_name().len() == "000000010000000000000001".len() {
            overwrite(&segment.path(), IN_WAL, &identifier);
        }
    }
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path);
    file.and_then(|file| file.write_all_at(bytes, at)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
