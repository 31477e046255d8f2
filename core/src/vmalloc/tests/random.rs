use super::*;

/// One block that the random test holds.
struct Held {
    addr: VirtAddr,
    size: usize,
    tag: u8,
}

fn random_step(m: &Machine, rng: &mut Rng, held: &mut Vec<Held>) {
    let pick = rng.below(held.len());
    let (size, tag) = (1 + rng.below(9 * PAGE_SIZE), rng.next() as u8);
    match rng.below(10) {
        0..5 => {
            if let Ok(addr) = m.vmalloc(size, KERNEL) {
                m.write(addr, 0, tag);
                m.write(addr, size - 1, tag);
                held.push(Held { addr, size, tag });
            }
        }
        5..8 if !held.is_empty() => {
            let block = held.swap_remove(pick);
            assert_eq!((m.read(block.addr, 0), m.read(block.addr, block.size - 1)), (block.tag, block.tag));
            m.vfree(block.addr).unwrap();
        }
        8 if !held.is_empty() => {
            let block = &mut held[pick];
            if let Ok(addr) = m.vrealloc(block.addr, size, KERNEL) {
                assert_eq!(m.read(addr, 0), block.tag);
                m.write(addr, 0, tag);
                m.write(addr, size - 1, tag);
                *block = Held { addr, size, tag };
            }
        }
        9 => {
            m.purge();
        }
        _ => {}
    }
}

#[test]
fn random_use_with_random_faults_keeps_every_invariant_and_every_byte() {
    for seed in 1..=8 {
        let mut geometry = flat(300);
        geometry.vmalloc_pages = PageCount::new(40 + 60 * seed);
        geometry.cpus = [1, 2, 5][seed as usize % 3];
        let m = Machine::with(&geometry);
        let before = m.ownership();
        let (mut rng, mut held) = (Rng::new(seed), Vec::new());
        for _ in 0..2_000 {
            if rng.below(10) == 0 {
                let point = FaultPoint::ALL[rng.below(FaultPoint::ALL.len())];
                m.platform().fail(point, rng.below(4) as u32);
            }
            m.platform().cpu.set(rng.below(usize::from(geometry.cpus)) as u16);
            random_step(&m, &mut rng, &mut held);
            m.check().unwrap();
        }
        held.drain(..).for_each(|block: Held| m.vfree(block.addr).unwrap());
        m.purge();
        m.window.empty_pools(&m.pages, &m.slab);
        m.platform().clear_faults();
        assert_eq!(m.ownership(), before);
    }
}
