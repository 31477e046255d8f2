//! One run of one trace.

use super::hash::StepHasher;
use super::objects::return_call;
use super::stranger::{Outsider, objection};
use super::{Coverage, Judges, RunOptions, RunReport, StepRecord, Watch};
use crate::model::{Block, Model};
use crate::oracle::{self, Context, Step, Violation};
use crate::subject::{Call, Reply, Subject};
use crate::subjects::Guest;
use crate::suites::{Kernel, Stop};
use crate::trace::{Op, Trace};
use kmem::{Event, Geometry};
use std::hash::{Hash, Hasher};

/// What the oracles answer.
pub(super) type Verdict = Result<(), Violation>;

/// A subject, its model, and what has been noted so far.
pub(super) struct Session {
    guest: Box<dyn Guest>,
    pub(super) model: Model,
    options: RunOptions,
    /// Whether the oracles look at everything now and then.
    audits: bool,
    /// Who judges in their place.
    stranger: Option<Outsider>,
    /// Whether what is left at the end is freed in the opposite order.
    pub(super) backwards: bool,
    /// Index of the operation that is being executed.
    op: usize,
    /// Operations begun.
    ops: usize,
    calls: u64,
    /// Whether the operation had an effect.
    effective: bool,
    /// How far the CPU of a call is from that of the call before it.
    stride: u16,
    violation: Option<Violation>,
    log: Vec<StepRecord>,
    coverage: Coverage,
    peak_live: usize,
    hasher: StepHasher,
    /// What the hash was when the trace had ended.
    answers: Option<u64>,
}

impl Session {
    pub(super) fn new(guest: Box<dyn Guest>, geometry: &Geometry, options: RunOptions, backwards: bool) -> Self {
        let mut model = Model::new(geometry, guest.strength());
        let (audits, stranger) = match options.judges {
            Judges::Oracles { muted, audits } => {
                model.notes.muted = muted;
                (audits, None)
            }
            Judges::Stranger(design) => (false, Some(Outsider::new(design()))),
        };
        Self {
            model,
            guest,
            options,
            audits,
            stranger,
            backwards,
            op: 0,
            ops: 0,
            calls: 0,
            effective: false,
            stride: 0,
            violation: None,
            log: Vec::new(),
            coverage: Coverage::on(geometry),
            peak_live: 0,
            hasher: StepHasher::default(),
            answers: None,
        }
    }

    /// Ends the session.
    pub(super) fn finish(mut self) -> (Box<dyn Guest>, RunReport) {
        self.coverage.set_events(&events(&*self.guest));
        let report = RunReport {
            ops: self.ops,
            calls: self.calls,
            violation: self.violation,
            unbootable: None,
            log: self.log,
            coverage: self.coverage,
            peak_live: self.peak_live,
            hash: self.answers.unwrap_or_else(|| self.hasher.finish()),
        };
        (self.guest, report)
    }

    /// Runs the trace and frees everything; the first violation stops it and is kept.
    pub(super) fn run(&mut self, trace: &Trace, watch: &mut impl Watch) {
        self.violation = self.run_to_the_end(trace, watch).err();
    }

    /// Runs a program and frees everything; the first violation stops it and is kept.
    pub(super) fn run_program<T>(
        &mut self,
        program: impl FnOnce(&mut dyn Kernel) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let answer = program(self);
        if self.violation.is_none() {
            self.violation = self.free_everything().err();
        }
        answer
    }

    /// Keeps the violation that ends the run.
    pub(super) fn set_violation(&mut self, violation: Violation) {
        self.violation = Some(violation);
    }

    fn run_to_the_end(&mut self, trace: &Trace, watch: &mut impl Watch) -> Verdict {
        watch.look(0, &self.model, &*self.guest);
        for fault in &trace.faults {
            self.call(Call::FailNth { point: fault.point, nth: fault.nth })?;
        }
        let mut until_audit = self.options.audit_every;
        for op in &trace.ops {
            self.ops += 1;
            self.effective = false;
            let verdict = self.execute(op);
            if self.effective || matches!(op, Op::Audit | Op::Interleave { .. }) {
                self.coverage.operation(op.kind());
            }
            watch.look(self.ops, &self.model, &*self.guest);
            verdict?;
            self.op += 1;
            until_audit = until_audit.wrapping_sub(1);
            if until_audit == 0 {
                until_audit = self.options.audit_every;
                self.audit()?;
            }
        }
        let verdict = self.free_everything();
        watch.look(trace.ops.len() + 1, &self.model, &*self.guest);
        verdict
    }

    /// Frees all blocks and caches, has everything given back, and asks what must hold then.
    fn free_everything(&mut self) -> Verdict {
        self.answers = Some(self.hasher.finish());
        self.audit()?;
        self.free_all()?;
        while let Some(sheaf) = self.model.sheaves().first().copied() {
            self.call(return_call(sheaf))?;
        }
        while let Some(cache) = self.model.pick_cache(0).map(|cache| cache.id) {
            let caches = self.model.caches().len();
            self.call(Call::CacheDestroy { cache })?;
            if self.model.caches().len() == caches {
                break;
            }
        }
        self.call(Call::Reclaim)?;
        self.audit()?;
        match &mut self.stranger {
            Some(stranger) => objection(stranger.ends(&mut *self.guest, &self.model), self.op),
            None => oracle::at_end(&mut self.context()),
        }
    }

    /// Every oracle looks at everything.
    pub(super) fn audit(&mut self) -> Verdict {
        if self.audits { oracle::audit(&mut self.context()) } else { Ok(()) }
    }

    /// The trace asks for a look at everything.
    pub(super) fn look(&mut self) -> Verdict {
        match &mut self.stranger {
            Some(stranger) => objection(stranger.looks(&mut *self.guest), self.op),
            None => self.audit(),
        }
    }

    /// Lets the processor access a live block, as one step without a call.
    pub(super) fn access(&mut self, access: impl FnOnce(&mut Context<'_>) -> Verdict) -> Verdict {
        self.change_cpu()?;
        self.did_something();
        self.calls += 1;
        // What our contents are compared with is nothing that a stranger wrote.
        if self.stranger.is_some() {
            return Ok(());
        }
        let muted = self.model.notes.muted;
        muted.hear(access(&mut self.context()))
    }

    fn context(&mut self) -> Context<'_> {
        Context { model: &mut self.model, subject: &mut *self.guest, step: None, op: self.op }
    }

    /// Lets every further call come from the CPU `stride` further than the one before it.
    pub(super) fn interleave(&mut self, stride: u16) {
        self.stride = stride % self.model.geometry().cpus.max(1);
    }

    /// Goes to the CPU that the next call comes from, if calls are interleaved.
    fn change_cpu(&mut self) -> Verdict {
        if self.stride == 0 {
            return Ok(());
        }
        let cpu = (self.model.cpu() + self.stride) % self.model.geometry().cpus.max(1);
        self.make(Call::SetCpu { cpu }).map(drop)
    }

    /// Makes a call, from another CPU than the last one if calls are interleaved, and puts the answer to every oracle.
    /// Tells whether the call was granted.
    pub(super) fn call(&mut self, call: Call) -> Result<bool, Violation> {
        if !matches!(call, Call::SetCpu { .. } | Call::FailNth { .. } | Call::FailPages { .. } | Call::FailSlabs { .. })
        {
            self.change_cpu()?;
        }
        self.make(call)
    }

    fn make(&mut self, call: Call) -> Result<bool, Violation> {
        let reply = self.answer(call)?;
        Ok(!matches!(reply, Reply::Refused(_) | Reply::Rejected(_) | Reply::CacheRefused(_) | Reply::Unsupported))
    }

    /// Makes a call on the CPU that is current, puts the answer to every oracle, and hands it on.
    pub(super) fn answer(&mut self, call: Call) -> Result<Reply, Violation> {
        let events_before = self.options.keep_log.then(|| events(&*self.guest));
        let struck_before = faults_struck(&*self.guest);
        self.ask_before(&call)?;
        for free in single_frees(&call) {
            self.ask_before(&free)?;
        }
        self.guest.begin_step();
        self.guest.set_evictable(&self.model.evictable(&call));
        let reply = self.guest.call(&call);
        self.model.settle_deferred(&*self.guest);
        self.model.settle_ram(&call, &reply, &*self.guest);
        self.follow_moves()?;
        if reply == Reply::Unsupported {
            return Ok(reply);
        }
        let fault_struck = faults_struck(&*self.guest) != struck_before;
        let step = Step { op: self.op, call, reply, fault_struck };
        self.note(&step);
        let verdict = self.judge(&step);
        self.peak_live = self.peak_live.max(self.model.len());
        let reply = step.reply.clone();
        if let Some(before) = events_before {
            self.record(step, &before);
        }
        verdict.map(|()| reply)
    }

    fn ask_before(&mut self, call: &Call) -> Verdict {
        match &mut self.stranger {
            Some(stranger) => objection(stranger.before(&mut *self.guest, call), self.op),
            None => oracle::before_call(&mut self.context(), call),
        }
    }

    /// Follows the blocks that moved during a call; what they hold and who may free them stays the same.
    fn follow_moves(&mut self) -> Verdict {
        let evicted = self.guest.take_evicted();
        let mut evicted = evicted.iter().peekable();
        for (n, moved) in self.guest.take_moved().into_iter().enumerate() {
            while let Some(&(addr, _)) = evicted.next_if(|&&(_, after)| after <= n) {
                self.model.evict(addr);
            }
            match &mut self.stranger {
                Some(stranger) => stranger.moved(&moved),
                None => {
                    let muted = self.model.notes.muted;
                    muted.hear(oracle::on_move(&mut self.context(), &moved))?;
                }
            }
            self.model.relocate(&moved);
        }
        evicted.for_each(|&(addr, _)| self.model.evict(addr));
        let (lent, muted) = (self.guest.take_lent(), self.model.notes.muted);
        let heard = self.stranger.is_none();
        lent.into_iter().filter(|_| heard).try_for_each(|lent| muted.hear(oracle::on_lent(&mut self.context(), lent)))
    }

    /// The operation had an effect.
    pub(super) fn did_something(&mut self) {
        self.effective = true;
    }

    fn note(&mut self, step: &Step) {
        self.did_something();
        self.calls += 1;
        step.call.hash(&mut self.hasher);
        match &step.reply {
            // Pages may hold what nobody wrote.
            Reply::Bytes(bytes) => bytes.len().hash(&mut self.hasher),
            reply => reply.hash(&mut self.hasher),
        }
        self.coverage.step(step);
    }

    /// Our model follows, and somebody else judges.
    fn judge_as_stranger(&mut self, step: &Step) -> Verdict {
        self.model.follow_damage(step, &*self.guest);
        for part in parts(step) {
            self.model.update_blocks(&part, &*self.guest);
        }
        self.model.update_blocks(step, &*self.guest);
        let Some(stranger) = &mut self.stranger else { return Ok(()) };
        objection(stranger.after(&mut *self.guest, &self.model, &step.call, &step.reply), self.op)
    }

    fn judge(&mut self, step: &Step) -> Verdict {
        if self.stranger.is_some() {
            return self.judge_as_stranger(step);
        }
        let mut cx = Context { model: &mut self.model, subject: &mut *self.guest, step: Some(step), op: self.op };
        oracle::before_update(&mut cx)?;
        cx.model.follow_damage(step, cx.subject);
        let parts = parts(step);
        for part in &parts {
            let mut cx = Context { model: &mut self.model, subject: &mut *self.guest, step: Some(part), op: self.op };
            oracle::before_update_of_part(&mut cx)?;
            cx.model.update_blocks(part, cx.subject);
        }
        for part in &parts {
            self.after_part(part)?;
        }
        let mut cx = Context { model: &mut self.model, subject: &mut *self.guest, step: Some(step), op: self.op };
        cx.model.update_blocks(step, cx.subject);
        if let Reply::Block { addr, .. } = step.reply
            && let Some(block) = cx.model.block(addr)
        {
            self.coverage.block(block.tier);
        }
        oracle::after_update(&mut cx)
    }

    /// All parts are followed before the first one is looked at again: only then the counters agree.
    fn after_part(&mut self, part: &Step) -> Verdict {
        if let Reply::Block { addr, .. } = part.reply
            && let Some(block) = self.model.block(addr)
        {
            self.coverage.block(block.tier);
        }
        let mut cx = Context { model: &mut self.model, subject: &mut *self.guest, step: Some(part), op: self.op };
        oracle::after_update(&mut cx)
    }

    fn record(&mut self, step: Step, before: &[u64]) {
        let changes = events(&*self.guest).into_iter().zip(before).map(|(now, before)| now - before).enumerate();
        let events = changes.filter(|&(_, n)| n > 0).collect();
        self.log.push(StepRecord { step, cpu: self.model.cpu(), live: self.model.len(), events });
    }

    /// The first frame from `page` on that is free.
    pub(super) fn free_frame(&self, page: u32) -> Option<u32> {
        let inside = self.guest.white_box()?;
        let frames = self.model.geometry().frames();
        let mut all = (0..frames).map(|n| (page % frames + n) % frames);
        all.find(|&frame| inside.frame_kind(frame) == kmem::FrameKind::Free)
    }

    /// Blocks and bytes that the harness can steer by, whatever the subject.
    pub(super) fn live_bytes(&self) -> u64 {
        self.model.blocks(crate::model::Tiers::OWNING).map(|block| block.usable as u64).sum()
    }

    /// The live block at an address.
    pub(super) fn block(&self, addr: u64) -> Option<&Block> {
        self.model.block(addr)
    }
}

/// The frees for which a call stands.
fn single_frees(call: &Call) -> Vec<Call> {
    match call {
        Call::Objects(call) => call.single_frees(),
        _ => Vec::new(),
    }
}

/// The single calls for which a granted call stood.
fn parts(step: &Step) -> Vec<Step> {
    let Call::Objects(call) = &step.call else { return Vec::new() };
    let part = |(call, reply)| Step { op: step.op, call, reply, fault_struck: step.fault_struck };
    call.parts(&step.reply).into_iter().map(part).collect()
}

fn faults_struck(subject: &dyn Subject) -> u64 {
    subject.white_box().map_or(0, |inside| inside.faults_struck())
}

fn events(subject: &dyn Subject) -> Vec<u64> {
    subject.white_box().map_or_else(|| vec![0; Event::COUNT], |inside| inside.events())
}
