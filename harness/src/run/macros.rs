//! Macro operations: many calls of one kind, so that a fragmented machine is one operation away.

use super::session::{Session, Verdict};
use crate::model::Tiers;
use crate::subject::Call;
use crate::trace::{BurstTier, Op};
use kmem::{GfpFlags, MAX_PAGE_ORDER, PAGE_SIZE};

/// The most calls that one burst or one steering makes.
const MAX_CALLS: usize = 256;
/// The most blocks of a checkerboard: all pages of a machine of 16 MiB.
const MAX_SQUARES: u64 = 4096;

impl Session {
    /// Executes a macro operation.
    pub(super) fn execute_macro(&mut self, op: &Op) -> Verdict {
        match *op {
            Op::Burst { count, tier, size, gfp } => self.burst(usize::from(count), tier, size as usize, gfp.to_flags()),
            Op::FreeEvery { step, phase } => {
                let step = usize::from(step).max(1);
                let phase = usize::from(phase) % step;
                self.free_where(|n| n % step == phase)
            }
            Op::RcuFreeEvery { step, sleep } => {
                self.rcu_free_where(sleep, |n| n.is_multiple_of(usize::from(step).max(1)))
            }
            Op::Steer { percent, size } => self.steer(u64::from(percent.min(100)), size.max(1) as usize),
            Op::Checkerboard { order, spare } => self.checkerboard(order, u64::from(spare)),
            Op::AreaBoard { step, phase } => self.area_board(usize::from(step).max(1), usize::from(phase)),
            Op::RamChurn { pick, count, step, phase } => {
                self.ram_churn(usize::from(pick), usize::from(count), usize::from(step), usize::from(phase))
            }
            Op::MovableBoard { step, phase } => self.movable_board(usize::from(step).max(1), usize::from(phase)),
            _ => Ok(()),
        }
    }

    /// Allocates up to `count` blocks of one size, and stops at the first refusal: the next one would be the same.
    fn burst(&mut self, count: usize, tier: BurstTier, size: usize, gfp: GfpFlags) -> Verdict {
        let Some(call) = self.burst_call(tier, size, gfp) else { return Ok(()) };
        for _ in 0..count.min(MAX_CALLS) {
            if !self.call(call.clone())? {
                break;
            }
        }
        Ok(())
    }

    fn burst_call(&self, tier: BurstTier, size: usize, gfp: GfpFlags) -> Option<Call> {
        Some(match tier {
            BurstTier::Pages => Call::AllocPages { order: order_for(size), gfp },
            BurstTier::Kmalloc => Call::Kmalloc { size, gfp },
            BurstTier::Cache => Call::CacheAlloc { cache: self.model.pick_cache(size)?.id, gfp },
            BurstTier::Vmalloc => Call::Vmalloc { size, gfp },
            BurstTier::Kvmalloc => Call::Kvmalloc { size, gfp },
        })
    }

    /// Allocates blocks of `size`, or frees what is there, until live blocks hold `percent` of memory.
    fn steer(&mut self, percent: u64, size: usize) -> Verdict {
        let memory = self.model.geometry().managed().get() * PAGE_SIZE as u64;
        let target = memory * percent / 100;
        let mut live = self.live_bytes();
        for _ in 0..MAX_CALLS {
            if live.saturating_add(size as u64) <= target {
                if !self.call(Call::Kvmalloc { size, gfp: GfpFlags::KERNEL })? {
                    break;
                }
                live += size as u64;
            } else if live > target {
                let Some(block) = self.model.pick(Tiers::OWNING, 0) else { break };
                let (addr, bytes) = (block.addr, block.usable as u64);
                self.free_at(addr)?;
                live = live.saturating_sub(bytes);
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Takes page blocks until all but `spare` are taken or one is refused, then frees every second one by address, so
    /// that none of the freed ones finds its buddy.
    fn checkerboard(&mut self, order: u8, spare: u64) -> Verdict {
        let order = order.min(MAX_PAGE_ORDER);
        let blocks = (self.model.geometry().managed().get() >> order).saturating_sub(spare);
        let call = Call::AllocPages { order, gfp: GfpFlags::KERNEL };
        for _ in 0..blocks.min(MAX_SQUARES) {
            if !self.call(call.clone())? {
                break;
            }
        }
        let squares = self.model.blocks(Tiers::PAGES).filter(|block| block.order == order);
        let mut addresses: Vec<u64> = squares.map(|block| block.addr).collect();
        addresses.sort_unstable();
        addresses.into_iter().skip(1).step_by(2).try_for_each(|addr| self.free_at(addr))
    }

    /// The same with movable areas of one page each.
    fn area_board(&mut self, step: usize, phase: usize) -> Verdict {
        let call = Call::Vmalloc { size: PAGE_SIZE, gfp: GfpFlags::HIGHUSER_MOVABLE };
        for _ in 0..MAX_SQUARES {
            if !self.call(call.clone())? {
                break;
            }
        }
        let squares = self.model.blocks(Tiers::VMALLOC).filter(|block| block.movable && block.frames.len() == 1);
        let mut squares: Vec<(u32, u64)> = squares.map(|block| (block.frames[0], block.addr)).collect();
        squares.sort_unstable();
        let addresses = squares.into_iter().map(|(_, addr)| addr);
        addresses.skip(phase % step).step_by(step).try_for_each(|addr| self.free_at(addr))
    }

    /// Fills memory with movable pages and frees every `step`-th by address: large blocks are gone until pages move.
    fn movable_board(&mut self, step: usize, phase: usize) -> Verdict {
        let call = Call::AllocPages { order: 0, gfp: GfpFlags::HIGHUSER_MOVABLE };
        for _ in 0..MAX_SQUARES {
            if !self.call(call.clone())? {
                break;
            }
        }
        let mut addresses: Vec<u64> =
            self.model.blocks(Tiers::PAGES).filter(|b| b.order == 0).map(|b| b.addr).collect();
        addresses.sort_unstable();
        addresses.into_iter().skip(phase % step).step_by(step).try_for_each(|addr| self.free_at(addr))
    }
}

/// The smallest order that holds `size`; one above the largest if none does.
fn order_for(size: usize) -> u8 {
    kmem::Order::for_bytes(size).map_or(MAX_PAGE_ORDER + 1, kmem::Order::get)
}
