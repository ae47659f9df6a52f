//! The object that a process preloads: the C library's functions for files and clocks, with faults.
//!
//! Its functions come before the C library's, so they are what Rust's standard library and RocksDB call. While no fault is
//! set, a call costs one look at the control file, which is mapped, and goes on. Else files below the folder are
//! told by their descriptors' paths. A program of its own without the standard library, whose calls would come back here;
//! panics abort.
//!
//! Not here: writes through a mapping, `sendfile`, `copy_file_range`; names, which are durable at once; errors of streams
//! (`fread`), whose callers would take them for the end of the file.
#![no_std]
#![allow(clippy::missing_safety_doc, reason = "all of it keeps to the C library's contracts")]

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::mem::{MaybeUninit, transmute};
use core::panic::PanicInfo;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

#[path = "../src/control.rs"]
#[allow(dead_code)]
mod control;
use control::*;

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    unsafe { abort() }
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

#[repr(C)]
struct Timeval {
    seconds: i64,
    micros: i64,
}

#[repr(C)]
struct Part {
    bytes: *const c_void,
    length: usize,
}

/// The start of `struct statvfs` on 64 bits.
#[repr(C)]
struct Statvfs {
    block_bytes: u64,
    fragment_bytes: u64,
    blocks: u64,
    free: u64,
    available: u64,
}

/// `struct statx`, which is the same everywhere.
#[repr(C)]
struct Statx {
    mask: u32,
    block_bytes: u32,
    attributes: u64,
    links: u32,
    user: u32,
    group: u32,
    mode: u16,
    _pad: u16,
    inode: u64,
    size: u64,
    _rest: [u64; 26],
}

#[link(name = "c")]
unsafe extern "C" {
    fn abort() -> !;
    fn close(fd: c_int) -> c_int;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn fileno(stream: *mut c_void) -> c_int;
    fn getenv(name: *const c_char) -> *const c_char;
    fn getpid() -> c_int;
    fn lseek(fd: c_int, at: i64, whence: c_int) -> i64;
    fn mmap(
        at: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        fd: c_int,
        from: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, length: usize) -> c_int;
    fn nanosleep(wanted: *const Timespec, left: *mut Timespec) -> c_int;
    fn readlink(path: *const c_char, buffer: *mut c_char, length: usize) -> isize;
    fn realpath(path: *const c_char, buffer: *mut c_char) -> *mut c_char;
    fn sched_yield() -> c_int;
    fn statx(folder: c_int, path: *const c_char, flags: c_int, mask: u32, found: *mut Statx) -> c_int;
    fn strlen(text: *const c_char) -> usize;
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
}

const AT_FDCWD: c_int = -100;
const AT_EMPTY_PATH: c_int = 0x1000;
const STATX_BASIC: u32 = 0x7ff;
const F_GETFL: c_int = 3;
const O_RDONLY: c_int = 0;
const O_WRONLY: c_int = 1;
const O_RDWR: c_int = 2;
const O_CREAT: c_int = 0o100;
const O_EXCL: c_int = 0o200;
const O_TRUNC: c_int = 0o1000;
const O_APPEND: c_int = 0o2000;
const O_DSYNC: c_int = 0o10000;
const O_CLOEXEC: c_int = 0o2000000;
const MODE_KIND: u16 = 0o170000;
const MODE_FILE: u16 = 0o100000;
const PROTECT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;
const MAP_OWN: c_int = 0x22;
const MAP_FAILED: usize = usize::MAX;
const RTLD_NEXT: *mut c_void = usize::MAX as *mut c_void;
const CLOCK_REALTIME: c_int = 0;
const CLOCK_MONOTONIC: c_int = 1;
const CLOCK_REALTIME_COARSE: c_int = 5;
const ENOENT: c_int = 2;
const EIO: c_int = 5;
const ENOSPC: c_int = 28;
const PATH_MAX: usize = 4096;
#[cfg(target_arch = "x86_64")]
const SYS_CLOCK_GETTIME: c_long = 228;
#[cfg(not(target_arch = "x86_64"))]
const SYS_CLOCK_GETTIME: c_long = 113;

/// The function of the C library that ours stands in front of.
macro_rules! real {
    ($name:literal as fn($($argument:ty),*) -> $result:ty) => {{
        static REAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
        let mut found = REAL.load(Ordering::Relaxed);
        if found.is_null() {
            found = dlsym(RTLD_NEXT, $name.as_ptr());
            if found.is_null() {
                abort();
            }
            REAL.store(found, Ordering::Relaxed);
        }
        transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(found)
    }};
}

static CONTROL: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
static CONTROL_PATH: AtomicPtr<c_char> = AtomicPtr::new(null_mut());
static FOLDER: AtomicPtr<c_char> = AtomicPtr::new(null_mut());
static FOLDER_LENGTH: AtomicUsize = AtomicUsize::new(0);
/// Looked up before a program may ask for the time: looking up may allocate, and allocators ask for the time.
static REAL_CLOCK: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
/// Held while a write and what undoes it are made.
static UNDOING: AtomicBool = AtomicBool::new(false);

#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    unsafe {
        REAL_CLOCK.store(dlsym(RTLD_NEXT, c"clock_gettime".as_ptr()), Ordering::Relaxed);
        let path = variable(CONTROL_VARIABLE);
        let folder = variable(FOLDER_VARIABLE);
        if path.is_null() || folder.is_null() {
            return;
        }
        let fd = real_open(path, O_RDWR | O_CLOEXEC, 0);
        if fd < 0 {
            abort();
        }
        let mapped = mmap(null_mut(), WORDS * 8, PROTECT_READ_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if mapped as usize == MAP_FAILED {
            abort();
        }
        CONTROL_PATH.store(path.cast_mut(), Ordering::Relaxed);
        FOLDER.store(folder.cast_mut(), Ordering::Relaxed);
        FOLDER_LENGTH.store(strlen(folder), Ordering::Relaxed);
        CONTROL.store(mapped.cast(), Ordering::Release);
        word(PROCESS).store(getpid() as u64, Ordering::Relaxed);
    }
}

unsafe fn variable(name: &str) -> *const c_char {
    let mut text = Text::new();
    text.push(name.as_bytes());
    unsafe { getenv(text.c_string()) }
}

/// Which of these kinds are set.
fn active(kinds: u64) -> u64 {
    let control = CONTROL.load(Ordering::Relaxed);
    // ACTIVE is the first word.
    if control.is_null() { 0 } else { unsafe { (*control).load(Ordering::Relaxed) & kinds } }
}

/// A word of the control file, which is there: some kind is set.
fn word(number: usize) -> &'static AtomicU64 {
    unsafe { &*CONTROL.load(Ordering::Acquire).add(number) }
}

fn has(mask: u64, kind: Kind) -> bool {
    mask & bit(kind) != 0
}

fn count(kind: Kind) {
    word(COUNTS + kind).fetch_add(1, Ordering::Relaxed);
}

/// Counts a fault that is an error.
fn fail(kind: Kind, error: c_int) -> isize {
    count(kind);
    unsafe { *__errno_location() = error };
    -1
}

/// A text that ends with a zero, on the stack.
struct Text {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Text {
    fn new() -> Text {
        Text { bytes: [0; PATH_MAX], length: 0 }
    }

    fn push(&mut self, bytes: &[u8]) -> &mut Text {
        // What is too long for a path names no file.
        let room = PATH_MAX - 1 - self.length;
        let bytes = &bytes[..bytes.len().min(room)];
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self
    }

    fn push_number(&mut self, mut number: u64) -> &mut Text {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return self.push(&digits[at..]);
            }
        }
    }

    fn c_string(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A file or folder below the folder of the faults.
struct Below {
    path: Text,
    is_file: bool,
    inode: u64,
    size: u64,
    flags: c_int,
}

impl Below {
    /// None if the descriptor stands for anything else.
    unsafe fn of(fd: c_int) -> Option<Below> {
        let path = path_of(fd)?;
        if !is_below(path.as_bytes()) {
            return None;
        }
        let found = look(fd, c"".as_ptr(), AT_EMPTY_PATH)?;
        let flags = unsafe { fcntl(fd, F_GETFL) };
        let is_file = found.mode & MODE_KIND == MODE_FILE;
        Some(Below { path, is_file, inode: found.inode, size: found.size, flags })
    }

    /// True if a write is on the disk when it returns.
    fn is_durable(&self) -> bool {
        self.flags & O_DSYNC != 0
    }

    fn may_flip(&self) -> bool {
        let ending = word(ENDING).load(Ordering::Relaxed).to_ne_bytes();
        let length = ending.iter().position(|byte| *byte == 0).unwrap_or(ending.len());
        self.is_file && self.path.as_bytes().ends_with(&ending[..length])
    }
}

fn is_below(path: &[u8]) -> bool {
    let length = FOLDER_LENGTH.load(Ordering::Relaxed);
    let folder = unsafe { core::slice::from_raw_parts(FOLDER.load(Ordering::Relaxed).cast::<u8>(), length) };
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn fd_path(fd: c_int) -> Text {
    let mut text = Text::new();
    text.push(b"/proc/self/fd/").push_number(fd as u64);
    text
}

fn path_of(fd: c_int) -> Option<Text> {
    if fd < 0 {
        return None;
    }
    let mut path = Text::new();
    let length = unsafe { readlink(fd_path(fd).c_string(), path.bytes.as_mut_ptr().cast(), PATH_MAX - 1) };
    path.length = usize::try_from(length).ok()?;
    path.bytes[path.length] = 0;
    Some(path)
}

fn look(folder: c_int, path: *const c_char, flags: c_int) -> Option<Statx> {
    let mut found = MaybeUninit::<Statx>::zeroed();
    let result = unsafe { statx(folder, path, flags, STATX_BASIC, found.as_mut_ptr()) };
    if result == 0 { Some(unsafe { found.assume_init() }) } else { None }
}

unsafe fn real_open(path: *const c_char, flags: c_int, mode: u32) -> c_int {
    unsafe { real!(c"open64" as fn(*const c_char, c_int, u32) -> c_int)(path, flags, mode) }
}

unsafe fn real_write(fd: c_int, bytes: *const c_void, length: usize, at: Option<i64>) -> isize {
    unsafe {
        match at {
            Some(at) => {
                real!(c"pwrite64" as fn(c_int, *const c_void, usize, i64) -> isize)(fd, bytes, length, at)
            }
            None => real!(c"write" as fn(c_int, *const c_void, usize) -> isize)(fd, bytes, length),
        }
    }
}

unsafe fn real_pread(fd: c_int, bytes: *mut c_void, length: usize, at: i64) -> isize {
    unsafe { real!(c"pread64" as fn(c_int, *mut c_void, usize, i64) -> isize)(fd, bytes, length, at) }
}

unsafe fn real_clock(clock: c_int, time: *mut Timespec) -> c_int {
    let real = REAL_CLOCK.load(Ordering::Relaxed);
    unsafe {
        if real.is_null() {
            return syscall(SYS_CLOCK_GETTIME, clock, time) as c_int;
        }
        transmute::<*mut c_void, unsafe extern "C" fn(c_int, *mut Timespec) -> c_int>(real)(clock, time)
    }
}

const WRITE_FAULTS: u64 =
    bit(FAIL_SYNC) | bit(STALL_SYNC) | bit(FULL) | bit(FAIL_WRITES) | bit(FLIP_WRITTEN) | bit(UNDO);

/// A write at a place, or at the descriptor's own.
unsafe fn write_at(fd: c_int, bytes: *const c_void, length: usize, at: Option<i64>) -> isize {
    let mask = active(WRITE_FAULTS);
    if mask == 0 {
        return unsafe { real_write(fd, bytes, length, at) };
    }
    let Some(file) = (unsafe { Below::of(fd) }) else {
        return unsafe { real_write(fd, bytes, length, at) };
    };
    if file.is_durable() {
        if let Err(failed) = before_sync(mask) {
            return failed;
        }
    }
    if has(mask, FAIL_WRITES) {
        return fail(FAIL_WRITES, EIO);
    }
    let place = match at {
        Some(at) => at as u64,
        None if file.flags & O_APPEND != 0 => file.size,
        None => unsafe { lseek(fd, 0, 1) as u64 },
    };
    if has(mask, FULL) && place + length as u64 > file.size {
        return fail(FULL, ENOSPC);
    }
    let remembers = has(mask, UNDO) && file.is_file && !file.is_durable();
    if remembers {
        lock();
        remember(fd, &file, place, length as u64);
    }
    let flips = has(mask, FLIP_WRITTEN) && length > 0 && file.may_flip() && take_flip(FLIPS_WRITTEN);
    let written = if flips {
        unsafe { write_flipped(fd, bytes, length, at) }
    } else {
        unsafe { real_write(fd, bytes, length, at) }
    };
    if remembers {
        unlock();
    }
    written
}

fn take_flip(flips: usize) -> bool {
    let take = |left: u64| left.checked_sub(1);
    word(flips).fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
}

/// Flips a bit of what lies there.
unsafe fn flip(bytes: *mut u8, length: usize) {
    // Any multiplier that spreads does.
    let chosen = word(SEED).load(Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    // As far into the bytes for the same seed, whatever their number: so a caller can aim.
    let bit = (u128::from(chosen) * (length as u128 * 8) >> 48) as u64;
    unsafe { *bytes.add((bit / 8) as usize) ^= 1 << (bit % 8) };
}

unsafe fn write_flipped(fd: c_int, bytes: *const c_void, length: usize, at: Option<i64>) -> isize {
    unsafe {
        // As aligned as direct writes want it.
        let copy = memory(length);
        core::ptr::copy_nonoverlapping(bytes.cast::<u8>(), copy, length);
        flip(copy, length);
        let written = real_write(fd, copy.cast(), length, at);
        munmap(copy.cast(), length);
        if written > 0 {
            count(FLIP_WRITTEN);
        }
        written
    }
}

unsafe fn memory(length: usize) -> *mut u8 {
    unsafe {
        let mapped = mmap(null_mut(), length, PROTECT_READ_WRITE, MAP_OWN, -1, 0);
        if mapped as usize == MAP_FAILED {
            abort();
        }
        mapped.cast()
    }
}

/// What a sync, or a write that is one, suffers first.
fn before_sync(mask: u64) -> Result<(), isize> {
    if has(mask, STALL_SYNC) {
        stall();
    }
    // It may have been set meanwhile: a disk that fails in the end.
    if active(bit(FAIL_SYNC)) != 0 { Err(fail(FAIL_SYNC, EIO)) } else { Ok(()) }
}

fn monotonic_micros() -> u64 {
    let mut time = Timespec { seconds: 0, nanos: 0 };
    unsafe { real_clock(CLOCK_MONOTONIC, &mut time) };
    time.seconds as u64 * 1_000_000 + time.nanos as u64 / 1_000
}

/// As long as it is set, and no longer than it says.
fn stall() {
    count(STALL_SYNC);
    let begun = monotonic_micros();
    let slice = Timespec { seconds: 0, nanos: 2_000_000 };
    while active(bit(STALL_SYNC)) != 0
        && monotonic_micros() - begun < word(STALL_MICROS).load(Ordering::Relaxed)
    {
        unsafe { nanosleep(&slice, null_mut()) };
    }
}

unsafe fn sync(fd: c_int, real: impl Fn() -> c_int) -> c_int {
    let mask = active(bit(FAIL_SYNC) | bit(STALL_SYNC) | bit(UNDO));
    if mask == 0 {
        return real();
    }
    let Some(file) = (unsafe { Below::of(fd) }) else { return real() };
    if let Err(failed) = before_sync(mask) {
        return failed as c_int;
    }
    let result = real();
    if result == 0 && has(mask, UNDO) && file.is_file {
        forget(file.inode);
    }
    result
}

fn lock() {
    while UNDOING.swap(true, Ordering::Acquire) {
        unsafe { sched_yield() };
    }
}

fn unlock() {
    UNDOING.store(false, Ordering::Release);
}

/// The file that holds what undoes the writes to another.
fn undo_path(inode: u64) -> Text {
    let mut path = Text::new();
    let control = unsafe { CStr::from_ptr(CONTROL_PATH.load(Ordering::Relaxed)) };
    path.push(control.to_bytes()).push(UNDO_FOLDER.as_bytes()).push(b"/");
    path.push_number(word(PROCESS).load(Ordering::Relaxed)).push(b"-");
    path.push_number(word(ROUND).load(Ordering::Relaxed)).push(b"-").push_number(inode);
    path
}

/// Writes down what undoes a write that is about to be made.
fn remember(fd: c_int, file: &Below, at: u64, length: u64) {
    // Nothing can be told to a program that would go on with a disk that forgets wrongly.
    let must = |is_well: bool| {
        if !is_well {
            unsafe { abort() }
        }
    };
    // Others that wrote meanwhile held the lock.
    let size = look(fd, c"".as_ptr(), AT_EMPTY_PATH).map_or(file.size, |found| found.size);
    let kept = length.min(size.saturating_sub(at)) as usize;
    let header: [u64; UNDO_WORDS] = [at, length, size, kept as u64];
    unsafe {
        let undo =
            real_open(undo_path(file.inode).c_string(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600);
        must(undo >= 0);
        must(
            real_write(undo, header.as_ptr().cast(), size_of_val(&header), None)
                == size_of_val(&header) as isize,
        );
        if kept > 0 {
            let old = memory(kept);
            // The descriptor may be for writing only, or for whole pages.
            let reader = real_open(fd_path(fd).c_string(), O_RDONLY | O_CLOEXEC, 0);
            must(reader >= 0 && real_pread(reader, old.cast(), kept, at as i64) == kept as isize);
            must(real_write(undo, old.cast(), kept, None) == kept as isize);
            close(reader);
            munmap(old.cast(), kept);
        }
        close(undo);
    }
    count(UNDO);
}

/// All of a file is on the disk, or it is gone.
fn forget(inode: u64) {
    lock();
    unsafe { real!(c"unlink" as fn(*const c_char) -> c_int)(undo_path(inode).c_string()) };
    unlock();
}

/// The file that is about to lose its last name: another may get its number.
fn last_name(folder: c_int, path: *const c_char) -> Option<u64> {
    if active(bit(UNDO)) == 0 {
        return None;
    }
    let found = look(folder, path, 0)?;
    (found.links == 1 && found.mode & MODE_KIND == MODE_FILE).then_some(found.inode)
}

fn after_naming(result: c_int, gone: Option<u64>) -> c_int {
    if result == 0 {
        gone.into_iter().for_each(forget);
    }
    result
}

unsafe fn truncate(fd: c_int, length: i64, real: impl Fn() -> c_int) -> c_int {
    let mask = active(bit(FAIL_WRITES) | bit(UNDO));
    if mask == 0 {
        return real();
    }
    let Some(file) = (unsafe { Below::of(fd) }) else { return real() };
    if has(mask, FAIL_WRITES) {
        return fail(FAIL_WRITES, EIO) as c_int;
    }
    if !has(mask, UNDO) || file.size == length as u64 {
        return real();
    }
    lock();
    let (from, to) = (file.size.min(length as u64), file.size.max(length as u64));
    remember(fd, &file, from, to - from);
    let result = real();
    unlock();
    result
}

/// Opens a file: no new one on a full disk, and what is cut off can be undone.
unsafe fn open_with(flags: c_int, mode: u32, real: impl Fn(c_int, u32) -> c_int) -> c_int {
    let mask = active(bit(FULL) | bit(UNDO));
    unsafe {
        if has(mask, FULL) && flags & O_CREAT != 0 {
            if flags & O_EXCL == 0 {
                let known = real(flags & !(O_CREAT | O_TRUNC), mode);
                if known >= 0 || *__errno_location() != ENOENT {
                    return cut_off(known, flags);
                }
            }
            let made = real(flags, mode);
            let below = if made >= 0 { Below::of(made) } else { None };
            let Some(below) = below else { return made };
            real!(c"unlink" as fn(*const c_char) -> c_int)(below.path.c_string());
            close(made);
            return fail(FULL, ENOSPC) as c_int;
        }
        if has(mask, UNDO) && flags & O_TRUNC != 0 {
            return cut_off(real(flags & !O_TRUNC, mode), flags);
        }
        real(flags, mode)
    }
}

unsafe fn cut_off(fd: c_int, flags: c_int) -> c_int {
    if fd >= 0 && flags & O_TRUNC != 0 {
        unsafe { ftruncate64(fd, 0) };
    }
    fd
}

/// What came of a read, with a bit flipped in it if one shall be.
unsafe fn flip_read(fd: c_int, bytes: *mut c_void, read: isize) -> isize {
    if read > 0
        && active(bit(FLIP_READ)) != 0
        && unsafe { Below::of(fd) }.is_some_and(|file| file.may_flip())
        && take_flip(FLIPS_READ)
    {
        unsafe { flip(bytes.cast(), read as usize) };
        count(FLIP_READ);
    }
    read
}

unsafe fn read_with(fd: c_int, bytes: *mut c_void, real: impl Fn() -> isize) -> isize {
    let mask = active(bit(FAIL_READS) | bit(FLIP_READ));
    if mask == 0 {
        return real();
    }
    if has(mask, FAIL_READS) && unsafe { Below::of(fd) }.is_some_and(|file| file.is_file) {
        return fail(FAIL_READS, EIO);
    }
    unsafe { flip_read(fd, bytes, real()) }
}

unsafe fn room(path: *const c_char, found: *mut Statvfs, result: c_int) -> c_int {
    let mask = active(bit(FULL) | bit(LOW_ROOM));
    if mask == 0 || result != 0 {
        return result;
    }
    let mut resolved = Text::new();
    unsafe {
        if realpath(path, resolved.bytes.as_mut_ptr().cast()).is_null() {
            return result;
        }
        resolved.length = strlen(resolved.c_string());
        if is_below(resolved.as_bytes()) {
            let bytes = if has(mask, FULL) { 0 } else { word(ROOM_BYTES).load(Ordering::Relaxed) };
            (*found).available = bytes / (*found).fragment_bytes.max(1);
            (*found).free = (*found).available;
            count(LOW_ROOM);
        }
    }
    result
}

/// What the wall clock is off, in microseconds.
fn clock_offset() -> i64 {
    if active(bit(CLOCK)) == 0 {
        return 0;
    }
    count(CLOCK);
    word(CLOCK_MICROS).load(Ordering::Relaxed) as i64
}

/// Defines functions under the C library's names.
macro_rules! take_over {
    ($($name:ident($($argument:ident: $of:ty),*) -> $result:ty $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $of),*) -> $result {
                unsafe { $body }
            }
        )*
    };
}

// `mode` is there only with `O_CREAT`, as the kernel has it.
take_over! {
    write(fd: c_int, bytes: *const c_void, length: usize) -> isize { write_at(fd, bytes, length, None) }
    pwrite(fd: c_int, bytes: *const c_void, length: usize, at: i64) -> isize { write_at(fd, bytes, length, Some(at)) }
    pwrite64(fd: c_int, bytes: *const c_void, length: usize, at: i64) -> isize {
        write_at(fd, bytes, length, Some(at))
    }
    writev(fd: c_int, parts: *const Part, parts_count: c_int) -> isize {
        if active(WRITE_FAULTS) == 0 || parts_count < 1 || Below::of(fd).is_none() {
            return real!(c"writev" as fn(c_int, *const Part, c_int) -> isize)(fd, parts, parts_count);
        }
        // Less than asked for, which callers must expect.
        write_at(fd, (*parts).bytes, (*parts).length, None)
    }
    read(fd: c_int, bytes: *mut c_void, length: usize) -> isize {
        read_with(fd, bytes, || real!(c"read" as fn(c_int, *mut c_void, usize) -> isize)(fd, bytes, length))
    }
    pread(fd: c_int, bytes: *mut c_void, length: usize, at: i64) -> isize {
        read_with(fd, bytes, || real_pread(fd, bytes, length, at))
    }
    pread64(fd: c_int, bytes: *mut c_void, length: usize, at: i64) -> isize {
        read_with(fd, bytes, || real_pread(fd, bytes, length, at))
    }
    fread_unlocked(bytes: *mut c_void, size: usize, items: usize, stream: *mut c_void) -> usize {
        let real = real!(c"fread_unlocked" as fn(*mut c_void, usize, usize, *mut c_void) -> usize);
        let read = real(bytes, size, items, stream);
        if active(bit(FLIP_READ)) != 0 {
            flip_read(fileno(stream), bytes, (read * size) as isize);
        }
        read
    }
    fsync(fd: c_int) -> c_int { sync(fd, || real!(c"fsync" as fn(c_int) -> c_int)(fd)) }
    fdatasync(fd: c_int) -> c_int { sync(fd, || real!(c"fdatasync" as fn(c_int) -> c_int)(fd)) }
    ftruncate(fd: c_int, length: i64) -> c_int {
        truncate(fd, length, || real!(c"ftruncate" as fn(c_int, i64) -> c_int)(fd, length))
    }
    ftruncate64(fd: c_int, length: i64) -> c_int {
        truncate(fd, length, || real!(c"ftruncate64" as fn(c_int, i64) -> c_int)(fd, length))
    }
    open(path: *const c_char, flags: c_int, mode: u32) -> c_int {
        open_with(flags, mode, |flags, mode| real!(c"open" as fn(*const c_char, c_int, u32) -> c_int)(path, flags, mode))
    }
    open64(path: *const c_char, flags: c_int, mode: u32) -> c_int {
        open_with(flags, mode, |flags, mode| real_open(path, flags, mode))
    }
    openat(folder: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int {
        open_with(flags, mode, |flags, mode| {
            real!(c"openat" as fn(c_int, *const c_char, c_int, u32) -> c_int)(folder, path, flags, mode)
        })
    }
    openat64(folder: c_int, path: *const c_char, flags: c_int, mode: u32) -> c_int {
        open_with(flags, mode, |flags, mode| {
            real!(c"openat64" as fn(c_int, *const c_char, c_int, u32) -> c_int)(folder, path, flags, mode)
        })
    }
    unlink(path: *const c_char) -> c_int {
        let gone = last_name(AT_FDCWD, path);
        after_naming(real!(c"unlink" as fn(*const c_char) -> c_int)(path), gone)
    }
    unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int {
        let gone = last_name(folder, path);
        after_naming(real!(c"unlinkat" as fn(c_int, *const c_char, c_int) -> c_int)(folder, path, flags), gone)
    }
    rename(from: *const c_char, to: *const c_char) -> c_int {
        let gone = last_name(AT_FDCWD, to);
        after_naming(real!(c"rename" as fn(*const c_char, *const c_char) -> c_int)(from, to), gone)
    }
    renameat(from_in: c_int, from: *const c_char, to_in: c_int, to: *const c_char) -> c_int {
        let gone = last_name(to_in, to);
        let real = real!(c"renameat" as fn(c_int, *const c_char, c_int, *const c_char) -> c_int);
        after_naming(real(from_in, from, to_in, to), gone)
    }
    statvfs(path: *const c_char, found: *mut Statvfs) -> c_int {
        let result = real!(c"statvfs" as fn(*const c_char, *mut Statvfs) -> c_int)(path, found);
        room(path, found, result)
    }
    statvfs64(path: *const c_char, found: *mut Statvfs) -> c_int {
        let result = real!(c"statvfs64" as fn(*const c_char, *mut Statvfs) -> c_int)(path, found);
        room(path, found, result)
    }
    clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
        let result = real_clock(clock, time);
        if result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
            let offset = clock_offset();
            let nanos = (*time).nanos + offset % 1_000_000 * 1_000;
            (*time).seconds += offset / 1_000_000 + nanos.div_euclid(1_000_000_000);
            (*time).nanos = nanos.rem_euclid(1_000_000_000);
        }
        result
    }
    gettimeofday(time: *mut Timeval, _zone: *mut c_void) -> c_int {
        let mut now = Timespec { seconds: 0, nanos: 0 };
        let result = clock_gettime(CLOCK_REALTIME, &mut now);
        *time = Timeval { seconds: now.seconds, micros: now.nanos / 1_000 };
        result
    }
    time(at: *mut i64) -> i64 {
        let mut now = Timespec { seconds: 0, nanos: 0 };
        clock_gettime(CLOCK_REALTIME, &mut now);
        if !at.is_null() {
            *at = now.seconds;
        }
        now.seconds
    }
}
