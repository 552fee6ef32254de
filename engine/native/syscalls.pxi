# Thin system calls: one function each, arguments as the kernel takes them, OSError on failure. No policy.
# The GIL is released around every call that can sleep.

import os as _os

from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strerror

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/bpf.h>
    #include <linux/openat2.h>
    #include <sched.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/inotify.h>
    #include <sys/mount.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    #ifndef SYS_openat2
    #define SYS_openat2 437
    #endif
    #ifndef SYS_pidfd_getfd
    #define SYS_pidfd_getfd 438
    #endif

    static inline int knarr_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) {
        struct open_how how;
        int fd;
        memset(&how, 0, sizeof how);
        how.flags = flags;
        how.mode = mode;
        how.resolve = resolve;
        do {
            fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof how);
        } while (fd < 0 && errno == EINTR);
        return fd;
    }

    static inline int knarr_bpf_load_device(const void *insns, uint32_t count, char *log, uint32_t log_size) {
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
        attr.insns = (uint64_t)(uintptr_t)insns;
        attr.insn_cnt = count;
        attr.license = (uint64_t)(uintptr_t)"GPL";
        if (log_size) {
            attr.log_buf = (uint64_t)(uintptr_t)log;
            attr.log_size = log_size;
            attr.log_level = 1;
        }
        return (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
    }

    static inline int knarr_bpf_attach_device(int cgroup, int prog, uint32_t flags) {
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.target_fd = cgroup;
        attr.attach_bpf_fd = prog;
        attr.attach_type = BPF_CGROUP_DEVICE;
        attr.attach_flags = flags;
        return (int)syscall(SYS_bpf, BPF_PROG_ATTACH, &attr, sizeof attr);
    }

    static int knarr_end(void *unused) {
        (void)unused;
        return 0;
    }

    /* A process that ends at once, in a user namespace of its own. It shares our memory and we are suspended until it has ended, so
     * nothing is copied; no exit signal, so nobody's wait(2) without __WCLONE or __WALL finds it. Signals are blocked meanwhile, the
     * handlers are ours. */
    static inline int knarr_clone_user(void) {
        char stack[4096] __attribute__((aligned(16)));
        sigset_t all, before;
        int pid, error;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pid = clone(knarr_end, stack + sizeof stack, CLONE_NEWUSER | CLONE_VM | CLONE_VFORK, NULL);
        error = errno;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        errno = error;
        return pid;
    }

    struct knarr_handle { unsigned int bytes; int type; unsigned char data[128]; };

    #include <malloc.h>

    static inline void knarr_release_memory(void) {
    #ifdef __GLIBC__
        malloc_trim(0);
    #endif
    }
    static inline int knarr_name_to_handle_at(int dirfd, const char *path, struct knarr_handle *handle, int *mount_id, int flags) {
        return (int)syscall(SYS_name_to_handle_at, dirfd, path, handle, mount_id, flags);
    }
    """
    int AT_FDCWD, IN_NONBLOCK, IN_CLOEXEC
    void knarr_release_memory() nogil
    int knarr_clone_user() nogil
    int knarr_openat2(int dirfd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve) nogil
    int knarr_bpf_load_device(const void *insns, uint32_t count, char *log, uint32_t log_size) nogil
    int knarr_bpf_attach_device(int cgroup, int prog, uint32_t flags) nogil
    int c_mount "mount"(const char *source, const char *target, const char *fstype, unsigned long flags, const void *data) nogil
    int c_umount2 "umount2"(const char *target, int flags) nogil
    int c_syncfs "syncfs"(int fd) nogil
    int c_sync_file_range "sync_file_range"(int fd, long long offset, long long length, unsigned int flags) nogil
    int c_setns "setns"(int fd, int nstype) nogil
    int c_unshare "unshare"(int flags) nogil
    int c_sethostname "sethostname"(const char *name, size_t len) nogil
    int c_renameat2 "renameat2"(int olddirfd, const char *oldpath, int newdirfd, const char *newpath, unsigned int flags) nogil
    int c_prctl "prctl"(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d) nogil
    int c_inotify_init1 "inotify_init1"(int flags) nogil
    int c_inotify_add_watch "inotify_add_watch"(int fd, const char *path, uint32_t mask) nogil
    int c_inotify_rm_watch "inotify_rm_watch"(int fd, int wd) nogil
    long c_syscall "syscall"(long number, ...) nogil
    long SYS_pivot_root, SYS_pidfd_getfd
    struct knarr_handle:
        unsigned int bytes
        int type
        unsigned char data[128]
    int knarr_name_to_handle_at(int dirfd, const char *path, knarr_handle *handle, int *mount_id, int flags) nogil


cdef inline bytes _path(object value):
    """A str or bytes path as bytes without NUL; other types are a TypeError, as in `os`."""
    cdef bytes raw = _os.fsencode(value)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    return raw


cdef object _failed(str what, object path=None):
    """Raise OSError for the current errno, with the failing call's name in its text."""
    cdef int code = errno
    text = f"{what}: {strerror(code).decode('utf-8', 'replace')}"
    if path is None:
        raise OSError(code, text)
    raise OSError(code, text, path)


def openat2(int dirfd, path, uint64_t flags, uint64_t mode=0, uint64_t resolve=0):
    cdef bytes raw = _path(path)
    cdef const char *c = raw
    cdef int fd
    with nogil:
        fd = knarr_openat2(dirfd, c, flags, mode, resolve)
    if fd < 0:
        _failed("openat2", path)
    return fd


def mount(source, target, fstype, unsigned long flags, data):
    cdef bytes b_source = b"none" if source is None else _path(source)
    cdef bytes b_target = _path(target)
    cdef bytes b_type = b"" if fstype is None else _path(fstype)
    cdef bytes b_data = b"" if data is None else _path(data)
    cdef const char *c_source = b_source
    cdef const char *c_target = b_target
    cdef const char *c_type = NULL
    cdef const char *c_data = NULL
    cdef int r
    if fstype is not None:
        c_type = b_type
    if data is not None:
        c_data = b_data
    with nogil:
        r = c_mount(c_source, c_target, c_type, flags, c_data)
    if r < 0:
        _failed("mount", target)


def umount2(target, int flags):
    cdef bytes raw = _path(target)
    cdef const char *c = raw
    cdef int r
    with nogil:
        r = c_umount2(c, flags)
    if r < 0:
        _failed("umount", target)


def pivot_root(new_root, put_old):
    cdef bytes b_new = _path(new_root)
    cdef bytes b_old = _path(put_old)
    cdef const char *c_new = b_new
    cdef const char *c_old = b_old
    cdef long r
    with nogil:
        r = c_syscall(SYS_pivot_root, c_new, c_old)
    if r < 0:
        _failed("pivot_root", new_root)


def release_memory():
    """Give memory that was freed back to the kernel: malloc_trim(3). Nothing where the C library has no such call. Some milliseconds."""
    with nogil:
        knarr_release_memory()


def sync_file_range(int fd, long long offset, long long length):
    """Begin to write out a part of a file's dirty pages and do not wait: sync_file_range(2) with SYNC_FILE_RANGE_WRITE. Raises OSError."""
    cdef int r
    with nogil:
        r = c_sync_file_range(fd, offset, length, 2)
    if r < 0:
        _failed("sync_file_range")


def syncfs(int fd):
    cdef int r
    with nogil:
        r = c_syncfs(fd)
    if r < 0:
        _failed("syncfs")


def setns(int fd, int nstype):
    cdef int r
    with nogil:
        r = c_setns(fd, nstype)
    if r < 0:
        _failed("setns")


def unshare(int flags):
    cdef int r
    with nogil:
        r = c_unshare(flags)
    if r < 0:
        _failed("unshare")


def clone_user():
    cdef int pid
    with nogil:
        pid = knarr_clone_user()
    if pid < 0:
        _failed("clone into a user namespace")
    return pid


def sethostname(bytes name not None):
    if c_sethostname(name, len(name)) < 0:
        _failed("sethostname")


def renameat2(int olddirfd, oldpath, int newdirfd, newpath, unsigned int flags):
    cdef bytes b_old = _path(oldpath)
    cdef bytes b_new = _path(newpath)
    cdef const char *c_old = b_old
    cdef const char *c_new = b_new
    cdef int r
    with nogil:
        r = c_renameat2(olddirfd, c_old, newdirfd, c_new, flags)
    if r < 0:
        _failed("renameat2", newpath)


def prctl(int option, unsigned long arg2=0, unsigned long arg3=0, unsigned long arg4=0, unsigned long arg5=0):
    cdef int r = c_prctl(option, arg2, arg3, arg4, arg5)
    if r < 0:
        _failed("prctl")
    return r


def pidfd_getfd(int pidfd, int targetfd):
    cdef long r = c_syscall(SYS_pidfd_getfd, pidfd, targetfd, 0)
    if r < 0:
        _failed("pidfd_getfd")
    return r


def inotify_init():
    cdef int fd = c_inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if fd < 0:
        _failed("inotify_init1")
    return fd


def inotify_add_watch(int fd, path, uint32_t mask):
    cdef bytes raw = _path(path)
    cdef const char *c = raw
    cdef int wd
    with nogil:
        wd = c_inotify_add_watch(fd, c, mask)
    if wd < 0:
        _failed("inotify_add_watch", path)
    return wd


def inotify_rm_watch(int fd, int wd):
    if c_inotify_rm_watch(fd, wd) < 0:
        _failed("inotify_rm_watch")


def bpf_load_device(bytes instructions not None):
    cdef const char *insns = instructions
    cdef uint32_t count = len(instructions) // 8
    cdef int fd
    if len(instructions) % 8 or not count:
        raise ValueError("instructions must be whole struct bpf_insn, 8 bytes each")
    with nogil:
        fd = knarr_bpf_load_device(insns, count, NULL, 0)
    if fd < 0:
        _failed("load device program")
    return fd


def bpf_attach_device(int cgroup_fd, int prog_fd, uint32_t flags):
    cdef int r
    with nogil:
        r = knarr_bpf_attach_device(cgroup_fd, prog_fd, flags)
    if r < 0:
        _failed("attach device program")


def name_to_handle_at(int dirfd, path, int flags):
    cdef bytes raw = _path(path)
    cdef const char *c = raw
    cdef knarr_handle handle
    cdef int mount_id = 0
    cdef int r
    handle.bytes = 128
    with nogil:
        r = knarr_name_to_handle_at(dirfd, c, &handle, &mount_id, flags)
    if r < 0:
        _failed("name_to_handle_at", path)
    return mount_id, handle.type.to_bytes(4, "little", signed=True) + (<char *>handle.data)[:handle.bytes]
