//! Real programs, unmodified, on this library: what they print and how they end is what it is on the system's `malloc`.
//!
//! What is not installed is skipped, and said so aloud. Each run has files of its own and the same environment.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of functions that clippy knows as tests")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Builds the library once and tells where it is: with assertions and overflow checks on.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("preload");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--profile", "test", "--manifest-path"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status()
            .unwrap();
        assert!(built.success(), "the library does not build");
        let library = target.join("debug/libkmem_preload.so");
        assert!(library.is_file(), "{} is missing", library.display());
        library
    })
}

/// A folder of a run.
fn folder(test: &str, run: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{run}"));
    let _was_there = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn is_installed(program: &str) -> bool {
    // `command -v` runs nothing of the program.
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        eprintln!("SKIPPED: {program} is not installed; nothing is known about it on this allocator");
    }
    found.status.success()
}

/// A command in a folder, with nothing in it that differs from run to run.
fn command(program: impl AsRef<OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env("LC_ALL", "C").env("TZ", "UTC").env("PYTHONHASHSEED", "0");
    for (name, value) in [
        ("GIT_AUTHOR_NAME", "a"),
        ("GIT_AUTHOR_EMAIL", "a@localhost"),
        ("GIT_AUTHOR_DATE", "2001-01-01T00:00:00Z"),
        ("GIT_COMMITTER_NAME", "c"),
        ("GIT_COMMITTER_EMAIL", "c@localhost"),
        ("GIT_COMMITTER_DATE", "2001-01-01T00:00:00Z"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ] {
        command.env(name, value);
    }
    command.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").env_remove("LD_PRELOAD");
    command
}

/// Runs a shell script in two folders, once on each allocator; both print the same and end well.
fn compare(test: &str, program: &str, files: &[(&str, &str)], script: &str) {
    if !is_installed(program) {
        return;
    }
    let run = |name: &str, preload: Option<&Path>| -> Output {
        let folder = folder(test, name);
        for (file, text) in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut shell = command("sh", &folder);
        shell.args(["-eu", "-c", script]);
        preload.iter().for_each(|library| {
            shell.env("LD_PRELOAD", library);
        });
        let output = shell.output().unwrap();
        let _removed = std::fs::remove_dir_all(folder);
        output
    };
    let (system, ours) = (run("system", None), run("ours", Some(library())));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(system.status.success(), "{program} on the system's malloc: {}", text(&system.stderr));
    assert_eq!(ours.status.code(), Some(0), "{program}: {:?}\n{}", ours.status, text(&ours.stderr));
    assert_eq!(text(&ours.stdout), text(&system.stdout), "{program} prints something else");
    assert!(!system.stdout.is_empty(), "a program that prints nothing shows nothing");
}

#[test]
fn the_library_is_what_serves() {
    // A free that is wrong is named by this allocator: so it is the one that is used.
    let source =
        "#include <stdlib.h>\n#include <stdio.h>\nint main(void){char*p=malloc(100);free(p+32);puts(\"served\");}\n";
    if !is_installed("gcc") {
        return;
    }
    let folder = folder("serves", "ours");
    std::fs::write(folder.join("wrong.c"), source).unwrap();
    assert!(command("gcc", &folder).args(["-w", "-O0", "-o", "wrong", "wrong.c"]).status().unwrap().success());
    let output = command(folder.join("wrong"), &folder).env("LD_PRELOAD", library()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("kmem: wrong free"), "{:?}: {message}", output.status);
    let _removed = std::fs::remove_dir_all(folder);
}

/// Each function of the family, its answers and its errors, as a C program sees them.
const FAMILY: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifndef ROUNDS
#define ROUNDS 20000
#define THREADS 40
#endif
#define CHECK(x) do { if (!(x)) { printf("line %d: %s\n", __LINE__, #x); exit(1); } } while (0)
static int aligned(void *p, size_t a) { return p && (uintptr_t)p % a == 0; }
static int zero(const unsigned char *p, size_t n) { for (size_t i = 0; i < n; i++) if (p[i]) return 0; return 1; }
static volatile size_t huge = (size_t)1 << 60;
static void *worker(void *arg) {
    unsigned seed = (unsigned)(uintptr_t)arg;
    unsigned char *blocks[64] = {0}; size_t sizes[64] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        int i = rand_r(&seed) % 64;
        for (size_t k = 0; k < sizes[i]; k += 97) CHECK(blocks[i][k] == (unsigned char)i);
        size_t n = rand_r(&seed) % (round % 500 ? 3000 : 3000000);
        blocks[i] = realloc(blocks[i], n + 1); CHECK(aligned(blocks[i], 16));
        memset(blocks[i], i, sizes[i] = n + 1);
    }
    for (int i = 0; i < 64; i++) free(blocks[i]);
    return NULL;
}
int main(void) {
    void *p = NULL;
    for (size_t n = 0; n < 70000; n = n * 5 / 4 + 1) {
        CHECK(aligned(p = malloc(n), 16)); CHECK(malloc_usable_size(p) >= n); memset(p, 0xa5, malloc_usable_size(p)); free(p);
        CHECK(aligned(p = calloc(n, 3), 16)); CHECK(zero(p, 3 * n)); memset(p, 0xa5, 3 * n); free(p);
    }
    for (size_t a = 1; a <= 1 << 22; a *= 2)
        for (size_t n = 1; n < 20000000; n = n * 7 + 3) {
            CHECK(aligned(p = aligned_alloc(a, n), a)); ((char *)p)[n - 1] = 1; free(p);
            CHECK(aligned(p = memalign(a, n), a)); p = realloc(p, n + 1); CHECK(aligned(p, 16)); free(p);
            p = NULL;
            if (a >= sizeof p) { CHECK(posix_memalign(&p, a, n) == 0); CHECK(aligned(p, a)); free(p); }
        }
    p = &errno; errno = 77;
    CHECK(posix_memalign(&p, 3, 8) == EINVAL && posix_memalign(&p, 4, 8) == EINVAL && p == &errno);
    CHECK(posix_memalign(&p, 16, huge) == ENOMEM); errno = 77;
    CHECK(aligned(p = valloc(5), 4096)); free(p);
    CHECK(aligned(p = pvalloc(5), 4096)); CHECK(malloc_usable_size(p) >= 4096); free(p);
    CHECK(errno == 77);
    errno = 0; CHECK(malloc(huge) == NULL && errno == ENOMEM);
    errno = 0; CHECK(calloc(huge, 32) == NULL && errno == ENOMEM);
    CHECK(p = malloc(10)); strcpy(p, "nine char");
    errno = 0; CHECK(realloc(p, huge) == NULL && errno == ENOMEM);
    errno = 0; CHECK(reallocarray(p, huge, 32) == NULL && errno == ENOMEM);
    CHECK(strcmp(p, "nine char") == 0);
    CHECK(p = reallocarray(p, 1000, 1000)); CHECK(strcmp(p, "nine char") == 0);
    CHECK(p = realloc(p, 50000000)); CHECK(strcmp(p, "nine char") == 0); ((char *)p)[49999999] = 1;
    CHECK(p = realloc(p, 12)); CHECK(strcmp(p, "nine char") == 0);
    CHECK(realloc(p, 0) == NULL);
    CHECK(malloc_usable_size(NULL) == 0); free(NULL);
    CHECK((p = realloc(NULL, 7)) && p != realloc(NULL, 0)); free(p);
    malloc_trim(0);
    for (int rounds = 0; rounds < 3; rounds++) {
        pthread_t threads[THREADS];
        for (uintptr_t i = 0; i < THREADS; i++) CHECK(!pthread_create(&threads[i], NULL, worker, (void *)(i + 1)));
        for (int forks = 0; forks < 5; forks++) {
            pid_t child = fork();
            if (child == 0) { worker((void *)7); _exit(0); }
            int status; CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    }
    puts("all as documented");
    return 0;
}
"#;

#[test]
fn the_whole_family_does_what_it_says() {
    let script = "gcc -w -O1 -fno-builtin -pthread -o family family.c && ./family";
    compare("family", "gcc", &[("family.c", FAMILY)], script);
}

#[test]
fn git() {
    let script = r#"
        git init -q -b main . && seq 1 20000 > numbers && git add . && git commit -q -m one
        for n in 1 2 3 4 5 6; do seq $n 3 30000 > numbers; seq 1 $n > file$n; git add . && git commit -q -m "change $n"; done
        git log --stat --format='%H %s' && git diff --stat HEAD~4 && git repack -q -a -d && git fsck --full && git blame file6
        git grep -n 777 | wc -l && git branch side HEAD~3 && git merge -q side && git rev-parse HEAD
    "#;
    compare("git", "git", &[], script);
}

#[test]
fn python3() {
    let program = r#"
import collections, json, re, subprocess, sys, threading, os, zlib
words = [str(i * 7919 % 100003) for i in range(200000)]
print(collections.Counter(w[0] for w in words).most_common(), len(set(words)))
data = {w: [int(w), w * 3] for w in words[:20000]}
print(zlib.crc32(json.dumps(data, sort_keys=True).encode()), len(re.findall(r"\b9+\d", " ".join(words))))
results = []
threads = [threading.Thread(target=lambda n=n: results.append(sum(len(str(i)) * n for i in range(20000)))) for n in range(12)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sorted(results))
print(subprocess.run([sys.executable, "-c", "print(sum(range(10**5)))"], capture_output=True, text=True).stdout)
big = bytearray(30 << 20); big[-1] = 5
read, write = os.pipe()
child = os.fork()
if child == 0:
    big[0] = 9; os.write(write, bytes([big[-1], big[0]])); os._exit(0)
print(os.waitpid(child, 0)[1], os.read(read, 2), big[0])
import multiprocessing
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(3) as pool: print(pool.map(len, [b"x" * n for n in range(0, 9000, 1000)]))
"#;
    compare("python3", "python3", &[("program.py", program)], "python3 program.py");
}

#[test]
fn gcc_compiles_a_file() {
    let mut source = String::from("#include <stdio.h>\n#include <stdlib.h>\n");
    for n in 0..300 {
        source += &format!(
            "static int f{n}(int x) {{ int s = {n}; for (int i = 0; i < x; i++) s += i * {n} ^ x; return s; }}\n"
        );
    }
    source += "int main(void) { long s = 0;\n";
    (0..300).for_each(|n| source += &format!("s += f{n}({n});\n"));
    source += "printf(\"%ld\\n\", s); }\n";
    compare("gcc", "gcc", &[("many.c", &source)], "gcc -O2 -S -o - many.c | cksum && gcc -O2 -o many many.c && ./many");
}

#[test]
fn sqlite3() {
    let script = r#"
        sqlite3 data.db "create table t(a integer primary key, b text, c real);
            with recursive n(i) as (select 1 union all select i + 1 from n where i < 60000)
            insert into t select i, 'row ' || (i * 7919 % 60007), i / 7.0 from n;
            create index tb on t(b); delete from t where a % 5 = 0; vacuum; pragma integrity_check;
            select count(*), sum(a), max(b), round(avg(c), 6) from t;
            select b, count(*) from t join (select b as x from t where a < 900) on b = x group by b order by b desc limit 5;"
        sqlite3 data.db .dump | cksum
    "#;
    compare("sqlite3", "sqlite3", &[], script);
}

#[test]
fn cargo_builds_a_small_crate() {
    let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    let source = r#"
use std::collections::BTreeMap;
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Shape { Dot, Line(u32), Many(Vec<Shape>) }
fn grow(depth: u32) -> Shape { if depth == 0 { Shape::Dot } else { Shape::Many(vec![grow(depth - 1), Shape::Line(depth)]) } }
fn main() {
    let shapes: BTreeMap<u32, Shape> = (0..50).map(|n| (n, grow(n))).collect();
    println!("{}", format!("{shapes:?}").len());
}
#[test] fn grows() { assert_eq!(grow(1), Shape::Many(vec![Shape::Dot, Shape::Line(1)])); }
"#;
    let script = "cargo run --offline --quiet --release && cargo test --offline --quiet 2>&1 | grep -o 'test result: ok. 1 passed' | head -n 1";
    compare("cargo", "cargo", &[("Cargo.toml", manifest), ("src/main.rs", source)], script);
}

#[test]
fn node() {
    let program = r#"
const { Worker, isMainThread, parentPort } = require("worker_threads");
if (isMainThread) {
    const map = new Map(); for (let i = 0; i < 200000; i++) map.set("key" + i * 7919 % 100003, { i, text: "x".repeat(i % 50) });
    let sum = 0; for (const [k, v] of map) sum += k.length + v.text.length; console.log(map.size, sum);
    const buffers = []; for (let i = 0; i < 200; i++) buffers.push(Buffer.alloc(i * 5000, i)); console.log(buffers.reduce((a, b) => a + b.reduce((x, y) => x + y, 0), 0));
    console.log(require("crypto").createHash("sha256").update(JSON.stringify([...map].slice(0, 5000))).digest("hex"));
    console.log(require("zlib").gzipSync(Buffer.alloc(3000000, "kmem")).length > 0);
    let left = 4; for (let n = 0; n < 4; n++) new Worker(__filename).on("message", m => { sum += m; if (!--left) console.log(sum); });
} else { let s = 0; for (let i = 0; i < 100000; i++) s += ("" + i).length; parentPort.postMessage(s); }
"#;
    compare("node", "node", &[("program.js", program)], "node program.js");
}

/// What a process wrote down of its heap: how many events of each kind, or what is wrong.
fn read_recording(bytes: &[u8]) -> [u64; 5] {
    let mut rest = bytes.strip_prefix(b"kmh1").unwrap().iter().copied();
    let (mut counts, mut live, mut last) = ([0; 5], std::collections::HashSet::new(), 0_u64);
    while let Some(kind @ 1..) = rest.next() {
        let mut number = || {
            let mut number = 0_u64;
            for (at, byte) in (0..).zip(rest.by_ref()) {
                number |= u64::from(byte & 0x7f) << (7 * at);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            number
        };
        let mut block = |zigzag: u64| {
            last = last.wrapping_add((zigzag >> 1) ^ (zigzag & 1).wrapping_neg());
            last
        };
        let _thread = number();
        let (old, new) = match kind {
            1 | 2 => {
                let _sizes = (number(), number());
                (None, Some(block(number())))
            }
            3 => {
                let old = block(number());
                let _size = number();
                (Some(old), Some(block(number())))
            }
            4 => (Some(block(number())), None),
            _ => panic!("event of kind {kind}"),
        };
        // What was given before the recording began, or is the parent's, is taken back without having been given.
        old.iter().for_each(|old| {
            live.remove(old);
        });
        new.iter().for_each(|new| assert!(live.insert(*new), "two live blocks at one address"));
        counts[usize::from(kind)] += 1;
    }
    counts
}

#[test]
fn every_process_writes_its_heap_down() {
    if !is_installed("gcc") {
        return;
    }
    let folder = folder("recordings", "ours");
    std::fs::write(folder.join("family.c"), FAMILY).unwrap();
    assert!(
        command("gcc", &folder)
            .args(["-w", "-O1", "-fno-builtin", "-pthread", "-DROUNDS=2000", "-DTHREADS=6", "-o", "family", "family.c"])
            .status()
            .unwrap()
            .success()
    );
    let recordings = folder.join("recordings");
    std::fs::create_dir(&recordings).unwrap();
    let output = command(folder.join("family"), &folder)
        .env("LD_PRELOAD", library())
        .env("KMEM_RECORD", &recordings)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all as documented\n", "{output:?}");
    let files: Vec<_> = std::fs::read_dir(&recordings).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 16, "the program and its fifteen children: {files:?}");
    let read: Vec<_> = files.iter().map(|file| read_recording(&std::fs::read(file).unwrap())).collect();
    let most = read.iter().max_by_key(|counts| counts[3]).unwrap();
    // 3 rounds of 6 threads with 2,000 calls of `realloc`, of which the first of each block is an allocation.
    assert!(most[1] + most[3] >= 3 * 6 * 2000, "{most:?}");
    assert!(read.iter().all(|counts| counts[1] + counts[3] >= 2000 && counts[4] > 0), "{read:?}");
    let _removed = std::fs::remove_dir_all(folder);
}
