//! Sizes in messages, as the command line writes them.

const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];

/// `97.3MB`: the largest unit, a power of 1024, with one decimal.
pub(crate) fn human(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let (mut shown, mut unit) = (bytes as f64 / 1024.0, 0);
    // What would be rounded to 1024 is 1 of the next.
    while shown >= 1023.95 && unit + 1 < UNITS.len() {
        (shown, unit) = (shown / 1024.0, unit + 1);
    }
    let unit = UNITS.get(unit).copied().unwrap_or_default();
    format!("{shown:.1}{unit}").replace(".0", "")
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn the_unit_fits_the_size() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KB"),
            (1536, "1.5KB"),
            ((1 << 20) - 1, "1MB"),
            (102_027_264, "97.3MB"),
            (1 << 40, "1TB"),
            (u64::MAX, "16384PB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
