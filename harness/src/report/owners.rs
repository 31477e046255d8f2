//! Who owns a frame or a page of the vmalloc window: a letter, a colour with a pattern, and words.

use kmem::FrameKind;

/// One way to be owned.
pub(super) struct Owner {
    /// Its letter; no other owner of frames has it, nor another owner of pages.
    pub(super) symbol: char,
    /// Its name in style sheets: colour and pattern.
    pub(super) style: &'static str,
    /// What it means.
    pub(super) words: &'static str,
}

const fn owner(symbol: char, style: &'static str, words: &'static str) -> Owner {
    Owner { symbol, style, words }
}

/// How many owners of frames there are; those of pages of the window follow them.
const FRAME_OWNERS: usize = 16;

/// All owners; the index of one is its number in the data of a page.
pub(super) const OWNERS: [Owner; 26] = [
    owner(' ', "none", "in no zone"),
    owner('.', "free", "free"),
    owner(',', "pcp", "on a per-CPU list"),
    owner('P', "pages", "page block"),
    owner('p', "pages", "page block, continued"),
    owner('L', "large", "large kmalloc"),
    owner('l', "large", "large kmalloc, continued"),
    owner('V', "vmalloc", "behind a vmalloc area"),
    owner('T', "table", "page table"),
    owner('S', "slab", "slab"),
    owner('R', "shared", "page block with references"),
    owner(';', "waits", "waits to be freed"),
    owner('w', "waits", "large kmalloc that waits for readers"),
    owner('|', "guard", "guard beside a used block"),
    owner('x', "leaked", "leaked by a cache"),
    owner('!', "bad", "bad page"),
    owner(' ', "none", "nobody's"),
    owner('m', "vmalloc", "mapped, 4 KiB"),
    owner('M', "huge", "mapped, in 2 MiB"),
    owner('a', "shared", "alias (vmap)"),
    owner('-', "free", "of an area, not mapped"),
    owner('|', "guard", "guard"),
    owner('z', "pcp", "freed, not yet flushed"),
    owner('o', "free", "flushed, kept for the next area of its size"),
    owner('w', "waits", "area that waits to be freed"),
    owner('!', "bad", "mapped although no live area has it"),
];

/// The number of each letter of a frame.
const CODES: [u8; 128] = {
    let mut codes = [0; 128];
    let mut code = 0;
    while code < FRAME_OWNERS {
        codes[OWNERS[code].symbol as usize] = code as u8;
        code += 1;
    }
    codes
};

/// The number of the owner with this letter among those of frames.
pub(super) const fn frame_code(symbol: char) -> i64 {
    if symbol.is_ascii() { CODES[symbol as usize] as i64 } else { 0 }
}

/// The owners of pages of the window, as their numbers.
pub(super) mod window {
    pub(in crate::report) const NOBODY: i64 = 16;
    pub(in crate::report) const MAPPED: i64 = 17;
    pub(in crate::report) const HUGE: i64 = 18;
    pub(in crate::report) const ALIAS: i64 = 19;
    pub(in crate::report) const UNMAPPED: i64 = 20;
    pub(in crate::report) const GUARD: i64 = 21;
    pub(in crate::report) const LAZY: i64 = 22;
    pub(in crate::report) const POOLED: i64 = 23;
    pub(in crate::report) const WAITS: i64 = 24;
    pub(in crate::report) const STRAY: i64 = 25;
}

/// Bits of a frame's number that name the owner; those above them are a slab's cache.
pub(super) const OWNER_BITS: u32 = 5;
const _: () = assert!(OWNERS.len() <= 1 << OWNER_BITS);

/// The owner of a number.
pub(super) fn owner_of(code: i64) -> &'static Owner {
    OWNERS.get((code & ((1 << OWNER_BITS) - 1)) as usize).unwrap_or(&OWNERS[0])
}

/// The letter of a kind of frame.
pub(super) const fn symbol(kind: FrameKind) -> char {
    match kind {
        FrameKind::Absent => ' ',
        FrameKind::Free => '.',
        FrameKind::Pcp => ',',
        FrameKind::Pages => 'P',
        FrameKind::PagesTail => 'p',
        FrameKind::LargeKmalloc => 'L',
        FrameKind::LargeTail => 'l',
        FrameKind::Vmalloc => 'V',
        FrameKind::PageTable => 'T',
        FrameKind::Deferred => ';',
        FrameKind::PagesShared => 'R',
        FrameKind::Guard => '|',
        FrameKind::Bad => '!',
        FrameKind::Slab(_) => 'S',
        FrameKind::Leaked => 'x',
        FrameKind::LargePending => 'w',
    }
}

/// The number of a frame of this kind, the cache of a slab included.
pub(super) fn code_of(kind: FrameKind) -> i64 {
    let cache = if let FrameKind::Slab(cache) = kind { i64::from(cache.get()) } else { 0 };
    frame_code(symbol(kind)) | cache << OWNER_BITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use kmem::CacheId;
    use std::collections::BTreeSet;

    #[test]
    fn every_letter_means_one_thing_and_its_number_leads_back_to_it() {
        for family in [&OWNERS[..FRAME_OWNERS], &OWNERS[FRAME_OWNERS..]] {
            let letters: BTreeSet<char> = family.iter().map(|owner| owner.symbol).collect();
            assert_eq!(letters.len(), family.len());
        }
        for kind in [FrameKind::Absent, FrameKind::Free, FrameKind::Bad, FrameKind::LargePending, FrameKind::Vmalloc] {
            assert_eq!(owner_of(code_of(kind)).symbol, symbol(kind), "{kind:?}");
        }
        assert_eq!(owner_of(window::STRAY).symbol, '!');
        assert_eq!(owner_of(window::NOBODY).symbol, ' ');
    }

    #[test]
    fn a_slab_keeps_its_cache() {
        let code = code_of(FrameKind::Slab(CacheId::new(200)));
        assert_eq!((owner_of(code).symbol, code >> OWNER_BITS), ('S', 200));
    }

    #[test]
    fn a_small_letter_continues_what_the_large_one_of_its_colour_begins() {
        for style in ["pages", "large"] {
            let same: Vec<char> =
                OWNERS[..FRAME_OWNERS].iter().filter(|o| o.style == style).map(|o| o.symbol).collect();
            assert!(same.len() == 2 && same[0].eq_ignore_ascii_case(&same[1]), "{style}");
        }
    }
}
