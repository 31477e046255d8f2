//! Who keeps a piece of raw memory alive.

use core::ptr::NonNull;

/// A pointer and a length, and what keeps them valid: the unsafe constructor's caller, or a shared heap block.
#[derive(Clone)]
pub(super) struct Backing {
    base: NonNull<u8>,
    len: usize,
    #[cfg(any(test, feature = "std"))]
    heap: Option<std::rc::Rc<HeapBlock>>,
}

impl Backing {
    /// # Safety
    ///
    /// `base` is valid for reads and writes of `len` bytes, is page aligned, stays so until the last clone is gone,
    /// and the bytes are reached through clones of this value only.
    pub(super) unsafe fn from_raw_parts(base: NonNull<u8>, len: usize) -> Self {
        Self {
            base,
            len,
            #[cfg(any(test, feature = "std"))]
            heap: None,
        }
    }

    /// Allocates `len` bytes, page aligned, filled with `fill`.
    #[cfg(any(test, feature = "std"))]
    pub(super) fn heap(len: usize, fill: u8) -> Self {
        let block = HeapBlock::new(len, fill);
        Self { base: block.base, len, heap: Some(std::rc::Rc::new(block)) }
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Tells whether no other clone exists, as far as that can be known.
    pub(super) fn is_unique(&self) -> bool {
        #[cfg(any(test, feature = "std"))]
        if let Some(heap) = &self.heap {
            return std::rc::Rc::strong_count(heap) == 1;
        }
        true
    }
}

#[cfg(any(test, feature = "std"))]
struct HeapBlock {
    base: NonNull<u8>,
    layout: std::alloc::Layout,
}

#[cfg(any(test, feature = "std"))]
impl HeapBlock {
    fn new(len: usize, fill: u8) -> Self {
        let page = crate::addr::PAGE_SIZE;
        let Ok(layout) = std::alloc::Layout::from_size_align(len.max(page), page) else {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<u8>())
        };
        // SAFETY: the layout's size is at least one page, so not zero.
        let ptr = unsafe { std::alloc::alloc(layout) };
        let Some(base) = NonNull::new(ptr) else { std::alloc::handle_alloc_error(layout) };
        // SAFETY: the block was just allocated with `layout.size()` bytes.
        unsafe { base.as_ptr().write_bytes(fill, layout.size()) };
        Self { base, layout }
    }
}

#[cfg(any(test, feature = "std"))]
impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc` with this layout and is freed only here.
        unsafe { std::alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}
