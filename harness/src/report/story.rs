//! What happened in a run, step by step: the call, where the block came from, and why.

use super::heap_map;
use super::table::table;
use crate::oracle::Step;
use crate::run::{RunOptions, RunReport, Runner, StepRecord};
use crate::subject::{AreaCall, Call, Near, Reply, Subject};
use crate::subjects::{Spare, SubjectKind};
use crate::trace::{CacheFlags, Gfp, Op, OpGroup, Trace};
use comfy_table::ContentArrangement;
use kmem::{Event, GfpFlags, VirtAddr};

/// The most rows that a story keeps; the first and the last ones explain most.
const MAX_ROWS: usize = 4000;

/// How wide the table of steps is, in characters.
const WIDTH: u16 = 150;

/// What a run did.
pub struct Story {
    rows: Vec<Row>,
    left_out: usize,
    /// The call around which memory is shown.
    focused: String,
    /// Memory before it.
    before: Option<String>,
    /// Memory after it.
    after: Option<String>,
    /// The largest order that was free before the call that is being told.
    largest_free: Option<usize>,
    /// How many operations were executed when memory looks as it does after that call; one more than the trace has: all,
    /// and everything was freed.
    pub(super) focus: usize,
    /// Address and usable bytes that the last call before a violation answered, if that was a block.
    pub(super) answer: Option<(u64, usize)>,
    /// What the oracles made of it.
    pub report: RunReport,
}

/// One call, or several like it that a macro operation made.
pub(super) struct Row {
    pub(super) op: usize,
    call: String,
    pub(super) tier: &'static str,
    pub(super) answer: String,
    pub(super) granted: bool,
    why: Vec<String>,
    times: usize,
}

impl Row {
    /// The call, or how often it was made and the last of them.
    pub(super) fn call(&self) -> String {
        if self.times > 1 { format!("{} times, last {}", self.times, self.call) } else { self.call.clone() }
    }

    /// What explains the answer.
    pub(super) fn why(&self) -> String {
        self.why.join("; ")
    }
}

/// What happened inside, as far as it explains an answer.
const NOTABLE: [(Event, &str); 32] = [
    (Event::Split, "a larger block was split"),
    (Event::VmapBlockMade, "a new block for mappings was made"),
    (Event::VmapBlockDirty, "a block for mappings was used up"),
    (Event::VmapBlockPurged, "an idle block for mappings was given back"),
    (Event::Merge, "buddies were merged"),
    (Event::PageblockClaimed, "a pageblock changed its type"),
    (Event::MigrateSteal, "a block of another type was taken"),
    (Event::ZoneFallback, "from a lower zone"),
    (Event::SlabNew, "a new slab was made"),
    (Event::SlabRelease, "an empty slab was released"),
    (Event::SlabMinOrder, "a slab of the smallest order was used"),
    (Event::RefusedWithoutReclaim, "refused without reclaim"),
    (Event::KvContiguous, "a contiguous block was there"),
    (Event::KvFallback, "fell back to vmalloc"),
    (Event::HugeMapped, "mapped in runs of 512 pages"),
    (Event::HugeRetried, "tried again with single pages"),
    (Event::Purge, "freed address space was flushed"),
    (Event::ReallocInPlace, "it stayed in place"),
    (Event::ReallocGrown, "it took what was free behind it"),
    (Event::ReallocMoved, "it moved"),
    (Event::VreallocShrunk, "tail pages were returned"),
    (Event::ReclaimPcp, "per-CPU pages were reclaimed"),
    (Event::ReclaimSlab, "slabs were reclaimed"),
    (Event::ReclaimVa, "address space was reclaimed"),
    (Event::ReclaimPlatform, "the platform gave memory back"),
    (Event::GaveUpNoProspect, "compaction had no prospect"),
    (Event::GaveUpNoRetry, "one round did not help"),
    (Event::GaveUpCostly, "one round did not help, and the order is costly"),
    (Event::GaveUpNoProgress, "nobody had anything left to give back"),
    (Event::GaveUpTooManyRounds, "all rounds did not help"),
    (Event::NofailUnanswered, "it must not fail, but nobody gives anything back"),
    (Event::NofailMayNotWait, "it must not fail, but may not wait"),
];

impl Story {
    /// Runs a trace and tells what happens.
    ///
    /// The calls that the run made are made once more on a second subject, which answers the same and can be looked at
    /// between them.
    pub fn of(trace: &Trace, kind: SubjectKind) -> Self {
        let options = RunOptions { keep_log: true, ..RunOptions::AGAIN };
        let mut report = Runner::new().run(trace, kind, &options);
        let log = std::mem::take(&mut report.log);
        // What the run frees after the last operation belongs to no operation.
        let steps: Vec<_> = log.into_iter().filter(|record| record.step.op < trace.ops.len()).collect();
        let mut story = Self {
            rows: Vec::new(),
            left_out: 0,
            focused: String::new(),
            before: None,
            after: None,
            largest_free: None,
            focus: 0,
            answer: None,
            report,
        };
        story.look_where_it_ends(&steps, &trace.ops);
        if let Ok(mut subject) = kind.build(&trace.geometry.to_geometry(), Spare::default()) {
            story.tell(&steps, &trace.ops, &mut *subject);
        }
        story
    }

    fn look_where_it_ends(&mut self, steps: &[StepRecord], ops: &[Op]) {
        self.focus = match &self.report.violation {
            Some(violation) if violation.op >= ops.len() => ops.len() + 1,
            Some(_) => self.report.ops,
            None => steps.get(self.focus(steps, ops)).map_or(ops.len(), |record| record.step.op + 1),
        };
        let last = steps.last().filter(|record| record.step.op + 1 == self.focus && self.report.violation.is_some());
        self.answer = match last.map(|record| &record.step.reply) {
            Some(&Reply::Block { addr, usable }) => Some((addr, usable)),
            _ => None,
        };
    }

    fn tell(&mut self, steps: &[StepRecord], ops: &[Op], subject: &mut dyn Subject) {
        let focus = self.focus(steps, ops);
        self.before = subject.white_box().map(heap_map::draw);
        self.after.clone_from(&self.before);
        for (i, record) in steps.iter().enumerate() {
            if i == focus {
                self.before = subject.white_box().map(heap_map::draw);
                self.focused = call_text(&record.step.call);
            }
            self.largest_free = largest_free(subject);
            subject.call(&record.step.call);
            let row = self.row(record, subject);
            self.add(row);
            if i == focus {
                self.after = subject.white_box().map(heap_map::draw);
            }
        }
    }

    /// The call that explains most: the last one before a violation, else the first that was refused outside macro
    /// operations (which go on until they are refused), else the last.
    fn focus(&self, steps: &[StepRecord], ops: &[Op]) -> usize {
        let single = |op: usize| !matches!(ops[op].kind().group(), OpGroup::Burst | OpGroup::Fragment);
        let is_refused = |record: &StepRecord| matches!(record.step.reply, Reply::Refused(_)) && single(record.step.op);
        let refused = steps.iter().position(is_refused).filter(|_| self.report.violation.is_none());
        refused.unwrap_or(steps.len().saturating_sub(1))
    }

    fn row(&self, record: &StepRecord, subject: &dyn Subject) -> Row {
        let step = &record.step;
        let refusal = self.refusal(step);
        let happened = |event: Event| record.events.iter().any(|&(index, _)| index == event.index());
        let notable = NOTABLE.iter().filter(|(event, _)| happened(*event)).map(|(_, words)| (*words).to_owned());
        Row {
            op: step.op,
            call: call_text(&step.call),
            tier: tier(&step.reply, subject),
            answer: reply_text(&step.reply),
            granted: refusal.is_none(),
            why: refusal.into_iter().chain(notable).collect(),
            times: 1,
        }
    }

    /// The calls, and how many were left out.
    pub(super) fn rows(&self) -> (&[Row], usize) {
        (&self.rows, self.left_out)
    }

    /// The steps as a table.
    pub fn steps(&self) -> String {
        let mut table = table(&[">op", "call", "tier", "answer", "why"]);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        for row in &self.rows {
            table.add_row([row.op.to_string(), row.call(), row.tier.to_owned(), row.answer.clone(), row.why()]);
        }
        let note = if self.left_out > 0 { format!("{} rows left out\n", self.left_out) } else { String::new() };
        format!("{table}\n{note}")
    }

    /// Memory before and after the call that explains most.
    pub fn memory(&self) -> String {
        let unseen = "the subject does not show its inside\n";
        format!(
            "Memory before {}:\n\n{}\nMemory after it:\n\n{}\n{}",
            self.focused,
            self.before.as_deref().unwrap_or(unseen),
            self.after.as_deref().unwrap_or(unseen),
            heap_map::LEGEND
        )
    }

    /// Joins calls of one macro operation that were answered alike.
    fn add(&mut self, row: Row) {
        if let Some(last) = self.rows.last_mut()
            && (last.op, last.tier, last.granted) == (row.op, row.tier, row.granted)
            && name_of(&last.call) == name_of(&row.call)
        {
            last.times += 1;
            last.call = row.call;
            last.answer = row.answer;
            let new = row.why.into_iter().filter(|words| !last.why.contains(words)).collect::<Vec<_>>();
            last.why.extend(new);
        } else if self.rows.len() < MAX_ROWS {
            self.rows.push(row);
        } else {
            self.left_out += 1;
        }
    }

    /// Why a call was not granted; `None` if it was.
    fn refusal(&self, step: &Step) -> Option<String> {
        let free = || match self.largest_free {
            Some(order) => format!("the largest free block is of order {order}"),
            None => "no block is free".to_owned(),
        };
        match &step.reply {
            Reply::Refused(_) if step.fault_struck => Some("an injected fault struck".to_owned()),
            Reply::Refused(error) => Some(format!("{error}; {}", free())),
            Reply::Rejected(error) => Some(error.to_string()),
            Reply::CacheRefused(error) => Some(error.to_string()),
            Reply::Unsupported => Some("the subject has no such call".to_owned()),
            _ => None,
        }
    }
}

/// The largest order of which some zone has a free block.
fn largest_free(subject: &dyn Subject) -> Option<usize> {
    let zones = subject.white_box()?.buddyinfo();
    zones.zones().iter().filter_map(|zone| zone.free.iter().rposition(|&blocks| blocks > 0)).max()
}

fn name_of(call: &str) -> &str {
    call.split('(').next().unwrap_or(call)
}

fn is_vmalloc(addr: u64, subject: &dyn Subject) -> bool {
    subject.white_box().is_some_and(|inside| inside.geometry().is_vmalloc_addr(VirtAddr::new(addr)))
}

fn tier(reply: &Reply, subject: &dyn Subject) -> &'static str {
    match reply {
        Reply::Block { addr, .. } if is_vmalloc(*addr, subject) => "virtually contiguous",
        Reply::Block { addr, .. } if *addr > 16 => "contiguous",
        Reply::Pages(_) => "contiguous",
        _ => "",
    }
}

fn reply_text(reply: &Reply) -> String {
    match reply {
        Reply::Block { addr: 0, .. } => "null".to_owned(),
        Reply::Block { addr: 16, .. } => "ZERO_SIZE_PTR".to_owned(),
        Reply::Block { addr, usable } => format!("{addr:#x}, {usable} bytes"),
        Reply::Pages(pages) => format!("{} pages", pages.len()),
        Reply::Done => "done".to_owned(),
        Reply::Size(n) => n.to_string(),
        Reply::Frame(Some(pfn)) => format!("frame {pfn}"),
        Reply::Frame(None) => "not mapped".to_owned(),
        Reply::Frames(Ok(frames)) => format!("{} frames", frames.len()),
        Reply::Frames(Err(_)) => "refused".to_owned(),
        Reply::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Reply::Objects(objects) => format!("{} objects", objects.len()),
        Reply::Sheaf(number) => format!("sheaf {number}"),
        Reply::Cache(id) => format!("{id:?}"),
        Reply::Destroyed { what, .. } => what.to_string(),
        Reply::Refused(_) | Reply::CacheRefused(_) => "refused".to_owned(),
        Reply::Rejected(_) => "rejected".to_owned(),
        Reply::Unsupported => "unsupported".to_owned(),
    }
}

/// A call as its user would write it.
pub fn call_text(call: &Call) -> String {
    match call {
        Call::AllocPages { order, gfp } => format!("alloc_pages({order}, {})", flags(*gfp)),
        Call::AllocPagesNode { order, gfp, node } => {
            let node = node.map_or("any".to_owned(), |node| node.to_string());
            format!("alloc_pages_node({order}, {}, {node})", flags(*gfp))
        }
        Call::FreePages { addr, order } => format!("free_pages({addr:#x}, {order})"),
        Call::AllocPagesExact { size, gfp } => format!("alloc_pages_exact({size}, {})", flags(*gfp)),
        Call::FreePagesExact { addr, size } => format!("free_pages_exact({addr:#x}, {size})"),
        Call::AllocPagesBulk { count, gfp } => format!("alloc_pages_bulk({count}, {})", flags(*gfp)),
        Call::Kmalloc { size, gfp } => format!("kmalloc({size}, {})", flags(*gfp)),
        Call::KmallocArray { n, size, gfp } => format!("kmalloc_array({n}, {size}, {})", flags(*gfp)),
        Call::Krealloc { addr, size, gfp } => format!("krealloc({addr:#x}, {size}, {})", flags(*gfp)),
        Call::Kfree { addr } => format!("kfree({addr:#x})"),
        Call::Ksize { addr } => format!("ksize({addr:#x})"),
        Call::KmallocSizeRoundup { size } => format!("kmalloc_size_roundup({size})"),
        Call::Vmalloc { size, gfp } => format!("vmalloc({size}, {})", flags(*gfp)),
        Call::VmallocRange(call) => area_text(call),
        Call::KvmallocNode { size, align, gfp, node } => {
            let node = node.map_or("any".to_owned(), |node| node.to_string());
            format!("kvmalloc_node_align({size}, {align}, {}, {node})", flags(*gfp))
        }
        Call::Vfree { addr } => format!("vfree({addr:#x})"),
        Call::PinArea { addr } => format!("pin_vmalloc_page({addr:#x})"),
        Call::UnpinArea { frame } => format!("unpin_vmalloc_page({frame:#x})"),
        Call::Vrealloc { addr, size, gfp, near: Near::ANY } => format!("vrealloc({addr:#x}, {size}, {})", flags(*gfp)),
        Call::Vrealloc { addr, size, gfp, near: Near { align, node } } => {
            format!("vrealloc_node_align({addr:#x}, {size}, {align}, {}, {node:?})", flags(*gfp))
        }
        Call::Vmap { pfns } => format!("vmap({} frames)", pfns.len()),
        Call::Vunmap { addr } => format!("vunmap({addr:#x})"),
        Call::VmallocToPage { addr } => format!("vmalloc_to_page({addr:#x})"),
        Call::Kvmalloc { size, gfp } => format!("kvmalloc({size}, {})", flags(*gfp)),
        Call::KvmallocArray { n, size, gfp } => format!("kvmalloc_array({n}, {size}, {})", flags(*gfp)),
        Call::Kvrealloc { addr, size, gfp } => format!("kvrealloc({addr:#x}, {size}, {})", flags(*gfp)),
        Call::Kvfree { addr } => format!("kvfree({addr:#x})"),
        Call::KvfreeSensitive { addr, len } => format!("kvfree_sensitive({addr:#x}, {len})"),
        other => other_text(other),
    }
}

fn area_text(call: &AreaCall) -> String {
    let AreaCall { size, align, within, gfp, node, guard, huge } = call;
    let node = node.map_or("any".to_owned(), |node| node.to_string());
    let range = within.map_or("anywhere".to_owned(), |(first, end)| format!("pages {first:#x}..{end:#x}"));
    let more = [(!guard, ", no guard"), (*huge, ", huge")].map(|(is, text)| if is { text } else { "" }).concat();
    format!("vmalloc_node_range({size}, align {align}, {range}, {}, node {node}{more})", flags(*gfp))
}

/// The calls on caches and on the machine.
fn other_text(call: &Call) -> String {
    match call {
        Call::CacheCreate { spec } => {
            let flags = CacheFlags::new(spec.flags);
            format!("kmem_cache_create({}, align {}, {flags})", spec.size, spec.align)
        }
        Call::CacheAlloc { cache, gfp } => format!("kmem_cache_alloc({cache:?}, {})", flags(*gfp)),
        Call::CacheFree { cache, addr } => format!("kmem_cache_free({cache:?}, {addr:#x})"),
        Call::CacheShrink { cache } => format!("kmem_cache_shrink({cache:?})"),
        Call::CacheDestroy { cache } => format!("kmem_cache_destroy({cache:?})"),
        Call::Objects(call) => call.to_string(),
        Call::Window(call) => call.to_string(),
        Call::DrainPages => "drain_all_pages()".to_owned(),
        Call::Purge => "vm_unmap_aliases()".to_owned(),
        Call::Reclaim => "reclaim()".to_owned(),
        Call::GetPage { addr } => format!("get_page({addr:#x})"),
        Call::PutPage { addr } => format!("put_page({addr:#x})"),
        Call::FailPages { min_order, interval, times, .. } => {
            format!("(fail_page_alloc: order {min_order} and up, every {interval}, {times} times)")
        }
        Call::FailSlabs { interval, times, .. } => format!("(failslab: every {interval}, {times} times)"),
        Call::ClaimProgress { times } => format!("// the machine claims {times} times to give memory back"),
        Call::SetCpu { cpu } => format!("(now on CPU {cpu})"),
        Call::FailNth { point, nth } => format!("(question {nth} about {point:?} will fail)"),
        other => format!("{other:?}"),
    }
}

fn flags(gfp: GfpFlags) -> Gfp {
    Gfp::new(gfp)
}
