//! Periods of `keep-*`, and the retention policies that Barman's users know.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;
use std::str::FromStr;

const DAY: i64 = 24 * 3600;
/// A month of a recovery window: the longest there is, so that no window is shorter than what was meant.
const MONTH: i64 = 31 * DAY;

/// A period of which `keep-*` keeps the newest backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// Each backup is one of its own.
    Last,
    /// An hour.
    Hourly,
    /// A day.
    Daily,
    /// A week from Monday on, as ISO 8601 counts them.
    Weekly,
    /// A month.
    Monthly,
    /// A year.
    Yearly,
}

impl Period {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Last, Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];

    /// Name of the period that a time, in seconds since the Unix epoch, is in. `ordinal` is the name of a backup's own.
    pub(super) fn of(self, time: i64, zone: &TimeZone, ordinal: usize) -> String {
        let Ok(time) = Timestamp::from_second(time).map(|t| t.to_zoned(zone.clone())) else { return String::new() };
        match self {
            Self::Last => format!("{} #{ordinal}", time.strftime("%F %T")),
            Self::Hourly => time.strftime("%F %H:00 %:z").to_string(),
            Self::Daily => time.strftime("%F").to_string(),
            Self::Weekly => time.strftime("%G-W%V").to_string(),
            Self::Monthly => time.strftime("%Y-%m").to_string(),
            Self::Yearly => time.strftime("%Y").to_string(),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

/// A retention policy in Barman's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// `RECOVERY WINDOW OF n DAYS`, in seconds: any time within it can be recovered.
    Window(i64),
    /// `REDUNDANCY n`: so many backups.
    Redundancy(u32),
}

impl Policy {
    /// How many of the newest backups it needs. `ends` are when they ended, newest first.
    pub(super) fn needs(self, ends: &[i64], now: i64) -> usize {
        match self {
            // The newest that ended before the window is where recovery to its beginning starts from.
            Self::Window(seconds) => {
                let begins = now.saturating_sub(seconds);
                ends.iter().take_while(|end| **end > begins).count() + 1
            }
            Self::Redundancy(n) => n as usize,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window(seconds) => write!(f, "RECOVERY WINDOW OF {} DAYS", seconds / DAY),
            Self::Redundancy(n) => write!(f, "REDUNDANCY {n}"),
        }
    }
}

/// What is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not 'RECOVERY WINDOW OF n DAYS', 'WEEKS' or 'MONTHS', nor 'REDUNDANCY n', with n from 1")]
pub struct BadPolicy;

impl FromStr for Policy {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let words: Vec<String> = text.split_whitespace().map(str::to_ascii_uppercase).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let number = |word: &str| word.parse::<u32>().ok().filter(|n| *n > 0).ok_or(BadPolicy);
        match *words {
            ["REDUNDANCY", n] => Ok(Self::Redundancy(number(n)?)),
            ["RECOVERY", "WINDOW", "OF", n, unit] => {
                let unit = match unit {
                    "DAY" | "DAYS" => DAY,
                    "WEEK" | "WEEKS" => 7 * DAY,
                    "MONTH" | "MONTHS" => MONTH,
                    _ => return Err(BadPolicy),
                };
                Ok(Self::Window(i64::from(number(n)?) * unit))
            }
            _ => Err(BadPolicy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_barmans() {
        assert_eq!("RECOVERY WINDOW OF 7 DAYS".parse(), Ok(Policy::Window(7 * DAY)));
        assert_eq!("recovery  window of 2 weeks".parse(), Ok(Policy::Window(14 * DAY)));
        assert_eq!("RECOVERY WINDOW OF 1 MONTH".parse(), Ok(Policy::Window(31 * DAY)));
        assert_eq!("REDUNDANCY 3".parse(), Ok(Policy::Redundancy(3)));
        for bad in
            ["", "7 DAYS", "REDUNDANCY", "REDUNDANCY 0", "RECOVERY WINDOW OF -1 DAYS", "RECOVERY WINDOW OF 1 YEARS"]
        {
            assert_eq!(bad.parse::<Policy>(), Err(BadPolicy), "{bad}");
        }
    }

    #[test]
    fn a_window_needs_the_backup_before_it() {
        let window = Policy::Window(100);
        assert_eq!(window.needs(&[990, 950, 890, 850], 1000), 3);
        assert_eq!(window.needs(&[890, 850], 1000), 1);
        assert_eq!(window.needs(&[990, 950], 1000), 3);
        assert_eq!(window.needs(&[990, 900, 850], 1000), 2, "one that ended just then reaches it");
    }

    #[test]
    fn periods_are_the_zones() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        // 2026-12-31 23:30 UTC is the next year there, in a week of the old one's count.
        let time = 1_798_759_800;
        let names = Period::ALL.map(|p| p.of(time, &zone, 4));
        assert_eq!(names[1..], ["2027-01-01 01:00 +02:00", "2027-01-01", "2026-W53", "2027-01", "2027"]);
        assert_ne!(Period::Last.of(time, &zone, 4), Period::Last.of(time, &zone, 5));
    }
}
