//! Operations on the vmalloc window: which areas and pages they mean.

use super::session::{Session, Verdict};
use crate::model::{Block, Tier, Tiers, ram_block_pages};
use crate::oracle::Violation;
use crate::subject::{Call, WindowCall};
use crate::trace::Op;
use kmem::{GfpFlags, PAGE_SIZE, VmFlags};

const PAGE: u64 = PAGE_SIZE as u64;
/// The most mappings that one operation makes.
const MAX_RUNS: usize = 80;

impl Session {
    /// The call of a plain operation on the window; `None` for other operations, and if a pick finds nothing.
    pub(super) fn resolve_window(&self, op: &Op) -> Option<Call> {
        Some(Call::Window(match *op {
            Op::VmallocWith { size, gfp, step } => {
                let flags =
                    [VmFlags::USERMAP, VmFlags::FLUSH_RESET_PERMS, VmFlags::USERMAP | VmFlags::FLUSH_RESET_PERMS];
                let flags = flags[usize::from(step) % 3];
                WindowCall::Vmalloc { size: size as usize, gfp: gfp.to_flags(), flags }
            }
            Op::Protect { pick } => {
                let resets = |area: &&Block| area.vm_flags.contains(VmFlags::FLUSH_RESET_PERMS);
                let areas: Vec<u64> = self.model.blocks(Tiers::VMALLOC).filter(resets).map(|area| area.addr).collect();
                WindowCall::Protect { addr: *areas.get(usize::from(pick).checked_rem(areas.len())?)? }
            }
            Op::DrainDeferred => WindowCall::DrainDeferred,
            Op::Vread { pick, page, size } => self.vread(pick, u64::from(page), size),
            Op::RemapVmalloc { pick, page, size } => self.remap(pick, u64::from(page), size)?,
            _ => return None,
        }))
    }

    /// A read of some pages that begins at most two pages before an area and two behind it; one of 32 is somewhere else.
    fn vread(&self, pick: u16, at: u64, size: u64) -> WindowCall {
        let area = self.model.pick(Tiers::VIRTUAL, usize::from(pick));
        let start = area.map_or(self.model.geometry().vmalloc_start.as_u64(), |area| area.addr);
        let span = area.map_or(4, |area| area.area_pages as u64 + 4) * PAGE;
        // Any byte of a page, but rather its first ones.
        let from = (at / 4 * PAGE).wrapping_add([0, 1, PAGE - 1, size % PAGE][at as usize % 4]) % span;
        let addr = match at % 32 {
            31 => size.wrapping_neg(),
            _ => start.wrapping_sub(2 * PAGE).wrapping_add(from),
        };
        WindowCall::Vread { addr, len: (size % (5 * PAGE)) as usize }
    }

    /// A part of an area, or a little more; one of 16 addresses is inside of it, one of 16 offsets overflows.
    fn remap(&self, pick: u16, page: u64, size: u64) -> Option<WindowCall> {
        let area = self.model.pick(Tiers::VIRTUAL, usize::from(pick))?;
        let addr = if page % 16 == 15 { area.addr + PAGE } else { area.addr };
        let offset = match page % 16 {
            14 => u64::MAX - page / 16,
            13 => (1 << 52) + page / 16,
            _ => page / 16 % (area.area_pages as u64 + 2),
        };
        Some(WindowCall::Remap { addr, offset, size: size as usize })
    }

    /// Has an area freed later: one that owns its pages or has references to them. Other mappings stay shown until then, and
    /// their pages' owners would have to wait.
    pub(super) fn vfree_atomic(&mut self, pick: usize, kv: bool, again: bool) -> Verdict {
        let Some(area) = self.model.pick(Tiers::GUARDED, pick) else { return Ok(()) };
        if area.tier == Tier::Vmap && !area.puts_pages() {
            return Ok(());
        }
        let addr = area.addr;
        if let Some(alias) = Some(area).filter(|area| area.puts_pages()).and_then(|area| self.alias_of_dropped(area)) {
            return self.free_at(alias);
        }
        if !self.drop_pins(addr)? {
            return Ok(());
        }
        let call = Call::Window(WindowCall::VfreeAtomic { addr, kv });
        self.call(call.clone())?;
        let notices = self.model.is_tight() && self.model.geometry().hardening != kmem::Hardening::Off;
        if again && notices && self.block(addr).is_none() { self.call(call).map(drop) } else { Ok(()) }
    }

    /// Maps single pages; with references, the area's are the program's own, or some that were taken for it.
    pub(super) fn vmap_with(&mut self, pick: usize, count: usize, step: u8, gfp: GfpFlags) -> Verdict {
        let (flags, takes) = match step % 8 {
            0 | 1 => (VmFlags::MAP_PUT_PAGES, false),
            2 | 3 => (VmFlags::MAP_PUT_PAGES, true),
            4 => (VmFlags::MAP_PUT_PAGES | VmFlags::USERMAP, true),
            5 => (VmFlags::USERMAP, false),
            6 => (VmFlags::NO_GUARD, false),
            _ => (VmFlags::FLUSH_RESET_PERMS, false),
        };
        let puts = flags.contains(VmFlags::MAP_PUT_PAGES);
        // A page that only areas have references to is not the program's to map. A block of several pages has no reference to
        // each; now and then a caller does not know that.
        let fits = |block: &&Block| block.own_references() > 0 && (!puts || block.order == 0 || pick % 16 == 15);
        let blocks = self.model.count(Tiers::PAGES);
        let following = (0..blocks.min(64)).filter_map(|n| self.model.pick(Tiers::PAGES, pick.wrapping_add(n)));
        let chosen: Vec<u64> = following.filter(fits).take(count).map(|block| block.addr).collect();
        if takes && chosen.iter().all(|&addr| self.block(addr).is_some_and(|block| block.order == 0)) {
            for &addr in &chosen {
                self.call(Call::GetPage { addr })?;
            }
        }
        let pfns: Vec<u32> = chosen.iter().map(|&addr| self.model.direct_frames(addr, PAGE_SIZE).start).collect();
        if pfns.is_empty() {
            return Ok(());
        }
        // What a mapping shows is not its to clear.
        let gfp = gfp - GfpFlags::ZERO;
        self.call(Call::Window(WindowCall::Vmap { pfns, flags, gfp })).map(drop)
    }

    /// The frames of live page blocks, from the picked block on. A page that only areas have references to is not the
    /// program's to map.
    pub(super) fn frames_to_map(&self, pick: usize) -> impl Iterator<Item = u32> {
        let blocks = self.model.count(Tiers::PAGE_BLOCKS);
        let following = (0..blocks).filter_map(move |n| self.model.pick(Tiers::PAGE_BLOCKS, pick.wrapping_add(n)));
        let own = following.filter(|block| block.own_references() > 0);
        own.flat_map(|block| self.model.direct_frames(block.addr, block.usable))
    }

    /// Maps pages for a short time; tells whether it was done. Where there are fewer than `count`, some are shown again.
    pub(super) fn vm_map_ram(&mut self, pick: usize, count: usize, gfp: GfpFlags) -> Result<bool, Violation> {
        let found: Vec<u32> = self.frames_to_map(pick).take(count).collect();
        if found.is_empty() && count > 0 {
            return Ok(false);
        }
        let pfns = found.iter().copied().cycle().take(count).collect();
        // What a mapping shows is not its to clear.
        self.call(Call::Window(WindowCall::VmMapRam { pfns, gfp: gfp - GfpFlags::ZERO }))
    }

    /// Maps `count` pages so often that a block and a quarter are taken, and then unmaps all but every `step`-th.
    pub(super) fn ram_churn(&mut self, pick: usize, count: usize, step: usize, phase: usize) -> Verdict {
        let block = ram_block_pages(self.model.geometry());
        let runs = (block + block / 4).div_ceil(count.max(1).next_power_of_two()).min(MAX_RUNS);
        let mut made = Vec::new();
        for _ in 0..runs {
            let newest = self.model.newest();
            if !self.vm_map_ram(pick, count, GfpFlags::KERNEL)? {
                break;
            }
            made.extend(self.model.blocks(Tiers::MAP_RAM).filter(|run| run.handle >= newest).map(|run| run.addr));
        }
        let stays = |n: usize| step > 0 && n % step == phase % step;
        let gone: Vec<u64> = made.into_iter().enumerate().filter(|&(n, _)| !stays(n)).map(|(_, addr)| addr).collect();
        gone.into_iter().try_for_each(|addr| self.free_at(addr))
    }

    /// Address of another area that shows a page which the area's references alone keep.
    pub(super) fn alias_of_dropped(&self, area: &Block) -> Option<u64> {
        let count = |frame: u32| area.frames.iter().filter(|&&f| f == frame).count() as u32;
        let is_dropped = |frame: &&u32| {
            let page = self.block(self.model.address_of(**frame));
            page.is_none_or(|page| page.refs < count(**frame))
        };
        let dropped: Vec<u32> = area.frames.iter().filter(is_dropped).copied().collect();
        let shows = |other: &&Block| other.addr != area.addr && other.frames.iter().any(|f| dropped.contains(f));
        self.model.blocks(Tiers::SHOWING).find(shows).map(|other| other.addr)
    }
}

/// The call that frees a mapping: `vfree` if it has references to drop.
pub(super) fn free_mapping(area: &Block) -> Call {
    let addr = area.addr;
    if area.puts_pages() && area.tier == Tier::Vmap { Call::Vfree { addr } } else { Call::Vunmap { addr } }
}
