/* What the process itself is: groups, namespaces, limits, identity, capabilities, filter, program. */
#ifndef KNARR_PROCESS_H
#define KNARR_PROCESS_H

#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/vfs.h>

#include "child.h"
#include "rootfs.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/* slot: a v1 `tasks` file. The child moves itself: a write to cgroup.procs by another process takes milliseconds per hierarchy (a global
 * lock and an RCU grace period), this takes microseconds. */
static int op_tasks(struct child *c, struct plan_op *op) {
    (void)c;
    return write_file(op->slot[0].text, "0", 1);
}

/* The v2 group when the kernel has no CLONE_INTO_CGROUP. */
static int place_self(struct child *c, const char *directory) {
    static const char file[] = "/cgroup.procs";
    size_t length = strlen(directory);
    if (length + sizeof file > sizeof c->path)
        return ENAMETOOLONG;
    memcpy(c->path, directory, length);
    memcpy(c->path + length, file, sizeof file);
    return write_file(c->path, "0", 1);
}

/* slot: namespace file. arg[0]: CLONE_NEW*. The pid namespace was entered by the parent. */
static int op_join(struct child *c, struct plan_op *op) {
    int fd, error;
    (void)c;
    if (op->arg[0] == CLONE_NEWPID)
        return 0;
    fd = open(op->slot[0].text, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    error = failed(setns(fd, (int)op->arg[0]));
    close(fd);
    return error;
}

/* arg: pid, start time, CLONE_NEW*; the parent opened and verified the process. */
static int op_join_process(struct child *c, struct plan_op *op) {
    int flags = (int)op->arg[2] & ~CLONE_NEWPID;
    return flags ? failed(setns(c->join, flags)) : 0;
}

/* Field 22 of /proc/PID/stat, or 0. The name in field 2 may hold anything, so count from its last ")". */
static uint64_t start_time(pid_t pid) {
    char text[1024], path[FD_NAME + 8], *p;
    ssize_t n;
    int fd, field = 2;
    uint64_t value = 0;
    fd_name(path, pid); /* "/proc/self/fd/PID" */
    p = path + sizeof "/proc/self/fd/" - 1;
    memmove(path + sizeof "/proc/" - 1, p, strlen(p) + 1);
    strcat(path, "/stat");
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    p = strrchr(text, ')');
    for (; p && *p && field < 22; p++)
        if (*p == ' ')
            field++;
    for (; p && *p >= '0' && *p <= '9'; p++)
        value = value * 10 + (uint64_t)(*p - '0');
    return value;
}

/* arg: pid, start time. While a process is there its number is its own, so that all files of /proc/PID that were opened before were its. */
static int op_alive(struct child *c, struct plan_op *op) {
    (void)c;
    return start_time((pid_t)op->arg[0]) == op->arg[1] ? 0 : ESRCH;
}

static int op_unshare(struct child *c, struct plan_op *op) {
    (void)c;
    return failed(unshare((int)op->arg[0]));
}

static int op_loopback(struct child *c, struct plan_op *op) {
    struct ifreq lo;
    int error, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    (void)c, (void)op;
    if (fd < 0)
        return errno;
    memset(&lo, 0, sizeof lo);
    memcpy(lo.ifr_name, "lo", sizeof "lo");
    lo.ifr_flags = IFF_UP | IFF_RUNNING;
    error = failed(ioctl(fd, SIOCSIFFLAGS, &lo));
    close(fd);
    return error;
}

/* A session keyring of its own, or the container would hold the engine's keys. Kernels without keys have nothing to hide. */
static int op_keyring(struct child *c, struct plan_op *op) {
    (void)op;
    if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS) {
        if (errno != EDQUOT)
            return errno;
        degrade(c, errno);
    }
    return 0;
}

/* slots: file below /proc/sys of the host's proc, value. It acts on our own network, ipc and uts namespaces whoever mounted that proc, and
 * nothing in the image can redirect it. */
static int op_sysctl(struct child *c, struct plan_op *op) {
    (void)c;
    return write_file(op->slot[0].text, op->slot[1].text, strlen(op->slot[1].text));
}

static int op_hostname(struct child *c, struct plan_op *op) {
    const char *name = op->slot[0].text;
    (void)c;
    return failed(syscall(op->code == OP_HOSTNAME ? SYS_sethostname : SYS_setdomainname, name, strlen(name)));
}

/* arg: resource, soft, hard. Above the hard limit without CAP_SYS_RESOURCE: as much as there is. */
static int op_rlimit(struct child *c, struct plan_op *op) {
    struct { uint64_t soft, hard; } now, wanted = {op->arg[1], op->arg[2]};
    if (syscall(SYS_prlimit64, 0, op->arg[0], &wanted, NULL) == 0)
        return 0;
    if (errno != EPERM)
        return errno;
    if (syscall(SYS_prlimit64, 0, op->arg[0], NULL, &now) < 0)
        return errno;
    degrade(c, EPERM);
    wanted.hard = wanted.hard < now.hard ? wanted.hard : now.hard;
    wanted.soft = wanted.soft < wanted.hard ? wanted.soft : wanted.hard;
    return failed(syscall(SYS_prlimit64, 0, op->arg[0], &wanted, NULL));
}

/* arg[0]: oom_score_adj as a signed number. A value below the present one needs CAP_SYS_RESOURCE; without it, it stays. */
static int op_oom_score(struct child *c, struct plan_op *op) {
    char text[16], *p = text + sizeof text;
    int64_t value = (int64_t)op->arg[0];
    uint64_t n = value < 0 ? (uint64_t)-value : (uint64_t)value;
    int error;
    if (n > 1000)
        return EINVAL;
    do {
        *--p = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    if (value < 0)
        *--p = '-';
    error = write_file("/proc/self/oom_score_adj", p, (size_t)(text + sizeof text - p));
    if (error == EACCES || error == EPERM) {
        degrade(c, error);
        return 0;
    }
    return error;
}

/* arg: rows, columns (0: as the launch's own). A terminal of the container's own devpts, so that its name is right inside; the master goes to the parent. In an exec
 * the tree is the container's to change: nothing but the ptmx of a real devpts will do, and nothing in there can be replaced. */
static int op_terminal(struct child *c, struct plan_op *op) {
    struct winsize size = {.ws_row = (unsigned short)op->arg[0], .ws_col = (unsigned short)op->arg[1]};
    struct open_how how = {.flags = O_RDWR | O_NOCTTY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {{CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec data = {"", 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct statfs fs;
    int master, slave, unlock = 0, devpts = open_inside(c, "/dev/pts", O_PATH | O_DIRECTORY);
    if (devpts < 0 || fstatfs(devpts, &fs) < 0 || fs.f_type != DEVPTS_SUPER_MAGIC) {
        degrade(c, ENOTTY); /* the launch's own descriptors stay, a terminal of the host */
        return 0;
    }
    master = (int)syscall(SYS_openat2, devpts, "ptmx", &how, sizeof how);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0)
        return errno;
    if (!size.ws_row || !size.ws_col)
        ioctl(c->stdio[0], TIOCGWINSZ, &size); /* that of the host's terminal it replaces, if there is one */
    slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0 || (size.ws_row && size.ws_col && ioctl(slave, TIOCSWINSZ, &size) < 0))
        return errno;
    memcpy(CMSG_DATA(&control.header), &master, sizeof master);
    if (sendmsg(c->terminal[1], &message, MSG_NOSIGNAL) < 0)
        return errno;
    c->stdio[0] = c->stdio[1] = c->stdio[2] = slave;
    c->own_terminal = 1;
    close(devpts);
    close(master);
    return 0;
}

static int is_null(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3);
}

/* The host's null device as standard input would let root inside change its mode or owner: take the container's own, or, where that is
 * gone, a pipe that has ended. */
static int own_null(struct child *c) {
    int ends[2], fd = open_inside(c, "/dev/null", O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (fd >= 0 && (!is_null(fd) || fcntl(fd, F_SETFL, 0) < 0)) {
        close(fd);
        fd = -1;
    }
    if (fd < 0) {
        if (pipe2(ends, O_CLOEXEC) < 0)
            return errno;
        close(ends[1]);
        fd = ends[0];
    }
    c->stdio[0] = fd;
    return 0;
}

/* arg: is it a terminal, the user's id. The user gets the pipes and the terminal, or it could not open /dev/stdout again. */
static int op_stdio(struct child *c, struct plan_op *op) {
    struct stat st;
    int i, error = is_null(c->stdio[0]) ? own_null(c) : 0;
    if (error)
        return error;
    for (i = 0; i < 3; i++)
        if (c->stdio[i] < 3 && c->stdio[i] != i) { /* out of the way of the descriptors below */
            c->stdio[i] = fcntl(c->stdio[i], F_DUPFD_CLOEXEC, 3);
            if (c->stdio[i] < 0)
                return errno;
        }
    for (i = 0; i < 3; i++)
        if (c->stdio[i] == i ? fcntl(i, F_SETFD, 0) < 0 : dup3(c->stdio[i], i, 0) < 0)
            return errno;
    if (op->arg[0] && ioctl(0, TIOCSCTTY, 0) < 0)
        return errno;
    for (i = 0; op->arg[1] && i < 3; i++) {
        if (fstat(i, &st) < 0)
            return errno;
        if (!(S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3)) && st.st_uid != op->arg[1])
            if (fchown(i, (uid_t)op->arg[1], (gid_t)-1) < 0 && errno != EINVAL && errno != EPERM && errno != EROFS)
                return errno;
    }
    return 0;
}

/* arg[0]: capabilities to keep in the bounding set. */
static int op_bounding(struct child *c, struct plan_op *op) {
    (void)c;
    for (unsigned cap = 0; cap < 64; cap++)
        if (!(op->arg[0] >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            return errno == EINVAL && cap > CAP_SETFCAP ? 0 : errno;
    return 0;
}

struct capabilities {
    struct __user_cap_data_struct half[2];
};

static uint64_t both(uint32_t low, uint32_t high) {
    return (uint64_t)high << 32 | low;
}

static int get_capabilities(struct capabilities *caps) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    return failed(syscall(SYS_capget, &header, caps->half));
}

static int set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct capabilities caps = {{{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
                                 {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}}};
    return failed(syscall(SYS_capset, &header, caps.half));
}

/* arg: uid, gid, number of groups, keep the capabilities for a later operation. slot: groups. Raw calls: glibc's would signal every thread
 * of the parent to follow. */
static int op_user(struct child *c, struct plan_op *op) {
    uid_t uid = (uid_t)op->arg[0];
    gid_t gid = (gid_t)op->arg[1];
    struct capabilities now;
    uint64_t permitted;
    int error;
    (void)c;
    if (syscall(SYS_setgroups, op->arg[2], op->slot[0].text) < 0)
        return errno;
    if (uid && op->arg[3] && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
        return errno;
    if (syscall(SYS_setresgid, gid, gid, gid) < 0 || syscall(SYS_setresuid, uid, uid, uid) < 0)
        return errno;
    /* The kernel has just set this to fs.suid_dumpable, for the memory that we share. */
    if (uid && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        return errno;
    if (!uid || !op->arg[3])
        return 0;
    error = get_capabilities(&now); /* leaving uid 0 emptied the effective set, which seccomp needs */
    if (error)
        return error;
    permitted = both(now.half[0].permitted, now.half[1].permitted);
    return set_capabilities(permitted, permitted, 0);
}

/* arg: effective, permitted, inheritable, ambient. What we do not have ourselves cannot be given. */
static int op_capabilities(struct child *c, struct plan_op *op) {
    struct capabilities now;
    uint64_t have, permitted;
    int error = get_capabilities(&now);
    if (error)
        return error;
    have = both(now.half[0].permitted, now.half[1].permitted);
    permitted = op->arg[1] & have;
    if (permitted != op->arg[1])
        degrade(c, EPERM);
    error = set_capabilities(op->arg[0] & permitted, permitted, op->arg[2] & have);
    if (error)
        return error;
    for (unsigned cap = 0; cap < 64 && op->arg[3] >> cap; cap++)
        if ((op->arg[3] & permitted & op->arg[2]) >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
            return errno;
    return 0;
}

static int op_no_new_privs(struct child *c, struct plan_op *op) {
    (void)c, (void)op;
    return failed(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

/* arg: SECCOMP_FILTER_FLAG_*, -, number of instructions. slot: struct sock_filter. */
static int op_seccomp(struct child *c, struct plan_op *op) {
    struct sock_fprog program = {(unsigned short)op->arg[2], (struct sock_filter *)(void *)op->slot[0].text};
    (void)c;
    if (op->arg[2] == 0 || op->arg[2] > BPF_MAXINSNS)
        return EINVAL;
    return failed(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, op->arg[0], &program));
}

static int op_umask(struct child *c, struct plan_op *op) {
    (void)c;
    umask((mode_t)op->arg[0]);
    return 0;
}

static int is_prefix(const char *text, const char *prefix, size_t length) {
    return strncmp(text, prefix, length) == 0;
}

/* Everything of ours is closed before the program's path is resolved, not by its success: "#!/proc/self/fd/7" would still find it. */
static int close_all(struct child *c, unsigned first) {
    if (c->ready < 0)
        return failed(syscall(SYS_close_range, first, ~0u, 0));
    if ((unsigned)c->ready > first && syscall(SYS_close_range, first, c->ready - 1, 0) < 0)
        return errno;
    return failed(syscall(SYS_close_range, c->ready + 1, ~0u, 0));
}

/* execvpe(3) without its allocations; the search follows the container's own PATH. EACCES wins over ENOENT, as in a shell. */
static int search(struct child *c, char *const argv[], char *const env[]) {
    const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *end;
    size_t length, name = strlen(argv[0]);
    int denied = 0, i;
    if (name == 0)
        return ENOENT;
    for (i = 0; env[i]; i++)
        if (is_prefix(env[i], "PATH=", 5))
            path = env[i] + 5;
    for (;; path = end + 1) {
        end = strchrnul(path, ':');
        length = (size_t)(end - path);
        if (length && length + name + 2 <= sizeof c->path) {
            memcpy(c->path, path, length);
            c->path[length] = '/';
            memcpy(c->path + length + 1, argv[0], name + 1);
            execve(c->path, argv, env);
            if (errno == EACCES)
                denied = 1;
            else if (errno != ENOENT && errno != ENOTDIR)
                return errno;
        }
        if (*end == 0)
            return denied ? EACCES : ENOENT;
    }
}

/* arg: lengths of argv and env, descriptors above 2 to keep. Returns only when it failed. */
static int op_exec(struct child *c, struct plan_op *op) {
    char **argv = &op->slot[0].text, **env = argv + op->arg[0] + 1;
    uint64_t none = 0;
    int error;
    if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none) < 0)
        return errno;
    error = close_all(c, 3 + (unsigned)op->arg[2]);
    if (error)
        return error;
    if (!strchr(argv[0], '/'))
        return search(c, argv, env);
    execve(argv[0], argv, env);
    return errno;
}

#endif
