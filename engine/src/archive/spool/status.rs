//! One word in the spool: its text, and what it is about.
//!
//! ```text
//! 0                                         exit status; 0 is good
//! WAL file '…' already exists …             a message, perhaps of several lines, perhaps none
//! #dropped                                  if the file was given up
//! #held 1,3                                 repositories that hold it, if others do not
//! #file for=… size=… … blake3=…             what it is about
//! ```
//!
//! The first lines are pgBackRest's. A good word of another status than 0 is an error that somebody has renamed: the file is
//! to be passed over. A word without the last line is about nothing.

use crate::{FileError, Result};
use pgkeep_formats::pg::control::ControlFile;
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

const FILE: &str = "#file ";
const DROPPED: &str = "#dropped";
const HELD: &str = "#held ";
/// Stands for a hash or mark that is not known.
const UNKNOWN: &str = "-";

/// What tells a repository from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryIdentity {
    /// All that is configured of it.
    pub config: String,
    /// What tells the stanza in it from one that was made anew at the same place, see [`stanza_mark`]; none if the
    /// repository cannot be read now.
    ///
    /// [`stanza_mark`]: crate::repository::stanza_mark
    pub mark: Option<String>,
}

/// The cluster and the repositories that something in the spool belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Hash of the stanza, the cluster, and what is configured.
    config: String,
    /// The mark of each repository, if it can be read.
    marks: Vec<Option<String>>,
}

impl Binding {
    /// Of these: the stanza, the cluster as far as it is known, and what tells each repository from others, in their order.
    #[must_use]
    pub fn new(stanza: &str, control: Option<&ControlFile>, repositories: &[RepositoryIdentity]) -> Self {
        let mut hasher = blake3::Hasher::new();
        let cluster = control.map_or_else(String::new, |c| format!("{} {}", c.version.major(), c.system_identifier));
        for part in [stanza, &cluster].into_iter().chain(repositories.iter().map(|r| r.config.as_str())) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        let config = hasher.finalize().to_hex().chars().take(32).collect();
        let short = |mark: &String| blake3::hash(mark.as_bytes()).to_hex().chars().take(16).collect();
        Self { config, marks: repositories.iter().map(|r| r.mark.as_ref().map(short)).collect() }
    }

    /// Whether every repository is known to be the one it is.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.marks.iter().all(Option::is_some)
    }

    /// Whether this is the text of a binding of the same, as far as the repositories can be read now.
    pub(in crate::archive) fn may_be(&self, text: &str) -> bool {
        let mut parts = text.split('.');
        let is_ours = parts.next() == Some(&self.config);
        let marks: Vec<_> = parts.collect();
        let same = |(own, said): (&Option<String>, &&str)| own.as_ref().is_none_or(|own| own == said);
        is_ours && marks.len() == self.marks.len() && self.marks.iter().zip(&marks).all(same)
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.config)?;
        self.marks.iter().try_for_each(|mark| write!(f, ".{}", mark.as_deref().unwrap_or(UNKNOWN)))
    }
}

/// What tells a file from others that had its name.
///
/// The kernel sets the time of change whenever content, name or owner change, and nobody else can: equal facts are the same
/// content. Other facts may be the same content all the same, which its hash tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    facts: String,
    hash: Option<String>,
}

impl Identity {
    /// Of a file with these facts and, if it has been read, this content.
    #[must_use]
    pub fn new(facts: &Metadata, content: Option<&[u8]>) -> Self {
        let facts = format!(
            "size={} inode={} mtime={}.{:09} ctime={}.{:09}",
            facts.len(),
            facts.ino(),
            facts.mtime(),
            facts.mtime_nsec(),
            facts.ctime(),
            facts.ctime_nsec()
        );
        Self { facts, hash: content.map(hash) }
    }

    /// Of a file as it is now, unread; also if it is not there.
    ///
    /// # Errors
    /// `FileInfo`.
    pub fn of(path: &Path) -> Result<Self> {
        match std::fs::metadata(path) {
            Ok(facts) => Ok(Self::new(&facts, None)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Self { facts: "absent".into(), hash: None }),
            Err(e) => Err(FileError::at("stat", path)(e).into()),
        }
    }
}

fn hash(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every repository holds it.
    Pushed,
    /// It was given up, as `archive-push-queue-max` asks.
    Dropped,
    /// It failed, with this exit status.
    Failed(u8),
}

/// One word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What became of the file.
    pub outcome: Outcome,
    /// What to tell; empty if nothing.
    pub message: String,
    /// Numbers of the repositories that hold the file, if others do not. Spares them, and acknowledges nothing.
    pub held: BTreeSet<u32>,
    about: Option<(String, Identity)>,
}

impl Status {
    /// A word about a file.
    #[must_use]
    pub fn new(outcome: Outcome, message: impl Into<String>, about: Option<(&Binding, Identity)>) -> Self {
        let about = about.map(|(binding, file)| (binding.to_string(), file));
        Self { outcome, message: message.into(), held: BTreeSet::new(), about }
    }

    /// The same, of a file that these repositories hold.
    #[must_use]
    pub fn held_by(self, held: BTreeSet<u32>) -> Self {
        Self { held, ..self }
    }

    /// Whether it is about a failure.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }

    /// Whether it may be passed on: it is about the file at `path`, and if it says that every repository holds that, each
    /// is known to be the one that did.
    ///
    /// # Errors
    /// As [`Self::is_about`].
    pub fn is_believed(&self, binding: &Binding, path: &Path) -> Result<bool> {
        Ok((self.outcome != Outcome::Pushed || binding.is_certain()) && self.is_about(binding, path)?)
    }

    /// Whether it is about the file that is at `path` now. Reads the file only if its facts have changed.
    ///
    /// # Errors
    /// `FileInfo`, `FileRead`.
    pub fn is_about(&self, binding: &Binding, path: &Path) -> Result<bool> {
        let Some((_, said)) = self.about.as_ref().filter(|(of, _)| *of == binding.to_string()) else {
            return Ok(false);
        };
        if Identity::of(path)?.facts == said.facts {
            return Ok(true);
        }
        let Some(expected) = &said.hash else { return Ok(false) };
        match std::fs::read(path) {
            Ok(content) => Ok(hash(&content) == *expected),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(FileError::at("read", path)(e).into()),
        }
    }

    /// Its text.
    #[must_use]
    pub fn encode(&self) -> String {
        let code = if let Outcome::Failed(code) = self.outcome { code } else { 0 };
        let mut text = format!("{code}\n");
        // Writing to a string cannot fail.
        let _ = match self.message.trim_end() {
            "" => Ok(()),
            message => writeln!(text, "{message}"),
        };
        if self.outcome == Outcome::Dropped {
            let _ = writeln!(text, "{DROPPED}");
        }
        if !self.held.is_empty() {
            let held: Vec<_> = self.held.iter().map(u32::to_string).collect();
            let _ = writeln!(text, "{HELD}{}", held.join(","));
        }
        if let Some((binding, file)) = &self.about {
            let hash = file.hash.as_deref().unwrap_or(UNKNOWN);
            let _ = writeln!(text, "{FILE}for={binding} {} blake3={hash}", file.facts);
        }
        text
    }

    /// Reads any text: one that is none of ours is a word about nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut lines: Vec<&str> = text.lines().collect();
        let about = lines.pop_if(|line| line.starts_with(FILE)).and_then(parse_about);
        let held = lines.pop_if(|line| line.starts_with(HELD)).and_then(|line| line.strip_prefix(HELD));
        let held = held.map(|keys| keys.split(',').filter_map(|key| key.parse().ok()).collect()).unwrap_or_default();
        let is_dropped = lines.pop_if(|line| *line == DROPPED).is_some();
        let code = lines.first().and_then(|line| line.trim().parse::<u8>().ok());
        let outcome = match code {
            Some(0) if is_dropped => Outcome::Dropped,
            // Another program's word about success is empty.
            Some(0) => Outcome::Pushed,
            None if lines.is_empty() => Outcome::Pushed,
            Some(code) => Outcome::Failed(code),
            // Cut off, or none of ours: what it says is passed on.
            None => Outcome::Failed(125),
        };
        let message = lines.get(usize::from(code.is_some())..).unwrap_or_default().join("\n");
        Self { outcome, message, held, about }
    }
}

fn parse_about(line: &str) -> Option<(String, Identity)> {
    let rest = line.strip_prefix(FILE)?.strip_prefix("for=")?;
    let (binding, rest) = rest.split_once(' ')?;
    let (facts, hash) = rest.rsplit_once(" blake3=")?;
    let hash = (hash != UNKNOWN).then(|| hash.to_owned());
    Some((binding.to_owned(), Identity { facts: facts.to_owned(), hash }))
}
