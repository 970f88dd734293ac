//! The `format` object: what a program must know of a repository before it has any key.
//!
//! Plaintext; its last 32 bytes are a keyed hash that a holder of any key slot checks. Lists of features are
//! sorted and without repetition, so that equal records have equal bytes. Layout: FORMAT.md, "Format object".

use crate::FormatError;
use crate::codec::{Reader, Writer};
use crate::id::RepoId;

/// First bytes of the object.
pub const MAGIC: [u8; 8] = *b"PGKEEPF1";
/// The only version.
pub const VERSION: u32 = 1;
/// Bytes of the keyed hash at the end.
pub const MAC_LEN: usize = 32;
/// Most features in one list.
pub const FEATURES_MAX: usize = 256;
/// Most bytes of a feature's name.
pub const FEATURE_LEN_MAX: usize = 64;
/// Bounds of a region and of everything cut: no chunk has more plaintext.
pub const REGION_BYTES: std::ops::RangeInclusive<u32> = 64 * 1024..=1024 * 1024;
/// Bounds of the pack target.
pub const PACK_BYTES: std::ops::RangeInclusive<u32> = 1024 * 1024..=1024 * 1024 * 1024;

/// Features without which the repository cannot be read that this program knows.
pub const READ_FEATURES: &[&str] = &[];
/// Features without which it must not be written that this program knows.
pub const WRITE_FEATURES: &[&str] = &[];
/// Features without which gc must not run that this program knows.
pub const GC_FEATURES: &[&str] = &[];

/// How relation files are cut at first sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CutMode {
    /// At multiples of the region.
    Aligned = 1,
    /// Content-defined over pages, a region on average.
    PageCdc = 2,
}

/// How files become chunks. All sizes are powers of two, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutParameters {
    /// For relation files.
    pub mode: CutMode,
    /// Region of relation files, within [`REGION_BYTES`].
    pub region_bytes: u32,
    /// Smallest chunk of other files.
    pub other_bytes_min: u32,
    /// Average chunk of other files.
    pub other_bytes_avg: u32,
    /// Largest chunk of other files.
    pub other_bytes_max: u32,
}

impl Default for CutParameters {
    fn default() -> Self {
        Self {
            mode: CutMode::Aligned,
            region_bytes: 256 * 1024,
            other_bytes_min: 16 * 1024,
            other_bytes_avg: 64 * 1024,
            other_bytes_max: 256 * 1024,
        }
    }
}

/// Names of features a program must know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// To read.
    pub read: Vec<String>,
    /// To write.
    pub write: Vec<String>,
    /// To run gc.
    pub gc: Vec<String>,
}

/// A feature this program does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the repository needs feature '{feature}' to be {purpose}, which this program does not have")]
pub struct UnknownFeature {
    /// Its name.
    pub feature: String,
    /// "read", "written" or "collected".
    pub purpose: &'static str,
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// Random name of the repository.
    pub repo: RepoId,
    /// When it was created, seconds since the Unix epoch.
    pub created: i64,
    /// What a program must know.
    pub features: Features,
    /// How files are cut.
    pub cut: CutParameters,
    /// Size at which a pack is ended.
    pub pack_bytes: u32,
}

/// The bytes under a keyed hash, and the hash found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authenticated<'a> {
    /// What the hash covers.
    pub covered: &'a [u8],
    /// The hash.
    pub mac: [u8; MAC_LEN],
}

impl RepositoryConfig {
    /// A record with default parameters and no features.
    #[must_use]
    pub fn new(repo: RepoId, created: i64) -> Self {
        let pack_bytes = 32 * 1024 * 1024;
        Self { repo, created, features: Features::default(), cut: CutParameters::default(), pack_bytes }
    }

    /// The bytes the keyed hash covers; the hash goes behind them.
    ///
    /// # Errors
    /// [`FormatError`] if a field is out of its bounds.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let mut w = Writer::new();
        w.bytes(&MAGIC).u32(VERSION).bytes(&self.repo.0).i64(self.created);
        for list in [&self.features.read, &self.features.write, &self.features.gc] {
            w.u16(list.len().min(usize::from(u16::MAX)) as u16);
            for name in list {
                w.u8(name.len().min(255) as u8).bytes(name.as_bytes());
            }
        }
        let cut = &self.cut;
        w.u8(cut.mode as u8).u32(cut.region_bytes);
        w.u32(cut.other_bytes_min).u32(cut.other_bytes_avg).u32(cut.other_bytes_max).u32(self.pack_bytes);
        // The decoder knows all bounds; what it would not take must not be written.
        let mut with_mac = w.as_bytes().to_vec();
        with_mac.extend_from_slice(&[0; MAC_LEN]);
        Self::decode(&with_mac)?;
        Ok(w.into_bytes())
    }

    /// Reads the record; nothing of it may be trusted before its hash has been checked.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn decode(bytes: &[u8]) -> Result<(Self, Authenticated<'_>), FormatError> {
        let mut r = Reader::new(bytes);
        if r.array::<8>("magic")? != MAGIC {
            return Err(FormatError::BadMagic { what: "pgkeep repository" });
        }
        let version = r.u32("version")?;
        if version != VERSION {
            return Err(FormatError::BadVersion { what: "repository", found: version.into(), supported: "1" });
        }
        let repo = RepoId::read(&mut r)?;
        let created = r.i64("created")?;
        let features = Features { read: names(&mut r)?, write: names(&mut r)?, gc: names(&mut r)? };
        let cut = cut_parameters(&mut r)?;
        let offset = r.offset();
        let pack_bytes = r.u32("pack target")?;
        if !PACK_BYTES.contains(&pack_bytes) {
            return Err(FormatError::OutOfRange { offset, what: "pack target", found: pack_bytes.into() });
        }
        let covered = bytes.get(..r.offset()).unwrap_or_default();
        let mac = r.array("mac")?;
        r.finish("format object")?;
        Ok((Self { repo, created, features, cut, pack_bytes }, Authenticated { covered, mac }))
    }

    /// Whether this program can read the repository.
    ///
    /// # Errors
    /// The first feature that is not known.
    pub fn check_read(&self) -> Result<(), UnknownFeature> {
        known(&self.features.read, READ_FEATURES, "read")
    }

    /// Whether this program may write to the repository.
    ///
    /// # Errors
    /// The first feature that is not known.
    pub fn check_write(&self) -> Result<(), UnknownFeature> {
        self.check_read()?;
        known(&self.features.write, WRITE_FEATURES, "written")
    }

    /// Whether this program may run gc on the repository.
    ///
    /// # Errors
    /// The first feature that is not known.
    pub fn check_gc(&self) -> Result<(), UnknownFeature> {
        self.check_write()?;
        known(&self.features.gc, GC_FEATURES, "collected")
    }
}

fn known(needed: &[String], known: &[&str], purpose: &'static str) -> Result<(), UnknownFeature> {
    match needed.iter().find(|name| !known.contains(&name.as_str())) {
        Some(feature) => Err(UnknownFeature { feature: feature.clone(), purpose }),
        None => Ok(()),
    }
}

fn names(r: &mut Reader<'_>) -> Result<Vec<String>, FormatError> {
    let offset = r.offset();
    let count = r.u16("feature count")?;
    if usize::from(count) > FEATURES_MAX {
        return Err(FormatError::OutOfRange { offset, what: "feature count", found: count.into() });
    }
    let mut out: Vec<String> = Vec::new();
    for _ in 0..count {
        let offset = r.offset();
        let len = r.u8("feature length")?;
        if len == 0 || usize::from(len) > FEATURE_LEN_MAX {
            return Err(FormatError::OutOfRange { offset, what: "feature length", found: len.into() });
        }
        let text = std::str::from_utf8(r.bytes(len.into(), "feature")?)
            .map_err(|e| FormatError::BadText { what: "feature", detail: e.to_string() })?;
        if out.last().is_some_and(|last| last.as_str() >= text) {
            return Err(FormatError::BadText { what: "feature", detail: "list is not in order".into() });
        }
        out.push(text.to_owned());
    }
    Ok(out)
}

fn cut_parameters(r: &mut Reader<'_>) -> Result<CutParameters, FormatError> {
    let offset = r.offset();
    let mode = match r.u8("cut mode")? {
        1 => CutMode::Aligned,
        2 => CutMode::PageCdc,
        found => return Err(FormatError::OutOfRange { offset, what: "cut mode", found: found.into() }),
    };
    let mut size = |what, min: u32, max: u32| {
        let offset = r.offset();
        let found = r.u32(what)?;
        if (min..=max).contains(&found) && found.is_power_of_two() {
            Ok(found)
        } else {
            Err(FormatError::OutOfRange { offset, what, found: found.into() })
        }
    };
    let largest = *REGION_BYTES.end();
    let region_bytes = size("region", *REGION_BYTES.start(), largest)?;
    let other_bytes_min = size("smallest chunk", 1024, largest)?;
    let other_bytes_avg = size("average chunk", other_bytes_min, largest)?;
    let other_bytes_max = size("largest chunk", other_bytes_avg, largest)?;
    Ok(CutParameters { mode, region_bytes, other_bytes_min, other_bytes_avg, other_bytes_max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> RepositoryConfig {
        let mut config = RepositoryConfig::new(RepoId([3; 16]), -5);
        config.features.write = vec!["append-log".into(), "zeta".into()];
        config
    }

    fn signed(config: &RepositoryConfig) -> Vec<u8> {
        let mut bytes = config.encode().unwrap();
        bytes.extend_from_slice(&[8; MAC_LEN]);
        bytes
    }

    #[test]
    fn records_round_trip() {
        let bytes = signed(&sample());
        let (config, authenticated) = RepositoryConfig::decode(&bytes).unwrap();
        assert_eq!(config, sample());
        assert_eq!(authenticated.mac, [8; MAC_LEN]);
        assert_eq!(authenticated.covered, sample().encode().unwrap());
        for short in 0..bytes.len() {
            assert!(RepositoryConfig::decode(&bytes[..short]).is_err());
        }
    }

    #[test]
    fn unknown_features_stop_what_they_must() {
        let mut config = sample();
        assert!(config.check_read().is_ok());
        assert_eq!(config.check_write().unwrap_err().feature, "append-log");
        assert!(config.check_gc().is_err());
        config.features = Features { gc: vec!["slow".into()], ..Features::default() };
        assert!(config.check_write().is_ok() && config.check_gc().is_err());
        config.features = Features { read: vec!["new".into()], ..Features::default() };
        assert!(config.check_read().is_err() && config.check_write().is_err() && config.check_gc().is_err());
    }

    #[test]
    fn what_cannot_be_read_is_not_written() {
        let bad = [
            |c: &mut RepositoryConfig| c.features.gc = vec!["b".into(), "a".into()],
            |c: &mut RepositoryConfig| c.features.read = vec!["x".repeat(300)],
            |c: &mut RepositoryConfig| c.features.read = vec![String::new()],
            |c: &mut RepositoryConfig| c.cut.region_bytes = 65_537,
            |c: &mut RepositoryConfig| c.cut.region_bytes = 2 << 20,
            |c: &mut RepositoryConfig| c.cut.other_bytes_avg = 8 * 1024,
            |c: &mut RepositoryConfig| c.pack_bytes = 5,
        ];
        for spoil in bad {
            let mut config = sample();
            spoil(&mut config);
            assert!(config.encode().is_err(), "{config:?}");
        }
    }

    proptest! {
        #[test]
        fn damaged_records_never_panic(at in 0usize..120, to in any::<u8>(), cut in 0usize..130) {
            let mut bytes = signed(&sample());
            if let Some(b) = bytes.get_mut(at) { *b = to; }
            bytes.truncate(cut);
            if let Ok((config, a)) = RepositoryConfig::decode(&bytes) {
                prop_assert_eq!(config.encode().unwrap(), a.covered);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RepositoryConfig::decode(&bytes).is_ok();
        }
    }
}
