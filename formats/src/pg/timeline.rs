//! Timelines and their history files.
//!
//! A history file has one line per ancestor, oldest first: parent timeline, the WAL position where it was
//! left, a reason. Timeline 1 has no history file. Source: `access/transam/timeline.c`; reading is as
//! liberal as the server's (comments, empty lines, any white space between fields).

use super::lsn::Lsn;
use crate::FormatError;
use std::fmt;

/// Names a timeline. Displays as a decimal number; file names spell it as eight hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The timeline a new cluster starts on.
    pub const FIRST: Self = Self(1);

    /// Eight upper-case hex digits, as file names have them.
    #[must_use]
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }

    /// Name of this timeline's history file: `00000002.history`.
    #[must_use]
    pub fn history_file_name(self) -> String {
        format!("{:08X}.history", self.0)
    }

    /// Parses the name of a history file; `None` if it is not one.
    #[must_use]
    pub fn parse_history_file_name(name: &str) -> Option<Self> {
        parse_hex8(name.strip_suffix(".history")?).map(Self)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimelineId({self})")
    }
}

/// Exactly eight upper-case hex digits.
pub(crate) fn parse_hex8(text: &str) -> Option<u32> {
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    if text.len() != 8 || !text.bytes().all(upper_hex) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

/// One ancestor of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where it was left: everything before this position is shared with its descendants.
    pub switch: Lsn,
    /// Why, as the server wrote it; bytes that are not UTF-8 are replaced.
    pub reason: String,
}

/// A timeline and the ancestors it grew out of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline itself.
    pub own: TimelineId,
    /// Its ancestors, oldest first; their ids increase and are all below `own`.
    pub parents: Vec<TimelineSwitch>,
}

impl TimelineHistory {
    /// A timeline without ancestors, as the server assumes where there is no history file.
    #[must_use]
    pub fn without_parents(own: TimelineId) -> Self {
        Self { own, parents: Vec::new() }
    }

    /// Parses the content of `own`'s history file.
    ///
    /// # Errors
    /// [`FormatError::BadText`] with the line that the server would refuse too.
    pub fn parse(own: TimelineId, bytes: &[u8]) -> Result<Self, FormatError> {
        let mut parents: Vec<TimelineSwitch> = Vec::new();
        for line in String::from_utf8_lossy(bytes).split('\n') {
            let content = line.trim_ascii();
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let entry = parse_line(content).ok_or_else(|| FormatError::bad_text("timeline history line", line))?;
            let follows = parents.last().is_none_or(|last| last.timeline < entry.timeline);
            if !follows || entry.timeline >= own {
                return Err(FormatError::bad_text("order of timelines in history line", line));
            }
            parents.push(entry);
        }
        Ok(Self { own, parents })
    }

    /// The content of the history file, as the server writes it.
    #[must_use]
    pub fn format(&self) -> String {
        let mut out = String::new();
        for entry in &self.parents {
            // The server puts an empty line before each line it appends to the parent's file.
            let gap = if out.is_empty() { "" } else { "\n" };
            out += &format!("{gap}{}\t{}\t{}\n", entry.timeline, entry.switch, entry.reason);
        }
        out
    }

    /// Where `timeline` was left on the way to this one; `None` if it is this one or not an ancestor.
    #[must_use]
    pub fn switch_point(&self, timeline: TimelineId) -> Option<Lsn> {
        self.parents.iter().find(|p| p.timeline == timeline).map(|p| p.switch)
    }

    /// True if what `timeline` wrote before `lsn` is part of this history: recovery along this history can
    /// start from a backup that ended at `lsn` on `timeline`.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        timeline == self.own || self.switch_point(timeline).is_some_and(|switch| lsn <= switch)
    }

    /// The timeline that holds the byte at `lsn` along this history.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.parents.iter().find(|p| lsn < p.switch).map_or(self.own, |p| p.timeline)
    }
}

fn parse_line(line: &str) -> Option<TimelineSwitch> {
    let (timeline, rest) = split_at_white_space(line);
    let (switch, reason) = split_at_white_space(rest);
    if timeline.is_empty() || !timeline.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let timeline = TimelineId(timeline.parse().ok()?);
    Some(TimelineSwitch { timeline, switch: Lsn::parse(switch).ok()?, reason: reason.to_owned() })
}

fn split_at_white_space(text: &str) -> (&str, &str) {
    match text.split_once(|c: char| c.is_ascii_whitespace()) {
        Some((first, rest)) => (first, rest.trim_ascii_start()),
        None => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> TimelineHistory {
        let text = b"1\t0/5000000\tno recovery target specified\n\n# by hand\n  3 \t 1/28  \n";
        TimelineHistory::parse(TimelineId(4), text).unwrap()
    }

    #[test]
    fn history_files_are_read_as_the_server_reads_them() {
        let h = sample();
        assert_eq!(h.parents.len(), 2);
        assert_eq!(h.parents[0].reason, "no recovery target specified");
        assert_eq!((h.parents[1].timeline, h.parents[1].switch), (TimelineId(3), Lsn(0x1_0000_0028)));
        assert_eq!(
            TimelineHistory::parse(TimelineId(7), b"").unwrap(),
            TimelineHistory::without_parents(TimelineId(7))
        );
    }

    #[test]
    fn what_the_server_refuses_is_refused() {
        let own = TimelineId(4);
        for text in ["x\t0/1\tr", "1", "1\t0/", "-1\t0/1", "2\t0/1\n1\t0/2", "1\t0/1\n1\t0/2", "4\t0/1", "5\t0/1"] {
            assert!(TimelineHistory::parse(own, text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_ancestor_counts_up_to_where_it_was_left() {
        let h = sample();
        assert!(h.contains(TimelineId(1), Lsn(0x500_0000)));
        assert!(!h.contains(TimelineId(1), Lsn(0x500_0001)));
        assert!(!h.contains(TimelineId(2), Lsn(1)));
        assert!(h.contains(TimelineId(4), Lsn(u64::MAX)));
        assert_eq!(h.timeline_at(Lsn(0x4ff_ffff)), TimelineId(1));
        assert_eq!(h.timeline_at(Lsn(0x500_0000)), TimelineId(3));
        assert_eq!(h.timeline_at(Lsn(0x1_0000_0028)), TimelineId(4));
    }

    #[test]
    fn file_names() {
        assert_eq!(TimelineId(0x1f).history_file_name(), "0000001F.history");
        assert_eq!(TimelineId::parse_history_file_name("0000001F.history"), Some(TimelineId(0x1f)));
        for name in ["0000001f.history", "1F.history", "0000001F.historyx", "0000001F", "+000001F.history"] {
            assert_eq!(TimelineId::parse_history_file_name(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn history_round_trips(
            ids in proptest::collection::btree_set(1u32..u32::MAX, 0..6), lsn: u64, reason in "[a-z0-9 äß.]{0,40}",
        ) {
            let reason = reason.trim().to_owned();
            let entry = |id| TimelineSwitch { timeline: TimelineId(id), switch: Lsn(lsn), reason: reason.clone() };
            let h = TimelineHistory { own: TimelineId(u32::MAX), parents: ids.into_iter().map(entry).collect() };
            prop_assert_eq!(TimelineHistory::parse(h.own, h.format().as_bytes()), Ok(h));
        }
    }
}
