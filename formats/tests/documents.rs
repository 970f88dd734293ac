//! The documents agree with the code and with each other: sections that comments point to exist, links between documents
//! lead somewhere, the table of exit statuses is the program's.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly too")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document() -> String {
    std::fs::read_to_string(crates().join("formats/FORMAT.md")).unwrap()
}

fn headings(document: &str) -> BTreeSet<String> {
    let lines = document.lines().filter(|l| l.starts_with('#'));
    lines.map(|l| l.trim_start_matches('#').trim().to_owned()).collect()
}

fn sources(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Sections named in comments like `FORMAT.md, "Pack"` and `FORMAT.md, "Epoch" and "Wrapped key"`.
fn sections_named(text: &str) -> Vec<String> {
    let flat = text.replace("//!", " ").replace("///", " ").replace("\n", " ");
    let mut out = Vec::new();
    for after in flat.split("FORMAT.md").skip(1) {
        let mut rest = after.trim_start_matches(['`', ',']).trim_start();
        while let Some((name, behind)) = rest.strip_prefix('"').and_then(|r| r.split_once('"')) {
            out.push(name.to_owned());
            rest = behind.trim_start();
            rest = rest.strip_prefix("and ").unwrap_or(rest);
        }
    }
    out
}

#[test]
fn every_section_that_code_points_to_exists() {
    let headings = headings(&document());
    let mut files = Vec::new();
    for part in ["formats/src", "engine/src", "fuse/src", "cli/src"] {
        sources(&crates().join(part), &mut files);
    }
    let mut named = 0;
    for file in files {
        for section in sections_named(&std::fs::read_to_string(&file).unwrap()) {
            assert!(headings.contains(&section), "{} points to FORMAT.md, \"{section}\"", file.display());
            named += 1;
        }
    }
    assert!(named > 20, "comments no longer name sections as this test expects: {named}");
}

#[test]
fn every_link_inside_the_document_leads_somewhere() {
    let document = document();
    let anchor = |h: &String| h.to_lowercase().replace(' ', "-");
    let anchors: BTreeSet<String> = headings(&document).iter().map(anchor).collect();
    let mut links = 0;
    for link in document.split("](#").skip(1) {
        let target = link.split(')').next().unwrap_or_default();
        assert!(anchors.contains(target), "no section for #{target}");
        links += 1;
    }
    assert!(links > 20);
}

#[test]
fn links_between_documents_lead_to_files() {
    let mut links = 0;
    for document in
        ["README.md", "docs/compat.md", "docs/exit-codes.md", "docs/operations.md", "engine/ARCHITECTURE.md"]
    {
        let path = crates().join(document);
        let text = std::fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            if target.starts_with("https:") {
                continue;
            }
            let file = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(file.exists(), "{document} points to {target}");
            if !section.is_empty() {
                let found = headings(&std::fs::read_to_string(&file).unwrap());
                let anchors: Vec<String> = found.iter().map(|h| h.to_lowercase().replace(' ', "-")).collect();
                assert!(anchors.iter().any(|a| a == section), "{document} points to {target}");
            }
            links += 1;
        }
    }
    assert!(links > 15);
}

#[test]
fn the_table_of_exit_statuses_is_the_programs() {
    let text = std::fs::read_to_string(crates().join("docs/exit-codes.md")).unwrap();
    let rows = text.lines().filter_map(|l| l.strip_prefix("| ")?.split(' ').next()?.parse().ok());
    let documented: Vec<u8> = rows.collect();
    assert!(documented.is_sorted_by(|a, b| a < b), "rows are not in order");
    let code = std::fs::read_to_string(crates().join("cli/src/exit.rs")).unwrap();
    let code = code.split("mod tests").next().unwrap();
    let number = |text: &str| text.trim().trim_end_matches([',', ';', ')']).parse::<u8>().ok();
    let of_kinds = code.lines().filter_map(|l| number(l.trim().strip_prefix("Kind::")?.split_once("=> ")?.1));
    let named = code.lines().filter_map(|l| number(l.split_once("Self = Self(")?.1));
    let mut used: BTreeSet<u8> = of_kinds.chain(named).collect();
    used.insert(125);
    assert!(used.len() > 55);
    assert_eq!(documented.into_iter().collect::<BTreeSet<u8>>(), used);
}
