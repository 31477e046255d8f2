//! Physical memory as text: one character a frame.

use super::owners::symbol;
use crate::subject::WhiteBox;
use std::fmt::Write as _;

/// Frames in a row.
const ROW: u32 = 64;

/// What the characters mean.
pub const LEGEND: &str = ". free   , on a per-CPU list   S slab   P page block   L large kmalloc   V vmalloc   T page table\n\
    A small letter continues the block to its left; rows that repeat the one above are counted, not drawn.\n";

/// A look at memory: the map, then the free blocks of each order.
pub fn draw(inside: &dyn WhiteBox) -> String {
    let rows: Vec<(u32, String)> = inside
        .geometry()
        .zones()
        .iter()
        .flat_map(|zone| {
            let (start, end) = (zone.start.as_u32(), zone.start.as_u32() + zone.frames.get() as u32);
            (start..end).step_by(ROW as usize).map(move |first| (first, row(inside, first, end.min(first + ROW))))
        })
        .collect();
    let mut text = fold(&rows);
    text.push('\n');
    // Writing to a string cannot fail.
    let _ = writeln!(text, "free blocks by order, 0 to {}:\n{}", kmem::MAX_PAGE_ORDER, inside.buddyinfo());
    text
}

fn row(inside: &dyn WhiteBox, first: u32, end: u32) -> String {
    (first..end).map(|pfn| symbol(inside.frame_kind(pfn))).collect()
}

/// Leaves out rows that repeat the one above them.
fn fold(rows: &[(u32, String)]) -> String {
    let mut text = String::new();
    let mut repeated = 0;
    for (i, (first, row)) in rows.iter().enumerate() {
        if i > 0 && rows[i - 1].1 == *row {
            repeated += 1;
            continue;
        }
        note_repeats(&mut text, std::mem::take(&mut repeated));
        let _ = writeln!(text, "{first:>6} {row}");
    }
    note_repeats(&mut text, repeated);
    text
}

fn note_repeats(text: &mut String, repeated: usize) {
    if repeated > 0 {
        let _ = writeln!(text, "       ({repeated} more like it)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_are_counted_and_different_ones_drawn() {
        let rows = [(0, "..".to_owned()), (64, "..".to_owned()), (128, "..".to_owned()), (192, "P.".to_owned())];
        assert_eq!(fold(&rows), "     0 ..\n       (2 more like it)\n   192 P.\n");
    }
}
