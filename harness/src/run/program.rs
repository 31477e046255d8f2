//! A program that makes calls of its own, judged as a trace is.

use super::session::Session;
use crate::model::RcuCall;
use crate::model::caches::CacheSpec;
use crate::oracle::{self, Violation};
use crate::subject::{AreaCall, Call, Near, Reply, WindowCall};
use crate::suites::{Kernel, Stop};
use kmem::{AllocError, CacheId, GfpFlags, PAGE_SIZE, VmFlags, VmallocArgs};

impl Session {
    /// Makes a call that has to be answered in the way that `expected` picks.
    fn ask<T>(&mut self, call: Call, expected: impl FnOnce(&Reply) -> Option<T>) -> Result<T, Stop> {
        let name = format!("{call:?}");
        let reply = self.object(|session| session.answer(call))?;
        expected(&reply).ok_or_else(|| Stop::failed(format!("{name} answered {reply:?}")))
    }

    fn ask_done(&mut self, call: Call) -> Result<(), Stop> {
        self.ask(call, |reply| matches!(reply, Reply::Done | Reply::Destroyed { .. }).then_some(()))
    }

    fn ask_block(&mut self, call: Call) -> Result<Result<u64, AllocError>, Stop> {
        self.ask(call, |reply| match *reply {
            Reply::Block { addr, .. } => Some(Ok(addr)),
            Reply::Refused(error) => Some(Err(error)),
            _ => None,
        })
    }

    /// Remembers the objection of an oracle, which ends the program.
    fn object<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Violation>) -> Result<T, Stop> {
        act(self).map_err(|violation| {
            self.set_violation(violation);
            Stop::Objection
        })
    }
}

impl Kernel for Session {
    fn cpus(&self) -> u16 {
        self.model.geometry().cpus
    }

    fn vmalloc(&mut self, args: &VmallocArgs) -> Result<Result<u64, AllocError>, Stop> {
        let page = |addr: kmem::VirtAddr| addr.as_u64() / PAGE_SIZE as u64;
        let anywhere = VmallocArgs::new(args.size, args.gfp).range;
        self.ask_block(Call::VmallocRange(AreaCall {
            size: args.size,
            align: args.align,
            within: (args.range != anywhere).then_some((page(args.range.0), page(args.range.1))),
            gfp: args.gfp,
            node: args.node,
            guard: !args.flags.contains(VmFlags::NO_GUARD),
            huge: args.flags.contains(VmFlags::ALLOW_HUGE_VMAP),
        }))
    }

    fn vfree(&mut self, addr: u64) -> Result<(), Stop> {
        self.ask_done(Call::Vfree { addr })
    }

    fn vrealloc(&mut self, addr: u64, size: usize, gfp: GfpFlags) -> Result<Result<u64, AllocError>, Stop> {
        self.ask_block(Call::Vrealloc { addr, size, gfp, near: Near::ANY })
    }

    fn kvfree_rcu(&mut self, addr: u64, head: Option<usize>) -> Result<(), Stop> {
        self.ask_done(Call::Rcu(match head {
            Some(head) => RcuCall::Kvfree { addr, head },
            None => RcuCall::KvfreeMightsleep { addr },
        }))
    }

    fn kvfree_rcu_barrier(&mut self) -> Result<(), Stop> {
        self.ask_done(Call::Rcu(RcuCall::Barrier))
    }

    fn cache(&mut self, size: usize, align: usize) -> Result<CacheId, Stop> {
        let spec = CacheSpec::own(size, align, false, false);
        self.ask(Call::CacheCreate { spec }, |reply| match *reply {
            Reply::Cache(cache) => Some(cache),
            _ => None,
        })
    }

    fn cache_alloc(&mut self, cache: CacheId) -> Result<Result<u64, AllocError>, Stop> {
        self.ask_block(Call::CacheAlloc { cache, gfp: GfpFlags::KERNEL })
    }

    fn cache_free(&mut self, cache: CacheId, addr: u64) -> Result<(), Stop> {
        self.ask_done(Call::CacheFree { cache, addr })
    }

    fn cache_destroy(&mut self, cache: CacheId) -> Result<(), Stop> {
        self.ask_done(Call::CacheDestroy { cache })
    }

    fn pages(&mut self, count: usize) -> Result<Vec<u64>, Stop> {
        self.ask(Call::AllocPagesBulk { count, gfp: GfpFlags::KERNEL }, |reply| match reply {
            Reply::Pages(pages) => Some(pages.clone()),
            _ => None,
        })
    }

    fn free_page(&mut self, addr: u64) -> Result<(), Stop> {
        self.ask_done(Call::FreePages { addr, order: 0 })
    }

    fn vm_map_ram(&mut self, pages: &[u64]) -> Result<Result<u64, AllocError>, Stop> {
        let pfns = pages.iter().map(|&page| self.model.direct_frames(page, PAGE_SIZE).start).collect();
        self.ask_block(Call::Window(WindowCall::VmMapRam { pfns, gfp: GfpFlags::KERNEL }))
    }

    fn vm_unmap_ram(&mut self, addr: u64, count: usize) -> Result<(), Stop> {
        self.ask_done(Call::Window(WindowCall::VmUnmapRam { addr, count }))
    }

    /// The page gets its own contents by its own address; they have to be seen by the other one.
    fn mark_mapped(&mut self, addr: u64, page: u64) -> Result<(), Stop> {
        self.object(|session| {
            session.access(|cx| oracle::write_block(cx, page))?;
            session.access(|cx| oracle::read_alias(cx, page, addr))
        })
    }

    /// Fills the whole block with contents that are its own.
    fn mark(&mut self, addr: u64) -> Result<(), Stop> {
        self.object(|session| session.access(|cx| oracle::write_block(cx, addr)))
    }

    /// Compares the whole block with its contents; anything else is an objection.
    fn is_marked(&mut self, addr: u64) -> Result<bool, Stop> {
        self.object(|session| session.access(|cx| oracle::read_block(cx, addr))).map(|()| true)
    }
}
