//! Lets the re-expressed harness of somebody else judge a run in the place of our oracles.
//!
//! What every harness keeps is kept here: which blocks its caller holds. A design only puts its questions, so that it is as
//! long as the idea that it re-expresses. The picks of operations are resolved by our model in any case; that is no question.

use super::session::Verdict;
use crate::model::{Block, Model, Tier, Tiers, freed_address, old_address, request};
use crate::oracle::{OracleId, Violation};
use crate::subject::{Call, Moved, Reply, Subject};
use kmem::{GfpFlags, PAGE_SIZE};
use std::collections::BTreeMap;

/// A block in the hands of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its number, never reused in a run.
    pub number: u64,
    /// Its first byte.
    pub addr: u64,
    /// Bytes that were asked for.
    pub bytes: usize,
    /// Bytes that the caller is told to have.
    pub usable: usize,
    /// What the address must be a multiple of.
    pub align: u64,
    /// Whether all of it has to read zero.
    pub zeroed: bool,
}

/// A refused request, in terms that need no model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Bytes that were asked for.
    pub bytes: usize,
    /// Bytes in the hands of the caller.
    pub held: usize,
    /// Bytes of memory.
    pub memory: usize,
}

impl Refused {
    /// Tells whether nobody expects that: a page at most, on an ordinary machine of which three quarters are free.
    pub fn is_out_of_the_blue(&self) -> bool {
        self.bytes > 0 && self.bytes <= PAGE_SIZE && self.held <= self.memory / 4 && self.memory >= PAGE_SIZE << 8
    }
}

/// What the harness of somebody else asks; it returns what it objects to.
pub trait Stranger {
    /// A block was granted.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn granted(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        let _ = (memory, block);
        Ok(())
    }

    /// A block is about to be freed.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn leaves(&mut self, memory: &mut dyn Subject, block: &Held) -> Result<(), String> {
        let _ = (memory, block);
        Ok(())
    }

    /// A block is held no more, whoever took it.
    fn gone(&mut self, block: &Held) {
        let _ = block;
    }

    /// A block was resized, and perhaps moved.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn resized(&mut self, memory: &mut dyn Subject, old: &Held, new: &Held) -> Result<(), String> {
        self.gone(old);
        self.granted(memory, new)
    }

    /// An ordinary request was refused.
    ///
    /// # Errors
    ///
    /// Why it should not have been.
    fn refused(&mut self, request: &Refused) -> Result<(), String> {
        let _ = request;
        Ok(())
    }

    /// Something was called.
    ///
    /// # Errors
    ///
    /// What is wrong now.
    fn called(&mut self, memory: &mut dyn Subject) -> Result<(), String> {
        let _ = memory;
        Ok(())
    }

    /// The trace asks for a look at everything that is held.
    ///
    /// # Errors
    ///
    /// What is wrong with one of them.
    fn looks(&mut self, memory: &mut dyn Subject, held: &mut dyn Iterator<Item = &Held>) -> Result<(), String> {
        let _ = (memory, held);
        Ok(())
    }

    /// Nothing is held any more; `bytes` is the size of a block that fits into that.
    ///
    /// # Errors
    ///
    /// What is missing.
    fn ends(&mut self, memory: &mut dyn Subject, bytes: usize) -> Result<(), String> {
        let _ = (memory, bytes);
        Ok(())
    }
}

/// A stranger, and the books that are kept for it.
pub(super) struct Outsider {
    design: Box<dyn Stranger>,
    held: BTreeMap<u64, Held>,
    /// Whether nobody has planned a failure so far.
    faultless: bool,
}

impl Outsider {
    pub(super) fn new(design: Box<dyn Stranger>) -> Self {
        Self { design, held: BTreeMap::new(), faultless: true }
    }

    /// Before a call is made.
    pub(super) fn before(&mut self, subject: &mut dyn Subject, call: &Call) -> Result<(), String> {
        self.faultless &=
            !matches!(call, Call::FailNth { .. } | Call::FailPages { .. } | Call::FailSlabs { .. } | Call::Vmap { .. });
        let waits = if let Call::Rcu(call) = call { call.block().map(|(addr, _)| addr) } else { None };
        match freed_address(call).or(waits).and_then(|addr| self.held.get(&addr)) {
            Some(block) => self.design.leaves(subject, block),
            None => Ok(()),
        }
    }

    /// After a call was answered and our model has followed it.
    pub(super) fn after(
        &mut self,
        subject: &mut dyn Subject,
        model: &Model,
        call: &Call,
        reply: &Reply,
    ) -> Result<(), String> {
        // What was lost behind the caller's back may be where the new block is.
        if self.held.len() + usize::from(old_address(call).is_none()) != model.count(Tiers::OWNING) {
            self.forget_lost(model, old_address(call));
        }
        match reply {
            Reply::Block { addr, .. } => self.given(subject, model, call, *addr)?,
            Reply::Refused(_) => self.refused(model, call)?,
            Reply::Done => {
                let gone = freed_address(call).filter(|&addr| model.block(addr).is_none());
                gone.map(|addr| self.forget(addr)).unwrap_or_default();
            }
            _ => {}
        }
        if self.held.len() != model.count(Tiers::OWNING) {
            self.catch_up(subject, model)?;
        }
        self.design.called(subject)
    }

    /// A page block moved: its caller uses another address from now on.
    pub(super) fn moved(&mut self, moved: &Moved) {
        if let Some(block) = self.held.remove(&moved.from) {
            self.held.insert(moved.to, Held { addr: moved.to, ..block });
        }
    }

    /// The trace asks for a look.
    pub(super) fn looks(&mut self, subject: &mut dyn Subject) -> Result<(), String> {
        self.design.looks(subject, &mut self.held.values())
    }

    /// Everything was freed.
    pub(super) fn ends(&mut self, subject: &mut dyn Subject, model: &Model) -> Result<(), String> {
        self.design.ends(subject, memory_of(model) / 4)
    }

    fn given(&mut self, subject: &mut dyn Subject, model: &Model, call: &Call, addr: u64) -> Result<(), String> {
        let Some(block) = model.block(addr).filter(|block| Tiers::OWNING.contains(block.tier)) else { return Ok(()) };
        let zeroed = request(call).is_some_and(|(_, gfp)| gfp.wants_zero()) && old_address(call).is_none();
        let new = Held { zeroed, ..held(block) };
        let old = old_address(call).and_then(|old| self.held.remove(&old));
        // Two at one address: the one that was there is not looked at any more.
        self.held.insert(addr, new);
        match old {
            Some(old) => self.design.resized(subject, &old, &new),
            None => self.design.granted(subject, &new),
        }
    }

    fn refused(&mut self, model: &Model, call: &Call) -> Result<(), String> {
        let Some((bytes, gfp)) = request(call) else { return Ok(()) };
        if !self.faultless || gfp - GfpFlags::ZERO != GfpFlags::KERNEL || !is_plain(call) {
            return Ok(());
        }
        let held = self.held.values().map(|block| block.usable).sum();
        self.design.refused(&Refused { bytes, held, memory: memory_of(model) })
    }

    fn forget(&mut self, addr: u64) {
        if let Some(block) = self.held.remove(&addr) {
            self.design.gone(&block);
        }
    }

    /// Forgets what is live no more, or was cut into pieces, but for the block that is being resized.
    fn forget_lost(&mut self, model: &Model, resized: Option<u64>) {
        let is_lost = |block: &&Held| {
            let live = model.block(block.addr).filter(|live| live.handle == block.number);
            live.is_none_or(|live| live.requested < block.bytes) && resized != Some(block.addr)
        };
        let lost: Vec<u64> = self.held.values().filter(is_lost).map(|block| block.addr).collect();
        lost.into_iter().for_each(|addr| self.forget(addr));
    }

    /// Follows what came and went in calls for several blocks, or behind the caller's back.
    fn catch_up(&mut self, subject: &mut dyn Subject, model: &Model) -> Result<(), String> {
        self.forget_lost(model, None);
        let fresh = model.blocks(Tiers::OWNING).filter(|block| !self.held.contains_key(&block.addr));
        for block in fresh.map(held).collect::<Vec<Held>>() {
            self.held.insert(block.addr, block);
            self.design.granted(subject, &block)?;
        }
        Ok(())
    }
}

/// The violation that an objection ends the run with.
pub(super) fn objection(verdict: Result<(), String>, op: usize) -> Verdict {
    verdict.map_err(|message| Violation { oracle: OracleId::Stranger, message, blocks: Vec::new(), op })
}

/// Calls whose refusal a caller of `malloc` would call one.
fn is_plain(call: &Call) -> bool {
    matches!(call, Call::Kmalloc { .. } | Call::Kvmalloc { .. })
}

fn memory_of(model: &Model) -> usize {
    crate::subjects::ordinary_bytes(model.geometry()) as usize
}

/// What any caller knows of a block.
fn held(block: &Block) -> Held {
    let align = match block.tier {
        Tier::Kmalloc | Tier::LargeKmalloc if block.requested.is_power_of_two() => block.requested.clamp(8, PAGE_SIZE),
        Tier::Kmalloc | Tier::LargeKmalloc => 8,
        Tier::Cache => 1,
        _ => PAGE_SIZE,
    };
    let (number, addr, bytes, usable) = (block.handle, block.addr, block.requested, block.usable);
    Held { number, addr, bytes, usable, align: align as u64, zeroed: false }
}
