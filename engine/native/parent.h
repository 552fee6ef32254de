/* The two sides of a launch (see the table in launch.h): the child's interpreter and the parent that clones it. */
#ifndef KNARR_PARENT_H
#define KNARR_PARENT_H

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "child.h"
#include "process.h"
#include "rootfs.h"

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
#define INTO_CGROUP 0x200000000ULL /* CLONE_INTO_CGROUP */
#define STACK_SIZE (64u << 10)

enum { CLONE_PLAIN = 1 }; /* arg[1] of OP_CLONE: the child gets a copy of our memory */

typedef int (*operation)(struct child *, struct plan_op *);
static const operation operations[OP_LAST + 1] = {
    [OP_JOIN] = op_join,
    [OP_JOIN_PROCESS] = op_join_process,
    [OP_TASKS] = op_tasks,
    [OP_UNSHARE] = op_unshare,
    [OP_LOOPBACK] = op_loopback,
    [OP_KEYRING] = op_keyring,
    [OP_PROPAGATION] = op_propagation,
    [OP_ROOT] = op_root,
    [OP_MOUNT] = op_mount,
    [OP_BIND] = op_bind,
    [OP_BIND_PART] = op_bind,
    [OP_OWNERS] = op_owners,
    [OP_ALIVE] = op_alive,
    [OP_ATTRIBUTES] = op_attributes,
    [OP_MKNOD] = op_mknod,
    [OP_SYMLINK] = op_symlink,
    [OP_CONSOLE] = op_console,
    [OP_MASK] = op_mask,
    [OP_READONLY] = op_readonly,
    [OP_SYSCTL] = op_sysctl,
    [OP_HOSTNAME] = op_hostname,
    [OP_DOMAINNAME] = op_hostname,
    [OP_PIVOT] = op_pivot,
    [OP_RLIMIT] = op_rlimit,
    [OP_OOM_SCORE] = op_oom_score,
    [OP_CWD] = op_cwd,
    [OP_TERMINAL] = op_terminal,
    [OP_STDIO] = op_stdio,
    [OP_BOUNDING] = op_bounding,
    [OP_USER] = op_user,
    [OP_CAPABILITIES] = op_capabilities,
    [OP_NO_NEW_PRIVS] = op_no_new_privs,
    [OP_SECCOMP] = op_seccomp,
    [OP_UMASK] = op_umask,
    [OP_EXEC] = op_exec,
};

static void mark(struct launch_report *report, uint32_t op) {
    struct launch_mark *m = &report->mark[report->count++];
    m->op = op;
    m->error = 0;
    m->ns = clock_ns();
}

/* All dispositions to default, those of glibc's own signals too: Python ignores SIGPIPE, and handlers are addresses in our program. All
 * signals are blocked until OP_EXEC. */
static void reset_signals(void) {
    uint64_t action[8] = {0}; /* struct sigaction of the kernel: all zero is SIG_DFL on every architecture */
    for (int signal = 1; signal <= 64; signal++)
        syscall(SYS_rt_sigaction, signal, action, NULL, 8);
}

static int run_child(void *argument) {
    struct child *c = argument;
    struct launch_report *report = c->report;
    struct plan_op *op = (void *)(c->plan + 1);
    uint32_t index = 0;
    int error;
    reset_signals();
    setsid();
    umask(0);
    error = c->place ? place_self(c, op->slot[0].text) : 0;
    while (!error) {
        index++;
        op = (void *)((char *)op + op->size);
        mark(report, index);
        error = operations[op->code](c, op);
    }
    report->failed = (int32_t)index;
    report->error = error;
    syscall(SYS_exit_group, 127);
    return 0;
}

struct clone_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

/* clone3 onto a new stack: the C library has no such function. Elsewhere its clone() does, without groups. */
static long start(struct clone_arguments *args, struct child *c) {
#if defined(__x86_64__)
    long result;
    register int (*function)(void *) __asm__("r12") = run_child;
    register void *argument __asm__("r13") = c;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %%r13, %%rdi\n\t"
                     "call *%%r12\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"(SYS_clone3), "D"(args), "S"(sizeof *args), "r"(function), "r"(argument)
                     : "rcx", "r11", "memory", "cc");
    if (result >= 0)
        return result;
    errno = (int)-result;
    return -1;
#elif defined(__aarch64__)
    register long number __asm__("x8") = SYS_clone3;
    register long result __asm__("x0") = (long)args;
    register long size __asm__("x1") = sizeof *args;
    register int (*function)(void *) __asm__("x20") = run_child;
    register void *argument __asm__("x21") = c;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, x21\n\t"
                     "blr x20\n\t"
                     "brk #1\n"
                     "1:"
                     : "+r"(result)
                     : "r"(number), "r"(size), "r"(function), "r"(argument)
                     : "memory", "cc");
    if (result >= 0)
        return result;
    errno = (int)-result;
    return -1;
#else
    (void)args, (void)c;
    errno = ENOSYS;
    return -1;
#endif
}

static int start_in_group(struct clone_arguments *args, struct child *c, const char *directory) {
    long pid;
    int group = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (group < 0)
        return -1;
    args->flags |= INTO_CGROUP;
    args->cgroup = (uint64_t)group;
    pid = start(args, c);
    args->flags &= ~INTO_CGROUP;
    args->cgroup = 0;
    close(group);
    return (int)pid;
}

/* The pid, or -1. Kernels before 5.7 cannot clone into a group, before 5.3 have no clone3. */
static int start_anyhow(struct clone_arguments *args, struct child *c, const char *directory) {
    int pid = -1;
    if (directory) {
        pid = start_in_group(args, c, directory);
        if (pid >= 0 || (errno != EINVAL && errno != E2BIG && errno != ENOSYS))
            return pid;
        c->place = 1;
        args->cgroup = 0;
    }
    pid = (int)start(args, c);
    if (pid < 0 && errno == ENOSYS)
        pid = clone(run_child, (void *)(uintptr_t)(args->stack + args->stack_size), (int)(args->flags | args->exit_signal), c,
                    (int *)(uintptr_t)args->pidfd);
    return pid;
}

static int enter_pid_namespace(struct child *c, struct plan_op *op) {
    int fd, error;
    if (op->code == OP_JOIN) {
        fd = open(op->slot[0].text, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return errno;
        error = failed(setns(fd, CLONE_NEWPID));
        close(fd);
        return error;
    }
    c->join = (int)syscall(SYS_pidfd_open, (pid_t)op->arg[0], 0);
    if (c->join < 0)
        return errno;
    if (op->arg[1] && start_time((pid_t)op->arg[0]) != op->arg[1])
        return ESRCH; /* the number names another process by now */
    return op->arg[2] & CLONE_NEWPID ? failed(setns(c->join, CLONE_NEWPID)) : 0;
}

/* setns to a pid namespace acts on the caller's children only, so it is the parent that enters, for the time of the clone. `back` becomes
 * a descriptor of the namespace to return to, or stays -1. */
static int enter(struct child *c, int *back) {
    struct plan_op *op = (void *)(c->plan + 1);
    for (uint32_t i = 0; i < c->plan->count; i++, op = (void *)((char *)op + op->size)) {
        int error, pid = op->code == OP_JOIN ? op->arg[0] == CLONE_NEWPID : op->code == OP_JOIN_PROCESS;
        if (!pid)
            continue;
        if (*back < 0 && (*back = open("/proc/thread-self/ns/pid_for_children", O_RDONLY | O_CLOEXEC)) < 0)
            error = errno;
        else
            error = c->join >= 0 && op->code == OP_JOIN_PROCESS ? EINVAL : enter_pid_namespace(c, op);
        if (error) {
            c->report->failed = (int32_t)i;
            return error;
        }
    }
    return 0;
}

/* A plain clone's child reports through shared memory, and exec or its end closes the pipe. */
static int start_plain(struct clone_arguments *args, struct child *c, const char *directory) {
    struct launch_report *report = c->report;
    struct launch_report *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ends[2], pid = -1, error;
    char byte;
    if (shared == MAP_FAILED)
        return -1;
    *shared = *report;
    if (pipe2(ends, O_CLOEXEC) == 0) {
        c->report = shared;
        c->ready = ends[1];
        pid = start_anyhow(args, c, directory);
        error = errno;
        close(ends[1]);
        while (pid >= 0 && read(ends[0], &byte, 1) < 0 && errno == EINTR)
            ;
        close(ends[0]);
        c->report = report;
        c->ready = -1;
        *report = *shared;
        errno = error;
    }
    error = errno;
    munmap(shared, sizeof *shared);
    errno = error;
    return pid;
}

/* Sockets for a plan that makes a terminal. The child cannot put the master among our descriptors, it has a copy of them. */
static int prepare_terminal(struct child *c) {
    struct plan_op *op = (void *)(c->plan + 1);
    for (uint32_t i = 0; i < c->plan->count; i++, op = (void *)((char *)op + op->size))
        if (op->code == OP_TERMINAL)
            return failed(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, c->terminal));
    return 0;
}

/* The master, or -1 when the child never sent it. */
static int receive_terminal(struct child *c) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    char byte;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    int master = -1;
    if (c->terminal[0] < 0)
        return -1;
    if (recvmsg(c->terminal[0], &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) > 0 && message.msg_controllen >= sizeof control.header &&
        control.header.cmsg_type == SCM_RIGHTS)
        memcpy(&master, CMSG_DATA(&control.header), sizeof master);
    close(c->terminal[0]);
    close(c->terminal[1]);
    return master;
}

static int clone_child(struct child *c, uint8_t *stack, int *pidfd) {
    struct plan_op *op = (void *)(c->plan + 1);
    struct clone_arguments args = {
        .flags = (op->arg[0] & 0xffffffffu) | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = STACK_SIZE,
    };
    mark(c->report, 0);
    if (op->arg[1] & CLONE_PLAIN)
        return start_plain(&args, c, op->slot[0].text);
    args.flags |= CLONE_VM | CLONE_VFORK;
    return start_anyhow(&args, c, op->slot[0].text);
}

/* With all signals blocked: a handler that ran in the child would run in our memory. */
static int clone_blocked(struct child *c, uint8_t *stack) {
    struct launch_report *report = c->report;
    uint64_t all = ~(uint64_t)0, before;
    int back = -1, pid = -1, pidfd = -1, error;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    error = enter(c, &back);
    if (!error) {
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
        pid = clone_child(c, stack, &pidfd);
        if (pid < 0) {
            error = errno;
            report->failed = 0;
        }
    }
    if (back >= 0) {
        if (setns(back, CLONE_NEWPID) < 0)
            abort(); /* every later child of this thread would be born inside the container */
        close(back);
    }
    if (c->join >= 0)
        close(c->join);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
    report->pid = pid > 0 ? pid : 0;
    report->pidfd = pidfd;
    return error;
}

static void reap(struct launch_report *report) {
    siginfo_t info;
    while (waitid(P_PID, (id_t)report->pid, &info, WEXITED | __WALL) < 0 && errno == EINTR)
        ;
    close(report->pidfd);
    report->pid = 0;
    report->pidfd = -1;
}

static int launch_at(uint8_t *memory, const uint8_t *plan, size_t len, const int stdio[3], struct launch_report *report) {
    struct child *c = (void *)(memory + STACK_SIZE);
    uint8_t *copy = memory + STACK_SIZE + ((sizeof *c + 15) & ~(size_t)15);
    uint32_t count;
    int error;
    memcpy(copy, plan, len);
    if (knarr_plan_check(copy, len, &count) != 0) {
        report->error = EBADMSG;
        return -1;
    }
    plan_load(copy);
    c->plan = (void *)copy;
    c->report = report;
    memcpy(c->stdio, stdio, sizeof c->stdio);
    c->ready = c->join = c->root = c->null = c->masked = c->parent = -1;
    for (int i = 0; i < KEPT_TREES; i++)
        c->tree[i] = -1;
    c->terminal[0] = c->terminal[1] = -1;
    error = prepare_terminal(c);
    if (!error)
        error = clone_blocked(c, memory);
    report->terminal = receive_terminal(c);
    if (!error && !report->error)
        return mark(report, count), 0;
    if (error)
        report->error = error;
    else
        reap(report);
    if (report->terminal >= 0)
        close(report->terminal);
    report->terminal = -1;
    return -1;
}

static int knarr_launch(const uint8_t *plan, size_t len, const int stdio[3], struct launch_report *report) {
    size_t size = STACK_SIZE + ((sizeof(struct child) + 15) & ~(size_t)15) + len;
    uint8_t *memory;
    int result;
    report->pid = report->error = 0;
    report->pidfd = report->failed = report->terminal = -1;
    report->count = 0;
    if (len > PLAN_MAX) {
        report->error = EBADMSG;
        return -1;
    }
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        report->error = errno;
        return -1;
    }
    result = launch_at(memory, plan, len, stdio, report);
    munmap(memory, size);
    return result;
}

#endif
