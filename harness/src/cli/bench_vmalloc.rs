//! `hammer bench vmalloc`: Linux's `test_vmalloc`, case by case, on the simulated machine without any oracle.

use super::bench::instructions_of;
use super::ui::Ui;
use super::{UserError, Verdict};
use crate::report::table::{grouped, table};
use crate::suites::test_vmalloc::{Case, Passed, Plan, run};
use crate::suites::{Bare, Stop};
use kmem::Geometry;
use std::time::{Duration, Instant};

/// 256 MiB: room for what the cases keep beside the areas that they measure.
const FRAMES: u32 = 1 << 16;
/// Loops that warm up, and loops in all: their difference is free of everything that happens once.
const LOOPS: [u64; 2] = [100, 1_100];
/// How often the time is taken; the least counts.
const REPEATS: usize = 5;

/// What was measured of a case.
#[derive(serde::Serialize)]
struct Row {
    name: &'static str,
    /// Of one allocation and its free.
    ns: f64,
    instructions: Result<f64, String>,
    published_ns: Option<u32>,
}

/// Executes the case at this place, and nothing else.
pub(super) fn only(place: usize, loops: u64) -> Result<Verdict, UserError> {
    let case = Case::ALL.get(place).ok_or_else(|| UserError(format!("there is no case {place}")))?;
    execute(*case, loops).map(|_| Verdict::Fine)
}

pub(super) fn table_of_cases(ui: &Ui) -> Result<Verdict, UserError> {
    let rows = (0..Case::ALL.len()).map(measure).collect::<Result<Vec<_>, _>>()?;
    let mut text = table(&["case of test_vmalloc", ">ns", ">instructions", ">ns, Linux 5.2-rc6"]);
    for row in &rows {
        let count = row.instructions.as_ref().map_or_else(Clone::clone, |n| grouped(n.round() as u64));
        let published = row.published_ns.map_or("-".to_owned(), |ns| grouped(ns.into()));
        text.add_row([row.name.to_owned(), grouped(row.ns.round() as u64), count, published]);
    }
    let about = "one allocation with its free, on the simulated machine (page tables walked and written in software);\n\
                 the last column is another machine's: a shape, no aim";
    ui.result(&serde_json::json!({ "ok": true, "test_vmalloc": rows }), format!("{text}\n{about}"));
    Ok(Verdict::Fine)
}

/// How much of a case there is in so many loops.
fn plan(case: Case, loops: u64) -> Plan {
    let plan = Plan::linux(loops);
    if case == Case::PcpuAlloc { Plan { objects: loops as usize, ..plan } } else { plan }
}

/// Boots a machine and runs a case; tells how long the case took.
fn execute(case: Case, loops: u64) -> Result<(Duration, Passed), UserError> {
    let bare = Bare::new(&Geometry::flat(FRAMES));
    let mut bare = bare.map_err(|e| UserError(format!("the machine cannot be made: {e}")))?;
    let start = Instant::now();
    match run(case, &mut bare, &plan(case, loops)) {
        Ok(passed) => Ok((start.elapsed(), passed)),
        Err(Stop::Failed(why)) => Err(UserError(format!("{}: {why}", case.name()))),
        Err(Stop::Objection) => Err(UserError(format!("{}: an oracle objected", case.name()))),
    }
}

/// Measures the case at this place.
fn measure(place: usize) -> Result<Row, UserError> {
    let case = Case::ALL[place];
    let [few, many] = if case.is_repeated() { LOOPS } else { [0, 1] };
    let allocs = match execute(case, many)?.1 {
        Passed::WithRefusal(granted) if !case.is_repeated() => granted as f64,
        _ => (many - few) as f64 * f64::from(case.allocs_per_loop()),
    };
    let [short, long] = [least_time(case, few)?, least_time(case, many)?];
    let ns = long.saturating_sub(short).as_nanos() as f64 / allocs;
    let count = |loops: u64| instructions_of(&["--case", &place.to_string(), "--pairs", &loops.to_string()]);
    let instructions = count(many).and_then(|many| Ok(many.saturating_sub(count(few)?) as f64 / allocs));
    Ok(Row { name: case.name(), ns, instructions, published_ns: case.published_ns() })
}

fn least_time(case: Case, loops: u64) -> Result<Duration, UserError> {
    let times = (0..REPEATS).map(|_| execute(case, loops).map(|(time, _)| time)).collect::<Result<Vec<_>, _>>()?;
    Ok(times.into_iter().min().unwrap_or_default())
}
