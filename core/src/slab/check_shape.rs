//! The auditor's part for what a cache is: what its paths compute with is what its size and flags say.
//!
//! ```text
//! I12.7  stride and left == the distance, and the bytes before an object, that object size, alignment and flags ask for
//! I12.8  reciprocal == ceil(2^44 / stride);   orders == those chosen for the stride;   alloc_gfp == what the flags add
//! I12.10 a number that no cache has, has no name, and the other way round;   liveness is kept as the hardening says
//! I12.9  each CPU's fast paths are open, for as many objects as a sheaf has; on a machine of several nodes for none
//! ```

use super::SlabLayer;
use super::order;
use super::shape::{Reciprocal, Role, Shape};
use crate::error::{Invariant, Violation};
use crate::geometry::Geometry;

impl SlabLayer {
    /// I12.10: what has a name is a cache, or an alias of one.
    pub(super) fn check_vacancies(&self) -> Result<(), Violation> {
        for id in 0..self.nr_caches() {
            let vacant = self.shapes.get(id).is_none_or(|record| record.role() == Role::Vacant);
            let (what, named) = ("names of cache number, which is one (I12.10)", self.identity(id).is_some());
            Violation::check_eq(Invariant::I12SlabCounts, what, id as u64, u64::from(!vacant), u64::from(named))?;
        }
        Ok(())
    }

    /// Checks what a cache is.
    pub(super) fn check_shape(&self, geometry: &Geometry, id: usize, shape: &Shape) -> Result<(), Violation> {
        let expect = |holds: bool, what, found: u64| {
            if holds { Ok(()) } else { Err(Violation::new(Invariant::I12SlabCounts, what, id as u64, 1, found)) }
        };
        let (size, stride) = (shape.object_size as u64, shape.stride as u64);
        expect(shape.wanted_stride() == Some(shape.stride), "distance of the objects of cache (I12.7)", size)?;
        expect(shape.wanted_left() == shape.left, "bytes before the objects of cache (I12.7)", u64::from(shape.left))?;
        let orders = order::slab_orders(shape.stride, geometry.cpus, geometry.max_order);
        expect(shape.reciprocal == Reciprocal::new(shape.stride), "division by the stride of cache (I12.8)", stride)?;
        expect(orders == Some(shape.orders), "orders of the slabs of cache (I12.8)", stride)?;
        let live = super::live_mode(geometry, shape.role, shape.flags, shape.stride);
        expect(shape.live == live, "how liveness is kept in cache (I12.10)", shape.live.to_byte().into())?;
        let wanted = super::cache::alloc_gfp(geometry, shape.flags);
        expect(
            wanted == shape.alloc_gfp,
            "flags of requests for slabs of cache (I12.8)",
            shape.alloc_gfp.bits().into(),
        )?;
        let capacities = Some(self.capacities(shape));
        let mut cells = self.cells.iter().skip(id).step_by(self.nr_caches().max(1));
        let closed = cells.position(|cell| cell.capacities() != capacities);
        expect(
            closed.is_none(),
            "room in the sheaves of a CPU for objects of cache (I12.9)",
            closed.unwrap_or(0) as u64,
        )
    }
}
