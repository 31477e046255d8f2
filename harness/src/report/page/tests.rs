//! The structure of pages: what must be on them, and what must not.

use super::*;
use crate::oracle::OracleId;
use crate::report::story::Story;
use crate::subjects;
use crate::trace::{GeometrySpec, Gfp, Op};
use std::collections::BTreeSet;

fn page(trace: &Trace, subject: &str) -> String {
    let kind = subjects::by_name(subject).unwrap();
    html(trace, kind, &Story::of(trace, kind), None).unwrap()
}

fn areas() -> Trace {
    let area = Op::Vmalloc { size: 9000, gfp: Gfp::KERNEL };
    Trace::new(vec![area, Op::Vfree { pick: 0 }, Op::Purge, area])
}

/// A page without its scripts.
fn without_scripts(text: &str) -> &str {
    text.split("<script").next().unwrap()
}

/// The values of an attribute.
fn values<'a>(text: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!(" {attribute}=\"");
    text.match_indices(&start).filter_map(|(at, _)| text[at + start.len()..].split('"').next()).collect()
}

/// Complains about an element that is not closed where it should be.
fn check_balance(text: &str) {
    const VOID: [&str; 4] = ["meta", "link", "input", "!DOCTYPE"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let tag = &rest[start + 1..start + rest[start..].find('>').expect("a tag ends")];
        rest = &rest[start + 1 + tag.len()..];
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closed by </{name}>");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
            if name == "script" || name == "style" {
                rest = &rest[rest.find(&format!("</{name}")).expect("scripts and styles end")..];
            }
        }
    }
    assert_eq!(open, [""; 0]);
}

#[test]
fn elements_are_closed_and_what_is_referred_to_is_there() {
    let picture = |trace: &Trace, kind| svg(trace, kind, &Story::of(trace, kind)).unwrap();
    for text in [page(&areas(), "kmem"), page(&areas(), "forgets-tlb-flush"), picture(&areas(), SubjectKind::KMEM)] {
        check_balance(&text);
        let text = without_scripts(&text);
        let ids = values(text, "id");
        let unique: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(unique.len(), ids.len(), "{ids:?}");
        for name in values(text, "aria-labelledby").into_iter().chain(values(text, "aria-describedby")) {
            assert!(unique.contains(name), "{name}");
        }
        let styles = values(text, "class").into_iter().filter_map(|class| class.strip_prefix("o-"));
        assert!(styles.clone().count() > 3);
        for style in styles {
            assert!(unique.contains(format!("h-{style}").as_str()), "{style} has a pattern");
            assert!(MAP_CSS.matches(&format!(".c-{style} {{")).count() == 2, "{style} has a colour for light and dark");
        }
    }
}

#[test]
fn a_page_needs_nothing_but_itself() {
    // The name of a namespace is no address.
    let text = page(&areas(), "kmem").replace("http://www.w3.org/2000/svg", "");
    for outside in ["http:", "https:", "src=", "@import", "fetch(", "XMLHttpRequest"] {
        assert!(!text.contains(outside), "{outside}");
    }
    assert!(values(&text, "href").iter().all(|link| link.starts_with('#') || *link == "data:,"));
    assert!(text.contains("default-src 'none'"));
}

#[test]
fn what_others_wrote_is_text_and_nothing_else() {
    let hostile = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\u{2028}&";
    let story = Story::of(&areas(), SubjectKind::KMEM);
    let violation =
        Violation { oracle: OracleId::O4Content, message: hostile.to_owned(), blocks: vec![7, u64::MAX], op: 3 };
    let text = html(&areas(), SubjectKind::KMEM, &story, Some(&violation)).unwrap();
    assert!(!text.contains("<script>alert") && !text.contains("<img"));
    check_balance(&text);
    let data = text.split("id=\"film\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["looks"].as_array().unwrap().len(), 6);
    assert!(!data.to_string().contains('<'));
}

#[test]
fn the_state_after_the_violation_is_drawn_with_what_the_call_answered() {
    let text = page(&areas(), "forgets-tlb-flush");
    assert!(
        text.contains("O15Translation")
            && text.contains("after operation 3: Vmalloc(size: 9000, gfp: KERNEL) (the violation)")
    );
    assert!(text.contains("The model did not take over the answer"));
    let marks = without_scripts(&text).matches("class=\"mark answer\"").count();
    assert!(marks >= 3, "one in the legend, one around the frames, one around the pages: {marks}");
    assert!(text.contains(">mmm|\u{a0}"), "three mapped pages and a guard");
}

#[test]
fn the_blocks_that_an_oracle_named_are_marked_and_both_records_shown() {
    let block = Op::Kmalloc { size: 3000, gfp: Gfp::KERNEL };
    let text = page(&Trace::new(vec![block, block]), "same-block");
    assert!(text.contains("O1Overlap") && text.contains("<h3>Block 0</h3>"));
    assert!(text.contains("What the last call answered") && text.contains("live block 0"));
    assert!(without_scripts(&text).matches("class=\"mark guilty\"").count() >= 2);
    assert!(text.contains("The subject does not show its inside"));
}

#[test]
fn a_run_without_a_violation_says_so_and_marks_nothing() {
    let text = page(&areas(), "kmem");
    assert!(text.contains("Every oracle is content") && text.contains("None: no oracle objected."));
    assert!(!without_scripts(&text).contains("class=\"mark "));
}

#[test]
fn two_thousand_operations_on_4096_frames_stay_below_four_megabytes() {
    let turn = [Op::Kvmalloc { size: 300_000, gfp: Gfp::KERNEL }, Op::Kvfree { pick: 0 }];
    let mut ops = vec![Op::Checkerboard { order: 0, spare: 0 }];
    ops.extend(turn.into_iter().cycle().take(1999));
    let geometry = GeometrySpec { frames: 4096, ..GeometrySpec::default() }.normalized();
    let text = page(&Trace { geometry, ..Trace::new(ops) }, "kmem");
    assert!(text.len() < 4 << 20, "{} bytes", text.len());
    assert!(text.contains("after operation 1999: ") && text.contains("after everything was freed"));
}

#[test]
fn a_machine_that_cannot_be_made_leaves_a_page_that_says_so() {
    let kind = SubjectKind::new("never", |_, _, _| Err(kmem::GeometryError::Cpus(0)));
    let text = html(&areas(), kind, &Story::of(&areas(), kind), None).unwrap();
    check_balance(&text);
    assert!(text.contains("the machine could not be made") && !text.contains("id=\"film\""));
}
