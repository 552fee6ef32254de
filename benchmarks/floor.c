/* The bare system calls of a `run --rm --network none busybox true`, without any engine: what the kernel alone costs.
 *
 * One clone3(CLONE_VM|CLONE_VFORK) into new namespaces (the v2 group where there is one), then what a container with Docker's defaults
 * needs, by the shortest way this author knows, then exec and wait. Compile with: cc -O2 -static -o floor floor.c
 *
 *   floor [-s seccomp file] [-N] ROOT [iterations [gap ms]]
 *
 * ROOT: a root file system with /bin/true, used as the lower layer (missing mount points are made in it); beside it, on the file system where
 * an engine would keep its snapshots, ROOT.floor holds the upper layers and is removed at the end, as are the control groups.
 * -N: the host's network instead of a fresh namespace. -s: raw struct sock_filter array, default a filter of 240 instructions.
 * Prints a line {"exec_ns": N, "exit_ns": N} for each: from before the clone to the exec, and to the return of waitid.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEEP 0xa80425fbull /* Docker's default capabilities */
#define MAX_GROUPS 16
#define LENGTH(a) (sizeof(a) / sizeof *(a))

static char scratch[PATH_MAX], lower[PATH_MAX], data[2 * PATH_MAX], group_name[64], v2[300];
static char group[MAX_GROUPS][300], tasks[MAX_GROUPS][320], controller[MAX_GROUPS][64];
static int groups, host_network;
static struct sock_filter filter[4096] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, 0}};
static struct sock_fprog program = {240, filter};
static const char *volatile step = "";
static volatile int step_errno;

static void die(const char *what) {
    perror(what);
    exit(1);
}

#define DO(call)                                                                                                                           \
    do {                                                                                                                                   \
        if ((call) < 0) {                                                                                                                  \
            step = #call;                                                                                                                  \
            step_errno = errno;                                                                                                            \
            _exit(127);                                                                                                                    \
        }                                                                                                                                  \
    } while (0)

static void put(const char *path, const char *text) {
    int fd;
    DO(fd = open(path, O_WRONLY | O_CLOEXEC));
    DO(write(fd, text, strlen(text)));
    close(fd);
}

static void loopback(void) {
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd;
    DO(fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    DO(ioctl(fd, SIOCSIFFLAGS, &lo));
    close(fd);
}

static void file_systems(void) {
    static const char *files[] = {"resolv.conf", "hostname", "hosts"};
    char source[PATH_MAX + 32], target[300];
    DO(mount("proc", "proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
    DO(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
    DO(mkdir("dev/pts", 0755));
    DO(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
    DO(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL));
    if (groups == 0) {
        DO(mount("cgroup", "sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL));
    } else {
        DO(mount("tmpfs", "sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=755"));
        for (int i = 0; i < groups; i++) {
            stpcpy(stpcpy(target, "sys/fs/cgroup/"), controller[i]);
            DO(mkdir(target, 0755));
            DO(mount(group[i], target, NULL, MS_BIND, NULL));
            DO(mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
        }
        DO(mount(NULL, "sys/fs/cgroup", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
    }
    DO(mkdir("dev/mqueue", 0755));
    DO(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
    DO(mkdir("dev/shm", 0755));
    DO(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=67108864"));
    for (unsigned i = 0; i < LENGTH(files); i++) {
        stpcpy(stpcpy(stpcpy(source, scratch), "/files/"), files[i]);
        stpcpy(stpcpy(target, "etc/"), files[i]);
        DO(mount(source, target, NULL, MS_BIND, NULL));
    }
}

static void devices(void) {
    static const struct { const char *path; int major, minor; } nodes[] = {
        {"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0}};
    static const char *links[][2] = {{"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
                                     {"/proc/self/fd/2", "dev/stderr"}, {"/proc/kcore", "dev/core"}, {"pts/ptmx", "dev/ptmx"}};
    for (unsigned i = 0; i < LENGTH(nodes); i++)
        DO(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
    for (unsigned i = 0; i < LENGTH(links); i++)
        DO(symlink(links[i][0], links[i][1]));
}

static void hide(void) {
    static const char *masked[] = {"proc/asound", "proc/acpi", "proc/interrupts", "proc/kcore", "proc/keys", "proc/latency_stats",
                                   "proc/timer_list", "proc/timer_stats", "proc/sched_debug", "proc/scsi", "sys/firmware",
                                   "sys/devices/virtual/powercap"};
    static const char *readonly[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
    for (unsigned i = 0; i < LENGTH(masked); i++)
        if (mount("/dev/null", masked[i], NULL, MS_BIND, NULL) < 0 && errno == ENOTDIR)
            DO(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "nr_blocks=1,nr_inodes=1,mode=755"));
    for (unsigned i = 0; i < LENGTH(readonly); i++)
        if (mount(readonly[i], readonly[i], NULL, MS_BIND | MS_REC, NULL) == 0)
            DO(mount(NULL, readonly[i], NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
}

static void identity(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2] = {{(uint32_t)KEEP, (uint32_t)KEEP, 0}, {0, 0, 0}};
    struct rlimit files;
    uint64_t none = 0;
    DO(getrlimit(RLIMIT_NOFILE, &files));
    files.rlim_cur = 1024;
    DO(setrlimit(RLIMIT_NOFILE, &files));
    for (int cap = 0; cap < 64; cap++)
        if (!(KEEP >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            break;
    DO(syscall(SYS_setgroups, 0, NULL));
    DO(syscall(SYS_setresgid, 0, 0, 0));
    DO(syscall(SYS_setresuid, 0, 0, 0));
    umask(022);
    DO(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
    DO(syscall(SYS_capset, &header, caps));
    DO(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, NULL, sizeof none));
    DO(syscall(SYS_close_range, 3, ~0u, 0));
}

static int child(void *unused) {
    static char *argv[] = {"true", NULL}, *env[] = {"PATH=/bin", "HOME=/root", NULL};
    uint64_t action[8] = {0};
    (void)unused;
    for (int i = 1; i <= 64; i++)
        syscall(SYS_rt_sigaction, i, action, NULL, 8);
    setsid();
    umask(0);
    for (int i = 0; i < groups; i++)
        put(tasks[i], "0");
    DO(unshare(CLONE_NEWCGROUP));
    if (!host_network)
        loopback();
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    DO(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL));
    DO(chdir(scratch));
    DO(mount("overlay", "root", "overlay", 0, data));
    DO(chdir("root"));
    file_systems();
    devices();
    hide();
    DO(sethostname("floor", 5));
    if (!host_network) {
        put("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
        put("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    }
    DO(syscall(SYS_pivot_root, ".", "."));
    DO(umount2(".", MNT_DETACH));
    DO(chdir("/"));
    identity();
    DO(execve("/bin/true", argv, env));
    return 0;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct clone_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

static long clone3_on_stack(struct clone_arguments *args) {
    long result;
#if defined(__x86_64__)
    register int (*function)(void *) __asm__("r12") = child;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%edi, %%edi\n\tcall *%%r12\n\thlt\n1:"
                     : "=a"(result)
                     : "0"(SYS_clone3), "D"(args), "S"(sizeof *args), "r"(function)
                     : "rcx", "r11", "memory", "cc");
#else
    int pidfd; /* without CLONE_INTO_CGROUP: the group is not joined on v2, which flatters the floor */
    result = clone(child, (void *)(uintptr_t)(args->stack + args->stack_size), (int)(args->flags & 0xffffffff) | SIGCHLD, NULL, &pidfd);
    *(int *)(uintptr_t)args->pidfd = pidfd;
    if (result < 0)
        result = -errno;
#endif
    return result;
}

static void once(void *stack, size_t stack_size, uint64_t *to_exec, uint64_t *to_exit) {
    static int pidfd;
    struct clone_arguments args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC,
        .pidfd = (uint64_t)(uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = stack_size,
    };
    uint64_t all = ~(uint64_t)0, before, start = now();
    siginfo_t info;
    long pid;
    int directory = -1;
    if (!host_network)
        args.flags |= CLONE_NEWNET;
    if (v2[0]) {
        directory = open(v2, O_PATH | O_DIRECTORY | O_CLOEXEC);
        args.flags |= 0x200000000ull; /* CLONE_INTO_CGROUP */
        args.cgroup = (uint64_t)directory;
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
    pid = clone3_on_stack(&args);
    *to_exec = now() - start;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof before);
    if (directory >= 0)
        close(directory);
    if (pid < 0) {
        errno = (int)-pid;
        die("clone3");
    }
    waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
    *to_exit = now() - start;
    close(pidfd);
    if (info.si_status != 0) {
        fprintf(stderr, "%s: %s\n", step, strerror(step_errno));
        exit(1);
    }
}

static void shell(const char *format, const char *a, const char *b) {
    char command[4 * PATH_MAX];
    snprintf(command, sizeof command, format, a, b);
    if (system(command) != 0)
        die(command);
}

/* A group of our own in the v2 hierarchy, wherever it is mounted, and in those of v1 that a container without limits needs: memory, whose
 * use is to be counted, and devices, which are to be refused. */
static void make_groups(void) {
    char mounts[1 << 16] = "", path[300], type[64];
    FILE *f = fopen("/proc/self/mounts", "r");
    snprintf(group_name, sizeof group_name, "knarr-floor-%d", (int)getpid());
    while (f && fgets(mounts, sizeof mounts, f)) {
        if (sscanf(mounts, "%*s %299s %63s", path, type) != 2 || strncmp(path, "/sys/fs/cgroup", 14) != 0)
            continue;
        if (strcmp(type, "cgroup2") == 0) {
            snprintf(v2, sizeof v2, "%.200s/%.60s", path, group_name);
            if (mkdir(v2, 0755) < 0)
                die(v2);
        } else if (strcmp(type, "cgroup") == 0 && groups < MAX_GROUPS && (strstr(path, "/memory") || strstr(path, "/devices"))) {
            snprintf(controller[groups], sizeof controller[groups], "%.60s", strrchr(path, '/') + 1);
            snprintf(group[groups], sizeof group[groups], "%.200s/%.60s", path, group_name);
            snprintf(tasks[groups], sizeof tasks[groups], "%s/tasks", group[groups]);
            if (mkdir(group[groups], 0755) < 0)
                die(group[groups]);
            groups++;
        }
    }
    if (f)
        fclose(f);
}

static void remove_groups(void) {
    usleep(100000); /* the last process's release */
    for (int i = 0; i < groups; i++)
        rmdir(group[i]);
    if (v2[0])
        rmdir(v2);
}

static void make_tree(void) {
    if (snprintf(scratch, sizeof scratch, "%s.floor", lower) >= (int)sizeof scratch)
        die("path too long");
    snprintf(data, sizeof data, "lowerdir=%s,upperdir=upper,workdir=work", lower);
    shell("cd '%s' && mkdir -p etc proc dev sys && : >> etc/resolv.conf && : >> etc/hostname && : >> etc/hosts", lower, NULL);
    shell("mkdir '%s' && cd '%s' && mkdir files root && touch files/resolv.conf files/hostname files/hosts", scratch, scratch);
}

/* A container's writable layer, made at create and removed after, so outside the measured time. */
static void layer(int make) {
    if (make)
        shell("mkdir '%s/upper' '%s/work'", scratch, scratch);
    else
        shell("rm -rf '%s/upper' '%s/work'", scratch, scratch);
}

/* After a pause a processor is slow for a while. An engine's has been woken by the request when it gets to the clone; so has this one. */
static void wake_up(void) {
    uint64_t end = now() + 700000;
    while (now() < end)
        ;
}

static void read_filter(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f)
        die(path);
    program.len = (unsigned short)fread(filter, sizeof *filter, LENGTH(filter), f);
    fclose(f);
}

int main(int argc, char **argv) {
    int n, gap, option;
    size_t stack_size = 64 << 10;
    char *stack = aligned_alloc(4096, stack_size);
    uint64_t to_exec, to_exit;
    for (int i = 1; i < 239; i++)
        filter[i] = (struct sock_filter){BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 0x10000000u + (unsigned)i};
    filter[239] = (struct sock_filter){BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
    while ((option = getopt(argc, argv, "s:N")) != -1) {
        if (option == 's')
            read_filter(optarg);
        else if (option == 'N')
            host_network = 1;
        else
            return 2;
    }
    if (optind >= argc || !stack || !realpath(argv[optind], lower)) {
        fprintf(stderr, "usage: floor [-s seccomp file] [-N] ROOT [iterations [gap ms]]\n");
        return 2;
    }
    n = optind + 1 < argc ? atoi(argv[optind + 1]) : 50;
    gap = optind + 2 < argc ? atoi(argv[optind + 2]) : 50;
    make_tree();
    make_groups();
    atexit(remove_groups);
    for (int i = 0; i < n; i++) {
        layer(1);
        usleep((useconds_t)gap * 1000);
        wake_up();
        once(stack, stack_size, &to_exec, &to_exit);
        layer(0);
        printf("{\"exec_ns\": %llu, \"exit_ns\": %llu}\n", (unsigned long long)to_exec, (unsigned long long)to_exit);
    }
    shell("rm -rf '%s'", scratch, NULL);
    return 0;
}
