//! What others may see of the window: bytes for a reader who knows no area, frames for a user's address space.

use super::Vmalloc;
use super::area::Node;
use super::flags::VmFlags;
use crate::PAGE_SIZE;
use crate::addr::{Pfn, VirtAddr, Vpn};
use crate::buddy::PageAllocator;
use crate::error::RemapError;
use crate::paging::VpnRange;
use crate::platform::Platform;

/// A part of a read that lies in one page.
#[derive(Clone, Copy)]
struct Piece {
    page: Vpn,
    /// Its first byte's place in the page.
    offset: usize,
    /// Its first byte's place in the buffer.
    at: usize,
    len: usize,
}

/// The pieces of `len` bytes from `addr` on, which do not reach beyond the end of the address space.
fn pieces(addr: VirtAddr, len: usize) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    core::iter::from_fn(move || {
        let start = addr.checked_add(at as u64).filter(|_| at < len)?;
        let offset = start.page_offset();
        let piece = Piece { page: start.vpn(), offset, at, len: (PAGE_SIZE - offset).min(len - at) };
        at += piece.len;
        Some(piece)
    })
}

/// `len`, or what is left of the address space from `addr` on.
fn clamped(addr: VirtAddr, len: usize) -> usize {
    match addr.as_u64().wrapping_neg() {
        0 => len,
        room => usize::try_from(room).map_or(len, |room| len.min(room)),
    }
}

impl Vmalloc {
    /// Copies bytes from any place of the window. What no live area maps (gaps, guard pages, pages given back) reads as
    /// zeros. Returns how many bytes of `into` are filled: all, up to the end of the address space; or none, and they are
    /// untouched, if no live area has a page there.
    pub(crate) fn vread<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr, into: &mut [u8]) -> usize {
        let len = clamped(addr, into.len());
        let mut area = None;
        // Whether there is anything to read has to be known before the first byte is written.
        if !pieces(addr, len).any(|piece| self.is_in_area(pages, &mut area, piece.page)) {
            return 0;
        }
        area = None;
        for piece in pieces(addr, len) {
            let Some(into) = into.get_mut(piece.at..piece.at + piece.len) else { break };
            into.fill(0);
            if self.is_in_area(pages, &mut area, piece.page) {
                // A page of an area that is not mapped stays zero.
                self.tables.read_page(pages, piece.page, piece.offset, into);
            }
        }
        len
    }

    /// Tells whether a page belongs to a live area; `area` keeps what was found for the pages that follow.
    fn is_in_area<P: Platform>(&self, pages: &PageAllocator<P>, area: &mut Option<Node>, page: Vpn) -> bool {
        let page = page.as_u64();
        if area.is_none_or(|area| area.start + area.pages <= page) {
            *area = self.area_ending_after(&pages.base, page);
        }
        area.is_some_and(|area| (area.start..area.start + area.pages).contains(&page) && area.state.is_live())
    }

    /// Shows the frames behind `size` bytes of the area at `addr`, rounded up to pages, from page `offset` of the area on.
    ///
    /// # Errors
    ///
    /// See [`RemapError`]; no frame is shown then.
    pub(crate) fn show_frames<P: Platform>(
        &self,
        pages: &PageAllocator<P>,
        addr: VirtAddr,
        offset: u64,
        size: usize,
        mut see: impl FnMut(Pfn),
    ) -> Result<(), RemapError> {
        let node = self.user_area(pages, addr)?;
        let outside = RemapError::OutOfBounds { offset, size, pages: node.pages };
        let wanted = size.checked_next_multiple_of(PAGE_SIZE).filter(|&bytes| bytes > 0).ok_or(outside)? / PAGE_SIZE;
        let end = offset.checked_add(wanted as u64).filter(|&end| end <= node.pages).ok_or(outside)?;
        let range = VpnRange::new(Vpn::new(node.start), end).after(offset);
        range.iter().filter_map(|page| self.tables.translate(pages, page)).for_each(&mut see);
        Ok(())
    }

    /// The area that starts at `addr`, if users may have it.
    fn user_area<P: Platform>(&self, pages: &PageAllocator<P>, addr: VirtAddr) -> Result<Node, RemapError> {
        let (_, node) = self.live_at(&pages.base, addr).map_err(|_| RemapError::NotAnArea(addr))?;
        if node.flags.contains(VmFlags::USERMAP) { Ok(node) } else { Err(RemapError::NotForUsers(addr)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_pages_do_and_the_last_byte_of_all_is_read() {
        let cut =
            |addr, len| pieces(VirtAddr::new(addr), len).map(|p| (p.offset, p.at, p.len)).collect::<std::vec::Vec<_>>();
        assert_eq!(cut(0xffe, 4100), [(0xffe, 0, 2), (0, 2, 4096), (0, 4098, 2)]);
        assert_eq!(cut(0x1000, 0), []);
        assert_eq!(clamped(VirtAddr::new(u64::MAX - 9), 100), 10);
        assert_eq!(clamped(VirtAddr::NULL, 100), 100);
        assert_eq!(cut(u64::MAX - 9, 10), [(0xff6, 0, 10)]);
    }
}
