//! `kmem` on real memory of this process: threads are its CPUs, the host's mappings its MMU.
//!
//! The subject is a loose one, at its real addresses: which block goes where depends on the host. Its zones, nodes and CPUs are
//! the host's too, so that it skips what a trace says about those. Beyond what is asked of
//! every loose subject,
//!
//! * a CPU is a thread of its own, so that blocks come from one thread and go back from another (one call at a time; the
//!   [`stress`](crate::stress) makes them at once);
//! * contents are read and written by the processor, those of areas through the host's mappings; a fault is a finding, not a
//!   crash;
//! * the page after an area must fault, and so must each page of a freed area once the flush was asked for (O3);
//! * `kmem`'s own audit must agree (O8), and at the end no page may be missing (O12).

#[allow(unsafe_code, reason = "calls of a `GlobalAlloc`")]
mod malloc;
#[allow(unsafe_code, reason = "a write to an address that may fault")]
mod touch;

pub(super) use malloc::Malloc;
use touch::Touch;

use super::calls::Kept;
use super::{Guest, Spare};
use crate::subject::{AccessFault, AreaCall, Call, Near, ObjectsCall, Reply, Strength, Subject};
use kmem::hosted::{Entered, HostConfig, HostError, Hosted};
use kmem::{Geometry, GeometryError, GfpFlags, MemInfo, PAGE_SIZE, PhysAddr, Platform, VirtAddr};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Threads besides the one of CPU 0; CPUs beyond share them.
const WORKERS: usize = 3;

/// The largest window of areas, in pages: the host keeps books of all of it.
const MOST_WINDOW: u64 = 1 << 20;

/// The allocator under test.
pub(crate) struct HostedSubject {
    machine: Arc<Hosted>,
    memory: Touch,
    kept: Kept,
    workers: Vec<Worker>,
    cpu: usize,
    /// Pages of each live area, by its address; each is followed by a guard.
    areas: BTreeMap<u64, u64>,
    /// Areas that were freed since the last flush.
    freed: Vec<(u64, u64)>,
    /// What can be read and should not.
    readable: Option<String>,
    /// Pages by owner before the first call; `None` if others use the allocator at the same time.
    fresh: Option<MemInfo>,
}

/// A thread that makes calls.
struct Worker {
    calls: Option<Sender<(Call, Kept)>>,
    replies: Receiver<(Option<Reply>, Kept)>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn new(machine: Arc<Hosted>) -> Self {
        let (calls, take) = channel::<(Call, Kept)>();
        let (give, replies) = channel();
        let thread = std::thread::spawn(move || {
            for (call, mut kept) in take {
                let reply = kept.call(&machine.enter(), &call);
                if give.send((reply, kept)).is_err() {
                    return;
                }
            }
        });
        Self { calls: Some(calls), replies, thread: Some(thread) }
    }

    /// Makes a call on this thread; a panic there is one here.
    fn call(&mut self, call: &Call, kept: Kept) -> (Option<Reply>, Kept) {
        let sent = self.calls.as_ref().is_some_and(|calls| calls.send((call.clone(), kept)).is_ok());
        match self.replies.recv() {
            Ok(answer) if sent => answer,
            _ => match self.thread.take().map(JoinHandle::join) {
                Some(Err(panic)) => std::panic::resume_unwind(panic),
                _ => (None, Kept::default()),
            },
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.calls = None;
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

impl HostedSubject {
    /// Makes the allocator, with as much memory and as many addresses for areas as the machine has; its zones, nodes and
    /// CPUs are the host's matter.
    ///
    /// # Errors
    ///
    /// The geometry cannot be used, or the host has no memory for it.
    pub(super) fn build(geometry: &Geometry) -> Result<Box<dyn Guest>, GeometryError> {
        geometry.validate()?;
        let mut config = HostConfig::new(geometry.frames() as usize * PAGE_SIZE);
        config.window = geometry.vmalloc_pages.get().min(MOST_WINDOW) as usize * PAGE_SIZE;
        config.hardening = geometry.hardening;
        let machine = Hosted::new(&config).map_err(|_| GeometryError::Boot)?;
        let fresh = machine.enter().meminfo();
        let subject = Self::on(Arc::new(machine), Some(fresh)).map_err(|_| GeometryError::Boot)?;
        Ok(Box::new(subject))
    }

    /// One of several on the same allocator.
    ///
    /// # Errors
    ///
    /// The host does not give what it takes to look at memory.
    pub(crate) fn sharing(machine: Arc<Hosted>) -> Result<Self, HostError> {
        Self::on(machine, None)
    }

    fn on(machine: Arc<Hosted>, fresh: Option<MemInfo>) -> Result<Self, HostError> {
        Ok(Self {
            machine,
            memory: Touch::new()?,
            kept: Kept::default(),
            workers: Vec::new(),
            cpu: 0,
            areas: BTreeMap::new(),
            freed: Vec::new(),
            readable: None,
            fresh,
        })
    }

    /// Makes a call on the thread of the current CPU.
    fn answer(&mut self, call: &Call) -> Option<Reply> {
        let Some(place) = (self.cpu % (WORKERS + 1)).checked_sub(1) else {
            return self.kept.call(&self.machine.enter(), call);
        };
        while self.workers.len() <= place {
            self.workers.push(Worker::new(Arc::clone(&self.machine)));
        }
        let worker = self.workers.get_mut(place)?;
        let (reply, kept) = worker.call(call, std::mem::take(&mut self.kept));
        self.kept = kept;
        reply
    }

    fn machine_call(&mut self, call: &Call) -> Option<Reply> {
        match *call {
            Call::SetCpu { cpu } => self.cpu = usize::from(cpu),
            Call::DrainPages => self.machine.enter().drain_all_pages(),
            Call::Purge => self.flush(|machine| machine.enter().vm_unmap_aliases()),
            Call::Reclaim => self.flush(|machine| {
                machine.enter().reclaim();
            }),
            _ => return None,
        }
        Some(Reply::Done)
    }

    /// After the flush no page of an area that was freed before it can be read, but where there is another area now.
    fn flush(&mut self, flush: impl FnOnce(&Hosted)) {
        flush(&self.machine);
        for (addr, pages) in std::mem::take(&mut self.freed).into_iter().filter(|_| self.fresh.is_some()) {
            let page = |n: u64| addr + n * PAGE_SIZE as u64;
            let left = (0..pages).map(page).find(|&at| !self.is_live(at) && self.memory.can_read(at));
            self.readable =
                left.map(|at| format!("{at:#x} of a freed area can be read after the flush")).or(self.readable.take());
        }
    }

    fn is_live(&self, addr: u64) -> bool {
        let before = self.areas.range(..=addr).next_back();
        before.is_some_and(|(start, pages)| addr - start < pages * PAGE_SIZE as u64)
    }

    /// Keeps the book of areas.
    fn follow(&mut self, call: &Call, reply: &Reply) {
        let gone = match (call, reply) {
            (Call::Vfree { addr } | Call::Kvfree { addr } | Call::KvfreeSensitive { addr, .. }, Reply::Done) => *addr,
            (Call::Vrealloc { addr, .. } | Call::Kvrealloc { addr, .. }, Reply::Block { .. }) => *addr,
            _ => 0,
        };
        if let Some(pages) = self.areas.remove(&gone) {
            self.freed.push((gone, pages));
        }
        if let Reply::Block { addr, usable } = *reply
            && usable > 0
            && self.machine.enter().geometry().is_vmalloc_addr(VirtAddr::new(addr))
        {
            let pages = (usable as u64).div_ceil(PAGE_SIZE as u64);
            self.freed.retain(|&(freed, _)| freed != addr);
            self.areas.insert(addr, pages);
        }
    }
}

/// What has not come back although everything is freed.
pub(crate) fn is_missing(machine: &Hosted, fresh: &MemInfo) -> Option<String> {
    let kmem = machine.enter();
    kmem.reclaim();
    let now = kmem.meminfo();
    // The slabs of caches that were destroyed with objects are lost on purpose.
    let expected = MemInfo { leaked: now.leaked, free: fresh.free.wrapping_sub(now.leaked), ..*fresh };
    (now != expected).then(|| format!("everything is freed, but {now:?}; at first it was {fresh:?}"))
}

/// Where an address of the direct map is in memory: what is there never faults.
fn direct(machine: &Entered<'_>, addr: u64) -> Option<PhysAddr> {
    addr.checked_sub(machine.geometry().direct_map.as_u64()).map(PhysAddr::new)
}

/// What means the same on any machine: no zones, no nodes, no frames by number.
fn is_portable(call: &Call) -> bool {
    let plain = |gfp: GfpFlags| !gfp.intersects(GfpFlags::DMA | GfpFlags::DMA32);
    match call {
        Call::AllocPages { gfp, .. }
        | Call::AllocPagesExact { gfp, .. }
        | Call::AllocPagesBulk { gfp, .. }
        | Call::Kmalloc { gfp, .. }
        | Call::KmallocArray { gfp, .. }
        | Call::Krealloc { gfp, .. }
        | Call::Kvmalloc { gfp, .. }
        | Call::KvmallocArray { gfp, .. }
        | Call::Kvrealloc { gfp, .. }
        | Call::Vmalloc { gfp, .. }
        | Call::CacheAlloc { gfp, .. }
        | Call::Vrealloc { gfp, near: Near::ANY, .. } => plain(*gfp),
        Call::VmallocRange(AreaCall { gfp, within: None, node: None, guard: true, .. }) => plain(*gfp),
        Call::Objects(ObjectsCall::AllocBulk { gfp, .. } | ObjectsCall::PrefillSheaf { gfp, .. }) => plain(*gfp),
        Call::Objects(
            ObjectsCall::FreeBulk { .. }
            | ObjectsCall::AllocFromSheaf { .. }
            | ObjectsCall::RefillSheaf { .. }
            | ObjectsCall::ReturnSheaf { .. },
        )
        | Call::FreePages { .. }
        | Call::FreePagesExact { .. }
        | Call::Kfree { .. }
        | Call::KfreeSensitive { .. }
        | Call::Ksize { .. }
        | Call::KmallocSizeRoundup { .. }
        | Call::Kvfree { .. }
        | Call::KvfreeSensitive { .. }
        | Call::Vfree { .. }
        | Call::CacheCreate { .. }
        | Call::CacheFree { .. }
        | Call::CacheShrink { .. }
        | Call::CacheDestroy { .. }
        | Call::CompactMemory => true,
        _ => false,
    }
}

impl Subject for HostedSubject {
    fn name(&self) -> &str {
        "hosted"
    }

    fn strength(&self) -> Strength {
        Strength::Loose
    }

    fn own_geometry(&self) -> Option<Geometry> {
        Some(self.machine.enter().geometry().clone())
    }

    fn call(&mut self, call: &Call) -> Reply {
        let reply = match is_portable(call) {
            true => self.answer(call),
            false => self.machine_call(call),
        };
        let reply = match reply {
            // Others may have the memory.
            Some(Reply::Refused(error)) if self.fresh.is_none() && error.is_exhaustion() => Reply::Unsupported,
            reply => reply.unwrap_or(Reply::Unsupported),
        };
        self.follow(call, &reply);
        reply
    }

    fn has_memory(&self, addr: u64, bytes: usize) -> bool {
        let kmem = self.machine.enter();
        let geometry = kmem.geometry();
        let Some(end) = addr.checked_add(bytes as u64) else { return false };
        let direct = geometry.direct_map.as_u64();
        let of_memory = addr >= direct && end - direct <= u64::from(geometry.frames()) * PAGE_SIZE as u64;
        of_memory || (geometry.is_vmalloc_addr(VirtAddr::new(addr)) && end <= geometry.vmalloc_end().as_u64())
    }

    /// A page that must fault and does not.
    fn trespass(&self) -> Option<String> {
        let guard = |(addr, pages): (&u64, &u64)| {
            let guard = addr + pages * PAGE_SIZE as u64;
            self.memory
                .can_read(guard)
                .then(|| format!("the guard of the area at {addr:#x} can be read, at {guard:#x}"))
        };
        self.readable.clone().or_else(|| self.areas.iter().find_map(guard))
    }

    fn recount(&self) -> Option<String> {
        let alone = self.fresh.is_some();
        alone.then(|| self.machine.enter().audit().err()).flatten().map(|violation| violation.to_string())
    }

    fn lost(&mut self) -> Option<String> {
        is_missing(&self.machine, &self.fresh?)
    }

    fn read(&mut self, addr: u64, into: &mut [u8]) -> Result<(), AccessFault> {
        let machine = self.machine.enter();
        match direct(&machine, addr) {
            Some(phys) if machine.platform().memory().read(phys, into) => Ok(()),
            _ => self.memory.read(addr, into).map_err(AccessFault::NotMapped),
        }
    }

    fn write(&mut self, addr: u64, from: &[u8]) -> Result<(), AccessFault> {
        let machine = self.machine.enter();
        match direct(&machine, addr) {
            Some(phys) if machine.platform().memory().write(phys, from) => Ok(()),
            _ => self.memory.write(addr, from).map_err(AccessFault::NotMapped),
        }
    }

    fn translate(&self, _: u64) -> Option<u64> {
        None
    }
}

impl Guest for HostedSubject {
    fn into_spare(self: Box<Self>) -> Spare {
        Spare::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::{Budget, Engine, Job, Live, random::Random};
    use crate::generate::Target;
    use crate::subjects::SubjectKind;

    const KERNEL: GfpFlags = GfpFlags::KERNEL;

    fn subject() -> HostedSubject {
        let machine = Hosted::new(&HostConfig::new(16 << 20)).unwrap();
        let fresh = machine.enter().meminfo();
        HostedSubject::on(Arc::new(machine), Some(fresh)).unwrap()
    }

    fn area(subject: &mut HostedSubject, pages: usize) -> u64 {
        match subject.call(&Call::Vmalloc { size: pages * PAGE_SIZE, gfp: KERNEL }) {
            Reply::Block { addr, .. } => addr,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_engines_object_to_nothing() {
        let mut calls = 0;
        let jobs = Target::ALL.map(|target| (SubjectKind::HOSTED, target));
        for (subject, target) in jobs.into_iter().chain([(SubjectKind::MALLOC, Target::Kvmalloc)]) {
            let job = Job { subject, target, seed: 5, budget: Budget::cases(20), seeds: &[], max_ops: 150 };
            let outcome = Random.run(&job, &Live::default()).unwrap();
            assert!(outcome.finding.is_none(), "{target:?}: {:?}", outcome.finding);
            calls += outcome.ops;
        }
        assert!(calls > 3_000, "{calls} calls");
    }

    #[test]
    fn a_guard_that_can_be_read_is_told() {
        let mut subject = subject();
        let addr = area(&mut subject, 3);
        assert_eq!(subject.trespass(), None);
        // Were the area shorter, its third page would be the guard.
        subject.areas.insert(addr, 2);
        assert!(subject.trespass().is_some_and(|told| told.contains("guard")));
    }

    #[test]
    fn an_area_that_can_be_read_after_the_flush_is_told() {
        let mut subject = subject();
        let (kept, gone) = (area(&mut subject, 2), area(&mut subject, 2));
        assert_eq!(subject.call(&Call::Vfree { addr: gone }), Reply::Done);
        assert_eq!(subject.call(&Call::Purge), Reply::Done);
        assert_eq!(subject.trespass(), None);
        let fault = subject.read(gone, &mut [0]);
        assert_eq!(fault, Err(AccessFault::NotMapped(gone)));
        // Had it been freed, it could not be read any more.
        let pages = subject.areas.remove(&kept).unwrap();
        subject.freed.push((kept, pages));
        subject.call(&Call::Purge);
        assert!(subject.trespass().is_some_and(|told| told.contains("freed area")));
    }

    #[test]
    fn what_is_not_freed_is_missing_at_the_end() {
        let mut subject = subject();
        assert_eq!(subject.lost(), None);
        area(&mut subject, 1);
        assert!(subject.lost().is_some());
    }

    #[test]
    fn cpus_are_threads() {
        let mut subject = subject();
        let mut blocks = Vec::new();
        for cpu in 0..6 {
            subject.call(&Call::SetCpu { cpu });
            match subject.call(&Call::Kmalloc { size: 64, gfp: KERNEL }) {
                Reply::Block { addr, .. } => blocks.push(addr),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(subject.workers.len(), WORKERS);
        for addr in blocks {
            assert_eq!(subject.call(&Call::Kfree { addr }), Reply::Done);
        }
        assert_eq!(subject.lost(), None);
    }
}
