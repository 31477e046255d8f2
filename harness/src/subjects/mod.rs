//! What can be tested, by name: `kmem` on the simulated machine, a simple loose allocator, and the degenerate ones.
//!
//! A degenerate subject makes one mistake on purpose. The oracle that is meant for that mistake must report it; if it
//! does not, the harness is broken, not the subject.

mod calls;
mod degenerate;
mod heap;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) mod hosted;
mod kmem;
mod loose;
mod objects;
mod twisted;

pub use self::degenerate::{DEGENERATES, Degenerate};
pub use self::heap::Heap;
pub use self::kmem::KmemSubject;
pub use self::loose::{Flaw, Honest, Loose};
pub use self::twisted::{Hidden, Twist, Twisted};

use crate::adapt::{self, Memory};
use crate::generate::Target;
use crate::machine::{JUNK, SimMachine};
use crate::subject::Subject;
use ::kmem::{Geometry, GeometryError, MetaRegion, ZoneKind};
use std::sync::{Mutex, PoisonError};

/// Memory of a finished run that the next one can use again; empty at first.
pub struct Spare {
    machine: Option<SimMachine>,
    region: Option<MetaRegion>,
    memory: Option<Memory>,
    /// What the memory of a machine made anew holds.
    junk: u8,
}

impl Default for Spare {
    fn default() -> Self {
        Self { machine: None, region: None, memory: None, junk: JUNK }
    }
}

impl Spare {
    /// Keeps a machine.
    pub fn of_machine(machine: SimMachine) -> Self {
        Self { junk: machine.junk(), machine: Some(machine), ..Self::default() }
    }

    /// Keeps real memory.
    pub(crate) fn of_memory(memory: Memory) -> Self {
        Self { memory: Some(memory), ..Self::default() }
    }

    /// The real memory, if there is some.
    pub(crate) fn into_memory(self) -> Option<Memory> {
        self.memory
    }

    /// No memory yet; when it is made, it holds something else than that of others.
    pub(crate) fn unlike_others() -> Self {
        Self { junk: !JUNK, ..Self::default() }
    }

    /// Makes a machine of the shape wanted, from the spare one if there is one.
    pub(crate) fn machine(self, geometry: &Geometry) -> SimMachine {
        self.into_parts(geometry, 0).0
    }

    /// Makes a machine and a metadata region of at least `bytes` bytes.
    fn into_parts(self, geometry: &Geometry, bytes: usize) -> (SimMachine, MetaRegion) {
        let machine = match self.machine {
            Some(used) => used.recycle(geometry),
            None => SimMachine::with_junk(geometry, self.junk),
        };
        let region = self.region.filter(|region| region.len() >= bytes).unwrap_or_else(|| MetaRegion::heap(bytes));
        (machine, region)
    }
}

/// Bytes up to the end of the memory that ordinary requests may use: the movable zone is above it.
pub(crate) fn ordinary_bytes(geometry: &Geometry) -> u64 {
    let usable = geometry.zones().iter().filter(|zone| zone.kind != ZoneKind::Movable);
    usable.filter_map(|zone| zone.end()).max().unwrap_or_default().addr().as_u64()
}

/// A subject that gives its memory back for the next run.
pub trait Guest: Subject {
    /// Ends the subject.
    fn into_spare(self: Box<Self>) -> Spare;
}

/// How a subject with this name is made.
type Build = fn(&'static str, &Geometry, Spare) -> Result<Box<dyn Guest>, GeometryError>;

/// A subject that can be chosen by name.
#[derive(Clone, Copy)]
pub struct SubjectKind {
    name: &'static str,
    build: Build,
    targets: &'static [Target],
    foreign: bool,
}

impl SubjectKind {
    /// `kmem` itself.
    pub const KMEM: Self = Self::new("kmem", |_, geometry, spare| KmemSubject::build(geometry, spare));
    /// The simple loose allocator, which makes no mistake.
    pub const LOOSE: Self = Self::new("loose", |_, geometry, spare| Ok(Box::new(Loose::new(geometry, spare, Honest))));

    /// `kmem` on real memory of this process.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    pub const HOSTED: Self =
        Self::foreign("hosted", |_, geometry, _| hosted::HostedSubject::build(geometry), &Target::ALL);

    /// The allocator of whole programs that is made of it.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    pub const MALLOC: Self = adapt::hosted::<hosted::Malloc>("hosted-malloc");

    /// Names a subject in safe code, which cannot take the harness down with it.
    pub const fn new(name: &'static str, build: Build) -> Self {
        Self { name, build, targets: &Target::ALL, foreign: false }
    }

    /// Names a subject in code of somebody else, which may crash or hang; and what traces for it are to be about.
    pub(crate) const fn foreign(name: &'static str, build: Build, targets: &'static [Target]) -> Self {
        Self { name, build, targets, foreign: true }
    }

    /// Returns the name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What traces for it are about.
    pub const fn targets(&self) -> &'static [Target] {
        self.targets
    }

    /// Tells whether it may crash or hang, so that it is better run in a process of its own.
    pub const fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Makes the subject, in memory that another left.
    ///
    /// # Errors
    ///
    /// The geometry cannot be used.
    pub fn build(&self, geometry: &Geometry, spare: Spare) -> Result<Box<dyn Guest>, GeometryError> {
        (self.build)(self.name, geometry, spare)
    }
}

impl std::fmt::Debug for SubjectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Subjects that a program brought along.
static REGISTERED: Mutex<Vec<SubjectKind>> = Mutex::new(Vec::new());

/// Adds subjects to those that can be chosen by name; one with a known name is ignored.
pub fn register(kinds: &[SubjectKind]) {
    for kind in kinds {
        if by_name(kind.name).is_none() {
            REGISTERED.lock().unwrap_or_else(PoisonError::into_inner).push(*kind);
        }
    }
}

/// All subjects: the honest ones first, those that were registered last.
pub fn all() -> impl Iterator<Item = SubjectKind> {
    let registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let own = [SubjectKind::KMEM, SubjectKind::LOOSE].into_iter();
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    let own = own.chain([SubjectKind::HOSTED, SubjectKind::MALLOC]);
    own.chain(DEGENERATES.iter().map(|d| d.kind)).chain(registered)
}

/// The subject of this name; `None` if there is none.
pub fn by_name(name: &str) -> Option<SubjectKind> {
    all().find(|kind| kind.name == name)
}

/// The names of all subjects.
pub fn names() -> Vec<&'static str> {
    all().map(|kind| kind.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_a_name_of_its_own_and_is_found_by_it() {
        let names = names();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(names.iter().position(|other| other == name), Some(i), "{name}");
            assert_eq!(by_name(name).map(|kind| kind.name()), Some(*name));
        }
        assert!(by_name("no-such-subject").is_none());
    }

    #[test]
    fn every_subject_calls_itself_by_its_registered_name() {
        for kind in all() {
            let subject = kind.build(&Geometry::flat(256), Spare::default()).unwrap();
            assert_eq!(subject.name(), kind.name());
        }
    }
}
