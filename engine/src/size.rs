//! Sizes in messages.

/// A number of bytes for people: `512B`, `1KB`, `1.2GB`. One decimal, left out when it is zero.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut shown = (u128::from(bytes) * 10 + 512) / 1024;
    let mut unit = 0;
    while shown >= 10_240 && unit + 1 < UNITS.len() {
        shown = (shown + 512) / 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("PB");
    if shown % 10 == 0 { format!("{}{name}", shown / 10) } else { format!("{}.{}{name}", shown / 10, shown % 10) }
}

#[cfg(test)]
mod tests {
    use super::human_size;

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
            assert_eq!(human_size(bytes), text);
        }
    }
}
