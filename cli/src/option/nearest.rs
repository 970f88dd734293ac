//! The word that a mistyped one may have meant.

/// Changes after which a word is another one rather than a mistyped one: a third of its letters, and this at most.
const CHANGES_MAX: usize = 3;

/// The word of `all` that is typed with the fewest changes, if they are few: a letter more, less, or another, or two that
/// changed places. A beginning that fits one word only counts as that.
pub(super) fn nearest<'a>(typed: &str, all: &[&'a str]) -> Option<&'a str> {
    let mut begun = all.iter().filter(|word| !typed.is_empty() && word.starts_with(typed));
    if let (Some(word), None) = (begun.next(), begun.next()) {
        return Some(word);
    }
    let few = |word: &str| (word.chars().count() / 3).clamp(1, CHANGES_MAX);
    let near = all.iter().map(|word| (changes(typed, word), *word)).filter(|(changes, word)| *changes <= few(word));
    near.min_by_key(|(changes, _)| *changes).map(|(_, word)| word)
}

/// The distance of optimal string alignment.
fn changes(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Rows of the table: the one before the last, the last, the present one.
    let (mut older, mut old): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..=b.len()).collect());
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX);
            let mut least = (at(&old, j) + usize::from(x != y)).min(at(&old, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                least = least.min(at(&older, j - 1) + 1);
            }
            row.push(least);
        }
        (older, old) = (old, row);
    }
    old.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted() {
        for (a, b, count) in [("", "", 0), ("abc", "", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "xabd", 2)] {
            assert_eq!((changes(a, b), changes(b, a)), (count, count), "{a} {b}");
        }
    }

    #[test]
    fn a_word_is_found_if_it_is_near() {
        let all = ["create", "mount", "start", "stop", "reset", "hydrate", "promote", "list", "info", "destroy"];
        for (typed, meant) in [
            ("creat", Some("create")),
            ("cerate", Some("create")),
            ("sotp", Some("stop")),
            ("dest", Some("destroy")),
            ("mout", Some("mount")),
            ("ls", None),
            ("st", None),
            ("", None),
            ("remove", None),
        ] {
            assert_eq!(nearest(typed, &all), meant, "{typed}");
        }
    }
}
