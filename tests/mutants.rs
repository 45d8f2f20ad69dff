//! The list of mutants is sound, and every rule of the first design is proved or waits for a feature that is named.
//!
//! Cheap, for every run of the tests: nothing is built. `make mutants` runs the mutants themselves.

use std::collections::BTreeSet;

use pitstop_tests::{has_test, mutants, repository};

/// Rules of the first design that the specification carries out.
const DESIGN_RULES: std::ops::RangeInclusive<u32> = 1..=36;

fn proof() -> String {
    let path = repository().join("spec/proof.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of the table row of that design rule.
fn row(proof: &str, rule: u32) -> Vec<String> {
    let begin = format!("| {rule} ");
    let mut rows = proof.lines().filter(|line| line.starts_with(&begin));
    let row = rows.next().unwrap_or_else(|| panic!("design rule {rule} does not stand in spec/proof.md"));
    assert!(rows.next().is_none(), "design rule {rule} stands twice in spec/proof.md");
    row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The words between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_mutant_can_be_made_and_names_tests_that_exist() {
    let list = mutants(&repository()).unwrap();
    let names: BTreeSet<_> = list.iter().map(|mutant| &mutant.name).collect();
    assert_eq!(names.len(), list.len(), "two mutants of one name");
    let mistakes: Vec<_> = list.iter().flat_map(|mutant| mutant.mistakes(&repository())).collect();
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    // So that the check above can fail.
    assert!(!has_test(&repository(), "pitstop-format", "semantics", "there_is_no_such_test"));
}

#[test]
fn every_design_rule_has_its_tests_or_its_reason() {
    let proof = proof();
    for rule in DESIGN_RULES {
        let row = row(&proof, rule);
        let [_, _, rules, tests, waits] = &row[..] else { panic!("design rule {rule} has other columns: {row:?}") };
        let named: Vec<_> = quoted(tests).collect();
        assert!(!named.is_empty() || !waits.is_empty(), "design rule {rule} has neither a test nor a reason");
        assert!(
            named.is_empty() || !rules.is_empty(),
            "design rule {rule} has tests, but no rule of the specification"
        );
        for test in named {
            let (place, name) = test.split_once("::").unwrap_or_else(|| panic!("`{test}` is not CRATE/BINARY::TEST"));
            let (package, binary) = place.split_once('/').unwrap_or(("format", place));
            assert!(has_test(&repository(), &format!("pitstop-{package}"), binary, name), "there is no test {test}");
        }
    }
}

#[test]
fn every_rule_that_the_table_and_the_mutants_name_is_in_the_specification() {
    let pages =
        ["container", "journal", "semantics", "relations", "views", "tags", "backup", "jobs", "control", "check"];
    let page = |name: &str| std::fs::read_to_string(repository().join("spec").join(format!("{name}.md"))).unwrap();
    let text: String = pages.into_iter().map(page).collect();
    let proof = proof();
    let named = DESIGN_RULES.flat_map(|rule| {
        row(&proof, rule)[2].split(", ").map(str::to_owned).filter(|rule| !rule.is_empty()).collect::<Vec<_>>()
    });
    let list = mutants(&repository()).unwrap();
    let broken = list.iter().flat_map(|mutant| mutant.rules.iter().cloned());
    for rule in named.chain(broken) {
        assert!(
            text.contains(&format!("**[{rule}]**")) || text.contains(&format!("- **{rule}** ")),
            "{rule} is no rule of the specification"
        );
    }
}

#[test]
fn the_table_of_mutants_is_the_list() {
    let proof = proof();
    for mutant in mutants(&repository()).unwrap() {
        let row = proof.lines().find(|line| line.starts_with(&format!("| `{}` ", mutant.name)));
        let row = row.unwrap_or_else(|| panic!("{} does not stand in spec/proof.md", mutant.name));
        assert!(row.contains("caught by"), "{}: the table does not say what caught it", mutant.name);
        for rule in &mutant.design {
            let numbers = row.split('|').nth(2).unwrap_or_default();
            let stands = numbers.split(',').any(|number| number.trim() == rule.to_string());
            assert!(stands, "{}: the table does not say that it breaks design rule {rule}", mutant.name);
        }
    }
}
