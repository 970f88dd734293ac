//! Sizes, times and shares of CPUs as people write and read them.
//!
//! Units of size are powers of 1024 however they are spelled, as in pgBackRest: `k`, `kb` and `kib` are one.

pub use pgkeep_engine::size::human_size;
use std::time::Duration;

/// Splits a text into its leading whole number and what follows.
fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit))
}

/// Reads a size: a whole number with an optional unit `b k m g t p`, which `b` or `ib` may follow. Case does not
/// matter. `None` if it is nothing of the sort or exceeds 64 bits.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = number(text)?;
    let unit = unit.to_ascii_lowercase();
    if unit.is_empty() {
        return Some(number);
    }
    let (letter, tail) = unit.split_at_checked(1)?;
    let power = match letter {
        "b" if tail.is_empty() => return Some(number),
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    if !matches!(tail, "" | "b" | "ib") {
        return None;
    }
    number.checked_mul(1024_u64.pow(power))
}

/// Reads a time: seconds, or with a unit `ms s m h d w`. Decimal fractions are fine, `.1` too, as long as they come to
/// whole milliseconds. `None` if it is nothing of the sort.
#[must_use]
pub fn parse_time(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(unit_at)?;
    let (whole, part) = match number.split_once('.') {
        Some((whole, part)) if !part.is_empty() && part.len() <= FRACTION_DIGITS_MAX => (whole, part),
        Some(_) => return None,
        None => (number, ""),
    };
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return None,
    };
    let whole: u64 = if whole.is_empty() && !part.is_empty() { 0 } else { whole.parse().ok()? };
    let of_unit = 10_u64.pow(part.len() as u32);
    let parts_ms = unit_ms * if part.is_empty() { 0 } else { part.parse::<u64>().ok()? };
    if !parts_ms.is_multiple_of(of_unit) {
        return None;
    }
    whole.checked_mul(unit_ms)?.checked_add(parts_ms / of_unit).map(Duration::from_millis)
}

/// Of a time: with the longest unit, a week in milliseconds, a fraction of so many digits stays far below 64 bits.
const FRACTION_DIGITS_MAX: usize = 9;

/// How much of the machine's CPUs may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuShare {
    /// Thousandths of a percent of all that there are.
    Percent(u32),
    /// Thousandths of one.
    Cpus(u32),
}

impl CpuShare {
    /// Least share of a machine that is allowed.
    pub const LEAST: [Self; 2] = [Self::Percent(1000), Self::Cpus(10)];
    /// Greatest.
    pub const MOST: [Self; 2] = [Self::Percent(100_000), Self::Cpus(1_024_000)];

    /// Thousandths of a CPU on a machine with so many; at least one.
    #[must_use]
    pub fn thousandths(self, cpus: usize) -> u64 {
        match self {
            Self::Percent(share) => (u64::from(share) * cpus as u64 / 100).max(1),
            Self::Cpus(share) => u64::from(share).max(1),
        }
    }

    /// True between the least and the greatest.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        match self {
            Self::Percent(share) => (1000..=100_000).contains(&share),
            Self::Cpus(share) => (10..=1_024_000).contains(&share),
        }
    }
}

/// CPUs that this process may run on.
#[must_use]
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Reads a share of CPUs: `50%`, or a number of CPUs such as `1.5`. `None` if it is nothing of the sort, finer than
/// thousandths, or exceeds 32 bits.
#[must_use]
pub fn parse_cpus(text: &str) -> Option<CpuShare> {
    let (number, percent) = text.strip_suffix('%').map_or((text, false), |number| (number, true));
    let (whole, part) = number.split_once('.').map_or((number, "0"), |(whole, part)| (whole, part));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 {
        return None;
    }
    let thousandths = format!("{part:0<3}").parse::<u32>().ok()?;
    let share = whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(thousandths)?;
    Some(if percent { CpuShare::Percent(share) } else { CpuShare::Cpus(share) })
}

/// A share of CPUs as an option takes it: `50%`, `1.5`.
#[must_use]
pub fn exact_cpus(share: CpuShare) -> String {
    let (n, unit) = match share {
        CpuShare::Percent(n) => (n, "%"),
        CpuShare::Cpus(n) => (n, ""),
    };
    let part = format!("{:03}", n % 1000);
    match part.trim_end_matches('0') {
        "" => format!("{}{unit}", n / 1000),
        part => format!("{}.{part}{unit}", n / 1000),
    }
}

/// A number of bytes in the largest unit that shows it exactly, as an option takes it: `20MiB`.
#[must_use]
pub fn exact_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut n, mut unit) = (bytes, 0);
    while n > 0 && n.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        n /= 1024;
        unit += 1;
    }
    format!("{n}{}", UNITS.get(unit).copied().unwrap_or("B"))
}

/// A time in the largest unit that shows it exactly, as an option takes it: `30m`.
#[must_use]
pub fn exact_time(time: Duration) -> String {
    let ms = time.as_millis();
    let fits = |(_, unit): &&(&str, u128)| ms.is_multiple_of(*unit);
    let units = [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    match units.iter().find(fits).filter(|_| ms > 0) {
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// A duration for people, in its two largest units: `850ms`, `12.3s`, `4m05s`, `2h10m`, `3d04h`.
#[must_use]
pub fn human_time(time: Duration) -> String {
    let ms = time.as_millis();
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("10b", 10),
            ("1k", 1024),
            ("1KB", 1024),
            ("3MiB", 3 << 20),
            ("16GiB", 16 << 30),
            ("2t", 2 << 40),
            ("4PiB", 4 << 50),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "k", "1.5g", "-1", "1 k", "1x", "1bb", "1kbb", "1bib", "16384p", "99999999999999999999", "1é"]
        {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_read() {
        for (text, ms) in
            [("1", 1000), ("15s", 15_000), ("100ms", 100), ("31m", 1_860_000), ("2h", 7_200_000), ("1w", 604_800_000)]
        {
            assert_eq!(parse_time(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for (text, ms) in
            [(".1", 100), ("0.1", 100), ("1.5", 1500), ("1.50s", 1500), ("2.5m", 150_000), ("1.001", 1001)]
        {
            assert_eq!(parse_time(text), Some(Duration::from_millis(ms)), "{text}");
        }
        // Less than a millisecond is not rounded away unseen.
        for text in ["1.0005", ".5ms", "0.0000000001", ".", "1.", ".s", "1..5", "1.2.3", "1,5"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
        for text in ["", "s", "-1", "1M", "1y", "99999999999999999999", "18446744073709551615w"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    #[test]
    fn shares_of_cpus_are_read() {
        use CpuShare::{Cpus, Percent};
        for (text, share, of_four) in [
            ("50%", Percent(50_000), 2000),
            ("12.5%", Percent(12_500), 500),
            ("1.5", Cpus(1500), 1500),
            ("2", Cpus(2000), 2000),
            ("0.025", Cpus(25), 25),
            ("0", Cpus(0), 1),
        ] {
            assert_eq!(parse_cpus(text), Some(share), "{text}");
            assert_eq!(share.thousandths(4), of_four, "{text}");
        }
        for text in ["", "%", "-1", "1,5", "1.", ".5", "50 %", "50%%", "1.2345", "+1", "half", "1.-5", "99999999"] {
            assert_eq!(parse_cpus(text), None, "{text}");
        }
        let allowed = ["1%", "100%", "0.01", "1024"].map(|text| parse_cpus(text).unwrap());
        assert!(allowed.iter().all(|share| share.is_allowed()));
        assert_eq!([allowed[0], allowed[2]], CpuShare::LEAST);
        assert_eq!([allowed[1], allowed[3]], CpuShare::MOST);
        let refused = ["0.999%", "100.001%", "0.009", "1024.001"].map(|text| parse_cpus(text).unwrap());
        assert!(!refused.iter().any(|share| share.is_allowed()));
    }

    #[test]
    fn sizes_are_shown() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KB"),
            (1280, "1.3KB"),
            (1536, "1.5KB"),
            (16 << 20, "16MB"),
            (1_288_490_189, "1.2GB"),
            (5 << 40, "5TB"),
            (u64::MAX, "16384PB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn durations_are_shown() {
        for (ms, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (12_345, "12.3s"),
            (245_000, "4m05s"),
            (7_800_000, "2h10m"),
            (273_600_000, "3d04h"),
        ] {
            assert_eq!(human_time(Duration::from_millis(ms)), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,12}") {
            let _ = (parse_size(&text), parse_time(&text), parse_cpus(&text));
        }

        #[test]
        fn exact_forms_read_back(n in 0_u64..1 << 50) {
            prop_assert_eq!(parse_size(&exact_size(n)), Some(n));
            prop_assert_eq!(parse_size(&exact_size(n << 10)), Some(n << 10));
            let n32 = n as u32;
            for share in [CpuShare::Percent(n32), CpuShare::Cpus(n32)] {
                prop_assert_eq!(parse_cpus(&exact_cpus(share)), Some(share));
            }
            let time = Duration::from_millis(n);
            prop_assert_eq!(parse_time(&exact_time(time)), Some(time));
            let time = Duration::from_secs(n % 1000 * 3600);
            prop_assert_eq!(parse_time(&exact_time(time)), Some(time));
        }

        #[test]
        fn a_shown_size_reads_back_within_its_precision(bytes in 0_u64..1 << 60) {
            let shown = human_size(bytes);
            let split = shown.find(|c: char| c.is_ascii_alphabetic()).unwrap();
            let unit = parse_size(&format!("1{}", &shown[split..])).unwrap();
            let back = shown[..split].parse::<f64>().unwrap() * unit as f64;
            prop_assert!((back - bytes as f64).abs() <= unit as f64 * 0.1, "{bytes} {shown}");
        }
    }
}
