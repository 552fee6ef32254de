/* What the child of a launch shares between its operations. Everything here runs between clone3 and exec in memory shared with a suspended
 * parent: system calls and this struct only; no allocation, no locks, no stdio. Operations return 0 or a positive errno. */
#ifndef KNARR_CHILD_H
#define KNARR_CHILD_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "plan.h"

#define KEPT_TREES 32

struct child {
    struct plan_header *plan;
    struct launch_report *report;
    int stdio[3];
    int terminal[2];            /* sockets: the parent's end, and the child's to send the master of its terminal; or -1 */
    int ready;                  /* plain clone only: closed by exec, tells the parent; else -1 */
    int own_terminal;           /* OP_TERMINAL made one */
    int join;                   /* pidfd of OP_JOIN_PROCESS, or -1 */
    int place;                  /* 1: clone3 could not place us in the v2 group, we write ourselves into its cgroup.procs */
    int root;                   /* O_PATH of the container's root, or -1: "/" is the root already */
    int null;                   /* O_PATH of the host's null device, or -1 */
    int masked;                 /* the empty read-only directory that hides directories, or -1 */
    int parent;                 /* O_PATH of the directory `parent_path` (parent_length bytes), or -1 */
    int fresh;                  /* the last path that was looked for had to be made */
    const char *parent_path;
    size_t parent_length;
    int tree[KEPT_TREES];       /* trees cloned before the propagation was changed */
    char path[2 * PATH_MAX];    /* scratch of one operation */
    char link[PATH_MAX];
};

static inline uint64_t clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline int failed(long r) {
    return r < 0 ? errno : 0;
}

/* The current operation was done in part only; the launch goes on. */
static void degrade(struct child *c, int error) {
    if (c->report->count)
        c->report->mark[c->report->count - 1].error = (uint32_t)error;
}

/* "/proc/self/fd/N"; `out` holds FD_NAME bytes. */
#define FD_NAME 32
static const char *fd_name(char out[FD_NAME], int fd) {
    static const char prefix[] = "/proc/self/fd/";
    char digits[12], *p = digits + sizeof digits, *end = p;
    unsigned n = (unsigned)fd;
    do {
        *--p = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    memcpy(out, prefix, sizeof prefix - 1);
    memcpy(out + sizeof prefix - 1, p, (size_t)(end - p));
    out[sizeof prefix - 1 + (size_t)(end - p)] = 0;
    return out;
}

static int write_file(const char *path, const char *text, size_t length) {
    int fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;
    if (fd < 0)
        return errno;
    if (write(fd, text, length) < 0)
        error = errno;
    close(fd);
    return error;
}

#endif
