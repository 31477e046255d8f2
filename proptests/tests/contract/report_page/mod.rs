//! The page of a run in a real browser: nothing goes wrong, nothing is asked of a network, keys and slider change the state,
//! and what the script draws is what Rust drew.

mod browser;

use browser::Browser;
use kmem_harness::report::page;
use kmem_harness::report::story::Story;
use kmem_harness::subjects;
use kmem_harness::trace::Trace;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What the script draws again for each state.
const DRAWN: [&str; 8] = ["#memory", "#window", "#counts", "#chart", "#free", "#leaves", "#leaves-in-words", "#moment"];

/// A page in a file, which goes when this goes.
struct PageFile(PathBuf);

impl Drop for PageFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The page of a seed on a subject.
fn page_of(seed: &str, subject: &str) -> PageFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/seeds").join(seed).with_extension("ron");
    let (trace, kind) = (Trace::load(&path).unwrap(), subjects::by_name(subject).unwrap());
    let html = page::html(&trace, kind, &Story::of(&trace, kind), None).unwrap();
    let name = format!("hammer-page-{}-{:?}.html", std::process::id(), std::thread::current().id());
    let file = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    std::fs::write(&file, html).unwrap();
    PageFile(file)
}

/// Runs a test on a page in the browser; says so, past the capture of the test runner, if there is no browser.
fn on_page(name: &str, seed: &str, subject: &str, test: impl FnOnce(&mut Browser, &PageFile)) {
    let Some(program) = browser::find() else {
        use std::io::Write as _;
        let _ =
            writeln!(std::io::stderr(), "SKIPPED report_page::{name}: no Chromium here (ci/install.sh installs it)");
        return;
    };
    let file = page_of(seed, subject);
    let mut browser = Browser::start(&program, name);
    browser.open(&file.0);
    test(&mut browser, &file);
    let own = format!("file://{}", file.0.display());
    let foreign = |url: &String| *url != own && !url.starts_with("data:");
    assert_eq!(browser.complaints(), [""; 0]);
    assert!(!browser.requests().iter().any(foreign), "{:?}", browser.requests());
}

fn moment(browser: &mut Browser) -> String {
    browser.text("document.getElementById('moment').textContent")
}

/// The letters of all frames that are drawn.
fn letters(browser: &mut Browser) -> String {
    browser.text("[...document.querySelectorAll('#memory .letters')].map(e => e.textContent).join('')")
}

#[test]
fn the_script_draws_what_is_on_the_page_without_it() {
    let pages = [
        ("stale-translation-after-reuse", "forgets-tlb-flush"),
        ("kvmalloc-survives-fragmentation", "kmem"),
        ("huge-mapping", "kmem"),
        ("frees-wait-for-readers", "kmem"),
    ];
    for (seed, subject) in pages {
        on_page("the_script_draws", seed, subject, |browser, file| {
            let drawn = DRAWN.map(|selector| browser.markup(selector));
            browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
            browser.open(&file.0);
            let without = DRAWN.map(|selector| browser.markup(selector));
            for ((selector, drawn), without) in DRAWN.iter().zip(drawn).zip(without) {
                assert_eq!(drawn, without, "{seed}: {selector}");
            }
            assert!(browser.markup("#controls").contains("hidden"), "no slider that does nothing");
        });
    }
}

#[test]
fn keys_and_the_slider_change_the_state_and_both_ways_lead_to_the_same() {
    on_page("keys", "stale-translation-after-reuse", "forgets-tlb-flush", |browser, _| {
        assert!(moment(browser).ends_with("(the violation)"));
        let failed = letters(browser);
        browser.press("Home");
        assert_eq!(moment(browser), "before the first operation");
        let mut on = vec![letters(browser)];
        while browser.eval("slider.value !== slider.max") == true {
            browser.press("ArrowRight");
            on.push(letters(browser));
        }
        assert_eq!((on.len(), on.last()), (17, Some(&failed)));
        assert!(on.iter().any(|state| *state != failed));
        let mut back = vec![letters(browser)];
        for _ in 1..on.len() {
            browser.press("ArrowLeft");
            back.push(letters(browser));
        }
        back.reverse();
        assert_eq!(on, back);
        browser.eval("slider.value = 1; slider.dispatchEvent(new Event('input'))");
        assert!(moment(browser).starts_with("after operation 0: Vmalloc"));
        assert_eq!(letters(browser), on[1]);
        browser.press("PageDown");
        assert!(moment(browser).starts_with("after operation 10: "));
        browser.eval("document.querySelector('#call-list tr[data-op=\"7\"]').click()");
        assert!(moment(browser).starts_with("after operation 7: "));
        assert_eq!(browser.text("document.querySelector('tr[aria-current]').dataset.op"), "7");
    });
}

#[test]
fn everything_is_reached_by_tab_and_seen_when_it_is() {
    on_page("tab", "kvmalloc-survives-fragmentation", "kmem", |browser, _| {
        let mut reached: Vec<String> = Vec::new();
        while reached.last().map(String::as_str) != Some("SUMMARY") {
            assert!(reached.len() < 20, "{reached:?}");
            browser.press("Tab");
            let outline = browser.text("getComputedStyle(document.activeElement).outlineStyle");
            assert_ne!(outline, "none", "after {reached:?}");
            reached
                .push(browser.text("(e => e.id || e.dataset.go || e.className || e.tagName)(document.activeElement)"));
        }
        let order = ["skip", "first", "back", "on", "last", "shown", "slider", "memory-map", "scroll", "window-map"];
        assert_eq!(reached[..order.len()], order);
        assert!(reached.contains(&"call-list".to_owned()), "{reached:?}");
        browser.eval("document.getElementById('memory-map').focus()");
        let before = moment(browser);
        browser.press("ArrowRight");
        browser.press("ArrowRight");
        let frame = browser.text("document.getElementById('memory-where').textContent");
        assert!(frame.starts_with("frame 1 (node 0, Normal") && frame.contains("page block; block "), "{frame}");
        assert_eq!(moment(browser), before, "in a map the keys move the cell");
    });
}

#[test]
fn dark_narrow_and_on_paper_it_can_be_read() {
    on_page("looks", "stale-translation-after-reuse", "forgets-tlb-flush", |browser, _| {
        for scheme in ["light", "dark"] {
            let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
            browser.call("Emulation.setEmulatedMedia", json!({ "features": features }));
            let least = browser.eval(LEAST_CONTRAST).as_f64().unwrap();
            assert!(least >= 4.5, "{scheme}: {least}");
        }
        browser.press("Home");
        browser.eval("window.dispatchEvent(new Event('beforeprint'))");
        browser.call("Emulation.setEmulatedMedia", json!({ "media": "print" }));
        assert!(moment(browser).ends_with("(the violation)"), "on paper is what failed");
        assert_eq!(browser.text("getComputedStyle(document.getElementById('controls')).display"), "none");
        assert_eq!(browser.text("getComputedStyle(document.getElementById('call-list')).overflowY"), "visible");
        assert_eq!(browser.text("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)");
        browser.eval("window.dispatchEvent(new Event('afterprint'))");
        assert_eq!(moment(browser), "before the first operation");
        browser.call("Emulation.setEmulatedMedia", json!({ "media": "screen" }));
        let narrow = json!({ "width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", narrow);
        let fits = browser.eval("(e => e.scrollWidth <= e.clientWidth)(document.documentElement)");
        assert_eq!(fits, true, "nothing but maps and tables scrolls to the side");
    });
}

#[test]
fn a_subject_that_shows_nothing_has_a_page_too() {
    on_page("loose", "kmalloc-class-boundaries", "overlap-8-every-7th", |browser, _| {
        assert!(moment(browser).ends_with("(the violation)"));
        assert!(browser.eval("document.querySelectorAll('#memory .mark.guilty').length").as_u64() > Some(0));
        browser.press("Home");
        assert_eq!(browser.eval("document.querySelectorAll('#memory .mark.guilty').length"), 0);
    });
}

/// The least contrast of a letter and its cell, and of the page's text and its ground, by the formula of WCAG 2.
const LEAST_CONTRAST: &str = r"(() => {
    const light = color => {
        const [r, g, b] = color.match(/[\d.]+/g).map(Number).map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => {
        const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
        return (high + 0.05) / (low + 0.05);
    };
    const style = e => getComputedStyle(e);
    const letter = style(document.querySelector('.letters')).fill;
    const cells = [...document.querySelectorAll('pattern rect')].map(rect => contrast(style(rect).fill, letter));
    const ground = style(document.body).backgroundColor;
    const words = [...document.querySelectorAll('p, th, td, h1, h2')].map(e => contrast(style(e).color, ground));
    return Math.min(...cells, ...words);
})()";
