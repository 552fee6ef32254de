"""Docker's default seccomp profile as data: which system calls a container may make, by what they are for.

Owns the table; the meaning of a rule is in `seccomp.py`. The set of names, conditions and error numbers is that of Docker's published
default profile (moby/profiles, seccomp/default.json, 2026); names follow libseccomp, so a name may exist on some architectures only.
Not here, so refused with EPERM: the kernel's keyrings, kexec, io_uring, userfaultfd, swap, NFS, nested namespaces without CAP_SYS_ADMIN.
"""

from __future__ import annotations

# Always allowed, whatever the arguments.
ALWAYS = {
    "files": (
        "access cachestat chdir chmod close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fadvise64_64 "
        "fallocate fchdir fchmod fchmodat fchmodat2 fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync "
        "ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl link linkat listmount _llseek lseek lstat lstat64 mkdir mkdirat "
        "mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead "
        "readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statmount statx "
        "symlink symlinkat sync sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 "
        "utimes vmsplice write writev"
    ),
    "owners and attributes": (
        "chown chown32 fchown fchown32 fchownat fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lchown lchown32 lgetxattr "
        "listxattr listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat"
    ),
    "waiting for descriptors": (
        "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 "
        "fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch _newselect pipe pipe2 poll ppoll ppoll_time64 "
        "pselect6 pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime "
        "timerfd_settime64"
    ),
    "asynchronous input and output": (
        "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioprio_get ioprio_set"
    ),
    "sockets": (
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send "
        "sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair"
    ),
    "processes": (
        "execve execveat exit exit_group fork vfork getcpu getpgid getpgrp getpid getppid getpriority get_robust_list getrusage getsid "
        "get_thread_area gettid kill pause pidfd_open pidfd_send_signal prctl process_mrelease restart_syscall rseq set_robust_list "
        "set_thread_area set_tid_address setpgid setpriority setsid tgkill tkill uretprobe wait4 waitid waitpid"
    ),
    "users and rights": (
        "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid "
        "getresuid32 getuid getuid32 landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp setfsgid setfsgid32 "
        "setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 "
        "setreuid setreuid32 setuid setuid32"
    ),
    "limits and scheduling": (
        "getrlimit prlimit64 sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min "
        "sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam "
        "sched_setscheduler sched_yield setrlimit ugetrlimit"
    ),
    "signals": (
        "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 "
        "rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn"
    ),
    "time": (
        "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep "
        "clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime "
        "timer_gettime64 timer_settime timer_settime64 times"
    ),
    "memory": (
        "brk futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake madvise map_shadow_stack membarrier memfd_create "
        "memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free "
        "pkey_mprotect remap_file_pages"
    ),
    "messages, semaphores, shared memory": (
        "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl "
        "msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget"
    ),
    "the system": "getrandom riscv_hwprobe sysinfo uname",
}

# Allowed by kernel version: tracing is safe since 4.8, where a tracer cannot change a call after the filter looked at it.
SINCE_KERNEL = {"4.8": "process_vm_readv process_vm_writev ptrace"}

# Allowed on these architectures (Docker's names) only.
BY_ARCH = {
    ("ppc64le",): "sync_file_range2 swapcontext",
    ("arm", "arm64"): "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    ("amd64", "x32"): "arch_prctl",
    ("amd64", "x32", "x86"): "modify_ldt",
    ("s390", "s390x"): "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    ("riscv64",): "riscv_flush_icache",
}

# Allowed to a container that has the capability.
BY_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules "
        "lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns "
        "syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

# socket(2) by address family: all below 12 and these. Left out: DECnet, Econet, ATM SVC, IrDA, WANPIPE, ISDN, CAIF, the kernel's crypto
# (38) and virtual machine sockets (40), which are not namespaced or a history of kernel bugs.
SOCKET_FAMILIES_BELOW = 12
SOCKET_FAMILIES = (13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43, 44, 45)

# personality(2): Linux and 32-bit Linux, each also with UNAME26; all ones asks for the current one.
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)

# clone(2) flags that make namespaces: NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET.
NAMESPACE_FLAGS = 0x7E020000

ARCH_MAP = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
}
