//! The shape of one log line.

use super::LogLevel;
use jiff::Zoned;

/// A line before it has a shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) level: LogLevel,
    pub(super) worker: u16,
    pub(super) message: &'a str,
}

impl Line<'_> {
    /// `2026-11-21 00:00:00.123 P00   INFO: text`, without the time if `at` is none. What developers read
    /// stands further in.
    pub(super) fn full(&self, at: Option<&Zoned>) -> String {
        let indent = match self.level {
            LogLevel::Debug => "    ",
            LogLevel::Trace => "        ",
            _ => "",
        };
        let time = at.map_or_else(String::new, |at| format!("{} ", at.strftime("%Y-%m-%d %H:%M:%S%.3f")));
        self.shape(&format!("{time}P{:02} {:>6}: {indent}", self.worker, self.level.label()))
    }

    /// `WARN: text`: for standard error.
    pub(super) fn bare(&self) -> String {
        self.shape(&format!("{}: ", self.level.label()))
    }

    /// Puts `head` before the first line and as many spaces before the others.
    fn shape(&self, head: &str) -> String {
        let mut text = String::with_capacity(head.len() + self.message.len() + 1);
        let mut lines = self.message.trim_end_matches('\n').split('\n');
        text.push_str(head);
        text.push_str(lines.next().unwrap_or(""));
        text.push('\n');
        for line in lines {
            if !line.is_empty() {
                text.extend(std::iter::repeat_n(' ', head.len()));
                text.push_str(line);
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_known_shape() {
        let at: Zoned = "2026-11-21T00:00:00.123456[UTC]".parse().unwrap();
        let shape = |level, worker, message, at| Line { level, worker, message }.full(at);
        assert_eq!(shape(LogLevel::Info, 0, "text", Some(&at)), "2026-11-21 00:00:00.123 P00   INFO: text\n");
        assert_eq!(shape(LogLevel::Error, 0, "[055]: x", Some(&at)), "2026-11-21 00:00:00.123 P00  ERROR: [055]: x\n");
        assert_eq!(shape(LogLevel::Detail, 3, "f", None), "P03 DETAIL: f\n");
        assert_eq!(shape(LogLevel::Warn, 112, "a\n\nb\n", None), "P112   WARN: a\n\n             b\n");
        assert_eq!(shape(LogLevel::Trace, 0, "t", None), "P00  TRACE:         t\n");
        let bare = Line { level: LogLevel::Error, worker: 0, message: "[031]: x\nhint: y" }.bare();
        assert_eq!(bare, "ERROR: [031]: x\n       hint: y\n");
    }
}
