//! The C library's functions that change files, in front of the kernel.
//!
//! A function of a program comes before one of the same name in a shared library, so what is defined here is what the
//! standard library and RocksDB call. Everything goes on to the kernel; what touches the armed folder passes
//! `Inside::point` first, one at a time.

use std::cell::Cell;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use libc::{c_char, c_int, c_long, c_void, mode_t, off_t, size_t, ssize_t};

use crate::Plan;
use crate::disk::{self, Disk, Node};

static IS_ARMED: AtomicBool = AtomicBool::new(false);
static POINTS: AtomicU64 = AtomicU64::new(0);
static ARMED: Mutex<Option<Armed>> = Mutex::new(None);

thread_local! {
    /// True while this thread does the work of this file, whose own calls are nobody's points.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Armed {
    folder: PathBuf,
    cut_at: Option<u64>,
    disk: Disk,
}

pub(crate) fn arm(plan: Plan) {
    let Plan { folder, cut_at, unsynced, seed, lies } = plan;
    let folder = folder.canonicalize().expect("the folder exists");
    let disk = Disk::new(&folder, unsynced, lies, seed).expect("room beside the folder");
    let mut armed = ARMED.lock().expect("nobody panics in it");
    assert!(armed.is_none(), "armed twice");
    *armed = Some(Armed { folder, cut_at, disk });
    // Else a linker might leave out functions that only C calls.
    let taken = [write as *const (), fsync as *const (), rename as *const (), open as *const ()];
    std::hint::black_box(taken);
    IS_ARMED.store(true, Ordering::SeqCst);
}

pub(crate) fn points() -> u64 {
    POINTS.load(Ordering::SeqCst)
}

/// The lock, and the mark that this thread holds it.
struct Inside(MutexGuard<'static, Option<Armed>>);

impl Drop for Inside {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
    }
}

/// None if the call is not to be looked at.
fn enter() -> Option<Inside> {
    if !IS_ARMED.load(Ordering::Relaxed) || IS_INSIDE.get() {
        return None;
    }
    IS_INSIDE.set(true);
    let armed = ARMED.lock().unwrap_or_else(|_| give_up("a panic while a file was looked at"));
    Some(Inside(armed))
}

impl Inside {
    fn armed(&mut self) -> &mut Armed {
        self.0.as_mut().expect("armed")
    }

    fn is_below(&mut self, path: &Path) -> bool {
        path.starts_with(&self.armed().folder)
    }

    /// Counts one, and says whether the process ends here.
    fn is_last(&mut self) -> bool {
        let point = POINTS.fetch_add(1, Ordering::SeqCst) + 1;
        self.armed().cut_at == Some(point)
    }

    /// Ends the process if this is the point for it.
    fn point(&mut self) {
        if self.is_last() {
            self.end();
        }
    }

    fn end(&mut self) -> ! {
        if let Err(error) = self.armed().disk.fail() {
            give_up(&format!("what was not synced could not be taken back: {error}"));
        }
        kill_self()
    }
}

fn kill_self() -> ! {
    // SAFETY: both take no pointer. The signal can't be caught, so nothing runs after it.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
        loop {
            libc::pause();
        }
    }
}

/// The model would be wrong from here on.
fn give_up(why: &str) -> ! {
    // Not by way of the standard library: another thread may hold its lock and wait for ours.
    let line = format!("keevee-faults: {why}\n");
    // SAFETY: the bytes are as long as it is told.
    unsafe { libc::syscall(libc::SYS_write, libc::STDERR_FILENO, line.as_ptr(), line.len()) };
    std::process::abort()
}

fn must<T>(result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| give_up(&error.to_string()))
}

/// # Safety
///
/// `path` must be a C string.
unsafe fn path_at(directory: c_int, path: *const c_char) -> PathBuf {
    // SAFETY: as the caller promises.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let base = if path.is_absolute() {
        PathBuf::new()
    } else if directory == libc::AT_FDCWD {
        must(std::env::current_dir())
    } else {
        disk::path_of(directory).unwrap_or_default()
    };
    // The folder above may be named through a link; the file itself need not exist.
    let (parent, name) = (base.join(path), path.file_name());
    match (parent.parent().and_then(|parent| parent.canonicalize().ok()), name) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => parent,
    }
}

/// A write at a place, or at the descriptor's own.
///
/// # Safety
///
/// As for `pwrite`.
unsafe fn write_at(fd: c_int, bytes: *const c_void, length: size_t, at: Option<off_t>) -> ssize_t {
    let raw = || match at {
        // SAFETY: as the caller promises.
        Some(at) => unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes, length, at) as ssize_t },
        // SAFETY: as the caller promises.
        None => unsafe { libc::syscall(libc::SYS_write, fd, bytes, length) as ssize_t },
    };
    let Some(mut inside) = enter() else { return raw() };
    let Node::File { inode, size } = disk::node_of(fd) else { return raw() };
    if !disk::path_of(fd).is_some_and(|path| inside.is_below(&path)) {
        return raw();
    }
    // SAFETY: neither takes a pointer.
    let (flags, own) = unsafe { (libc::fcntl(fd, libc::F_GETFL), libc::lseek(fd, 0, libc::SEEK_CUR)) };
    let appends = at.is_none() && flags & libc::O_APPEND != 0;
    let at = if appends { size } else { at.unwrap_or(own) as u64 };
    let durable = flags & libc::O_DSYNC != 0;
    must(inside.armed().disk.before_write(inode, fd, at, length, durable));
    if inside.is_last() {
        let runs = inside.armed().disk.torn(length, durable);
        // SAFETY: the caller's bytes are so long.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
        must(disk::write_runs(fd, bytes, at, &runs));
        inside.end();
    }
    raw()
}

fn sync(fd: c_int, number: c_long) -> c_int {
    // SAFETY: it takes no pointer.
    let raw = || unsafe { libc::syscall(number, fd) as c_int };
    let Some(mut inside) = enter() else { return raw() };
    let Some(path) = disk::path_of(fd) else { return raw() };
    let is_above = inside.armed().folder.parent() == Some(&path);
    if !is_above && !inside.is_below(&path) {
        return raw();
    }
    match disk::node_of(fd) {
        Node::File { inode, .. } => {
            inside.point();
            inside.armed().disk.synced(inode);
        }
        Node::Folder => {
            inside.point();
            inside.armed().disk.synced_folder(&path);
        }
        Node::Other => return raw(),
    }
    // The kernel need not: its disk does not fail in this test.
    0
}

/// # Safety
///
/// As for `openat`.
unsafe fn open_at(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: as the caller promises.
    let raw =
        |flags: c_int| unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode) as c_int };
    let changes = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let Some(mut inside) = (if changes { enter() } else { None }) else { return raw(flags) };
    // SAFETY: as the caller promises.
    let name = unsafe { path_at(directory, path) };
    if !inside.is_below(&name) {
        return raw(flags);
    }
    let is_new = !name.exists();
    if is_new && flags & libc::O_CREAT != 0 {
        inside.point();
        let fd = raw(flags);
        if fd >= 0 {
            inside.armed().disk.made(name);
        }
        return fd;
    }
    let fd = raw(flags & !libc::O_TRUNC);
    if fd >= 0 && flags & libc::O_TRUNC != 0 {
        truncate_in(&mut inside, fd, 0);
    }
    fd
}

fn truncate_in(inside: &mut Inside, fd: c_int, length: off_t) -> c_int {
    if let Node::File { inode, size } = disk::node_of(fd)
        && disk::path_of(fd).is_some_and(|path| inside.is_below(&path))
        && size != length as u64
    {
        inside.point();
        must(inside.armed().disk.before_truncate(inode, fd, length as u64, size));
    }
    // SAFETY: it takes no pointer.
    unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) as c_int }
}

/// # Safety
///
/// As for `renameat`.
unsafe fn rename_at(from_in: c_int, from: *const c_char, to_in: c_int, to: *const c_char) -> c_int {
    // SAFETY: as the caller promises.
    let raw = || unsafe { libc::syscall(libc::SYS_renameat, from_in, from, to_in, to) as c_int };
    let Some(mut inside) = enter() else { return raw() };
    // SAFETY: as the caller promises.
    let (old, new) = unsafe { (path_at(from_in, from), path_at(to_in, to)) };
    if !inside.is_below(&new) {
        return raw();
    }
    inside.point();
    let disk = &mut inside.armed().disk;
    let replaced = new.exists().then(|| must(disk.keep(&new)));
    let result = raw();
    if result == 0 {
        disk.renamed(old, new, replaced);
    }
    result
}

/// # Safety
///
/// As for `unlinkat`.
unsafe fn unlink_at(directory: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: as the caller promises.
    let raw = || unsafe { libc::syscall(libc::SYS_unlinkat, directory, path, flags) as c_int };
    let Some(mut inside) = enter() else { return raw() };
    // SAFETY: as the caller promises.
    let name = unsafe { path_at(directory, path) };
    if !inside.is_below(&name) || !name.exists() {
        return raw();
    }
    inside.point();
    if name.is_dir() {
        let result = raw();
        if result == 0 {
            inside.armed().disk.removed_folder(name);
        }
        return result;
    }
    let disk = &mut inside.armed().disk;
    let kept = must(disk.keep(&name));
    let result = raw();
    if result == 0 {
        disk.removed(name, kept);
    }
    result
}

/// # Safety
///
/// As for `linkat`.
unsafe fn link_at(
    from_in: c_int,
    from: *const c_char,
    to_in: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { make(to_in, to, || libc::syscall(libc::SYS_linkat, from_in, from, to_in, to, flags) as c_int) }
}

fn truncate(fd: c_int, length: off_t) -> c_int {
    let Some(mut inside) = enter() else {
        // SAFETY: it takes no pointer.
        return unsafe { libc::syscall(libc::SYS_ftruncate, fd, length) as c_int };
    };
    truncate_in(&mut inside, fd, length)
}

/// # Safety
///
/// As for `mkdir`.
unsafe fn make_folder(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: as the caller promises.
    unsafe {
        make(libc::AT_FDCWD, path, || libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) as c_int)
    }
}

/// Makes a name that is not there yet.
///
/// # Safety
///
/// `path` must be a C string.
unsafe fn make(directory: c_int, path: *const c_char, raw: impl Fn() -> c_int) -> c_int {
    let Some(mut inside) = enter() else { return raw() };
    // SAFETY: as the caller promises.
    let name = unsafe { path_at(directory, path) };
    if !inside.is_below(&name) {
        return raw();
    }
    inside.point();
    let result = raw();
    if result == 0 {
        inside.armed().disk.made(name);
    }
    result
}

fn refuse_below(fd: c_int, what: &str) {
    if let Some(mut inside) = enter()
        && disk::path_of(fd).is_some_and(|path| inside.is_below(&path))
    {
        give_up(&format!("{what} is not modelled"));
    }
}

/// Defines functions under the C library's names.
macro_rules! take_over {
    ($($name:ident($($argument:ident: $of:ty),*) -> $result:ty $body:block)*) => {
        $(
            /// # Safety
            ///
            /// As the function of the C library.
            #[unsafe(no_mangle)]
            #[allow(unused_unsafe, reason = "some only call what is safe")]
            unsafe extern "C" fn $name($($argument: $of),*) -> $result {
                // SAFETY: callers keep to the C library's contract.
                unsafe { $body }
            }
        )*
    };
}

// `mode` is there only with `O_CREAT`, as the kernel has it.
take_over! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { open_at(libc::AT_FDCWD, path, flags, mode) }
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int { open_at(libc::AT_FDCWD, path, flags, mode) }
    openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(folder, path, flags, mode)
    }
    openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        open_at(folder, path, flags, mode)
    }
    write(fd: c_int, bytes: *const c_void, length: size_t) -> ssize_t { write_at(fd, bytes, length, None) }
    pwrite(fd: c_int, bytes: *const c_void, length: size_t, at: off_t) -> ssize_t {
        write_at(fd, bytes, length, Some(at))
    }
    pwrite64(fd: c_int, bytes: *const c_void, length: size_t, at: off_t) -> ssize_t {
        write_at(fd, bytes, length, Some(at))
    }
    writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> ssize_t {
        refuse_below(fd, "writev");
        libc::syscall(libc::SYS_writev, fd, parts, count) as ssize_t
    }
    copy_file_range(
        from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, length: size_t, flags: libc::c_uint
    ) -> ssize_t {
        refuse_below(to, "copy_file_range");
        libc::syscall(libc::SYS_copy_file_range, from, from_at, to, to_at, length, flags) as ssize_t
    }
    fsync(fd: c_int) -> c_int { sync(fd, libc::SYS_fsync) }
    fdatasync(fd: c_int) -> c_int { sync(fd, libc::SYS_fdatasync) }
    ftruncate(fd: c_int, length: off_t) -> c_int { truncate(fd, length) }
    ftruncate64(fd: c_int, length: off_t) -> c_int { truncate(fd, length) }
    rename(from: *const c_char, to: *const c_char) -> c_int {
        rename_at(libc::AT_FDCWD, from, libc::AT_FDCWD, to)
    }
    renameat(from_in: c_int, from: *const c_char, to_in: c_int, to: *const c_char) -> c_int {
        rename_at(from_in, from, to_in, to)
    }
    unlink(path: *const c_char) -> c_int { unlink_at(libc::AT_FDCWD, path, 0) }
    rmdir(path: *const c_char) -> c_int { unlink_at(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
    link(from: *const c_char, to: *const c_char) -> c_int {
        link_at(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0)
    }
    linkat(
        from_in: c_int, from: *const c_char, to_in: c_int, to: *const c_char, flags: c_int
    ) -> c_int {
        link_at(from_in, from, to_in, to, flags)
    }
    unlinkat(folder: c_int, path: *const c_char, flags: c_int) -> c_int { unlink_at(folder, path, flags) }
    mkdir(path: *const c_char, mode: mode_t) -> c_int { make_folder(path, mode) }
}
