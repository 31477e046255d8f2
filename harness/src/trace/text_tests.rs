//! What the text encoding promises.

use super::*;
use crate::generate::{Generator, Target};
use crate::mutate::mutate;
use crate::trace::{Gfp, Op, OpKind, interesting};
use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

fn one_op(op: &str) -> String {
    format!("Trace(\n    version: 1,\n    ops: [\n        {op},\n    ],\n)\n")
}

fn error_of(text: &str) -> TextError {
    Trace::from_text(text).unwrap_err()
}

#[test]
fn an_operation_is_one_pleasant_line() {
    let trace = Trace::new(vec![Op::Kmalloc { size: 64, gfp: Gfp::KERNEL }, Op::DrainPages, Op::Kfree { pick: 0 }]);
    let text = trace.to_text();
    assert!(
        text.contains("\n        Kmalloc(size: 64, gfp: KERNEL),\n        DrainPages,\n        Kfree(pick: 0),\n"),
        "{text}"
    );
    assert!(!text.contains('"'), "{text}");
}

#[test]
fn a_generated_or_mutated_trace_survives_text_and_its_text_is_stable() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    for seed in 0..100 {
        let mut trace = Generator::new(seed).trace(interesting::pick(&Target::ALL, seed), 60);
        for _ in 0..3 {
            let text = trace.to_text();
            let back = Trace::from_text(&text).unwrap();
            assert_eq!(back, trace, "seed {seed}");
            assert_eq!(back.to_text(), text);
            mutate(&mut trace, &mut rng, 60);
        }
    }
}

#[test]
fn every_operation_with_extreme_numbers_survives_text() {
    for extreme in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
        let trace = Trace::new(OpKind::ALL.map(|kind| Op::from_numbers(kind, |_| extreme)).to_vec());
        assert_eq!(Trace::from_text(&trace.to_text()).unwrap(), trace);
    }
}

#[test]
fn only_version_and_operations_are_required() {
    let trace = Trace::from_text("// c\n(version: 1, ops: [Kmalloc(size: 0x40, gfp: KERNEL)])").unwrap();
    assert_eq!(trace, Trace::new(vec![Op::Kmalloc { size: 64, gfp: Gfp::KERNEL }]));
}

#[test]
fn the_leading_comment_survives() {
    let comment = "Memory is checkerboarded.\n\nThen kmalloc is refused.";
    let text = Trace::default().to_commented_text(comment);
    assert_eq!(leading_comment(&text), comment);
    assert_eq!(Trace::from_text(&text).unwrap(), Trace::default());
    assert_eq!(leading_comment(&Trace::default().to_text()), "");
}

#[test]
fn a_misspelt_operation_gets_its_place_and_the_name_that_was_meant() {
    let error = error_of(&one_op("Kmaloc(size: 64, gfp: KERNEL)"));
    assert_eq!((error.line, error.column), (4, 9), "{error}");
    assert!(error.to_string().contains("did you mean `Kmalloc`?"), "{error}");
}

#[test]
fn an_unknown_field_or_flag_gets_its_place() {
    let error = error_of(&one_op("Kmalloc(size: 64, gpf: KERNEL)"));
    assert_eq!((error.line, error.column), (4, 27), "{error}");
    let error = error_of(&one_op("Kmalloc(gfp: KERNEL|ZEROO, size: 64)"));
    assert_eq!((error.line, error.column), (4, 22), "{error}");
    assert!(error.to_string().contains("`ZEROO`"), "{error}");
}

#[test]
fn an_error_after_bare_flags_has_the_column_that_the_user_sees() {
    let error = error_of(&one_op("Krealloc(gfp: KERNEL, pick: 0, sice: 64)"));
    assert_eq!((error.line, error.column), (4, 40), "{error}");
}

#[test]
fn a_number_that_does_not_fit_gets_its_place() {
    let error = error_of(&one_op("Kfree(pick: 65536)"));
    assert_eq!(error.line, 4, "{error}");
    let error = error_of(&one_op("Kfree(pick: -1)"));
    assert_eq!(error.line, 4, "{error}");
}

#[test]
fn every_truncation_is_an_error_with_a_place() {
    let mut trace = Generator::new(5).trace(Target::Trace, 20);
    trace.ops.push(Op::CacheCreate { size: 8, align: 8, hwcache: true, ctor: false });
    let text = trace.to_text();
    let whole = text.trim_end();
    for cut in 1..whole.len() {
        let error = error_of(whole.get(..cut).unwrap());
        assert_eq!(error.line, whole.get(..cut).unwrap().trim_end().lines().count(), "cut at {cut}: {error}");
        if cut >= "Trace(".len() {
            assert!(matches!(error.kind, TextErrorKind::Truncated(_)), "cut at {cut}: {error:?}");
        }
    }
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_accepted() {
    let trace = Generator::new(6).trace(Target::Trace, 20);
    let text = format!("\u{feff}{}", trace.to_text().replace('\n', "\r\n"));
    assert_eq!(Trace::from_text(&text).unwrap(), trace);
}

#[test]
fn another_version_is_refused_by_its_number() {
    let error = error_of("Trace(version: 2, ops: [])");
    assert_eq!(error.kind, TextErrorKind::Version("2".to_owned()).clone(), "{error}");
    assert_eq!(error.line, 1);
}

#[test]
fn too_many_operations_or_faults_are_refused() {
    let ops = "Audit,".repeat(MAX_OPS + 1);
    assert_eq!(error_of(&format!("(version: 1, ops: [{ops}])")).kind, TextErrorKind::TooManyOps);
    let faults = "(point: Page, nth: 0),".repeat(MAX_FAULTS + 1);
    assert_eq!(error_of(&format!("(version: 1, faults: [{faults}], ops: [])")).kind, TextErrorKind::TooManyFaults);
}

#[test]
fn what_is_no_trace_at_all_is_told_so() {
    let error = error_of("hello");
    assert!(matches!(error.kind, TextErrorKind::Syntax(_)) && error.to_string().contains("hello"), "{error}");
    let error = error_of("Trace(version: 1, ops: [Kmalloc(size: 64)])");
    assert!(error.to_string().contains("the field `gfp` of `Kmalloc` is missing"), "{error}");
    let error = error_of(&"x".repeat(10_000));
    assert!(error.to_string().len() < 500);
}

#[test]
fn machine_swarm_and_faults_take_one_line_each() {
    let trace = Generator::new(5).trace(Target::Trace, 20);
    assert_eq!(trace.to_text().lines().count(), trace.ops.len() + 8);
}

#[test]
fn a_geometry_out_of_range_names_the_field() {
    let error = error_of("(version: 1, geometry: (frames: 3), ops: [])");
    assert!(error.to_string().contains("frames: 3") && error.to_string().contains("16"), "{error}");
}

/// A file in a folder of its own, removed at the end.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, contents: &[u8]) -> Self {
        let folder = std::env::temp_dir().join(format!("kmem-text-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        std::fs::write(&path, contents).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = self.0.parent().map(std::fs::remove_dir_all);
    }
}

fn load_error(name: &str, contents: &[u8]) -> LoadError {
    Trace::load(&TempFile::new(name, contents).0).unwrap_err()
}

#[test]
fn files_that_are_no_traces_are_told_apart() {
    assert!(matches!(Trace::load(Path::new("/nowhere/at all.ron")), Err(LoadError::Missing(_))));
    assert!(matches!(Trace::load(&std::env::temp_dir()), Err(LoadError::IsFolder(_))));
    assert!(matches!(load_error("empty.ron", b""), LoadError::Empty(_)));
    assert!(matches!(load_error("empty.bin", b""), LoadError::Empty(_)));
    assert!(matches!(load_error("blank.ron", b"// only a comment\n\n"), LoadError::Empty(_)));
    assert!(matches!(load_error("rubbish.ron", b"ab\ncd\xff\x00"), LoadError::NotText { line: 2, column: 3, .. }));
    let text = load_error("misspelt.ron", one_op("Kmaloc(size: 1, gfp: NONE)").as_bytes()).to_string();
    assert!(text.contains("misspelt.ron:4:9: `Kmaloc` is unknown"), "{text}");
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let file = TempFile::new("large.ron", b"");
    File::options().write(true).open(&file.0).unwrap().set_len(200 << 20).unwrap();
    assert!(matches!(Trace::load(&file.0), Err(LoadError::TooLarge(_, n)) if n == 200 << 20));
}

#[test]
fn both_encodings_load_from_files() {
    let trace = Generator::new(9).trace(Target::Trace, 50);
    for (name, contents) in
        [("a.ron", trace.to_text().into_bytes()), ("a.bin", trace.to_bytes()), ("crash-1", trace.to_bytes())]
    {
        assert_eq!(Trace::load(&TempFile::new(name, &contents).0).unwrap(), trace, "{name}");
    }
}
