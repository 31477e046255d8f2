//! Reads the log of `valgrind --trace-malloc=yes`.
//!
//! A line is `--PID-- call(arguments) = address`. The name of the call is that of the C or C++ function, mangled:
//! `malloc`, `_Znwm` (`operator new`), `_ZdlPvm` (sized `operator delete`), `memalign(al 64, size 128)`.

use std::collections::BTreeMap;

/// One thing that a program did with its heap. Addresses are the program's and serve as names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are named after the arguments")]
pub enum Event {
    /// A block was given.
    Alloc { addr: u64, size: u64 },
    /// A zeroed array was given.
    ZeroedArray { addr: u64, n: u64, size: u64 },
    /// A block became another.
    Realloc { from: u64, addr: u64, size: u64 },
    /// A block was taken back.
    Free { addr: u64 },
    /// What follows was done by this thread.
    Thread { number: u64 },
}

/// Reads a log and returns the events of the process that has the most; lines that are no events are passed over.
pub fn busiest_process(log: &str) -> Vec<Event> {
    let mut processes: BTreeMap<&str, Vec<Event>> = BTreeMap::new();
    for (pid, call) in log.lines().filter_map(split_line) {
        if let Some(event) = parse_call(call) {
            processes.entry(pid).or_default().push(event);
        }
    }
    processes.into_values().max_by_key(Vec::len).unwrap_or_default()
}

/// Splits `--PID-- rest`.
fn split_line(line: &str) -> Option<(&str, &str)> {
    let (pid, call) = line.strip_prefix("--")?.split_once("-- ")?;
    pid.bytes().all(|b| b.is_ascii_digit()).then_some((pid, call))
}

fn parse_call(call: &str) -> Option<Event> {
    let (name, rest) = call.split_once('(')?;
    let (arguments, rest) = rest.split_once(')')?;
    let numbers: Vec<u64> = arguments.split(',').filter_map(number).collect();
    let result = rest.rsplit_once("= ").and_then(|(_, addr)| number(addr)).filter(|&addr| addr != 0);
    if is_delete(name) {
        return numbers.first().filter(|&&addr| addr != 0).map(|&addr| Event::Free { addr });
    }
    match (name, numbers.as_slice()) {
        ("calloc", &[n, size]) => Some(Event::ZeroedArray { addr: result?, n, size }),
        ("realloc", &[0, size]) => Some(Event::Alloc { addr: result?, size }),
        ("realloc", &[from, 0]) => Some(Event::Free { addr: from }),
        ("realloc", &[from, size]) => Some(Event::Realloc { from, addr: result?, size }),
        ("memalign", &[align, size]) => Some(Event::Alloc { addr: result?, size: aligned(size, align) }),
        ("malloc", &[size]) => Some(Event::Alloc { addr: result?, size }),
        (name, &[size, ..]) if name.starts_with("_Zn") => Some(Event::Alloc { addr: result?, size }),
        _ => None,
    }
}

fn is_delete(name: &str) -> bool {
    name == "free" || name.starts_with("_ZdlPv") || name.starts_with("_ZdaPv")
}

/// The size of which kmalloc gives this alignment by itself: the next multiple of the alignment.
pub(super) fn aligned(size: u64, align: u64) -> u64 {
    size.max(1).checked_next_multiple_of(align.max(1)).filter(|_| align > 8).unwrap_or(size)
}

/// Reads `123`, `0x7b`, `al 123` or `size 123`.
fn number(text: &str) -> Option<u64> {
    let word = text.split_whitespace().next_back()?;
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line_is_read() {
        let read = |line| split_line(line).and_then(|(_, call)| parse_call(call));
        assert_eq!(read("--7-- malloc(472) = 0x4B07040"), Some(Event::Alloc { addr: 0x4b0_7040, size: 472 }));
        assert_eq!(read("--7-- calloc(3,5) = 0x10"), Some(Event::ZeroedArray { addr: 16, n: 3, size: 5 }));
        assert_eq!(read("--7-- realloc(0x20,500) = 0x30"), Some(Event::Realloc { from: 32, addr: 48, size: 500 }));
        assert_eq!(read("--7-- realloc(0x0,12)malloc(12) = 0x30"), Some(Event::Alloc { addr: 48, size: 12 }));
        assert_eq!(read("--7-- realloc(0x20,0)free(0x20)"), Some(Event::Free { addr: 32 }));
        assert_eq!(read("--7-- memalign(al 64, size 100) = 0x40"), Some(Event::Alloc { addr: 64, size: 128 }));
        assert_eq!(
            read("--7-- _ZnwmSt11align_val_t(size 64, al 64) = 0x80"),
            Some(Event::Alloc { addr: 128, size: 64 })
        );
        assert_eq!(read("--7-- _ZdlPvm(0x80)"), Some(Event::Free { addr: 128 }));
    }

    #[test]
    fn frees_of_null_failed_calls_and_other_lines_are_passed_over() {
        let read = |line| split_line(line).and_then(|(_, call)| parse_call(call));
        for line in
            ["--7-- free(0x0)", "--7-- malloc(9) = 0x0", "==7== HEAP SUMMARY:", "--7--  = 0", "--7-- malloc(", ""]
        {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn the_process_with_the_most_events_is_taken() {
        let log = "--1-- malloc(1) = 0x10\n--2-- malloc(2) = 0x10\n--2-- free(0x10)\n";
        assert_eq!(busiest_process(log), [Event::Alloc { addr: 16, size: 2 }, Event::Free { addr: 16 }]);
        assert_eq!(busiest_process("rubbish"), []);
    }
}
