//! FORMAT.md is where code says it is: every section that a comment points to exists, and so does every place the
//! document itself points to.

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
